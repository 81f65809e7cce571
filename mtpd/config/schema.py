"""What a recipe may say: its keys, and the types of their values."""

from __future__ import annotations

import ast
import re
from typing import Any

from ..errors import unknown

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

LIBRARIES = ('auto', 'pycocotools', 'faster_coco_eval')  # see `mtpd.engine.score`
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
    'arms': {'*': {'label': str, 'teachers': (list, tuple, str)}},  # 'auto': see `order.settled`
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


def keys(node: Any, known: dict = RECIPE, place: str = '') -> list[str]:
    """Keys that are unknown, absent, or of values of another type; a line each."""
    found = []
    for key, value in node.items():
        rule = known.get(key, known.get('*'))
        path = f'{place}{key}'
        if rule is None:
            found.append(unknown('key', path, [f'{place}{name}' for name in known]))
        elif isinstance(rule, dict):
            if isinstance(value, dict):
                found += keys(value, rule, f'{path}.')
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


def without_unknown(node: dict, known: dict = RECIPE) -> dict:
    """The values whose keys are known."""
    kept = {}
    for key, value in node.items():
        rule = known.get(key, known.get('*'))
        deeper = isinstance(rule, dict) and isinstance(value, dict)
        if rule is not None:
            kept[key] = without_unknown(value, rule) if deeper else value
    return kept
