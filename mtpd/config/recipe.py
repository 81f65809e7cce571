"""Recipes: what to run, as mmcv Python configs. Loaded, checked, resolved."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import contextlib
import copy
import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv import Config, ConfigDict

from ..data import coco, digit_scenes, layouts
from ..errors import RecipeError, unknown_name
from ..utils import download, world
from ..utils.files import sha256_in_name
from ..utils.paths import (
    ROOT,
    cached_checkpoint,
    display_path,
    is_url,
    missing_folder_text,
    resolve_path,
    user_path,
)
from . import schema
from .files import (
    as_overrides,
    format_config,
    is_plain_config,
    mmdet_config,
    override_values,
    pretrained_as_init_cfg,
    read_config,
    set_class_count,
    use_plain_batch_norm,
    works_text,
)

PATH_KEYS = ('data.root', '.config', '.checkpoint', '.init')  # keys whose values are paths
RELATIVE_PATHS = (
    f'A relative path is looked for beside the recipe, in the working directory and in {ROOT}.'
)
BYTES_PER_PIXEL = 2.3  # of DigitScenes' PNG files


@dataclass(frozen=True)
class Arm:
    """A named sequence of teachers (None: a stage without one); its updates are split evenly over the stages.

    No teachers: they are 'auto' and not chosen yet, see `mtpd.pipeline.teacher_order.resolve_auto_arms`.
    """

    name: str
    label: str
    teachers: tuple[str | None, ...]
    updates: int

    @property
    def stage_updates(self) -> int:
        return self.updates // len(self.teachers)

    def stage_name(self, stage: int) -> str:
        """The folder's name of stage 1, 2, ..."""
        return f'{stage}_{self.teachers[stage - 1] or "no_teacher"}'


def image_scale(image: dict) -> tuple[int, int]:
    """Longer and shorter side in pixels that an image is resized into; `image`: a recipe's settings."""
    return (image.scale, image.scale) if isinstance(image.scale, int) else tuple(image.scale)


def _teacher_names(teachers: Any) -> tuple:
    return () if teachers == 'auto' else tuple(teachers)


class Recipe:
    """A checked recipe. `cfg` holds its values, the rest is derived from them."""

    def __init__(self, cfg: Config, source: Path, overrides: dict | None = None):
        self.cfg = cfg
        self.source = source
        # Paths among them are settled, as a process in another working directory needs them.
        self.overrides = {
            key: self.value(key) if key.endswith(PATH_KEYS) else value
            for key, value in (overrides or {}).items()
        }

    def value(self, key: str) -> Any:
        """A setting by its dotted key."""
        return functools.reduce(lambda node, part: node[part], key.split('.'), self.cfg)

    @property
    def name(self) -> str:
        return self.cfg.name

    @property
    def seed(self) -> int:
        return self.cfg.seed

    @property
    def gpus(self) -> int | None:
        """Processes that share its work, None where it doesn't say."""
        return self.cfg.runtime.get('gpus')

    @property
    def device(self) -> str:
        return self.cfg.runtime.device

    @property
    def corrupt_limit(self) -> int:
        """The largest number of corrupt images of a split that are left out."""
        return self.cfg.data.get('corrupt_limit', 0)

    def run_dir(self, work_dir: str | Path | None = None) -> Path:
        """Where the recipe's results go: `work_dir` or `runs/<name>/<seed>` of the checkout."""
        return (
            user_path(work_dir).resolve()
            if work_dir
            else ROOT / 'runs' / self.name / str(self.seed)
        )

    @property
    def arms(self) -> dict[str, Arm]:
        updates = self.cfg.schedule.arm
        return {
            name: Arm(name, arm.get('label', name), _teacher_names(arm.teachers), updates)
            for name, arm in self.cfg.arms.items()
        }

    @property
    def detectors(self) -> dict[str, dict]:
        """The student first, then the teachers by their names in the recipe."""
        return {'student': self.cfg.student, **self.cfg.teachers}

    @property
    def pool(self) -> list[str]:
        """The teachers to choose from. Raises RecipeError where there are none."""
        if not self.cfg.teachers:
            raise RecipeError(self.source, ['teachers is empty: name at least one.'])
        return list(self.cfg.teachers)

    def arm(self, name: str, stage: int | None = None) -> Arm:
        """An arm by name. Raises RecipeError where the recipe has no such arm or stage."""
        arms = self.arms
        if name not in arms:
            raise RecipeError(self.source, [unknown_name('arm', name, arms)])
        if not arms[name].teachers:
            text = f'the teachers of arm {name!r} are chosen by adaptation cost: run `mtpd order` first.'
            raise RecipeError(self.source, [text])
        count = len(arms[name].teachers)
        if stage is not None and not 1 <= stage <= count:
            text = f'arm {name!r} has {count} stage(s) and no stage {stage}: give 1 to {count}.'
            raise RecipeError(self.source, [text])
        return arms[name]

    # Data

    def ensure_data(self, scenes: int | None = None) -> Path:
        """The dataset's folder; DigitScenes are written where they are missing, which is said before.

        Args:
            scenes: training scenes of DigitScenes, in place of the recipe's number.
        """
        data = self.cfg.data
        if data.root is not None:
            return resolve_path(data.root, self.source)
        count = data.scenes
        train, val, size, seed = scenes or count.train, count.val, count.size, count.seed
        folder = ROOT / data.cache / digit_scenes.folder_name(train, val, size, seed)
        megabytes = (train + val) * size * size * BYTES_PER_PIXEL / 1e6
        if megabytes > 10 and not digit_scenes.is_complete(folder, train, val):  # it takes a while
            text = f'making the built-in dataset: {train + val} images, {megabytes:.0f} MB, in {folder}'
            # Standard output is for the numbers of `mtpd eval`.
            print(text, file=sys.stderr, flush=True)
        return digit_scenes.make_digit_scenes(ROOT / data.cache, train, val, size, seed)

    def split(self, name: str, scenes: int | None = None) -> tuple[Path, Path]:
        """Annotation file and image folder of 'train' or 'val'; DigitScenes are written where they are missing."""
        return layouts.locate_split(self.ensure_data(scenes), self.cfg.data.splits[name])

    @property
    def classes(self) -> tuple[str, ...]:
        """The dataset's class names, in the order of the training annotations: label k is the k-th, in val as well.

        Raises:
            MtpdError: the annotation file can't be read.
        """
        if self.cfg.data.root is None:
            return digit_scenes.CLASSES
        return coco.class_names(layouts.class_file(self.ensure_data(), self.cfg.data.splits))

    def data_problems(self, training: bool = True) -> list[str]:
        """What stops this recipe's dataset from being used; empty when all is well.

        A process checks a dataset once, see `coco.split_problems`.

        Args:
            training: both splits are used, and not val alone.
        """
        if self.cfg.data.root is None:
            return []
        root = resolve_path(self.cfg.data.root, self.source)
        if not root.is_dir():
            fetch = ' `mtpd data coco` fetches COCO into it.' if root.name == 'coco' else ''
            return [
                f'data.root {missing_folder_text(root)} Give the folder of a COCO-format dataset: --cfg-options data.root=FOLDER.{fetch} {RELATIVE_PATHS}'
            ]
        all_splits = self.cfg.data.splits
        splits = {name: all_splits[name] for name in (('train', 'val') if training else ('val',))}
        missing = layouts.missing_splits(root, splits)
        problems = list(missing.values())
        for name, split in splits.items():
            if name not in missing:
                problems += coco.split_problems(root, split, self.corrupt_limit)
        if problems:
            return problems
        scales = [self.image(name).scale for name in self.detectors]
        longest = min(scale if isinstance(scale, int) else max(scale) for scale in scales)
        for name, split in splits.items():
            problems += coco.thin_images(root, split, longest, training=name == 'train')
        if problems:
            return problems
        return coco.class_problems(layouts.class_file(root, all_splits), self.split('val')[0])

    def data_notes(self, training: bool = True) -> list[str]:
        """What is taken for granted in this recipe's dataset, which has no problems; without `training`, in val."""
        if self.cfg.data.root is None:
            return []
        root, splits = resolve_path(self.cfg.data.root, self.source), self.cfg.data.splits
        notes = [text] if (text := layouts.describe_layout(root, splits)) else []
        if training:
            notes += coco.split_notes(root, splits['train'], training=True)
        return notes + coco.split_notes(root, splits['val'], training=False)

    # Detectors

    def image(self, name: str) -> ConfigDict:
        """How images are made for 'student' or a teacher: the recipe's `image`, with what a teacher's own states.

        Raises:
            RecipeError: no such detector.
        """
        stated = self.detector(name).get('image', {})
        return ConfigDict({**self.cfg.image, **stated})

    def is_features_only(self, name: str) -> bool:
        """Whether only a teacher's features are used: it needs neither a head nor the dataset's classes, and has no AP."""
        return bool(self.detector(name).get('features_only'))

    def own_normalisation(self, teacher: str) -> dict | None:
        """``mean``, ``std`` and ``to_rgb`` of a teacher's images in a stage; None where it sees the student's own.

        It is not None where its images are of another size, as these come as bytes.
        """
        ours, theirs = self.cfg.image, self.image(teacher)
        norm = {'mean': [*theirs.mean], 'std': [*theirs.std], 'to_rgb': theirs.to_rgb}
        before = {'mean': [*ours.mean], 'std': [*ours.std], 'to_rgb': ours.to_rgb}
        return norm if norm != before or image_scale(ours) != image_scale(theirs) else None

    def detector(self, name: str) -> dict:
        """What the recipe says of a detector. Raises RecipeError where it has none of that name."""
        if name not in self.detectors:
            raise RecipeError(self.source, [unknown_name('detector', name, self.detectors)])
        return self.detectors[name]

    def model(self, name: str) -> ConfigDict:
        """mmdet model config of 'student' or a teacher, with the heads sized to the dataset's classes.

        Raises:
            RecipeError: no such detector, or its config does not load.
        """
        spec = self.detector(name)
        path, count = resolve_path(spec.config, self.source), len(self.classes)
        is_shared = self._is_shared
        try:
            cfg = mmdet_config(path)
            cfg.merge_from_dict({'model': copy.deepcopy(spec.get('model', {}))})
            pretrained_as_init_cfg(cfg.model)
            set_class_count(cfg.model, count)
            if not is_shared:
                use_plain_batch_norm(cfg.model)
            cfg.model.backbone  # noqa: B018  (else it is none of a detector)
        except Exception as error:  # a config is Python, and mmcv raises several types
            text = f'{name}: {path} defines no detector ({type(error).__name__}: {error}).'
            raise RecipeError(
                self.source, [f'{text} An mmdet config with a `model` is needed.']
            ) from error
        return cfg.model

    @property
    def _is_shared(self) -> bool:
        """Whether several processes share its work. One alone has no batch norm to synchronise."""
        process = world.current_world()
        return (self.gpus or 1) > 1 or bool(process and process.size > 1)

    def checkpoint(self, name: str, key: str = 'checkpoint') -> Path | None:
        """The checkpoint that the recipe names for a detector; None where the kit trains it.

        That of a URL lies in the cache, once `fetch` has been there.

        Args:
            key: 'checkpoint', or 'init' for the weights with which the detector's training begins.
        """
        path = self.detectors[name].get(key)
        if not path:
            return None
        return cached_checkpoint(path) if is_url(path) else resolve_path(path, self.source)

    def url(self, name: str, key: str = 'checkpoint') -> str | None:
        """Where the checkpoint is fetched from; None where it is a local file, or none is named."""
        path = self.detectors[name].get(key)
        return path if path and is_url(path) else None

    def fetch(self, name: str, key: str = 'checkpoint') -> Path | None:
        """As `checkpoint`, and that of a URL is fetched unless it is in the cache.

        Raises:
            MtpdError: it can't be had, or its SHA-256 does not begin as its name ends (``x-7ee888e0.pth``).
        """
        path = self.checkpoint(name, key)
        if url := self.url(name, key):
            download.fetch_file(url, path, sha256_in_name(path.name))
        return path

    def checkpoint_problems(self, names: Iterable[str] | None = None) -> list[str]:
        """Checkpoints that are named and missing, and can't be fetched; of all detectors, or of `names`."""
        problems = []
        for name in self.detectors if names is None else names:
            path = self.checkpoint(name)
            if path and not path.is_file() and not self.url(name):
                problems.append(
                    f'checkpoint of {name}: {path} is missing. Fetch it, or train it: '
                    f'--cfg-options {detector_key(name)}.checkpoint=None. {RELATIVE_PATHS}'
                )
        return problems

    @property
    def text(self) -> str:
        """The resolved recipe as Python: enough to run again."""
        return format_config(self.cfg._cfg_dict.to_dict())


def detector_key(detector: str) -> str:
    """The key under which a recipe has a detector: 'student', or 'teachers.' and a teacher's name."""
    return detector if detector == 'student' else f'teachers.{detector}'


def load_recipe(
    path: str | Path | Recipe, overrides: dict | str | None = None, seed: int | None = None
) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: a recipe file; relative to the working directory or to the checkout.
        overrides: dotted keys and values laid over it, such as
            ``{'schedule.arm': 600, 'data.root': 'data/cells'}`` or ``'schedule.arm=600 data.root=data/cells'``.
        seed: shorthand for the override of the same name.

    Raises:
        RecipeError: no such file, a file that does not load, unknown keys, wrong types, names that don't fit
            together: all in one message.
    """
    overrides = as_overrides(overrides)
    if seed is not None:
        overrides = {**overrides, 'seed': seed}
    if isinstance(path, Recipe):
        return load_recipe(path.source, {**path.overrides, **overrides}) if overrides else path
    source, cfg = read_config(path)
    if is_plain_config(cfg):
        raise RecipeError(
            path,
            [
                'it is an mmdet config, not a recipe. `mtpd train`, `mtpd eval` and `mtpd show` take it. A recipe names it as '
                'the config of a detector.'
            ],
        )
    schema.drop_split_names(cfg.get('data'), overrides)
    override_values(cfg, overrides, source)
    schema.fill_splits(cfg.get('data'))
    values = cfg._cfg_dict.to_dict()
    problems = schema.value_problems(values)
    if not problems:
        problems, from_here = _settle_paths(cfg, source.resolve())
        if problems:
            raise RecipeError(source, problems)
        return Recipe(cfg, source.resolve(), {**overrides, **from_here})
    cfg = Config(schema.drop_unknown_keys(values))
    problems += schema.value_problems(cfg._cfg_dict.to_dict())
    rest = None
    with contextlib.suppress(AttributeError, TypeError, KeyError):  # of values of a wrong shape
        problems += _settle_paths(cfg, source.resolve())[0]
        rest = Recipe(cfg, source.resolve())
    raise RecipeError(source, list(dict.fromkeys(problems)), rest)


def _settle_paths(cfg: Config, source: Path) -> tuple[list[str], dict[str, str]]:
    """Makes the recipe's paths independent of where it lies and of the working directory.

    Returns:
        What is wrong with detector configs; datasets and checkpoints are looked at when used. And, by their keys, paths
        that a process in the checkout would not come to: they have to be among the recipe's overrides.
    """
    problems, from_here = [], {}

    def settle(node: dict, place: str, key: str) -> Path:
        path = resolve_path(node[key], source)
        if path.exists() and path != resolve_path(node[key], source, ROOT):
            from_here[f'{place}.{key}'] = display_path(path)
        if not node[key].startswith('mmdet::'):
            node[key] = display_path(path)
        return path

    for name, spec in {'student': cfg.student, **cfg.teachers}.items():
        for key in ('config', 'checkpoint', 'init'):
            if spec.get(key) and (key == 'config' or not is_url(spec[key])):
                path = settle(spec, detector_key(name), key)
                if key == 'config' and not path.is_file():
                    problems.append(
                        f'{detector_key(name)}.config: {path} is missing. Correct the path.{works_text(path)} {RELATIVE_PATHS}'
                    )
    if cfg.data.root is not None:
        settle(cfg.data, 'data', 'root')
    cfg.data.cache = str(user_path(cfg.data.cache))
    for split in cfg.data.splits.values():
        for key, path in split.items() if isinstance(split, dict) else ():
            split[key] = str(user_path(path)) if isinstance(path, str) else path
    return problems, from_here


def list_recipes() -> list[dict]:
    """The recipes in configs/: ``path``, ``title``, and ``paper``, the published AP on COCO of their sequence or None."""
    recipes = []
    for path in sorted((ROOT / 'configs').glob('[!_]*/*.py')):
        if path.parent.name == 'teachers':  # detectors
            continue
        cfg = load_recipe(path).cfg
        title, paper = cfg.get('title', cfg.name), cfg.get('paper', {})
        recipes.append({'path': display_path(path), 'title': title, 'paper': paper.get('result')})
    return recipes
