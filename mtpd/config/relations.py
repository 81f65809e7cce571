"""How a recipe's values must fit together, and all that is wrong with them."""

from __future__ import annotations

import math
from typing import Any

from ..errors import nearest, unknown
from .schema import LIBRARIES, NUMBER, SWITCHES, keys

CHOICES = {
    'distill.start': ('baseline', 'inherit', 'random'),
    'distill.teacher_mode': ('eval', 'train'),
    'order.method': ('backward_greedy', 'shortest_path'),
    'evaluation.library': LIBRARIES,
    'speed.precision': ('auto', 'fp32', 'tf32', 'bf16'),
    **{f'speed.{switch}': ('auto', True, False) for switch in SWITCHES},
}
LEAST = {
    **dict.fromkeys(
        (
            'schedule.batch_size',
            'schedule.baseline',
            'schedule.arm',
            'schedule.teacher',
            'schedule.log_interval',
            'schedule.checkpoint_interval',
            'evaluation.batch_size',
            'image.divisor',
            'order.max_length',
            'runtime.jobs',
            'runtime.gpus',
            'data.scenes.train',
            'data.scenes.val',
            'data.scenes.size',
        ),
        1,
    ),
    'order.images': 2,
    **dict.fromkeys(
        (
            'seed',
            'data.corrupt_limit',
            'data.scenes.seed',
            'schedule.eval_interval',
            'runtime.workers',
            'runtime.threads',
        ),
        0,
    ),
}


def problems(cfg: dict) -> list[str]:
    """Everything wrong with a recipe's values, a line each; empty when all is well."""
    found = keys(cfg)
    for look in (
        _choices,
        _method,
        _splits,
        _metrics,
        _arms,
        _workers,
        _numbers,
        _loss_name,
        _levels,
        _image,
    ):
        try:
            found += look(cfg)
        except (KeyError, TypeError, AttributeError, ValueError):
            if not found:  # what has the wrong shape, and was told as such, can't be looked into
                raise
    return found


def _choices(cfg: dict) -> list[str]:
    found = []
    for path, allowed in CHOICES.items():
        value = _value(cfg, path)
        if isinstance(value, (str, bool)) and value not in allowed:  # what may be left out is None
            named = ', '.join(map(repr, allowed))
            hint = nearest(str(value), map(str, allowed))
            hint = f' {hint}' if hint.startswith('Did') else ''
            found.append(f'{path} is {value!r}: one of {named} is needed.{hint}')
    return found


def _method(cfg: dict) -> list[str]:
    distill = cfg['distill']
    if distill['method'] in distill['settings']:
        return []
    return [unknown('distill.method', distill['method'], distill['settings'])]


def _splits(cfg: dict) -> list[str]:
    found = []
    for split in ('train', 'val'):
        place = cfg['data']['splits'].get(split)
        if place is None:
            found.append(f'data.splits.{split} is missing.')
        elif not _is_place(place):
            found.append(
                f"data.splits.{split} is {place!r}: a name, or dict(annotations='...', images='...') is needed."
            )
    return found


def _metrics(cfg: dict) -> list[str]:
    found = []
    if 'bbox' not in cfg['evaluation']['metrics']:
        found.append('evaluation.metrics lacks bbox, by which detectors are compared: add it.')
    return found + [
        unknown('evaluation.metrics', str(metric), ['bbox', 'segm'])
        for metric in cfg['evaluation']['metrics']
        if metric not in ('bbox', 'segm')
    ]


def _is_place(place: Any) -> bool:
    if isinstance(place, dict):
        return all(isinstance(place.get(key), str) for key in ('annotations', 'images'))
    return isinstance(place, str)


def _arms(cfg: dict) -> list[str]:
    found = []
    teachers = cfg['teachers']
    for name in ('student', 'baseline', 'none'):
        if name in teachers:
            found.append(f'teachers.{name}: this name is taken, choose another.')
    if not cfg['arms']:
        found.append('arms is empty: name at least one sequence of teachers.')
    for name, arm in cfg['arms'].items():
        if isinstance(arm['teachers'], str):
            found += _auto(cfg, name, arm['teachers'])
            continue
        if not arm['teachers']:
            found.append(f'arms.{name}.teachers is empty: [None] is a stage without a teacher.')
            continue
        found += [
            f'arms.{name}: ' + unknown('teacher', str(teacher), teachers)
            for teacher in arm['teachers']
            if teacher is not None and teacher not in list(teachers)
        ]
        if cfg['schedule']['arm'] > 0 and cfg['schedule']['arm'] % len(arm['teachers']):
            found.append(
                f'arms.{name} has {len(arm["teachers"])} stages, which do not divide schedule.arm = '
                f'{cfg["schedule"]["arm"]} evenly: every arm gets the same number of updates.'
            )
    return found


def _auto(cfg: dict, name: str, word: str) -> list[str]:
    if word != 'auto':
        return [f"arms.{name}.teachers is {word!r}: a list of teachers is needed, or 'auto'."]
    if not cfg['teachers']:
        return [f'arms.{name}: there are no teachers to choose from.']
    longest = min(cfg['order']['max_length'], len(cfg['teachers']))
    uneven = [k for k in range(1, longest + 1) if cfg['schedule']['arm'] % k]
    if uneven:
        return [
            f'arms.{name} may get {uneven[0]} stages (order.max_length), which do not divide schedule.arm = '
            f'{cfg["schedule"]["arm"]} evenly: every arm gets the same number of updates.'
        ]
    return []


def _workers(cfg: dict) -> list[str]:
    asked = _value(cfg, 'runtime.workers')
    if not isinstance(asked, str) or asked == 'auto':
        return []
    return [f"runtime.workers is {asked!r}: a number, or 'auto', is needed."]


def _numbers(cfg: dict) -> list[str]:
    places = ['student', *(f'teachers.{name}' for name in cfg['teachers'])]
    least = LEAST | {f'{place}.{key}': 1 for place in places for key in ('updates', 'scenes')}
    found = []
    for path, lowest in least.items():
        value = _value(cfg, path)
        if isinstance(value, NUMBER) and value < lowest:
            wanted = f'be at least {lowest}' if lowest else 'not be negative'
            found.append(f'{path} is {value}: it must {wanted}.')
    return found


def _value(cfg: dict, path: str) -> Any:
    """By a dotted path; None where there is none."""
    node: Any = cfg
    for part in path.split('.'):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _image(cfg: dict) -> list[str]:
    image = cfg['image']
    scale = image['scale']
    sides = scale if isinstance(scale, (list, tuple)) else (scale, scale)
    found = []
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        found.append(f'image.scale is {scale!r}: pixels, or (width, height) in pixels, are needed.')
    for key, least in (('mean', -math.inf), ('std', 0)):
        values = image[key]
        good = all(isinstance(v, NUMBER) and math.isfinite(v) and v > least for v in values)
        if len(values) != 3 or not good:
            found.append(
                f'image.{key} is {values!r}: a number per colour is needed{", above 0" * (least == 0)}.'
            )
    if not 0 <= image['flip'] <= 1:
        found.append(f'image.flip is {image["flip"]}: a share from 0 to 1 is needed.')
    return found


def _loss_name(cfg: dict) -> list[str]:
    distill = cfg['distill']
    method, settings = distill['method'], distill['settings'].get(distill['method'])
    if not isinstance(settings, dict) or 'name' not in settings:
        return []
    return [
        f'distill.settings.{method}.name is {settings["name"]!r}: leave it out. The losses are named '
        f'loss_{method}_fpn_<level>, by which logs and figures tell them apart.'
    ]


def _levels(cfg: dict) -> list[str]:
    """FPN levels, the recipe's and those that its method keeps to."""
    distill = cfg['distill']
    places = {'distill.levels': distill['levels']}
    settings = distill['settings'].get(distill['method'])
    if isinstance(settings, dict) and 'levels' in settings:
        places[f'distill.settings.{distill["method"]}.levels'] = settings['levels']
    found = [
        f'{place} is {levels!r}: FPN levels 0, 1, ... are needed.'
        for place, levels in places.items()
        if not (isinstance(levels, (list, tuple)) and levels)
        or any(not isinstance(level, int) or level < 0 for level in levels)
    ]
    if not found and not set.intersection(*map(set, places.values())):
        both = ' and '.join(f'{place} {list(levels)}' for place, levels in places.items())
        found.append(f'{both} have no level in common: nothing would be distilled.')
    return found
