"""A recipe's distillation settings for a student and a teacher: which modules are compared, and by which loss."""

from __future__ import annotations

from ..config.recipe import Recipe
from ..distill.hook_points import Outputs, measured_outputs
from ..errors import MtpdError

AUTO = 'auto'  # in place of a module's path: the module that `hook_points` finds


def distill_cfg(recipe: Recipe, student: dict, teacher: dict) -> list[dict]:
    """The recipe's distillation settings in the original code's form: one entry per level of the student's neck.

    The teacher's level is the one of the same stride. A method's `levels`, `student_module` and `teacher_module` go before the
    recipe's. The losses are named loss_<method>_fpn_<level>, which `mtpd.analysis.run.split_loss` goes by.

    Args:
        student, teacher: mmdet model configs.

    Raises:
        MtpdError: the teacher has no level of a stride, or a level has no module to compare.
    """
    distill = recipe.cfg.distill
    settings = distill.settings[distill.method].to_dict()
    method_levels = settings.pop('levels', distill.levels)
    patterns = [
        settings.pop(f'{who}_module', distill[f'{who}_module']) for who in ('student', 'teacher')
    ]
    outputs = [measured_outputs(model) for model in (student, teacher)]
    entries, problems = [], []
    for level in [level for level in distill.levels if level in method_levels]:
        numbers = level, _same_stride(level, *outputs)
        if None in numbers:
            problems.append(_no_counterpart(level, *outputs))
            continue
        paths = [
            _module(pattern, number, has)
            for pattern, number, has in zip(patterns, numbers, outputs, strict=True)
        ]
        if None in paths:
            who = ('student', 'teacher')[paths.index(None)]
            problems.append(
                f'level {level}: no module of the {who} gives this level alone. Leave it out of distill.levels, or name a module: '
                f'distill.{who}_module.'
            )
            continue
        widths = [
            has.channels.get(path) or _channels(has, number)
            for path, has, number in zip(paths, outputs, numbers, strict=True)
        ]
        channels = dict(zip(('student_channels', 'teacher_channels'), widths, strict=True))
        method = dict(name=f'loss_{distill.method}_fpn_{level}', **channels, **settings)
        entries.append(dict(student_module=paths[0], teacher_module=paths[1], methods=[method]))
    if problems:
        raise MtpdError('\n  '.join(['distill:', *problems]))
    return entries


def _channels(outputs: Outputs, level: int) -> int:
    """Of a level; 1 where there is none, which is reported with its module."""
    return outputs.levels[level].channels if level < len(outputs.levels) else 1


def _same_stride(level: int, student: Outputs, teacher: Outputs) -> int | None:
    if level >= len(student.levels):  # reported where its module is looked for
        return level
    return teacher.index(student.levels[level].stride)


def _no_counterpart(level: int, student: Outputs, teacher: Outputs) -> str:
    strides = [[item.stride for item in has.levels] for has in (student, teacher)]
    common = [number for number, stride in enumerate(strides[0]) if stride in strides[1]]
    fix = f'set distill.levels={common}' if common else 'choose another teacher'
    return (
        f'level {level} of the student has stride {strides[0][level]}, and the teacher has strides '
        f'{", ".join(map(str, strides[1]))}: {fix}.'
    )


def _module(pattern: str, level: int, outputs: Outputs) -> str | None:
    if pattern != AUTO:
        return pattern.format(level=level)
    return outputs.levels[level].module if level < len(outputs.levels) else None
