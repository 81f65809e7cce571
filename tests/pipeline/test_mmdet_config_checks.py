"""Plain mmdet configs: what is wrong with them is said before a training, all at once, each with a fix that works."""

import copy
import json
import re
import shlex
import signal

import pytest
import torch
from click.testing import CliRunner
from mmcv import ConfigDict
from mmcv.runner import HOOKS, Hook
from mmdet.models import build_detector

from helpers.plain_config import META, TEXT
from helpers.tiny import detector, retinanet
from mtpd.cli.main import main
from mtpd.config.files import set_class_count
from mtpd.engine import pipelines
from mtpd.engine.pipelines import quiet_dataset
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline import config_checks, mmdet_config
from mtpd.utils.paths import packaged_configs

CASCADE = 'mmdet::cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py'
KEY = 'bbox_head.retina_cls.weight'
FROZEN = {'optimizer.lr': 1e-12, 'optimizer.weight_decay': 0.0, 'runner.max_epochs': 1}


@pytest.fixture(scope='module')
def root(tmp_path_factory, tiny_coco):
    return tiny_coco(tmp_path_factory.mktemp('data') / 'pets')


@pytest.fixture(scope='module')
def path(tmp_path_factory, root):
    return written(tmp_path_factory.mktemp('config') / 'pets.py', root)


def written(file, root, change=lambda text: text):
    text = TEXT.format(model=retinanet(num_classes=2), root=str(root), meta=META)
    file.write_text(change(text))
    return file


def problems_of(config, overrides=None, out=None) -> list[str]:
    """What stops the training of a config, for all splits; [] where nothing does."""
    loaded = mmdet_config.load_config(config, overrides or {})
    return mmdet_config.training_problems(loaded, out or loaded.source.parent / 'none')


def the_problem(config, overrides=None) -> str:
    (text,) = problems_of(config, overrides)
    return text


def advised_options(text: str) -> list[str]:
    """The words after each --cfg-options of a message, as a shell splits them."""
    words = []
    for advice in re.findall(
        r'--cfg-options ("[^"]*"(?: [\w.]+=[^ ]+)*|[^ ]+=[^ ]+(?: [\w.]+=[^ ]+)*)', text
    ):
        words += shlex.split(advice)
    return words


def overrides_of(words: list[str]) -> dict:
    return mmdet_config.as_overrides(' '.join(words))


# --- all at once, and each fix ------------------------------------------------------------------

WRONG = {
    'workflow': ("workflow=[('train',1),('val',1)]", r'workflow is .*val.*losses'),
    'resume_from': ('resume_from=work_dirs/x/latest.pth', r'resume_from is work_dirs/x/latest\.pth'),
    'VOC metric': ('evaluation.metric=mAP', r'evaluation\.metric is mAP: COCO has bbox, segm'),
    'best of VOC': ('evaluation.save_best=mAP', r"evaluation\.save_best is 'mAP'"),
    'no evaluations': ('evaluation.interval=0', r'evaluation\.interval is 0'),
    'a logger without its package': (
        "log_config.hooks=[{'type':'TextLoggerHook'},{'type':'DvcliveLoggerHook'}]",
        'DvcliveLoggerHook needs the package dvclive<1: pip install .dvclive<1',
    ),
    'classes in a text': ('data.train.dataset.classes=cat', "data.train.dataset.classes is 'cat', a text"),
    'heads of other classes': ('model.bbox_head.num_classes=5', 'the model has 5 classes in model.bbox_head.num_classes'),
    'load_from': ('load_from=gone.pth', r'load_from: checkpoint .*gone\.pth: no such file'),
}  # fmt: skip


OTHERS = {
    'epochs and updates': (
        "runner={'type':'IterBasedRunner','max_iters':4} lr_config.by_epoch=False",
        'runner has max_epochs and max_iters, and IterBasedRunner counts by max_iters alone',
    ),
    'a logger that pip cannot install': (
        "log_config.hooks=[{'type':'PaviLoggerHook'},{'type':'TextLoggerHook'}]",
        'PaviLoggerHook needs the module pavi, which pip cannot install',
    ),
    'a logger among the custom hooks': (
        "custom_hooks=[{'type':'NumClassCheckHook'},{'type':'SegmindLoggerHook'}]",
        r'custom_hooks: SegmindLoggerHook needs the module segmind\.tracking, which newer',
    ),
    'an average that nothing takes': (
        "custom_hooks=[{'type':'ExpMomentumEMAHook','priority':49}] runner={'type':'IterBasedRunner','max_iters':4,'max_epochs':None} "
        'checkpoint_config.by_epoch=False lr_config.by_epoch=False',
        'custom_hooks: ExpMomentumEMAHook puts its average .* an IterBasedRunner has no epochs',
    ),
}


@pytest.mark.parametrize('name', WRONG | OTHERS)
def test_a_fault_is_named_with_a_fix_that_works(path, name):
    option, pattern = (WRONG | OTHERS)[name]
    text = the_problem(path, option)
    assert re.search(pattern, text), text
    words = [word for word in advised_options(text) if not word.startswith('load_from=work_dirs')]
    assert words, text
    if name == 'classes in a text':  # the list that mmdet wants; which classes, the user knows
        assert words == ["data.train.dataset.classes=['cat']"]
        words = ["data.train.dataset.classes=['cat','dog']"]
    assert problems_of(path, overrides_of([option, *words])) == []


def test_a_misspelt_setting_of_the_runner_is_named(path):
    text = the_problem(path, {'runner.max_epoch': 3})
    assert text == "unknown key 'runner.max_epoch'. Did you mean 'runner.max_epochs'?"


def test_all_faults_come_in_one_message_and_before_anything_is_written(path, tmp_path):
    more = [
        ('optimizer.type=SDG', "Did you mean 'ASGD'|unknown optimizer.type 'SDG'"),
        ('lr_config.policy=stepp', "unknown lr_config.policy 'stepp'"),
        ('optimizer_config.grad_clip.max_nrm=3', 'optimizer_config.grad_clip is .*max_nrm'),
        ('evaluation.iou_thr=0.5', "evaluation: unknown key 'iou_thr'"),
        ("custom_hooks=[{'type':'NumClassCheckHok'}]", 'custom_hooks is .*NumClassCheckHok'),
    ]
    faults = [*WRONG.values(), *more]
    options = ' '.join(option for option, _ in faults)
    out = tmp_path / 'run'
    result = CliRunner().invoke(
        main, ['train', str(path), '--work-dir', str(out), '--cfg-options', options]
    )
    assert result.exit_code == 2 and 'Traceback' not in result.output
    for _, pattern in faults[:7] + faults[8:]:
        assert re.search(pattern, result.output), (pattern, result.output)
    assert not (out / 'config.py').exists() and not (out / 'latest.pth').exists()


def test_a_config_of_mmdets_own_has_no_problems_beside_its_data(path):
    assert problems_of(path) == []


# --- the number of classes ----------------------------------------------------------------------


def test_heads_in_a_cascade_are_named_each_and_the_options_size_them():
    wrong = {
        'model.roi_head.bbox_head.0.num_classes': 20,
        'model.roi_head.bbox_head.2.num_classes': 20,
        'model.roi_head.mask_head.num_classes': 20,  # one config for three stages
    }
    classes = tuple(f'c{k}' for k in range(80))

    def check(overrides):
        config = mmdet_config.load_config(CASCADE, overrides)
        model = build_detector(copy.deepcopy(config.cfg.model))
        return config_checks.detector_problems(config.cfg, model, classes, 'train')

    (text,) = check(wrong)
    assert 'the model has 20 classes' in text and 'data.train has 80 (c0, c1, c2, ...)' in text
    fix = overrides_of(advised_options(text))
    assert fix == dict.fromkeys(wrong, 80)
    assert check(wrong | fix) == []


def test_a_head_that_states_no_number_has_mmdets_default(path):
    """80, in box heads."""
    cfg = ConfigDict(model=dict(roi_head=dict(bbox_head=dict(type='Shared2FCBBoxHead'))))
    model = torch.nn.Module()
    model.roi_head = torch.nn.Module()
    model.roi_head.bbox_head = torch.nn.Linear(1, 1)
    model.roi_head.bbox_head.num_classes = 80
    (text,) = config_checks.class_count_problems(cfg, model, ('cat', 'dog'), 'train')
    assert advised_options(text) == ['model.roi_head.bbox_head.num_classes=2']


def test_evaluating_with_heads_of_other_classes_is_refused(path, tmp_path):
    state = detector(retinanet(num_classes=5), 1).state_dict()
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'a.pth')
    config = mmdet_config.load_config(path, {'model.bbox_head.num_classes': 5})
    with pytest.raises(RecipeError, match=r'has 5 classes .* and data\.test has 2'):
        mmdet_config.evaluate_config(config, tmp_path / 'a.pth')


def test_data_root_sizes_instance_segmentation_by_queries(root):
    """Things in place of classes, a weight for each in the loss, and one for no object."""
    name = 'mmdet::mask2former/mask2former_r50_lsj_8x2_50e_coco.py'
    cfg = mmdet_config.load_config(name, {'data.root': str(root)}).cfg
    head = cfg.model.panoptic_head
    assert (head.num_things_classes, head.num_stuff_classes) == (2, 0)
    assert head.loss_cls.class_weight == [1.0, 1.0, 0.1]
    assert cfg.model.panoptic_fusion_head.num_things_classes == 2


def test_proposals_and_semantic_maps_are_not_sized_for_the_classes():
    model = {
        'rpn_head': {'num_classes': 1},
        'roi_head': {
            'semantic_head': {'num_classes': 183},
            'bbox_head': [
                {'num_classes': 80, 'loss_cls': {'num_classes': 80}},
                {'num_classes': 80},
            ],
        },
    }
    set_class_count(model, 3)
    assert model['rpn_head'] == {'num_classes': 1}
    assert model['roi_head']['semantic_head'] == {'num_classes': 183}
    first, second = model['roi_head']['bbox_head']
    assert (
        first == {'num_classes': 3, 'loss_cls': {'num_classes': 3}} and second['num_classes'] == 3
    )


# --- weights to begin with ----------------------------------------------------------------------


@pytest.fixture(scope='module')
def model():
    return detector(retinanet(num_classes=2), seed=1)


def trained(path, tmp_path, **overrides):
    """The weights of one epoch at next to no rate, from `load_from`; and what was printed."""
    options = FROZEN | {'evaluation': None} | overrides
    arguments = ['train', str(path), '--work-dir', str(tmp_path / 'run'), '--cfg-options']
    result = CliRunner().invoke(
        main, [*arguments, ' '.join(f'{k}={v}' for k, v in options.items())]
    )
    assert result.exit_code == 0, (result.output, result.exception)
    return torch.load(tmp_path / 'run/model.pth', weights_only=True)['state_dict'], result.output


@pytest.mark.parametrize('prefix', ['student.', 'module.architecture.model.'])
def test_training_begins_with_the_student_of_load_from(path, tmp_path, model, prefix):
    state = {prefix + key: value for key, value in model.state_dict().items()}
    state[f'{prefix.replace("student.", "").replace("architecture.model.", "")}teacher.x.w'] = (
        torch.ones(1)
    )
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'latest.pth')
    weights, output = trained(path, tmp_path, load_from=tmp_path / 'latest.pth')
    count = len(model.state_dict())
    assert (
        f'load_from {tmp_path}/latest.pth: {count} of {count} weights taken from the file\n'
        in output
    )
    torch.testing.assert_close(weights[KEY], model.state_dict()[KEY], atol=1e-6, rtol=0)


def test_a_head_of_other_classes_is_left_and_counted(path, tmp_path):
    other = detector(retinanet(num_classes=5), seed=1).state_dict()
    torch.save(
        {'state_dict': other | {'extra.weight': torch.ones(1)}, 'meta': {}}, tmp_path / 'a.pth'
    )
    weights, output = trained(path, tmp_path, load_from=tmp_path / 'a.pth')
    count = len(other)
    assert f'{count - 2} of {count} weights taken' in output
    assert '2 kept as they were, since the shapes differ' in output
    assert f'{KEY} (2, 16, 3, 3) (5, 16, 3, 3)' in output
    assert '1 of the file left out, since the detector lacks them: extra.weight' in output
    for key in ('backbone.layer1.0.conv1.weight', 'neck.fpn_convs.0.conv.weight'):
        torch.testing.assert_close(weights[key], other[key], atol=1e-6, rtol=0)


def test_weights_that_match_nothing_are_refused(path, tmp_path, model):
    state = {f'x.{key}': value for key, value in model.state_dict().items()}
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'a.pth')
    text = the_problem(path, {'load_from': str(tmp_path / 'a.pth')})
    assert 'no weight in common' in text and 'x.backbone.conv1.weight' in text


@pytest.mark.long
def test_a_training_that_goes_on_does_not_begin_with_load_from_again(path, tmp_path, model, capsys):
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'a.pth')
    overrides = {'load_from': str(tmp_path / 'a.pth'), 'evaluation': None}
    run = tmp_path / 'run'

    def train(epochs):
        config = mmdet_config.load_config(path, overrides | {'runner.max_epochs': epochs})
        mmdet_config.train_config(config, run)
        return capsys.readouterr().out

    assert 'weights taken' in train(1)
    for name in ('model.pth', 'metrics.json', 'config.py'):
        (run / name).unlink()
    (tmp_path / 'a.pth').unlink()  # no longer needed
    printed = train(2)
    assert 'update 6/6' in printed and 'weights taken' not in printed


# --- data ---------------------------------------------------------------------------------------


def test_a_home_folder_in_paths_is_found(root, tmp_path, monkeypatch, model):
    monkeypatch.setenv('HOME', str(root.parent))
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, root.parent / 'home.pth')
    file = written(tmp_path / 'home.py', f'~/{root.name}')
    config = mmdet_config.load_config(file, {'load_from': '~/home.pth'})
    (leaf,) = mmdet_config.dataset_leaves(config.cfg.data.train)
    assert (leaf.ann_file, leaf.img_prefix) == (f'{root}/annotations/train.json', f'{root}/train')
    assert problems_of(file, {'load_from': '~/home.pth'}) == []
    (root.parent / 'home.pth').unlink()


def test_a_file_or_a_folder_that_is_not_there_is_named_by_its_key(path, root):
    key = 'data.train.dataset'
    text = the_problem(path, {f'{key}.ann_file': 'annotations/tran.json'})
    assert text.startswith(
        f'annotation file {root}/annotations/tran.json: no such file. Did you mean'
    )
    assert (
        f'{root}/annotations/train.json' in text
        and advised_options(text)[0] == f'{key}.ann_file=FILE.'
    )
    text = the_problem(path, {f'{key}.img_prefix': 'trian/'})
    assert f'{key}.img_prefix is {root}/trian: no such folder. Did you mean {root}/train?' in text
    assert advised_options(text)[0] == f'{key}.img_prefix=FOLDER'
    assert 'nowhere/train.json: neither the file nor its folder exists' in the_problem(
        path, {f'{key}.ann_file': 'nowhere/train.json'}
    )
    assert 'is a folder, but a file' in the_problem(path, {f'{key}.ann_file': 'annotations'})


def test_a_note_on_a_file_of_val_and_test_is_said_once(path, root, tmp_path, capsys):
    table = json.loads((root / 'annotations/val.json').read_text())
    for item in table['annotations']:
        item.pop('iscrowd', None)
    (tmp_path / 'bare.json').write_text(json.dumps(table))
    files = dict.fromkeys(('data.val.ann_file', 'data.test.ann_file'), f'{tmp_path}/bare.json')
    config = mmdet_config.load_config(path, files)
    pipelines.print_notes(mmdet_config.data_notes(config, ('train', 'val', 'test')))
    assert capsys.readouterr().err.count('bare.json: an object has no iscrowd') == 1


def test_class_names_may_lie_in_a_file(path, tmp_path):
    (tmp_path / 'names.txt').write_text('cat\ndog\n')
    files = dict.fromkeys(
        ('data.train.dataset.classes', 'data.val.classes', 'data.test.classes'),
        f'{tmp_path}/names.txt',
    )
    config = mmdet_config.load_config(path, files)
    assert [leaf.classes for leaf in mmdet_config.dataset_leaves(config.cfg.data.test)] == [
        ['cat', 'dog']
    ]
    assert mmdet_config.training_problems(config, tmp_path / 'none') == []


def test_another_order_of_classes_than_in_training_is_refused_with_a_fix_that_works(path):
    """A label is a place in `classes`: the numbers of cats would be those of dogs."""
    wrong = {'data.val.classes': ['dog', 'cat'], 'data.test.classes': ['cat']}
    val, test = problems_of(path, wrong)
    assert 'data.val has 2 classes (dog, cat) and data.train.dataset 2 (cat, dog)' in val
    assert 'data.test has 1 classes (cat)' in test
    assert problems_of(path, wrong | overrides_of(advised_options(f'{val}\n{test}'))) == []


def test_joined_files_are_looked_at_one_by_one(path, root, tmp_path):
    table = json.loads((root / 'annotations/train.json').read_text())
    table['categories'][1]['name'] = 'Dog'
    (tmp_path / 'second.json').write_text(json.dumps(table))
    joined = {
        'data.train.dataset.ann_file': [
            f'{root}/annotations/train.json',
            str(tmp_path / 'second.json'),
        ],
        'data.train.dataset.img_prefix': [f'{root}/train', f'{root}/train'],
    }
    text = the_problem(path, joined)
    assert 'second.json lacks 1 of the classes of the config: dog; it has cat, Dog' in text
    table['categories'].reverse()
    table['categories'][0]['name'] = 'dog'
    (tmp_path / 'second.json').write_text(json.dumps(table))
    assert problems_of(path, joined) == []
    data = quiet_dataset(mmdet_config.load_config(path, joined).cfg.data.train.dataset)
    labels = [data.get_ann_info(k)['labels'].tolist() for k in range(len(data))]
    assert labels == 2 * [[0], [0, 1], [0, 1]]  # by name, and not by the file's order
    folders = {'data.train.dataset.img_prefix': [f'{root}/train']}
    assert 'lists of different lengths' in the_problem(path, joined | folders)
    test = {'data.test.ann_file': joined['data.train.dataset.ann_file']}
    assert 'data.test joins 2 annotation files' in the_problem(path, test)


def test_a_dataset_of_mmdet_that_has_other_names_alone_is_coco(root, path):
    name = 'mmdet::deepfashion/mask_rcnn_r50_fpn_15e_deepfashion.py'
    leaf = mmdet_config.dataset_leaves(mmdet_config.load_config(name).cfg.data.train)[0]
    assert leaf.type == 'CocoDataset' and leaf.classes[:2] == ('top', 'skirt')
    lvis = 'mmdet::lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1.py'
    problems = problems_of(lvis)
    assert 'data.train.dataset is not a COCO-format dataset (LVISV1Dataset)' in problems[0]


def test_keys_that_a_dataset_does_not_know_are_named(path):
    assert (
        "mmdet cannot build the dataset data.val: got an unexpected keyword argument 'img_prefx'"
        in the_problem(path, {'data.val.img_prefx': 'x'})
    )


@pytest.mark.parametrize(
    'name, pattern',
    [
        ('rpn/rpn_r50_fpn_1x_coco.py', r'RPN\) proposes boxes without classes'),
        ('panoptic_fpn/panoptic_fpn_r50_fpn_1x_coco.py', r'PanopticFPN\) segments stuff'),
        ('fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py', r'data\.train\.pipeline\.1 is LoadProposals'),
        ('htc/htc_r50_fpn_1x_coco.py', r'data\.train\.pipeline\.1 loads semantic maps'),
        (
            'openimages/faster_rcnn_r50_fpn_32x2_1x_openimages.py',
            r'pipeline\.1 takes boxes as fractions',
        ),
    ],
)
def test_what_coco_data_cannot_train_is_refused(root, name, pattern):
    problems = problems_of(f'mmdet::{name}', {'data.root': str(root)})
    assert any(re.search(pattern, text) for text in problems), problems


@pytest.mark.parametrize(
    'name',
    [
        'ssd/ssd300_coco.py',  # its optimizer_config is empty
        'yolox/yolox_tiny_8x8_300e_coco.py',
        'pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
        'wider_face/ssd300_wider_face.py',  # a dataset with a key of its own
        'detr/detr_r50_8x2_150e_coco.py',
    ],
)
def test_configs_of_mmdet_have_no_problems_with_a_coco_folder(root, name):
    assert problems_of(f'mmdet::{name}', {'data.root': str(root), 'data.workers_per_gpu': 0}) == []


def test_the_metric_of_another_format_gives_way_to_cocos_with_data_root(root, capsys):
    name = 'mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py'
    config = mmdet_config.load_config(name, {'data.root': str(root)})
    assert config.cfg.evaluation.metric == ['bbox'] and config.metrics == ('bbox',)
    assert "evaluation.metric mAP: COCO's bbox are measured" in capsys.readouterr().err


# --- loaders, hooks, batch norm -----------------------------------------------------------------


def test_workers_that_persist_are_not_asked_for_where_there_are_none(path, tmp_path):
    for overrides in (
        {'data.persistent_workers': True},
        {'data.train_dataloader.persistent_workers': True},
    ):
        cfg = mmdet_config.load_config(path, overrides).cfg
        assert 'persistent_workers' not in cfg.data.train_dataloader
        workers = mmdet_config.load_config(path, overrides | {'data.workers_per_gpu': 1}).cfg
        assert workers.data.train_dataloader.persistent_workers is True
    trained(path, tmp_path, **{'data.persistent_workers': True})


def test_one_custom_hook_needs_no_list_and_metrics_may_be_a_tuple(root, tmp_path):
    hook = "custom_hooks = dict(type='NumClassCheckHook')\nlog_config = {}\n"
    file = written(tmp_path / 'one.py', root, lambda text: f'{text}\n{hook}')
    _, output = trained(file, tmp_path, evaluation="{'interval':1,'metric':('bbox',)}")
    assert 'update 3/3' in output


def test_a_process_alone_synchronises_no_batch_norm(root):
    """mmcv's cannot even be built without other processes."""
    name = 'simple_copy_paste/mask_rcnn_r50_fpn_syncbn-all_rpn-2conv_ssj_scp_32x2_90k_coco.py'
    config = mmdet_config.load_config(f'mmdet::{name}', {'data.root': str(root)})
    built = mmdet_config._build_detector(config)
    assert not [m for m in built.modules() if 'Sync' in type(m).__name__]
    assert config.cfg.model.roi_head.bbox_head.norm_cfg.type == 'MMSyncBN'


@HOOKS.register_module()
class StopAt(Hook):
    """As Ctrl-C in an update."""

    def __init__(self, update: int):
        self.update = update

    def after_train_iter(self, runner) -> None:
        if runner.iter + 1 == self.update:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.long
@pytest.mark.parametrize('update', [None, 4])
def test_the_average_of_weights_goes_on_after_a_stop(path, tmp_path, update):
    """mmdet's YOLOX evaluates and exports the average; stopped after an epoch, and within one (3 updates each)."""
    average = "{'type':'ExpMomentumEMAHook','momentum':0.1,'priority':49}"
    more = f",{{'type':'StopAt','update':{update}}}" if update else ''
    text = f'custom_hooks=[{average}] evaluation=None optimizer.lr=0.1 lr_config.warmup=None'

    def train(out, options):
        mmdet_config.train_config(mmdet_config.load_config(path, options), tmp_path / out)
        return torch.load(tmp_path / out / 'latest.pth', weights_only=True)['state_dict']

    whole = train('whole', text)
    if update:
        with pytest.raises(KeyboardInterrupt):
            train('stopped', text.replace(f'[{average}]', f'[{average}{more}]'))
    else:
        train('stopped', f'{text} runner.max_epochs=1')
    for name in ('model.pth', 'metrics.json', 'config.py'):
        (tmp_path / 'stopped' / name).unlink(missing_ok=True)
    resumed = train('stopped', text)
    assert f'ema_{KEY.replace(".", "_")}' in whole and whole.keys() == resumed.keys()
    assert not torch.equal(whole[KEY], whole[f'ema_{KEY.replace(".", "_")}'])
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, msg=key)


# --- loading ------------------------------------------------------------------------------------


def message(*args) -> str:
    with pytest.raises(MtpdError) as error:
        mmdet_config.load_config(*args)
    return str(error.value)


def test_a_config_of_mmdet_3_is_named_as_one(tmp_path):
    (tmp_path / 'new.py').write_text(
        "model = dict(type='RetinaNet')\ntrain_dataloader = dict()\noptim_wrapper = dict()\n"
    )
    assert 'written for MMDetection 3 (optim_wrapper, train_dataloader)' in message(
        tmp_path / 'new.py'
    )


def test_a_base_without_a_model_is_named_as_one():
    assert 'it has no model: it is a base of other configs' in message(
        'mmdet::common/lsj_100e_coco_instance.py'
    )


def test_what_is_stated_twice_and_not_alike_is_named(path, tmp_path):
    file = written(tmp_path / 'a.py', 'x', lambda text: f'{text}\ntotal_epochs = 12\n')
    text = message(file)
    assert 'total_epochs is 12 and runner.max_epochs 2' in text
    assert advised_options(text) == ['total_epochs=2', 'runner.max_epochs=12']
    for option in advised_options(text):
        assert mmdet_config.load_config(file, option).cfg.seed == 0
    updates = {'runner': {'_delete_': True, 'type': 'IterBasedRunner', 'max_iters': 1}}
    assert 'total_epochs' not in mmdet_config.load_config(file, updates).cfg
    file = written(
        tmp_path / 'b.py',
        'x',
        lambda text: f'{text}\ndata["train_dataloader"] = dict(samples_per_gpu=2)\n',
    )
    assert '`samples_per_gpu` are set in `data` field' in message(file)


def test_a_copied_config_is_told_where_mmdets_bases_lie(tmp_path):
    """Its `_base_` is relative to mmdet's folder."""
    original = packaged_configs() / 'retinanet/retinanet_r50_fpn_1x_coco.py'
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own/mine.py').write_text(original.read_text())
    text = message(tmp_path / 'own/mine.py')
    works = packaged_configs() / '_base_/models/retinanet_r50_fpn.py'
    assert 'retinanet_r50_fpn.py is missing. Correct the path' in text and str(works) in text
    (tmp_path / 'child.py').write_text(f'_base_ = {str(original)!r}\n')
    assert mmdet_config.load_config(tmp_path / 'child.py').cfg.model.type == 'RetinaNet'
    missing = "_base_ = './retinanet_r50_fpn_1x_coco.py'\n"
    (tmp_path / 'sibling.py').write_text(missing)
    assert f'mmdet has one: {original}' in message(tmp_path / 'sibling.py')


def test_a_module_that_a_config_imports_and_that_is_not_installed_is_named():
    name = 'mmdet::timm_example/retinanet_timm_tv_resnet50_fpn_1x_coco.py'
    text = message(name)
    assert "No module named 'mmcls'" in text and 'Install what it imports' in text
