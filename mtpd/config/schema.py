"""What a recipe may say: its keys, and the types of their values."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from ..errors import did_you_mean, unknown_name

NONE = type(None)
NUMBER = (int, float)

DETECTOR = {
    'label': str,
    'config': str,
    'model': dict,
    'checkpoint': (str, NONE),
    'init': (str, NONE),
    'updates': int,
    'scenes': int,
}

LIBRARIES = ('auto', 'pycocotools', 'faster_coco_eval')  # see `mtpd.engine.evaluation`
# Of a training's speed: True, False or 'auto'.
SWITCHES = (
    'channels_last',
    'fold_teacher',
    'teacher_stream',
    'fold_student',
    'fused_convs',
    'target_stream',
    'pin_memory',
    'fused_optimizer',
    'keep_memory',
)

RECIPE = {
    'name': str,
    'title': str,
    'paper': dict,
    'seed': int,
    'data': {
        'root': (str, NONE),
        'cache': str,
        'splits': dict,
        'corrupt_limit': int,
        'scenes': {'train': int, 'val': int, 'size': int, 'seed': int},
    },
    'image': {
        'scale': (int, list, tuple),
        'flip': NUMBER,
        'mean': (list, tuple),
        'std': (list, tuple),
        'to_rgb': bool,
        'divisor': int,
    },
    'student': DETECTOR,
    'teachers': {'*': DETECTOR},
    'arms': {
        '*': {'label': str, 'teachers': (list, tuple, str)}
    },  # 'auto': see `teacher_order.resolve_auto_arms`
    'distill': {
        'method': str,
        'settings': {'*': dict},
        'levels': (list, tuple),
        'student_module': str,
        'teacher_module': str,
        'start': str,
        'inherit_allow': (list, tuple),
        'teacher_mode': str,
    },
    'order': {'images': int, 'max_length': int, 'method': str, 'min_gain': (*NUMBER, NONE)},
    'schedule': {
        'batch_size': int,
        'lr_batch_size': (int, NONE),
        'baseline': int,
        'arm': int,
        'teacher': int,
        'optimizer': dict,
        'grad_clip': (dict, NONE),
        'lr': dict,
        'log_interval': int,
        'checkpoint_interval': int,
        'eval_interval': int,
        'loggers': (list, tuple),
    },
    'evaluation': {'metrics': (list, tuple), 'batch_size': int, 'library': str},
    'runtime': {'device': str, 'gpus': int, 'workers': (int, str), 'threads': int, 'jobs': int},
    'speed': {'precision': str, **dict.fromkeys(SWITCHES, (bool, str))},  # see `mtpd.engine.speed`
}
OPTIONAL = {
    'paper',
    'title',
    'label',
    'model',
    'checkpoint',
    'init',
    'updates',
    'scenes',
    'lr_batch_size',
    'gpus',
    'corrupt_limit',
    'library',
    'loggers',
    'speed',
    'precision',
    *SWITCHES,
}


def parse_overrides(text: str) -> dict[str, Any]:
    """``KEY=VALUE KEY=VALUE ...`` as a dict; values are Python literals, never evaluated, or text.

    Raises:
        ValueError: a part without ``=``.
    """
    found = {}
    for item in re.split(r'\s+(?=[\w.]+=)', text.strip()) if text.strip() else ():
        key, equals, value = item.partition('=')
        if not equals or not key:
            raise ValueError(f'{item!r} is not KEY=VALUE, such as seed=1')
        try:
            found[key] = ast.literal_eval(value)
        except (
            ValueError,
            SyntaxError,
            TypeError,
            MemoryError,
            RecursionError,
        ):  # of deep nesting, too
            found[key] = value
    return found


def key_problems(node: Any, known: dict = RECIPE, place: str = '') -> list[str]:
    """Keys that are unknown, absent, or of values of another type; a line each."""
    found = []
    for key, value in node.items():
        rule = known.get(key, known.get('*'))
        path = f'{place}{key}'
        if rule is None:
            found.append(unknown_name('key', path, [f'{place}{name}' for name in known]))
        elif isinstance(rule, dict):
            if isinstance(value, dict):
                found += key_problems(value, rule, f'{path}.')
            else:
                found.append(f'{path} is {value!r}: a dict with {", ".join(rule)} is needed.')
        elif not _is_a(value, kinds := rule if isinstance(rule, tuple) else (rule,)):
            names = ' or '.join('None' if kind is NONE else kind.__name__ for kind in kinds)
            names = "True, False or 'auto'" if kinds == (bool, str) else names
            found.append(f'{path} is {value!r} ({type(value).__name__}): {names} is needed.')
    absent = [key for key in known if key != '*' and key not in node and key not in OPTIONAL]
    return found + [f'{place}{key} is missing.' for key in absent]


def _is_a(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


def drop_unknown_keys(node: dict, known: dict = RECIPE) -> dict:
    """The values whose keys are known."""
    kept = {}
    for key, value in node.items():
        rule = known.get(key, known.get('*'))
        deeper = isinstance(rule, dict) and isinstance(value, dict)
        if rule is not None:
            kept[key] = drop_unknown_keys(value, rule) if deeper else value
    return kept


# How a recipe's values must fit together, and all that is wrong with them.


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


def value_problems(cfg: dict) -> list[str]:
    """Everything wrong with a recipe's values, a line each; empty when all is well."""
    found = key_problems(cfg)
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
            hint = did_you_mean(str(value), map(str, allowed))
            hint = f' {hint}' if hint.startswith('Did') else ''
            found.append(f'{path} is {value!r}: one of {named} is needed.{hint}')
    return found


def _method(cfg: dict) -> list[str]:
    distill = cfg['distill']
    if distill['method'] in distill['settings']:
        return []
    return [unknown_name('distill.method', distill['method'], distill['settings'])]


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
        unknown_name('evaluation.metrics', str(metric), ['bbox', 'segm'])
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
            f'arms.{name}: ' + unknown_name('teacher', str(teacher), teachers)
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
