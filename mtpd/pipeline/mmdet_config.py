"""Plain mmdet configs in place of recipes: trained and tested with their own settings, by mmdet's own loop."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import mmdet
from mmcv import Config
from mmcv.runner import get_dist_info, wrap_fp16_model
from mmdet.datasets import DATASETS, CocoDataset, replace_ImageToTensor
from mmdet.models import build_detector
from mmdet.utils import compat_cfg, replace_cfg_vals, update_data_root
from torch import nn

from ..config.files import (
    as_overrides,
    format_config,
    is_plain_config,
    override_values,
    pretrained_as_init_cfg,
    read_config,
    set_class_count,
    use_plain_batch_norm,
)
from ..config.recipe import Recipe, load_recipe
from ..config.schema import fill_splits, split_problems
from ..data import coco, layouts
from ..data.classes import known_classes, list_names, match_classes
from ..distill.initialization import initialise_weights
from ..engine import learning_rate, loop, memory, pipelines
from ..engine.evaluation import DetectionTask, check_metrics, evaluate_model, metrics_of_checkpoint
from ..errors import RecipeError, unknown_name
from ..runtime import checkpoints, distributed
from ..utils.paths import (
    ROOT,
    display_path,
    missing_file_text,
    missing_folder_text,
    resolve_path,
    user_path,
)
from . import config_checks
from .run_dir import claim_data, claim_run_dir

SPLITS = ('train', 'val', 'test')
# Settings that mmdet reads and a config may leave out.
OPTIONAL_KEYS = (
    'auto_scale_lr',
    'checkpoint_config',
    'custom_hooks',
    'device',
    'evaluation',
    'find_unused_parameters',
    'fp16',
    'init_cfg',
    'load_from',
    'log_config',
    'momentum_config',
    'paramwise_cfg',
    'resume_from',
    'seed',
    'train_dataloader',
    'val_dataloader',
    'test_dataloader',
    'workflow',
)
# What configs of mmdet 3 have, and those of mmdet 2 don't.
NEWER_KEYS = ('default_hooks', 'optim_wrapper', 'train_dataloader')


@dataclass(frozen=True)
class PlainConfig:
    """A plain mmdet config: its values with the paths settled, its file, and its text as it was asked for.

    `gpus`: how many processes share its work; an update takes `samples_per_gpu` images of each, whose key in the file
    is `batch`. `corrupt_limit`: how many images of a split may be corrupt, and are left out. `missing_splits`: a message
    for each of 'train' and 'val' that the folder `data.root` lacks. `layout`: how its layout was recognised, in a line.
    `has_root`: whether `data.root` was given.
    """

    cfg: Config
    source: Path
    text: str
    gpus: int | None = None
    batch: str = 'data.train_dataloader.samples_per_gpu'
    corrupt_limit: int = 0
    missing_splits: dict[str, str] = field(default_factory=dict)
    layout: str = ''
    has_root: bool = False

    @property
    def device(self) -> str:
        return self.cfg.get('device') or 'auto'

    @property
    def processes(self) -> int:
        return distributed.process_count(self.gpus, self.device, self.source)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of COCO among the metrics that it is evaluated by: 'bbox', 'segm'."""
        stated = (self.cfg.get('evaluation') or {}).get('metric', 'bbox')
        return tuple(name for name in ('bbox', 'segm') if name in stated) or ('bbox',)


def load_config(
    path: str | Path, overrides: dict | str | None = None, seed: int | None = None
) -> Recipe | PlainConfig:
    """A recipe, as `load_recipe`, or a plain mmdet config: a file or ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py``.

    Args:
        overrides: the config's own keys, `runtime.gpus` and `data.corrupt_limit` as a recipe's, and ``data.root``, the
            folder of any COCO-format dataset, with ``data.splits`` as a recipe's: its classes take the place of the
            config's, in data and heads.

    Raises:
        RecipeError: no such config, it does not load, unknown keys, or what mmdet needs is missing in it.
    """
    source, cfg = read_config(path)
    if not is_plain_config(cfg):
        if 'student' not in cfg and 'train' in (cfg.get('data') or ()):
            text = (
                'it has no model: it is a base of other configs. Give one of those, or add a model.'
            )
            raise RecipeError(source, [text])
        return load_recipe(path, overrides, seed)
    overrides = dict(as_overrides(overrides))
    root, gpus = overrides.pop('data.root', None), overrides.pop('runtime.gpus', None)
    limit = overrides.pop('data.corrupt_limit', 0)
    of_splits = [key for key in overrides if key.split('.')[:2] == ['data', 'splits']]
    folder = Config(dict(data=dict(root=root and str(root))))
    override_values(folder, {key: overrides.pop(key) for key in of_splits}, source)
    fill_splits(folder.data)
    problems = _unknown_key_problems(cfg, overrides) + split_problems(folder.data)
    if type(limit) is not int or limit < 0:
        problems.append(
            f'data.corrupt_limit is {limit!r}: a number of images, from 0 on, is needed.'
        )
    problems += _structure_problems(cfg)
    if problems:
        raise RecipeError(source, problems)
    cfg = replace_cfg_vals(cfg)
    update_data_root(cfg)  # mmdet's MMDET_DATASETS
    override_values(cfg, overrides, source)
    cfg.seed = seed if seed is not None else cfg.get('seed') or 0
    if 'total_epochs' not in cfg:
        cfg.setdefault('runner', None)  # testing needs none
    batch = 'data' if 'samples_per_gpu' in cfg.data else 'data.train_dataloader'
    cfg = _compatible(cfg, source)
    config_checks.settle_loaders(cfg)
    missing, layout = {}, ''
    if root is not None:
        root = resolve_path(str(root), source)
        use_coco_folder(cfg, root, folder.data.splits, source)
        missing = layouts.missing_splits(root, folder.data.splits)
        layout = layouts.describe_layout(root, folder.data.splits)
    text = format_config(cfg._cfg_dict.to_dict())
    settle_dataset_paths(cfg, source)
    batch = f'{batch}.samples_per_gpu'
    return PlainConfig(
        cfg, source.resolve(), text, gpus, batch, limit, missing, layout, root is not None
    )


def train_config(config: PlainConfig, work_dir: str | Path | None = None) -> dict:
    """Trains a config's detector into `work_dir` (default ``runs/<config>/``) and evaluates it; goes on where it was.

    Returns:
        ``{'dir', 'checkpoint', 'metrics'}``: paths (``model.pth``), and the contents of metrics.json.

    Raises:
        RecipeError: the dataset or the detector does not fit the config.
        MtpdError: the folder can't be written to, or holds a training with other settings.
    """
    cfg, source = config.cfg, config.source
    out = config_run_dir(config, work_dir)
    if problems := training_problems(config, out):
        raise RecipeError(source, problems)
    pipelines.print_notes(data_notes(config, ('train', 'val', 'test')))
    final = out / 'model.pth'
    claim_run_dir(out / 'config.py', config.text)
    annotations = split_files(cfg, 'test')[0]
    claim_data(out, split_files(cfg, 'train'), annotations)
    if not checkpoints.is_finished(final):
        settings = _training_config(config, out)
        meta = {'student_config': config.text, 'seed': cfg.seed}
        build = partial(_initialised_detector, config)
        names = memory.config_setting_names(cfg, config.batch, 'val_dataloader')
        loop.train_by_config(
            settings, build, source, names, bool(settings.get('evaluation')), meta=meta
        )
        checkpoints.export_student(out / 'latest.pth', final)
    metrics = metrics_of_checkpoint(
        out, final, annotations, lambda: evaluate_config(config, final, config.metrics, out)
    )
    return {'dir': out, 'checkpoint': final, 'metrics': metrics}


def config_run_dir(config: PlainConfig, work_dir: str | Path | None = None) -> Path:
    """Where the config's training goes."""
    return Path(work_dir).resolve() if work_dir else ROOT / 'runs' / config.source.stem


def evaluate_config(
    config: PlainConfig,
    checkpoint: str | Path,
    metrics: tuple[str, ...] = ('bbox',),
    out: str | Path | None = None,
    ignore_classes: bool = False,
) -> dict:
    """COCO numbers of a checkpoint (any layout) on a config's test split, as `mtpd.evaluate` gives them.

    Args: as there.

    Raises:
        RecipeError: a metric the detector or the dataset cannot give, or a broken dataset.
        MtpdError: the checkpoint does not load into the detector.
    """
    cfg, source = config.cfg, config.source
    problems = [text for name, text in config.missing_splits.items() if name == 'val']
    if problems := problems or dataset_problems(
        cfg, ('test',), config.corrupt_limit, config.has_root
    ):
        raise RecipeError(source, problems)
    pipelines.print_notes(data_notes(config, ('test',)))
    model, split = _build_detector(config), {**dataset_leaves(cfg.data.test)[0], 'test_mode': True}
    split['ann_file'], split['img_prefix'] = map(str, leaf_files(split)[0])
    check_metrics(metrics, model, Path(split['ann_file']), source)
    meta = checkpoints.load_checkpoint(checkpoint).get('meta')
    trained = known_classes(meta.get('CLASSES')) if isinstance(meta, dict) else None
    # A checkpoint that does not say has the classes of the config's training.
    trained = trained or leaf_classes(dataset_leaves(cfg.data.train)[0]) or None
    classes = leaf_classes(split)
    split['classes'] = match_classes(classes, None if ignore_classes else trained, checkpoint)
    if len(split['classes']) != len(classes):
        cfg = copy.deepcopy(cfg)
        set_class_count(cfg.model, len(split['classes']))
        model = _build_detector(replace(config, cfg=cfg))
    if problems := config_checks.detector_problems(cfg, model, split['classes'], 'test'):
        raise RecipeError(source, problems)
    checkpoints.load_student(model, checkpoint)
    device = loop.choose_device(config.device, source)
    if cfg.get('fp16') and device == 'cuda':
        wrap_fp16_model(model)
    batch = {'samples_per_gpu': 1, 'workers_per_gpu': 2, **cfg.data.test_dataloader}
    if batch['samples_per_gpu'] > 1:
        split['pipeline'] = replace_ImageToTensor(split['pipeline'])
    task = DetectionTask(
        split,
        batch,
        device,
        config.processes,
        config.corrupt_limit,
        memory.config_setting_names(cfg, config.batch, 'test_dataloader'),
    )
    return evaluate_model(model.eval(), task, checkpoint, metrics, out)


def recipe_as_mmdet(recipe: Recipe, detector: str) -> str:
    """A recipe's detector and its validation split as an mmdet config's text, for mmdet's own ``tools/test.py``."""
    split = pipelines.dataset_config(recipe, 'val', detector=detector)
    split |= {key: display_path(Path(split[key])) for key in ('ann_file', 'img_prefix')}
    batch = dict(samples_per_gpu=recipe.cfg.evaluation.batch_size, workers_per_gpu=0)
    data = dict(train={}, val=split, test=split, test_dataloader=batch)
    runner = dict(type='IterBasedRunner', max_iters=recipe.cfg.schedule.baseline)
    evaluation = dict(metric=list(recipe.cfg.evaluation.metrics))
    model = recipe.model(detector).to_dict()
    return format_config(dict(model=model, data=data, evaluation=evaluation, runner=runner))


def data_notes(config: PlainConfig, splits: Iterable[str]) -> list[str]:
    """What is taken for granted in the datasets of some splits, which have no problems."""
    notes = [config.layout] if config.layout else []
    for split in splits:
        for leaf in dataset_leaves(config.cfg.data[split]):
            for file, folder in leaf_files(leaf):
                place = {'annotations': str(file), 'images': str(folder)}
                notes += coco.split_notes(Path(), place, training=split == 'train')
    return notes


def training_problems(config: PlainConfig, out: Path) -> list[str]:
    """Everything that is wrong with a training into `out`: data, settings, the detector, and the weights that it begins with."""
    cfg = config.cfg
    data = [*config.missing_splits.values()]
    data = data or dataset_problems(cfg, SPLITS, config.corrupt_limit, config.has_root)
    problems = data + config_checks.settings_problems(cfg)
    try:
        model = _build_detector(config)
        if not data:
            for path in split_files(cfg, 'val'):
                check_metrics(config.metrics, model, path, config.source)
    except RecipeError as error:
        return problems + error.problems
    if classes := leaf_classes(dataset_leaves(cfg.data.train)[0]):
        problems += config_checks.detector_problems(cfg, model, classes, 'train')
    problems += config_checks.optimizer_problems(cfg, model)
    if not any((out / name).is_file() for name in ('model.pth', 'latest.pth', 'previous.pth')):
        problems += config_checks.load_from_problems(cfg, model)
    return problems


def _training_config(config: PlainConfig, out: Path) -> Config:
    """The config that `loop.train_by_config` reads."""
    cfg = copy.deepcopy(config.cfg)
    cfg.device = loop.choose_device(config.device, config.source)
    if cfg.get('fp16') and cfg.device == 'cpu':
        print('training in fp32: the config asks for fp16, which needs a GPU')
        cfg.fp16 = None
    by_epoch = cfg.runner.type == 'EpochBasedRunner'
    saving = cfg.get('checkpoint_config') or {}
    interval = saving.get('interval') if saving.get('by_epoch', by_epoch) == by_epoch else None
    default_interval = 1 if by_epoch else 1000
    cfg.checkpoint_config = dict(interval=interval or default_interval, by_epoch=by_epoch)
    cfg.log_config = dict(interval=50) | (cfg.get('log_config') or {})
    cfg.custom_hooks = config_checks.custom_hooks(cfg)
    if cfg.get('evaluation') and isinstance(cfg.evaluation.get('metric'), tuple):
        cfg.evaluation.metric = list(cfg.evaluation.metric)  # mmdet takes lists alone
    cfg.work_dir, cfg.workflow, cfg.auto_resume = str(out), [('train', 1)], False
    cfg.gpu_ids, cfg.corrupt_limit = list(range(config.processes)), config.corrupt_limit
    cfg.resume_from, cfg.load_from = None, cfg.get('load_from')
    _scale_learning_rate(cfg, config.processes)
    return cfg


def _scale_learning_rate(cfg: Config, processes: int) -> None:
    """Scales the learning rate, or says so, where it is meant for another number of images an update."""
    scale = cfg.get('auto_scale_lr') or {}
    batch = cfg.data.train_dataloader.get('samples_per_gpu', 2) * processes
    meant = scale.get('base_batch_size')
    if meant in (None, batch):
        return
    if scale.get('enable'):
        cfg.optimizer, cfg.lr_config = learning_rate.scale_rates(
            cfg.optimizer, cfg.lr_config, batch, meant
        )
        cfg.auto_scale_lr.enable = False  # mmdet's own scales `optimizer.lr` alone
    else:
        rate = learning_rate.peak_rate(cfg.optimizer, cfg.lr_config)
        print(
            f'learning rate {rate} is for {meant} images an update, this run has {batch}: '
            '--cfg-options auto_scale_lr.enable=True scales it'
        )


def _build_detector(config: PlainConfig) -> nn.Module:
    """The config's detector. Raises RecipeError where mmdet refuses its settings.

    A process alone has nothing to synchronise: its batch norm is the plain one, which is equal then.
    """
    cfg, (_, processes) = config.cfg, get_dist_info()
    try:
        pretrained_as_init_cfg(cfg.model)
        model = copy.deepcopy(cfg.model)
        if processes == 1:
            use_plain_batch_norm(model)
        return build_detector(model, train_cfg=cfg.get('train_cfg'), test_cfg=cfg.get('test_cfg'))
    except Exception as error:  # any type, by where in mmdet a setting is refused
        text = f'the model does not build: {type(error).__name__}: {error}'
        raise RecipeError(config.source, [text]) from error


def _initialised_detector(config: PlainConfig) -> nn.Module:
    """The config's detector as its training starts. Raises MtpdError where the pretrained weights can't be had."""
    model = _build_detector(config)
    initialise_weights(model, config.cfg.model.backbone, 'model')
    return model


def _structure_problems(cfg: Config) -> list[str]:
    """Parts that mmdet's configs have and this one lacks."""
    newer = [key for key in NEWER_KEYS if key in cfg]
    if 'data' not in cfg and newer:
        return [
            f'it is written for MMDetection 3 ({", ".join(newer)}), and this is version {mmdet.__version__}: take the config '
            'of the same name from version 2, such as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
        ]
    data = cfg.get('data')
    data = data if isinstance(data, dict) else {}
    missing = [split for split in SPLITS if not isinstance(data.get(split), (dict, list, tuple))]
    return [f'data.{split} is missing.' for split in missing]


def _compatible(cfg: Config, source: Path) -> Config:
    """The config in mmdet's newer layout. Raises RecipeError for settings that are stated twice, and not alike."""
    runner = cfg.get('runner') or {}
    if 'total_epochs' in cfg and runner.get('max_epochs') is None and runner:
        cfg.pop('total_epochs')  # of a runner that counts updates
    elif 'total_epochs' in cfg and runner and runner.max_epochs != cfg.total_epochs:
        text = (
            f'total_epochs is {cfg.total_epochs} and runner.max_epochs {runner.max_epochs}: give both alike, '
            f'--cfg-options total_epochs={runner.max_epochs} or --cfg-options runner.max_epochs={cfg.total_epochs}'
        )
        raise RecipeError(source, [text])
    try:
        cfg = compat_cfg(cfg)
    except AssertionError as error:
        raise RecipeError(source, [' '.join(str(error).split())]) from None
    cfg.data.pop('imgs_per_gpu', None)  # read by now; mmdet's training loop would refuse it
    return cfg


def _unknown_key_problems(cfg: Config, keys: Iterable[str]) -> list[str]:
    """Keys that neither the config has nor mmdet would read, each with its nearest right name.

    A last part may be new, as a setting that is left at its default; the first and the middle ones may not.
    """
    problems = []
    for key in keys:
        node, parts = cfg._cfg_dict, key.split('.')
        for depth, part in enumerate(parts):
            if isinstance(node, (list, tuple)):
                node = {str(number): item for number, item in enumerate(node)}
            known = list(node) if isinstance(node, dict) else []
            if part in known:
                node = node[part]
                continue
            is_new_setting = depth > 0 and depth == len(parts) - 1
            if part not in OPTIONAL_KEYS and not is_new_setting:
                parents = parts[:depth]
                names = ['.'.join([*parents, name]) for name in known]
                problems.append(unknown_name('key', '.'.join([*parents, part]), names))
            break
    return problems


# The datasets of a plain mmdet config: another folder in their place, what is wrong with them.


def dataset_leaves(node: dict | list) -> list[dict]:
    """The dataset configs that name files, inside mmdet's wrappers (RepeatDataset, ConcatDataset, ...)."""
    return [leaf for _, leaf in keyed_leaves(node, '')]


def keyed_leaves(node: dict | list, key: str) -> Iterator[tuple[str, dict]]:
    """As `dataset_leaves`, each with its key; `key` is that of `node`."""
    if isinstance(node, (list, tuple)):
        for number, item in enumerate(node):
            yield from keyed_leaves(item, f'{key}.{number}')
        return
    for name in ('dataset', 'datasets'):
        if node.get(name):
            yield from keyed_leaves(node[name], f'{key}.{name}')
            return
    yield key, node


def leaf_files(leaf: dict) -> list[tuple[Path, Path]]:
    """Annotation file and image folder of a dataset config; of one that joins files, each with its folder.

    Raises:
        ValueError: not as many folders as files.
    """
    annotations, images = leaf['ann_file'], leaf.get('img_prefix') or ''
    if isinstance(annotations, str):
        annotations = [annotations]
    if isinstance(images, str):
        images = [images] * len(annotations)
    return [(Path(file), Path(folder)) for file, folder in zip(annotations, images, strict=True)]


def split_files(cfg: Config, split: str) -> list[Path]:
    """The annotation files of 'train', 'val' or 'test'."""
    return [path for leaf in dataset_leaves(cfg.data[split]) for path, _ in leaf_files(leaf)]


def leaf_classes(leaf: dict) -> tuple[str, ...]:
    """The class names of a dataset config, by its labels; empty where it has none."""
    kind = DATASETS.get(leaf.get('type', ''))
    classes = leaf.get('classes') or getattr(kind, 'CLASSES', None)
    return tuple(classes) if isinstance(classes, (list, tuple)) else ()


def use_coco_folder(cfg: Config, root: Path, splits: dict, source: Path) -> None:
    """Puts a COCO-format folder in place of all datasets of a config, its classes into data and heads.

    Args:
        splits: 'train' and 'val' as `layouts.locate_split` takes them.

    Raises:
        RecipeError: no such folder, or a split of the config joins several datasets.
        MtpdError: neither split of it has a readable annotation file.
    """
    if not root.is_dir():
        raise RecipeError(source, [f'data.root {missing_folder_text(root)}'])
    files = {name: layouts.locate_split(root, split) for name, split in splits.items()}
    files['test'] = files['val']
    names = coco.class_names(layouts.class_file(root, splits))
    for split in SPLITS:
        leaves = dataset_leaves(cfg.data[split])
        if len(leaves) != 1:
            text = (
                f'data.{split} joins {len(leaves)} datasets, and data.root cannot replace several.'
            )
            raise RecipeError(source, [text])
        (leaf,) = leaves
        known = signature(CocoDataset).parameters.keys()
        for key in leaf.keys() - known | {'seg_prefix', 'proposal_file', 'data_root'}:
            leaf.pop(key, None)
        annotations, images = map(str, files[split])
        leaf.update(ann_file=annotations, img_prefix=images, type='CocoDataset', classes=names)
    set_class_count(cfg.model, len(names))
    config_checks.use_coco_metrics(cfg)


def settle_dataset_paths(cfg: Config, source: Path) -> None:
    """Makes the paths of a config absolute, found as a recipe's, and reads the files of class names."""

    def settle(path: Any, folder: Path = Path()) -> Any:
        if isinstance(path, (list, tuple)):
            return [settle(item, folder) for item in path]
        return str(resolve_path(str(folder / user_path(path)), source))

    for leaf in (leaf for split in SPLITS for leaf in dataset_leaves(cfg.data[split])):
        folder = user_path(leaf.pop('data_root', None) or '')
        leaf.setdefault('img_prefix', '')
        for key in ('ann_file', 'img_prefix', 'seg_prefix'):
            if leaf.get(key) is not None:
                leaf[key] = settle(leaf[key], folder)
        _settle_classes(leaf, source)
    if cfg.get('load_from') and '://' not in str(cfg.load_from):
        cfg.load_from = settle(cfg.load_from)


def _settle_classes(leaf: dict, source: Path) -> None:
    """Class names from their file, and mmdet's CocoDataset in place of a class that has other names alone."""
    classes, kind = leaf.get('classes'), DATASETS.get(leaf.get('type', ''))
    if isinstance(classes, str) and (file := resolve_path(classes, source)).is_file():
        leaf['classes'] = file.read_text(encoding='utf-8').splitlines()
    derived = kind and CocoDataset in kind.__mro__[1:]
    if derived and not any(map(callable, vars(kind).values())):
        leaf.update(type='CocoDataset', classes=leaf.get('classes') or kind.CLASSES)


def dataset_problems(
    cfg: Config, splits: Iterable[str], corrupt_limit: int = 0, has_root: bool = False
) -> list[str]:
    """What is wrong with the datasets of some splits of a config: their settings, classes, pipelines and files.

    The files as `coco.split_problems`.

    Args:
        has_root: whether `data.root` was given, which the classes follow from.
    """
    problems: list[str] = []
    absent: dict[Path, list[str]] = {}
    for split in splits:
        count = 0
        for key, leaf in keyed_leaves(cfg.data[split], f'data.{split}'):
            if leaf.get('type') != 'CocoDataset' or not leaf.get('ann_file'):
                problems.append(
                    f'{key} is not a COCO-format dataset ({leaf.get("type")}). Give one: '
                    '--cfg-options data.root=FOLDER'
                )
                continue
            problems += _leaf_problems(key, leaf)
            if 'train' in splits:
                problems += _label_problems(cfg, key, leaf)
            try:
                files = leaf_files(leaf)
            except ValueError:
                problems.append(f'{key}: ann_file and img_prefix are lists of different lengths.')
                continue
            count += len(files)
            for path, images in files:
                if not path.is_file():
                    absent.setdefault(path, []).append(f'{key}.ann_file=FILE')
                    continue
                problems += _file_problems(key, leaf, path, images, corrupt_limit, has_root)
        if split == 'test' and count > 1:
            problems.append(f'data.test joins {count} annotation files: give one.')
        problems += config_checks.pipeline_problems(cfg.data[split], f'data.{split}')
    problems += [
        f'annotation file {missing_file_text(path)} Give it: --cfg-options {" ".join(options)}. Or take another dataset: '
        '--cfg-options data.root=FOLDER'
        for path, options in absent.items()
    ]
    return list(dict.fromkeys(problems))


def _leaf_problems(key: str, leaf: dict) -> list[str]:
    """What is wrong with the settings of the dataset config under `key`, besides its files."""
    problems = []
    try:
        settings = {name: leaf[name] for name in leaf.keys() - {'type', 'separate_eval'}}
        signature(CocoDataset).bind(**settings)
    except TypeError as error:
        problems.append(f'mmdet cannot build the dataset {key}: {error}.')
    if leaf.get('proposal_file'):
        problems.append(
            f'{key}.proposal_file {leaf.proposal_file} would be unpickled, which could run code. Leave it out.'
        )
    if isinstance(leaf.get('classes'), str):
        problems.append(
            f'{key}.classes is {leaf.classes!r}, a text, which mmdet takes as the name of a file with a class in each line, '
            f'but no such file exists. A list is needed: --cfg-options "{key}.classes=[\'{leaf.classes}\']"'
        )
    return problems


def _label_problems(cfg: Config, key: str, leaf: dict) -> list[str]:
    """Whether labels of the dataset config under `key` mean other classes than in training."""
    trained_key, first = next(keyed_leaves(cfg.data.train, 'data.train'))
    classes, trained = leaf_classes(leaf), leaf_classes(first)
    if not (classes and trained) or classes == trained:
        return []
    names = repr(list(trained)).replace(', ', ',')
    return [
        f'{key} has {len(classes)} classes ({list_names(classes)}) and {trained_key} {len(trained)} '
        f'({list_names(trained)}): a label is a place in that list, so it has to be the same. '
        f'Give --cfg-options "{key}.classes={names}"'
    ]


def _file_problems(
    key: str, leaf: dict, path: Path, images: Path, corrupt_limit: int, has_root: bool
) -> list[str]:
    """What is wrong with an annotation file of the dataset config under `key` and the folder of its images."""
    if not images.is_dir():
        fix = (
            'Check data.splits.' if has_root else f'Give it: --cfg-options {key}.img_prefix=FOLDER'
        )
        return [f'{key}.img_prefix is {missing_folder_text(images)} {fix}']
    files = {'annotations': path, 'images': images}
    if problems := coco.split_problems(Path(), files, corrupt_limit):
        return problems
    problems, names = [], coco.class_names(path)
    if missing := [name for name in leaf_classes(leaf) if name not in names]:
        advice = 'Classes follow from the data with --cfg-options data.root=FOLDER. '
        if has_root:  # they do
            advice = ''
        problems.append(
            f'{path} lacks {len(missing)} of the classes of the config: {", ".join(missing[:5])}; it has '
            f'{list_names(names)}. {advice}Where the file has no such objects, add '
            f'{coco.new_category(path, missing[0])} to its "categories"; where the name is another one, make it the same.'
        )
    if "'with_mask': True" in str(leaf.get('pipeline')):
        problems += [
            f'the detector trains on masks, and {problem}' for problem in coco.mask_problems(path)
        ]
    return problems
