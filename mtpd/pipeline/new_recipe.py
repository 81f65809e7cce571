"""A recipe for any student and teachers, made from their mmdet configs: `mtpd new`."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import functools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from mmcv import Config, ConfigDict
from mmdet.datasets import DATASETS
from mmdet.models import build_detector

from ..config.files import pretrained_as_init_cfg, pretrained_keys, read_config
from ..config.recipe import load_recipe
from ..data import coco, layouts
from ..data.classes import known_classes, same_classes
from ..distill.hook_points import Outputs, measured_outputs
from ..distill.initialization import inherit_from_teacher
from ..errors import MtpdError
from ..preflight.detectors import RAW_PIXELS, normalise_steps, other_task
from ..preflight.diagnosis import balanced_weights
from ..preflight.student_config import image_scales, parts_left_out
from ..runtime.checkpoints import load_checkpoint
from ..utils.files import write_json, write_text
from ..utils.paths import packaged_configs, resolve_path

FPN_MODULE = 'neck.fpn_convs.{level}.conv'  # what the recipes' base file compares
NECK_OUTPUT = 'neck:{level}'
# Of --pocket: a whole run of a ResNet-50 takes minutes on two cores.
POCKET_SCALE, POCKET_UPDATES, POCKET_IMAGES = (320, 192), 10, 16
COCO_IMAGES = 117266  # of train2017, with objects
# Of the recipes' base file: of images for torchvision's weights.
USUAL = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'to_rgb': True}
POLICIES = ('step', 'CosineAnnealing', 'OneCycle', 'poly', 'cyclic')


class Published(NamedTuple):
    """What mmdet's packaged index says of a config: the address of its weights, and their box AP on COCO."""

    weights: str | None = None
    box_ap: float | None = None


def published_weights(config: str) -> Published:
    """The published weights of `mmdet::family/name.py`; empty where the index has no entry, or the config is another file."""
    if not config.startswith('mmdet::'):
        return Published()
    family, _, name = config.removeprefix('mmdet::').partition('/')
    for model in _index(family):
        if Path(str(model.get('Config'))).name == name:
            aps = [
                result.get('Metrics', {}).get('box AP')
                for result in model.get('Results') or ()
                if result.get('Task') == 'Object Detection'
            ]
            return Published(model.get('Weights'), next(filter(None, aps), None))
    return Published()


@functools.cache
def _index(family: str) -> list[dict]:
    file = packaged_configs() / family / 'metafile.yml'
    if not file.is_file():
        return []
    entries = yaml.safe_load(file.read_text(encoding='utf-8'))
    return entries.get('Models', []) if isinstance(entries, dict) else entries


class Detector(NamedTuple):
    """A detector as its config has it.

    Attributes:
        config: as the user named it.
        cfg: the whole config.
        published: what mmdet says of it.
        outputs: its levels.
    """

    config: str
    cfg: Config
    published: Published
    outputs: Outputs

    @property
    def label(self) -> str:
        return Path(self.config).stem.removesuffix('_coco')


def read_detector(config: str) -> Detector:
    """Raises MtpdError: no such file, it has no detector, or its neck cannot be run."""
    _, cfg = read_config(config)
    if 'model' not in cfg or 'backbone' not in cfg.model:
        raise MtpdError(
            f'{config} has no detector (`model` with a backbone): name an mmdet config.'
        )
    pretrained_as_init_cfg(cfg.model)
    try:
        return Detector(config, cfg, published_weights(config), measured_outputs(cfg.model))
    except MtpdError as error:
        raise MtpdError(f'{config}: {error}') from error


def new_recipe(
    out: Path,
    student: str,
    teachers: list[str],
    data: str | None = None,
    method: str = 'mgd',
    student_checkpoint: str | None = None,
    pocket: bool = False,
    teacher_checkpoints: Sequence[str] = (),
) -> str:
    """Writes a recipe, and returns its text.

    Args:
        student, teachers: mmdet configs, a file or `mmdet::...`; teachers in the order of the sequence.
        data: a dataset's folder; COCO in data/coco by default.
        student_checkpoint: what stages start from.
        pocket: small images, few updates and few validation images, to see that all works.
        teacher_checkpoints: the teachers' weights, in their order; those that mmdet publishes by default.

    Raises:
        MtpdError: no such config, detectors without a common level, or a file that exists; all in one message.
    """
    for path in (out, _few_images_file(out)) if pocket else (out,):
        if path.exists():
            raise MtpdError(f'{path} exists. Choose another name, or remove it.')
    problems, detectors = [], []
    if len(teacher_checkpoints) not in (0, len(teachers)):
        problems.append(
            f'{len(teachers)} teachers and {len(teacher_checkpoints)} checkpoints: give --teacher-checkpoints one for each teacher, in their order.'
        )
    for place, config in enumerate((student, *teachers)):
        try:
            detectors.append(read_detector(config))
        except MtpdError as error:
            problems.append(str(error))
            continue
        if place == 0 and (task := other_task(detectors[0].cfg.model)):
            problems.append(f'{student}: {task} Choose another student.')
    if problems:
        raise MtpdError('\n'.join(problems))
    for place, checkpoint in enumerate(teacher_checkpoints, 1):
        detectors[place] = detectors[place]._replace(published=Published(checkpoint))
    for teacher in detectors[1:]:
        task = other_task(teacher.cfg.model)
        if task and not teacher.published.weights and not pocket:
            problems.append(
                f'{teacher.config}: {task} Its features alone can teach, which needs its weights: --teacher-checkpoints.'
            )
    if problems:
        raise MtpdError('\n'.join(problems))
    draft = _Draft(out, detectors, data, method, student_checkpoint, pocket)
    write_text(out, draft.text())
    if not pocket:  # with random weights a ratio says nothing
        draft.measure_weight()
        write_text(out, draft.text())
    return draft.text()


class _Draft:
    """The recipe's parts, and the comments that say why they are so."""

    def __init__(
        self,
        out: Path,
        detectors: list[Detector],
        data: str | None,
        method: str,
        checkpoint: str | None,
        pocket: bool,
    ):
        self.out, self.data, self.method, self.pocket = out, data, method, pocket
        self.student, *self.teachers = detectors
        self.checkpoint = checkpoint
        self.notes: list[str] = []
        self.names = _teacher_names(self.teachers)
        # Why a teacher's head is of no use, by its name; the others' are.
        reasons = {
            name: self._why_headless(teacher)
            for name, teacher in zip(self.names, self.teachers, strict=True)
        }
        self.headless = {name: reason for name, reason in reasons.items() if reason}
        self.loss_weights: dict[str, float] = {}
        self.weight_note = ''

    def measure_weight(self) -> None:
        """Balances the distillation loss and the detection loss with the last teacher, where its weights and the data are on this machine."""
        measured = balanced_weights(load_recipe(self.out), self.names[-1])
        if measured is None:
            self.weight_note = (
                'Weight of the distillation loss: as published. It was not measured, because weights or data are missing; '
                f'`mtpd diagnose {self.out}` names one that fits.'
            )
            return
        self.loss_weights, ratio = measured
        if self.loss_weights:
            self.weight_note = (
                'Weight of the distillation loss: balanced with the detection loss. With the published one, '
                f'{ratio}.'
            )
        else:
            self.weight_note = f'Weight of the distillation loss: as published; {ratio}.'

    def text(self) -> str:
        self.notes = [self.weight_note] if self.weight_note else []
        name = re.sub(r'\W+', '_', self.out.stem)
        values = {
            'name': name,
            'title': f'{self.student.label} taught by {", then ".join(t.label for t in self.teachers)}',
            'data': {'root': self.data} if self.data else {},
            'image': self._image(),
            'student': self._spec(self.student, self.checkpoint),
            'teachers': {
                key: self._spec(teacher, teacher.published.weights)
                | self._own_images(teacher)
                | self._only_features(key)
                for key, teacher in zip(self.names, self.teachers, strict=True)
            },
            'arms': self._arms(),
            'distill': self._distill(),
            'schedule': self._schedule(),
        }
        values['data'] |= self._few_images()  # last: it writes a file, and others refuse
        lines = [f'# {values["title"]}. Made by `mtpd new`; change what you like.', '#']
        for note in self._checkpoint_notes() + self.notes:
            lines += textwrap.wrap(note, 110, initial_indent='# ', subsequent_indent='#   ')
        lines += ['#', f'# Check: mtpd doctor {self.out}', f'# Launch: mtpd run {self.out}']
        bases = ['configs/_base_/datasets/coco.py', 'configs/_base_/schedules/coco_1x.py']
        bases += [f'configs/_base_/distill/{_methods_file(self.student)}']
        lines += [f'_base_ = {_literal(bases)}']
        lines += [f'{key} = {_literal(value)}' for key, value in values.items() if value]
        return '\n'.join(lines) + '\n'

    def _few_images(self) -> dict:
        """Of --pocket: a validation split of the first images with objects, in a file beside the recipe."""
        if not self.pocket:
            return {}
        cut = (
            f'A trial: images of {POCKET_SCALE[0]} x {POCKET_SCALE[1]}, {POCKET_UPDATES} updates a stage, random weights '
            'instead of published ones'
        )
        annotations, images = layouts.locate_split(
            resolve_path(self.data or 'data/coco', self.out), 'val'
        )
        if not annotations.is_file():
            self.notes.append(f'{cut}. AP means nothing.')
            return {}
        table = coco.read_annotations(annotations)
        shown = {item['image_id'] for item in table['annotations']}
        chosen = [image for image in table['images'] if image['id'] in shown][:POCKET_IMAGES]
        ids = {image['id'] for image in chosen}
        objects = [item for item in table['annotations'] if item['image_id'] in ids]
        file = _few_images_file(self.out).absolute()
        write_json(file, {**table, 'images': chosen, 'annotations': objects})
        self.notes.append(
            f'{cut}, {len(chosen)} of {len(table["images"])} validation images ({file.name}). AP means nothing.'
        )
        return {'splits': {'val': {'annotations': str(file), 'images': str(images.absolute())}}}

    def _spec(self, detector: Detector, checkpoint: str | None) -> dict:
        spec: dict[str, Any] = {'label': detector.label, 'config': detector.config}
        if self.pocket:  # nothing is fetched
            model: dict[str, Any] = {'backbone': {'init_cfg': None}}
            for *parents, key in pretrained_keys(detector.cfg.model):
                functools.reduce(lambda node, name: node.setdefault(name, {}), parents, model)[
                    key
                ] = None
            return spec | {'model': model}
        return spec | ({'checkpoint': checkpoint} if checkpoint else {})

    def _own_images(self, teacher: Detector) -> dict:
        """What a teacher needs said whose images are normalised in another way than the student's."""
        norm, students = _normalisation(teacher), _normalisation(self.student) or USUAL
        if not norm or norm == students:
            return {}
        self.notes.append(f'{teacher.label} has its own image normalisation (teachers.*.image).')
        return {'image': norm}

    def _only_features(self, name: str) -> dict:
        """What a teacher needs said whose head is of no use."""
        if name not in self.headless:
            return {}
        label, reason = self.teachers[self.names.index(name)].label, self.headless[name]
        self.notes.append(f'Of {label} the features are used alone, without AP: {reason}.')
        if self.pocket:
            self.notes.append(
                'That needs its weights, which --pocket leaves out: doctor refuses it.'
            )
            return {}
        return {'features_only': True}

    def _why_headless(self, teacher: Detector) -> str:
        if other_task(teacher.cfg.model):
            return 'it is no detector of objects'
        return "its classes are not the dataset's" if self._has_other_classes(teacher) else ''

    def _has_other_classes(self, teacher: Detector) -> bool:
        """Whether a teacher's weights are of other classes than the dataset; --pocket trains teachers of the dataset's."""
        weights = teacher.published.weights
        if not self.data or self.pocket or not weights:
            return False
        annotations, _ = layouts.locate_split(resolve_path(self.data, self.out), 'train')
        if not annotations.is_file():
            return False
        if Path(weights).is_file():
            classes = known_classes((load_checkpoint(weights).get('meta') or {}).get('CLASSES'))
        else:
            split = teacher.cfg.get('data', {}).get('test', {})
            kind = DATASETS.get(split.get('type', 'CocoDataset'))
            classes = known_classes(split.get('classes') or kind.CLASSES)
        return classes is not None and not same_classes(coco.class_names(annotations), classes)

    def _checkpoint_notes(self) -> list[str]:
        lines = []
        for who, detector in zip(
            ('student', *self.names), (self.student, *self.teachers), strict=True
        ):
            weights, ap = detector.published
            known = f'{ap:g} box AP on COCO' if ap else 'AP not known'
            digest = re.search(r'-([0-9a-f]{8})\.pth$', weights or '')
            if weights:
                lines.append(
                    f'{who}: {known}{" (mmdet)" if ap else ""}{f", SHA-256 {digest[1]}" if digest else ""}.'
                )
            elif who != 'student':
                lines.append(
                    f'{who}: mmdet has no weights for this config. It is trained here, unless teachers.{who}.checkpoint names weights.'
                )
        return lines

    def _arms(self) -> dict:
        last = self.names[-1]
        arms = {
            'none': {'label': 'no teacher', 'teachers': [None]},
            'direct': {'label': f'{self.teachers[-1].label} only', 'teachers': [last]},
        }
        if len(self.names) > 1:
            stages = ' → '.join(t.label for t in self.teachers)
            arms['repeated'] = {
                'label': ' → '.join([self.teachers[-1].label] * len(self.names)),
                'teachers': [last] * len(self.names),
            }
            arms['progressive'] = {'label': stages, 'teachers': list(self.names)}
        return arms

    def _distill(self) -> dict:
        student = self.student.outputs
        levels = [
            number
            for number, level in enumerate(student.levels)
            if all(_gives(d.outputs, level.stride) for d in (self.student, *self.teachers))
        ]
        if not levels:
            strides = '; '.join(
                f'{d.label} {", ".join(str(level.stride) for level in d.outputs.levels)}'
                for d in (self.student, *self.teachers)
            )
            raise MtpdError(
                f'no stride is common to all detectors (strides: {strides}). Choose another teacher.'
            )
        values: dict[str, Any] = {'method': self.method, 'levels': levels}
        strides = [student.levels[number].stride for number in levels]
        self.notes.append(f'Compared: strides {", ".join(map(str, strides))}.')
        left_out = [level.stride for n, level in enumerate(student.levels) if n not in levels]
        if left_out:
            self.notes.append(
                f'Not compared: strides {", ".join(map(str, left_out))} of the student.'
            )
        for who, detector in (('student', self.student), *(('teacher', t) for t in self.teachers)):
            chosen = [level for level in detector.outputs.levels if level.stride in strides]
            usual = [
                level.module == FPN_MODULE.format(level=detector.outputs.index(level.stride))
                for level in chosen
            ]
            if not chosen[0].module:
                values[f'{who}_module'] = NECK_OUTPUT
                self.notes.append(f'{detector.label}: the maps that its neck gives are compared.')
            elif not all(usual):
                values.setdefault(f'{who}_module', 'auto')
                self.notes.append(f'{detector.label}: {chosen[0].module}, ... are compared.')
            if chosen[0].behind:
                self.notes.append(
                    f'{detector.label}: the compared level is followed by {", ".join(chosen[0].behind)}.'
                )
        if self.loss_weights:
            values['settings'] = {self.method: self.loss_weights}
        return values | self._start()

    def _start(self) -> dict:
        if self.checkpoint:
            self.notes.append('Stages start from the given student.')
            return {'start': 'baseline'}
        first = self.teachers[0]
        if self.names[0] in self.headless:
            self.notes.append("Stages start at random, as the student's config says.")
            return {'start': 'random'}
        try:
            student, teacher = (
                build_detector(ConfigDict(_without_weights(d.cfg.model)))
                for d in (self.student, first)
            )
            inherit_from_teacher(student, teacher.state_dict(), ())
        except Exception:  # mmdet raises a dozen types
            self.notes.append(
                f"Stages start at random, as the student's config says: {first.label}'s neck and head do not fit."
            )
            return {'start': 'random'}
        self.notes.append(f"Stages start with {first.label}'s neck and head, as in the paper.")
        return {'start': 'inherit'}

    def _image(self) -> dict:
        values: dict[str, Any] = _normalisation(self.student)
        scales = image_scales(self.student.cfg.get('data', {}).get('train', {}))
        if self.pocket:
            values['scale'] = POCKET_SCALE
        elif scales:
            values['scale'] = scales[-1]
        return values

    def _schedule(self) -> dict:
        cfg, values, left = self.student.cfg, {}, []
        optimizer = cfg.get('optimizer')
        if optimizer and 'constructor' not in optimizer:
            values['optimizer'] = {'_delete_': True, **optimizer.to_dict()}
        elif optimizer:
            left.append(f'optimizer ({optimizer.constructor})')
        batch = cfg.get('auto_scale_lr', {}).get('base_batch_size', 16)
        epochs = cfg.get('runner', {}).get('max_epochs') or cfg.get('total_epochs')
        values['lr_batch_size'] = batch
        policy = (cfg.get('lr_config') or ConfigDict()).to_dict()
        if policy.get('policy') in POLICIES and epochs:
            if isinstance(policy.get('step'), list):
                policy['step'] = [round(step / epochs, 4) for step in policy['step']]
            policy.pop('by_epoch', None)
            values['lr'] = {'_delete_': True, **policy}
        elif policy:
            left.append(f'learning rate policy {policy.get("policy")}')
        clip = (cfg.get('optimizer_config') or {}).get('grad_clip')
        values['grad_clip'] = dict(clip) if clip else None
        stages = max(len(arm['teachers']) for arm in self._arms().values())
        if self.pocket:
            updates = POCKET_UPDATES
            values |= {'batch_size': 2, 'baseline': updates, 'arm': updates * stages, 'teacher': updates, 'log_interval': 5, 'checkpoint_interval': 5}  # fmt: skip
        elif epochs and not self.data:
            epochs *= _repeats((cfg.get('data') or {}).get('train'))
            updates = epochs * -(-COCO_IMAGES // 16)
            values |= {'baseline': updates, 'teacher': updates, 'arm': stages * updates}
            self.notes.append(
                f"Each stage is as long as the student's config trains: {epochs} epochs of COCO."
            )
        else:
            self.notes.append(
                "Lengths are the base file's: set schedule.baseline and schedule.arm for your dataset."
            )
        left += parts_left_out(cfg)
        if left:
            self.notes.append(f"Not taken from the student's config: {', '.join(left)}.")
        return values


def _few_images_file(recipe: Path) -> Path:
    return recipe.with_name(f'{recipe.stem}_val.json')


def _gives(outputs: Outputs, stride: int) -> bool:
    """Whether a level of that stride can be compared: a module gives it or, where no level has one, the neck."""
    place = outputs.index(stride)
    if place is None:
        return False
    return bool(outputs.levels[place].module) or not any(level.module for level in outputs.levels)


def _normalisation(detector: Detector) -> dict:
    """`mean`, `std` and `to_rgb` of a detector's config; empty where it has no data pipeline."""
    data = detector.cfg.get('data', {})
    raw = RAW_PIXELS if 'LoadImageFromFile' in str(data) else None
    norm = next(normalise_steps(data), detector.cfg.get('img_norm_cfg', raw))
    if not norm:
        return {}
    lists = {key: list(map(float, norm[key])) for key in ('mean', 'std')}
    return {**lists, 'to_rgb': bool(norm.get('to_rgb', True))}


def _teacher_names(teachers: list[Detector]) -> list[str]:
    names: list[str] = []
    for teacher in teachers:
        stem = re.sub(r'\W+', '_', teacher.label)
        name = next(c for c in (stem, *(f'{stem}_{n}' for n in range(2, 99))) if c not in names)
        names.append(name)
    return names


def _without_weights(model: ConfigDict) -> ConfigDict:
    model = model.deepcopy() if hasattr(model, 'deepcopy') else ConfigDict(model.to_dict())
    model.backbone.init_cfg = None
    return model


def _methods_file(student: Detector) -> str:
    kind = student.cfg.model.type
    if 'RepPoints' in kind:
        return 'methods_reppoints.py'
    return 'methods_mask_rcnn.py' if kind in ('MaskRCNN', 'CascadeRCNN') else 'methods.py'


def _repeats(dataset: Any) -> int:
    """How many times an epoch of a training dataset goes through its images."""
    times = 1
    while isinstance(dataset, dict):
        times *= dataset['times'] if dataset.get('type') == 'RepeatDataset' else 1
        dataset = dataset.get('dataset')
    return times


def _literal(value: Any, indent: int = 0) -> str:
    """Python's text of a setting, as the recipes in `configs/` are written: `dict(key=value)`, at most 100 columns."""
    if isinstance(value, dict):
        parts = [f'{key}={_literal(item, indent + 4)}' for key, item in value.items()]
        opening, closing = 'dict(', ')'
    elif isinstance(value, list):
        parts, opening, closing = [_literal(item, indent + 4) for item in value], '[', ']'
    else:
        return repr(value)
    line = opening + ', '.join(parts) + closing
    if len(line) + indent < 80 and '\n' not in line:
        return line
    inner = ''.join(f'{" " * (indent + 4)}{part},\n' for part in parts)
    return f'{opening}\n{inner}{" " * indent}{closing}'
