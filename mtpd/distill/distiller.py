"""A student detector beside a teacher: what one stage of MTPD trains."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from operator import attrgetter

import torch
from mmcv import ConfigDict
from mmdet.models import DETECTORS, BaseDetector, build_backbone, build_detector, build_neck
from torch import Tensor, nn

from ..errors import MtpdError
from ..runtime import checkpoints, detectors, yolox  # noqa: F401  (adapted before detectors are built)
from ..runtime.streams import cuda_stream
from .initialization import InheritReport, inherit_from_teacher, initialise_weights
from .losses import build_losses
from .losses.base import module_path
from .teacher_images import normalise_bytes, on_students_grid, renormalise

_log = logging.getLogger('mtpd')


def _student_method(method: str):
    """A method that calls the student's."""
    return lambda self, *args, **kwargs: getattr(self.student, method)(*args, **kwargs)


@DETECTORS.register_module()
class Distiller(BaseDetector):
    """Trains `student` on its own losses and on distillation losses against `teacher`'s features.

    To mmdet it is a detector: evaluation and drawing go to the student. The teacher is outside the
    module tree: `parameters()`, `named_modules()`, `state_dict()`, the optimizer, DDP and mmdet's
    class-count hook don't see it, while `.to()` and `deepcopy` take it along. The state dict has
    the layout of the original code: `student.*` and `distill_losses.<name>.*`.

    Args:
        student, teacher: model configs of mmdet; left unchanged. Of the teacher only backbone and
            neck are built, without their initialisation, so nothing is downloaded for it.
        distill_cfg: a list of `dict(student_module='neck.fpn_convs.0.conv', teacher_module=...,
            methods=[dict(type='MGD', name='loss_mgd_fpn_0', ...)])`: the outputs of the two
            modules go to each method's loss (`mtpd.distill.losses`), which is reported under its name. 'neck:4' is the
            map of that number that the neck gives, counted from 0.
        student_checkpoint: what the student starts from; else its config's own initialisation.
        teacher_checkpoint: required; 'random' asks for an untrained teacher on purpose.
        init_student: the student takes over the teacher's neck and head; see `inherit_report`.
        teacher_mode: 'eval', or 'train' for the original code's behaviour, where the runner puts
            the teacher into train mode (DropPath acts, batch norm updates its statistics).
        inherit_allow: patterns of weights that may differ then, see `mtpd.distill.initialization`.
        adapters_checkpoint: a training of a `Distiller`, whose distillation losses' weights these losses go on with.
        teacher_norm: ``mean``, ``std`` and ``to_rgb`` of the teacher's images, where they are not the student's own.
        train_cfg, test_cfg: the student's, where its config does not hold them.

    Raises:
        MtpdError: options that contradict each other, everything wrong with `distill_cfg` at once,
            or checkpoints that don't fit.
    """

    def __init__(
        self,
        student: dict,
        teacher: dict,
        distill_cfg: list[dict],
        student_checkpoint: str | None = None,
        teacher_checkpoint: str | None = None,
        init_student: bool = False,
        teacher_mode: str = 'eval',
        inherit_allow: tuple[str, ...] = (),
        adapters_checkpoint: str | None = None,
        teacher_norm: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
    ):
        super().__init__()
        _check_options(student_checkpoint, teacher_checkpoint, init_student, teacher_mode)
        self.teacher_mode, self.teacher_norm = teacher_mode, teacher_norm
        self.inherit_report: InheritReport | None = None
        student, teacher = (ConfigDict(copy.deepcopy(dict(cfg))) for cfg in (student, teacher))
        self.student = build_detector(student, train_cfg, test_cfg)
        # In a tuple, as nn.Module would register a module that is a plain attribute.
        self._teacher = (Teacher(teacher),)
        self.distill_losses = nn.ModuleDict(build_losses(distill_cfg, self.student, self.teacher))
        self._links = [
            (method['name'], item['student_module'], item['teacher_module'])
            for item in distill_cfg
            for method in item['methods']
        ]
        if adapters_checkpoint:
            _load_adapters(self.distill_losses, adapters_checkpoint)
        if student_checkpoint:
            checkpoints.load_student(self.student, student_checkpoint)
        else:
            initialise_weights(self.student, student.backbone, 'student.model')
        if teacher_checkpoint != 'random':
            state = checkpoints.load_checkpoint(teacher_checkpoint)
            state = checkpoints.student_state(state, teacher_checkpoint)
            checkpoints.load_strictly(
                self.teacher, state, 'the teacher', teacher_checkpoint, only=('backbone.', 'neck.')
            )
            if init_student:
                self.inherit_report = inherit_from_teacher(self.student, state, inherit_allow)
                _log.info('%s', self.inherit_report)
        self.train()

    @property
    def teacher(self) -> Teacher:
        return self._teacher[0]

    @property
    def hooked_modules(self) -> set[nn.Module]:
        """The modules of student and teacher whose outputs are compared."""
        return {
            module
            for _, student_module, teacher_module in self._links
            for module in (
                self.student.get_submodule(module_path(student_module)),
                self.teacher.get_submodule(module_path(teacher_module)),
            )
        }

    @property
    def hooks_teachers_backbone(self) -> bool:
        """Whether features are taken inside the teacher's backbone."""
        return any(path.startswith('backbone') for _, _, path in self._links)

    def _apply(self, *args, **kwargs):
        self.teacher._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> Distiller:
        self.teacher.train(mode and self.teacher_mode == 'train')
        return super().train(mode)

    def init_weights(self) -> None:
        """Does nothing: mmdet calls it after building, when the checkpoints are in place."""

    def forward_train(self, img: Tensor, img_metas: list[dict], **gt) -> dict[str, Tensor]:
        """The student's losses, and one scalar for each distillation loss under its name.

        Args:
            img: `(N, 3, H, W)`, normalised as the student needs it; the teacher gets the same, or this by `teacher_norm`.
            img_metas: one dict per image.
            **gt: what the student takes: `gt_bboxes` (a list of `(n, 4)`, xyxy, pixels of `img`), ... And `teacher_img`,
                bytes `(N, 3, H_t, W_t)`, where the teacher's images are of another size; `img_metas` then have
                `teacher_shape`, and its features are compared at the places of the student's cells.
        """
        teacher_img = gt.pop('teacher_img', None)
        if hasattr(self.student, 'resize_batch'):  # as YOLOX: the teacher and the boxes follow
            img, img_metas, gt['gt_bboxes'] = self.student.resize_batch(
                img, img_metas, gt['gt_bboxes']
            )
        own_size = teacher_img is not None
        seen = self._teachers_images(img, img_metas, teacher_img)
        with self._features() as (of_student, of_teacher), self.teacher.beside(seen, of_teacher):
            losses = dict(self.student.forward_train(img, img_metas, **gt))
        for name, student_module, teacher_module in self._links:
            if name in losses:
                raise MtpdError(f'the student has a loss {name!r} of its own: rename the method')
            student_feature = _hooked_feature(of_student, 'student', student_module)
            teacher_feature = _hooked_feature(of_teacher, 'teacher', teacher_module)
            if own_size:
                teacher_feature = on_students_grid(
                    teacher_feature,
                    student_feature.shape[2:],
                    (img.shape[2:], seen.shape[2:]),
                    tuple(_shapes(img_metas, key) for key in ('img_shape', 'teacher_shape')),
                )
            losses[name] = self.distill_losses[name](
                student_feature,
                teacher_feature,
                gt_bboxes=gt.get('gt_bboxes'),
                img_metas=img_metas,
            )
        return losses

    def _teachers_images(
        self, img: Tensor, img_metas: list[dict], teacher_img: Tensor | None
    ) -> Tensor:
        """The images that the teacher sees, `(N, 3, H, W)`; `img` itself where it has none of its own."""
        if teacher_img is not None:
            shapes = _shapes(img_metas, 'teacher_shape')
            return normalise_bytes(teacher_img, self.teacher_norm, shapes)
        if self.teacher_norm is None:
            return img
        before = img_metas[0]['img_norm_cfg']
        return renormalise(img, before, self.teacher_norm, _shapes(img_metas, 'img_shape'))

    @contextlib.contextmanager
    def _features(self):
        """Two dicts, of student and teacher, that forward passes fill: module path -> output.

        The hooks live no longer than the context: nothing holds features or the graph after it.
        """
        of_student, of_teacher, hooks = {}, {}, []
        for _, student_module, teacher_module in self._links:
            for features, model, path in (
                (of_student, self.student, student_module),
                (of_teacher, self.teacher, teacher_module),
            ):

                def collect(module, args, output, features=features, path=path):
                    features[path] = _chosen(output, path)

                module = model.get_submodule(module_path(path))
                hooks.append(module.register_forward_hook(collect))
        try:
            yield of_student, of_teacher
        finally:
            for hook in hooks:
                hook.remove()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Leaves out what the original code saved of its teacher, and takes a plain student."""
        # The original registered features as buffers: teacher_neck_..., student_neck_...
        foreign = tuple(prefix + name for name in ('teacher.', 'teacher_', 'student_'))
        dropped = [key for key in state_dict if key.startswith(foreign)]
        for key in dropped:
            del state_dict[key]
        if dropped:
            _log.info('left out %d entries of a teacher or of features', len(dropped))
        keys = [key for key in state_dict if key.startswith(prefix)]
        if not any(
            key.startswith((f'{prefix}student.', f'{prefix}distill_losses.')) for key in keys
        ):
            _log.info('a checkpoint of a plain detector: it goes to the student')
            for key in keys:
                state_dict[f'{prefix}student.{key[len(prefix) :]}'] = state_dict.pop(key)
        elif self.distill_losses.state_dict() and not any('distill_losses.' in key for key in keys):
            raise MtpdError(
                "the checkpoint has the student without the distillation losses' weights, so a stage cannot go on from it: "
                'remove it to start the stage again, or give it as a student checkpoint'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    CLASSES = property(
        attrgetter('student.CLASSES'),
        lambda self, classes: setattr(self.student, 'CLASSES', classes),
    )
    with_neck = property(attrgetter('student.with_neck'))
    with_shared_head = property(attrgetter('student.with_shared_head'))
    with_bbox = property(attrgetter('student.with_bbox'))
    with_mask = property(attrgetter('student.with_mask'))

    extract_feat = _student_method('extract_feat')
    forward_test = _student_method('forward_test')
    simple_test = _student_method('simple_test')
    aug_test = _student_method('aug_test')
    forward_dummy = _student_method('forward_dummy')
    show_result = _student_method('show_result')


def _check_options(student_checkpoint, teacher_checkpoint, init_student, teacher_mode):
    problems = []
    if not teacher_checkpoint:
        problems.append(
            'the teacher has no checkpoint: give teacher_checkpoint, or '
            "teacher_checkpoint='random' to distil from an untrained teacher on purpose"
        )
    if init_student and teacher_checkpoint == 'random':
        problems.append('init_student=True: an untrained teacher has nothing to inherit')
    if init_student and student_checkpoint:
        problems.append(
            f"init_student=True would overwrite {student_checkpoint}'s neck and head with the "
            "teacher's: give one of the two (a later stage starts from the student's checkpoint)"
        )
    if teacher_mode not in ('eval', 'train'):
        problems.append(f"teacher_mode must be 'eval' or 'train', not {teacher_mode!r}")
    if problems:
        raise MtpdError('\n'.join(problems))


def _load_adapters(losses: nn.ModuleDict, path: str) -> None:
    """Raises MtpdError where a checkpoint's distillation losses are not those of `losses`."""
    prefix, state = 'distill_losses.', checkpoints.load_checkpoint(path)
    weights = {
        key.removeprefix(prefix): value
        for key, value in (state.get('state_dict') or {}).items()
        if key.startswith(prefix)
    }
    shapes = ({key: tuple(t.shape) for key, t in w.items()} for w in (weights, losses.state_dict()))
    earlier, wanted = shapes
    if earlier != wanted:
        differing = [key for key in wanted if earlier.get(key) != wanted[key]]
        raise MtpdError(
            f'the distillation losses of {path} have other weights ({", ".join([*differing, *earlier][:2])}, ...), so they '
            'cannot be kept: the teachers differ in channels, or the method has changed. Leave distill.keep_adapters out.'
        )
    losses.load_state_dict(weights)


def _shapes(img_metas: list[dict], key: str) -> list[tuple[int, ...]]:
    return [meta[key] for meta in img_metas]


def _chosen(output, path: str):
    """Of a module's output what a path such as 'neck:4' asks for; the output itself where there is no such map."""
    number = path.partition(':')[2]
    if number.isdecimal() and isinstance(output, (tuple, list)) and int(number) < len(output):
        return output[int(number)]
    return output


def _hooked_feature(features: dict, who: str, path: str) -> Tensor:
    """The output of a hooked module. Raises MtpdError unless it is a tensor."""
    output = features.get(path)
    if not isinstance(output, Tensor):
        problem = f'gives a {type(output).__name__}' if path in features else 'was not run'
        raise MtpdError(
            f'{who}_module {path!r} {problem}: hook a module that gives one tensor (N, C, H, W) in '
            "each forward pass, such as 'neck.fpn_convs.0.conv'"
        )
    return output


# The teacher.


class Teacher(nn.Module):
    """Backbone and neck of the detector that `cfg` describes, frozen: distillation needs no more of it.

    Attributes:
        own_stream: whether `beside` uses a CUDA stream of its own.
    """

    own_stream = False

    def __init__(self, cfg: dict):
        super().__init__()
        self.backbone = build_backbone(cfg['backbone'])
        self.neck = build_neck(cfg['neck']) if cfg.get('neck') else nn.Identity()
        self.requires_grad_(False)

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """Features, each `(N, C, H, W)`, of images `(N, 3, H, W)`."""
        return self.neck(self.backbone(img))

    extract_feat = forward  # as of a detector

    def init_weights(self) -> None:
        """Of a teacher without a checkpoint: mmdet's layers may have none before, as SSD's L2Norm."""
        for part in (self.backbone, self.neck):
            if hasattr(part, 'init_weights'):
                part.init_weights()

    @contextlib.contextmanager
    def beside(self, img: Tensor, features: dict[str, Tensor]) -> Iterator[None]:
        """A forward pass without gradients, before the block's work or, on a stream of its own, at the same time.

        Args:
            features: what hooks collect in the pass; for use after the block.
        """
        if not self.own_stream:
            with torch.no_grad():
                self(img)
            yield
            return
        current, beside = torch.cuda.current_stream(), cuda_stream('teacher')
        beside.wait_stream(current)
        img.record_stream(beside)
        # Not inference_mode: its tensors cannot be saved for the loss's backward pass.
        with torch.no_grad(), torch.cuda.stream(beside):
            self(img)
        yield
        current.wait_stream(beside)
        for feature in features.values():
            feature.record_stream(current)
