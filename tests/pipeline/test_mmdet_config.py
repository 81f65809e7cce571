"""Plain mmdet configs: trained and tested as they say, on any COCO-format folder, and what is refused."""

import json
import re
import subprocess
import sys
from importlib import resources

import pytest
import torch
from click.testing import CliRunner
from mmcv import Config

from helpers.arranged import SINGLE, arranged
from helpers.plain_config import META, TEXT
from helpers.tiny import detector as tiny_detector
from helpers.tiny import retinanet
from mtpd.cli.main import main
from mtpd.config.recipe import Recipe, load_recipe
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline import mmdet_config
from mtpd.runtime import checkpoints
from mtpd.utils import download
from mtpd.utils.files import file_sha256
from mtpd.utils.paths import ROOT

R50 = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
MASKS = 'mmdet::mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'
MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def call(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def refused(*arguments) -> str:
    result = call(*arguments)
    assert result.exit_code == 2 and 'Traceback' not in result.output, result.output
    return result.output


def message(call, *args) -> str:
    with pytest.raises(MtpdError) as error:
        call(*args)
    return str(error.value)


@pytest.fixture(scope='module')
def root(tmp_path_factory, tiny_coco):
    return tiny_coco(tmp_path_factory.mktemp('data') / 'pets')


@pytest.fixture(scope='module')
def path(tmp_path_factory, root):
    file = tmp_path_factory.mktemp('config') / 'pets.py'
    file.write_text(TEXT.format(model=retinanet(num_classes=2), root=str(root), meta=META))
    return file


@pytest.fixture(scope='module')
def trained(path, tmp_path_factory):
    """The CLI's result and the work directory of the config's whole training."""
    out = tmp_path_factory.mktemp('run')
    return call('train', path, '--work-dir', out, '--seed', 3), out


def rows(folder):
    return [json.loads(line) for line in (folder / 'log.json').read_text().splitlines()]


# --- loading ------------------------------------------------------------------------------------


def test_a_config_of_mmdet_is_taken_as_it_is():
    config = mmdet_config.load_config(R50, seed=5)
    file = resources.files('mmdet') / '.mim/configs' / R50.removeprefix('mmdet::')
    theirs = Config.fromfile(str(file))
    for key in ('model', 'optimizer', 'optimizer_config', 'lr_config', 'runner', 'evaluation'):
        assert config.cfg[key] == theirs[key], key
    assert config.cfg.data.train.pipeline == theirs.data.train.pipeline
    assert config.cfg.seed == 5 and config.source.name == file.name
    assert config.cfg.data.test.ann_file.endswith('data/coco/annotations/instances_val2017.json')


def test_a_recipe_stays_a_recipe():
    assert isinstance(mmdet_config.load_config(MINI, 'seed=2'), Recipe)


@pytest.mark.parametrize(
    'name',
    [
        R50,
        'mmdet::retinanet/retinanet_r101_fpn_mstrain_640-800_3x_coco.py',  # in a RepeatDataset
        'mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py',  # another format, two annotation files
        'mmdet::yolox/yolox_tiny_8x8_300e_coco.py',  # in a MultiImageMixDataset
    ],
)
def test_a_folder_takes_the_place_of_the_data_and_its_classes_of_the_heads(name, root):
    cfg = mmdet_config.load_config(name, {'data.root': str(root)}).cfg
    for split in mmdet_config.SPLITS:
        (leaf,) = mmdet_config.dataset_leaves(cfg.data[split])
        place = 'train' if split == 'train' else 'val'
        assert leaf.ann_file == str(root / f'annotations/{place}.json')
        assert leaf.img_prefix == str(root / place)
        assert tuple(leaf.classes) == ('cat', 'dog') and leaf.type == 'CocoDataset'
    assert cfg.model.bbox_head.num_classes == 2
    assert mmdet_config.dataset_problems(cfg, mmdet_config.SPLITS) == []


def test_an_unknown_config_of_mmdet_is_named_with_the_nearest(capsys):
    text = refused('train', 'mmdet::retinanet/retinanet_r50_fpn_1x_cocoo.py')
    assert f"Did you mean '{R50}'?" in text
    assert 'Its configs lie in' in refused('train', 'mmdet::x')
    assert 'no such file' in refused('eval', 'configs/none.py', '--checkpoint', 'x.pth')


def test_unknown_keys_are_refused_and_settings_left_at_their_default_are_not():
    text = message(
        mmdet_config.load_config, R50, 'optimzer.lr=1 model.backbne.depth=18 data.trian.x=1'
    )
    for right in ('optimizer', 'model.backbone', 'data.train'):
        assert f'Did you mean {right!r}?' in text
    options = 'model.backbone.with_cp=True fp16.loss_scale=512.0 evaluation=None '
    options += 'optimizer.paramwise_cfg.norm_decay_mult=0.0 data.test_dataloader.samples_per_gpu=4'
    cfg = mmdet_config.load_config(R50, options).cfg
    assert cfg.model.backbone.with_cp is True and cfg.fp16.loss_scale == 512.0
    assert cfg.data.test_dataloader == {'samples_per_gpu': 4, 'workers_per_gpu': 2}


# --- training -----------------------------------------------------------------------------------


def test_training_leaves_what_a_recipes_detector_leaves(trained):
    result, out = trained
    assert result.exit_code == 0, result.output
    assert 'AP ' in result.output and str(out / 'model.pth') in result.output
    assert {'latest.pth', 'model.pth', 'log.json', 'metrics.json'} <= {
        item.name for item in out.iterdir()
    }
    metrics = json.loads((out / 'metrics.json').read_text())
    assert metrics['sha256'] == file_sha256(out / 'model.pth') and metrics['num_images'] == 4
    assert set(metrics['per_class']['bbox']) == {'cat', 'dog'}


def test_the_schedule_is_the_configs(trained):
    """3 images with objects, twice, in batches of 2: 3 updates an epoch; the rate drops tenfold after epoch 1."""
    _, out = trained
    log = [row for row in rows(out) if 'loss' in row]
    assert [row['update'] for row in log] == [2, 4, 6] and log[0]['updates'] == 6
    assert log[0]['lr'] == pytest.approx(0.01 * (0.001 + 0.999 / 2))  # warm-up, at the 2nd update
    assert log[2]['lr'] == pytest.approx(0.001)
    assert [row['update'] for row in rows(out) if 'bbox_mAP' in row] == [3, 6]
    latest = torch.load(out / 'latest.pth', weights_only=True)
    assert (latest['meta']['epoch'], latest['meta']['iter']) == (2, 6) and 'optimizer' in latest


def test_what_cannot_be_as_the_config_says_is_said_in_a_line(trained):
    result, _ = trained
    lines = result.output.splitlines()
    assert len([line for line in lines if 'fp32' in line and 'needs a GPU' in line]) == 1
    assert len([line for line in lines if 'learning rate 0.01 is for 16 images' in line]) == 1


def test_the_exported_detector_says_what_it_is(trained):
    _, out = trained
    written = torch.load(out / 'model.pth', weights_only=True)
    assert not any(key.startswith(('student.', 'module.')) for key in written['state_dict'])
    meta = written['meta']
    assert tuple(meta['CLASSES']) == ('cat', 'dog') and meta['seed'] == 3
    (out / 'again.py').write_text(meta['config'])  # the config that trained it, as a file
    again = Config.fromfile(str(out / 'again.py'))
    assert again.model.bbox_head.num_classes == 2 and again.runner.max_epochs == 2


def test_done_is_not_done_again_and_other_settings_are_refused(trained, path):
    _, out = trained
    before = (out / 'model.pth').stat().st_mtime_ns
    assert call('train', path, '--work-dir', out, '--seed', 3).exit_code == 0
    assert (out / 'model.pth').stat().st_mtime_ns == before
    assert 'other settings' in refused('train', path, '--work-dir', out, '--seed', 4)


@pytest.mark.long
def test_an_interrupted_training_goes_on_at_its_last_checkpoint(path, tmp_path):
    mmdet_config.train_config(mmdet_config.load_config(path, {'runner.max_epochs': 1}), tmp_path)
    for name in ('model.pth', 'metrics.json', 'config.py'):
        (tmp_path / name).unlink()
    first = torch.load(tmp_path / 'latest.pth', weights_only=True)
    assert (first['meta']['epoch'], first['meta']['iter']) == (1, 3)
    whole = mmdet_config.load_config(path, {'optimizer.lr': 1e-12, 'optimizer.weight_decay': 0.0})
    mmdet_config.train_config(whole, tmp_path)
    assert [row['update'] for row in rows(tmp_path) if 'loss' in row] == [2, 3, 4, 6]
    last = torch.load(tmp_path / 'latest.pth', weights_only=True)
    assert (last['meta']['epoch'], last['meta']['iter']) == (2, 6)
    key = 'bbox_head.retina_cls.weight'  # resumed, and not made anew
    torch.testing.assert_close(last['state_dict'][key], first['state_dict'][key], atol=5e-3, rtol=0)


# --- testing ------------------------------------------------------------------------------------


@pytest.mark.parametrize('layout', ['plain', 'original', 'ours'])
@pytest.mark.parametrize('kind', ['config', 'recipe'])
def test_each_layout_gives_the_same_numbers(trained, path, root, tmp_path, layout, kind):
    _, out = trained
    if kind == 'config':
        arguments, model = [path], out / 'model.pth'
    else:
        arguments = [MINI, '--cfg-options', f'data.root={root} image.scale=64']
        model = tmp_path / 'model.pth'
        recipe = load_recipe(MINI, {'data.root': str(root)})
        torch.manual_seed(0)
        from mmdet.models import build_detector

        state = build_detector(recipe.model('student')).state_dict()
        checkpoints.save_atomic({'state_dict': state}, model)
    state = torch.load(model, weights_only=True)['state_dict']
    file = tmp_path / f'{layout}.pth'
    if layout != 'plain':
        state = {f'student.{key}': value for key, value in state.items()}
        state['distill_losses.loss_mgd_fpn_0.align.weight'] = torch.ones(1)
    if layout == 'original':
        state['teacher.backbone.conv1.weight'] = torch.ones(1)
    torch.save({'state_dict': state, 'meta': {}}, file)
    result, direct = (call('eval', *arguments, '--checkpoint', item) for item in (file, model))
    assert result.exit_code == direct.exit_code == 0, result.output
    ours, theirs = json.loads(result.output), json.loads(direct.output)
    named = {'checkpoint': f'{layout}.pth', 'sha256': file_sha256(file)}
    assert ours == theirs | named and 0 <= ours['bbox_mAP'] <= 1


def test_metrics_may_follow_each_other_before_and_after_the_config(path, trained):
    checkpoint = trained[1] / 'model.pth'
    for words in (
        [path, '--metrics', 'bbox', 'segm', '--checkpoint', checkpoint],
        ['--checkpoint', checkpoint, '--metrics', 'bbox', 'segm', path],
        [path, '--metrics', 'bbox', '--metrics', 'segm', '--checkpoint', checkpoint],
    ):
        assert 'metric segm: RetinaNet predicts no masks' in refused('eval', *words)
    assert 'Invalid value' in refused('eval', path, '--metrics', 'box', '--checkpoint', checkpoint)
    result = call('eval', '--metrics', 'bbox', path, '--checkpoint', checkpoint)
    assert result.exit_code == 0


# --- what is refused ----------------------------------------------------------------------------


def test_arms_and_detectors_are_a_recipes(path):
    assert '--arm is an option for recipes' in refused('train', path, '--arm', 'direct')
    assert '--detector is an option for recipes' in refused('train', path, '--detector', 'r101')
    text = refused('eval', path, '--detector', 'student', '--checkpoint', 'x.pth')
    assert '--detector is an option for recipes' in text
    assert 'not a recipe' in refused('run', path) and 'not a recipe' in refused('run', R50)


def test_data_that_is_not_there_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / 'run'
    text = refused('train', R50, '--work-dir', out)
    assert text.count('instances_train2017.json: neither the file nor its folder exists') == 1
    assert (
        text.count('instances_val2017.json: neither the file nor its folder exists') == 1
    )  # of val and test
    options = ('--work-dir', out, '--cfg-options')
    assert 'no such folder' in refused('train', R50, *options, f'data.root={tmp_path}/none')
    voc = 'mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py'
    assert 'not a COCO-format dataset (VOCDataset)' in refused('train', voc, '--work-dir', out)
    assert not out.exists()


@pytest.mark.parametrize(
    'options',
    [
        "data.splits={'val': {'annotations': 'x/held out.json', 'images': 'val'}}",
        "data.splits.val=dict(annotations='x/held out.json', images='val')",
        'data.splits.val.annotations=x/held out.json data.splits.val.images=val',
    ],
)
def test_splits_of_a_folder_name_their_files(tmp_path, tiny_coco, options):
    root = tiny_coco(tmp_path / 'pets')
    (root / 'x').mkdir()
    (root / 'annotations/val.json').rename(root / 'x/held out.json')
    cfg = mmdet_config.load_config(R50, f'data.root={root} {options}').cfg
    assert cfg.data.train.ann_file == str(root / 'annotations/train.json')
    for split in ('val', 'test'):
        assert cfg.data[split].ann_file == str(root / 'x/held out.json')
        assert cfg.data[split].img_prefix == str(root / 'val')
    assert mmdet_config.dataset_problems(cfg, mmdet_config.SPLITS) == []


def test_faults_of_a_folders_splits_are_named_at_once(root):
    text = message(
        mmdet_config.load_config,
        R50,
        f'data.root={root} data.splits.val.annotations=a.json data.splits.test=x model.backbne.a=1',
    )
    assert 'has 3 problems' in text and 'data.splits.val.images is missing.' in text
    assert "unknown key 'data.splits.test'" in text and "Did you mean 'model.backbone'?" in text
    text = message(
        mmdet_config.load_config, R50, "data.splits.val=dict(annotations='a', images='')"
    )
    assert 'data.root is None' in text


def test_a_folder_with_one_file_for_all_images_is_tested_on_and_not_trained_on(tmp_path, tiny_coco):
    root = arranged(tiny_coco(tmp_path / 'coco'), tmp_path / 'pets', val=SINGLE['CVAT'])
    config = mmdet_config.load_config(R50, {'data.root': str(root)})
    assert mmdet_config.dataset_leaves(config.cfg.data.test)[0].classes == ('cat', 'dog')
    assert mmdet_config.dataset_problems(config.cfg, ['test']) == []
    text = refused(
        'train', R50, '--work-dir', tmp_path / 'run', '--cfg-options', f'data.root={root}'
    )
    assert text.count('no such file') == 1 and f'mtpd data split {root} {root}-split' in text
    assert not (tmp_path / 'run').exists()
    (root / SINGLE['CVAT'].annotations).rename(root / 'other.json')
    options = ('--checkpoint', 'x.pth', '--cfg-options', f'data.root={root}')
    text = refused('eval', R50, *options)
    assert 'data.splits.val.annotations=other.json data.splits.val.images=images/default' in text


def test_what_is_taken_for_granted_in_a_folder_is_said(path, tmp_path, tiny_coco):
    root = arranged(tiny_coco(tmp_path / 'coco'), tmp_path / 'pets', val=SINGLE['CVAT'])
    file = root / SINGLE['CVAT'].annotations
    table = json.loads(file.read_text())
    for item in table['annotations']:
        del item['area']
    file.write_text(json.dumps(table))
    student = tmp_path / 'student.pth'
    state = tiny_detector(retinanet(num_classes=2), 0).state_dict()
    torch.save({'state_dict': state, 'meta': {'CLASSES': ('cat', 'dog')}}, student)
    done = call('eval', path, '--checkpoint', student, '--cfg-options', f'data.root={root}')
    assert done.exit_code == 0 and json.loads(done.stdout)['num_images'] == 4
    first, second = done.stderr.splitlines()
    layout = "CVAT's layout: annotations/instances_default.json, used as val"
    assert first == f'note: {root}: {layout}'
    assert 'has no area' in second


def test_masks_that_are_not_there_are_named(root, tmp_path):
    options = ('--cfg-options', f'data.root={root}')
    text = refused('train', MASKS, '--work-dir', tmp_path / 'run', *options)
    assert re.search(r'trains on masks, and 5 of 5 annotations of .*train.json have no mask', text)
    text = refused('eval', MASKS, '--checkpoint', 'x.pth', '--metrics', 'segm', *options)
    assert re.search(r'metric segm: 5 of 5 annotations of .*val.json have no mask', text)


def test_masks_are_not_asked_of_a_box_detector_in_training_either(path, tmp_path):
    options = ('--cfg-options', 'evaluation.metric=segm')
    text = refused('train', path, '--work-dir', tmp_path, *options)
    assert 'metric segm: RetinaNet predicts no masks' in text


def test_classes_that_the_data_lacks_are_named(path, tmp_path, tiny_coco):
    other = tiny_coco(tmp_path / 'other', ('cat', 'bird'))
    files = f'{other}/annotations/val.json'
    options = ('--cfg-options', f'data.test.ann_file={files}')
    text = refused('eval', path, '--checkpoint', 'x.pth', *options)
    assert 'lacks 1 of the classes of the config: dog' in text and 'data.root=' in text


def test_a_class_that_val_of_data_root_lacks_is_named_with_its_entry(path, tmp_path, tiny_coco):
    """data.root was given: to advise it is no help."""
    root = tiny_coco(tmp_path / 'other')
    file = root / 'annotations/val.json'
    table = json.loads(file.read_text())
    cat, dog = table['categories']
    objects = [item for item in table['annotations'] if item['category_id'] == cat['id']]
    file.write_text(json.dumps(table | {'categories': [cat], 'annotations': objects}))
    config = mmdet_config.load_config(path, {'data.root': str(root)})
    (text,) = mmdet_config.training_problems(config, tmp_path / 'none')
    assert 'val.json lacks 1 of the classes of the config: dog' in text and 'data.root' not in text
    entry = json.loads(re.search(r'add ({.*?}) to its', text)[1])
    assert entry == dog
    file.write_text(json.dumps(table | {'categories': [cat, entry], 'annotations': objects}))
    assert mmdet_config.training_problems(config, tmp_path / 'none') == []


def test_what_mmdet_refuses_is_a_message(path, tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'RETRY_WAITS', ())
    options = ('--work-dir', tmp_path, '--cfg-options')
    text = refused('train', path, *options, 'model.backbone.depht=18')
    assert 'does not build' in text and 'depht' in text
    origin = 'http://127.0.0.1:9/r18.pth'
    setting = f"model.backbone.init_cfg={{'type':'Pretrained','checkpoint':'{origin}'}}"
    text = refused('train', path, '--work-dir', tmp_path / 'b', '--cfg-options', setting)
    assert f'cannot be fetched from {origin}' in text


def test_a_config_that_cannot_be_trained_says_so(path, tmp_path):
    cut = TEXT.split('optimizer = ')[0].format(model=retinanet(num_classes=2), root='x', meta=META)
    (tmp_path / 'cut.py').write_text(cut)
    with pytest.raises(
        RecipeError, match='optimizer is missing, so the config can be tested but not trained'
    ):
        mmdet_config.train_config(mmdet_config.load_config(tmp_path / 'cut.py'), tmp_path / 'out')
    (tmp_path / 'model.py').write_text('model = dict(type="RetinaNet")\n')
    with pytest.raises(RecipeError, match=r'data\.test is missing'):
        mmdet_config.load_config(tmp_path / 'model.py')


@pytest.mark.long
def test_a_swin_transformer_does_not_make_mmdets_log_talk(root, tmp_path):
    """It makes that log itself, at another level, where nobody has: so in a process of its own."""
    swin = dict(
        type='SwinTransformer', embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
        window_size=4, out_indices=(1, 2, 3), init_cfg=None,
    )  # fmt: skip
    model = retinanet(num_classes=2) | {'backbone': swin}
    (tmp_path / 'swin.py').write_text(TEXT.format(model=model, root=str(root), meta=META))
    options = "evaluation=None runner={'_delete_':True,'type':'IterBasedRunner','max_iters':1}"
    command = [sys.executable, '-m', 'mtpd.cli', 'train', tmp_path / 'swin.py']
    command += ['--work-dir', tmp_path / 'run', '--cfg-options', options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'update 1/1' in done.stdout and 'INFO' not in done.stdout + done.stderr
    meta = torch.load(tmp_path / 'run' / 'latest.pth', weights_only=True)['meta']
    assert meta['iter'] == 1
