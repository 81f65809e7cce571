"""What a recipe may say: its keys, their values, and how the values fit together."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass, replace
from typing import Any

from ..errors import did_you_mean, unknown_name

NONE = type(None)
NUMBER = (int, float)


@dataclass(frozen=True)
class Rule:
    """The rule for a value.

    Attributes:
        types: of the value; a bool counts as an int only where `types` names it.
        least: the smallest number.
        choices: the words and switches to choose from.
        optional: a recipe may leave the key out.
        meaning: of the key, in a sentence, as `docs/recipes.md` has it.
    """

    types: tuple[type, ...]
    least: int | None = None
    choices: tuple = ()
    optional: bool = False
    meaning: str = ''

    def means(self, meaning: str) -> Rule:
        """The rule of a key with this meaning."""
        return replace(self, meaning=meaning)

    def problem(self, path: str, value: Any) -> str | None:
        """What is wrong with the value of the key `path`; None where nothing is."""
        right_type = isinstance(value, self.types)
        if not right_type or (isinstance(value, bool) and bool not in self.types):
            problem = f'{path} is {value!r} ({type(value).__name__}): {self._needed} is needed.'
            if list in self.types and isinstance(value, str):
                problem += f' In a shell: --cfg-options "{path}=[{value!r}]".'
            return problem
        if self.choices and isinstance(value, (str, bool)) and value not in self.choices:
            hint = did_you_mean(str(value), map(str, self.choices))
            hint = f' {hint}' if hint.startswith('Did') else ''
            return f'{path} is {value!r}: {self._needed} is needed.{hint}'
        if self.least is not None and isinstance(value, NUMBER) and value < self.least:
            wanted = f'be at least {self.least}' if self.least else 'not be negative'
            return f'{path} is {value}: it must {wanted}.'
        return None

    @property
    def _needed(self) -> str:
        if not self.choices:
            return ' or '.join('None' if kind is NONE else kind.__name__ for kind in self.types)
        choices = ', '.join(map(repr, self.choices))
        return f'a number, or {choices},' if int in self.types else f'one of {choices}'


def _of_type(*types: type) -> Rule:
    return Rule(types)


def _one_of(*choices: str | bool) -> Rule:
    return Rule(tuple({type(choice) for choice in choices}), choices=choices)


def _optional(rule: Rule) -> Rule:
    return replace(rule, optional=True)


def _may_be_absent(rule: Rule | dict) -> bool:
    """A section may be left out where all its keys may."""
    if isinstance(rule, dict):
        return all(map(_may_be_absent, rule.values()))
    return rule.optional


TEXT, TEXT_OR_NONE = _of_type(str), _of_type(str, NONE)
DICT, LIST = _of_type(dict), _of_type(list, tuple)
PLACE, PLACE_KEYS = _of_type(str, dict), {'annotations': TEXT, 'images': TEXT}  # of a split
POSITIVE, NOT_NEGATIVE = Rule((int,), least=1), Rule((int,), least=0)
# Switches of a training's speed and their meanings, see `mtpd.engine.speed`.
SWITCHES = {
    'channels_last': 'Activations lie as (N, H, W, C) in memory.',
    'fold_teacher': "The teacher's batch norms become part of its convolutions.",
    'teacher_stream': "The teacher's forward pass runs beside the student's.",
    'fold_student': "In each update, the student's batch norms that take no statistics become part of its convolutions.",
    'fused_convs': 'A convolution, its bias and its ReLU are one kernel.',
    'fused_attention': "A Swin Transformer teacher's attention is one call, with fewer copies before and after.",
    'deform_kernels': "Deformable convolutions run by Triton kernels, in bf16 where the rest does; by mmcv's where Triton or a C compiler is missing.",
    'target_stream': 'Targets are assigned beside the forward pass.',
    'pin_memory': 'Batches are copied to the GPU without waiting.',
    'byte_batches': 'Batches hold images as bytes, a quarter of the memory. The GPU normalises them.',
    'fused_optimizer': 'One kernel updates all weights.',
    'keep_memory': 'The process keeps freed memory for the next tensors.',
}
LIBRARIES = ('auto', 'pycocotools', 'faster_coco_eval')  # see `mtpd.engine.evaluation`

DETECTOR = {
    'label': _optional(TEXT).means('Its name in tables and figures. Left out: its key.'),
    'config': TEXT.means(
        'The mmdet config that has its `model`: a file, or `mmdet::family/name.py`.'
    ),
    'model': _optional(DICT).means("Changes of the config's `model`."),
    'checkpoint': _optional(TEXT_OR_NONE).means(
        'Its trained weights: a file, or an https address. Left out or None: it is trained here.'
    ),
    'init': _optional(TEXT_OR_NONE).means(
        'The weights that its training starts from, where they fit.'
    ),
    'updates': _optional(POSITIVE).means(
        'The length of its training. Left out: `schedule.baseline` for the student, `schedule.teacher` for a teacher.'
    ),
    'scenes': _optional(POSITIVE).means(
        'The training DigitScenes of its own training. Left out: `data.scenes.train`.'
    ),
}
# A teacher's own, where it sees other images than the student, or gives its features alone.
TEACHER = {
    **DETECTOR,
    'image': {
        'scale': _optional(_of_type(int, list, tuple)).means(
            "The size of the teacher's images, where it is not `image.scale`."
        ),
        'mean': _optional(LIST).means("The mean of each colour, where it is not the student's."),
        'std': _optional(LIST).means("The standard deviation, where it is not the student's."),
        'to_rgb': _optional(_of_type(bool)).means(
            "The order of colours, where it is not the student's."
        ),
    },
    'features_only': _optional(_of_type(bool)).means(
        'Whether the teacher gives its features alone. It then needs a checkpoint, but neither the classes of the data nor a head.'
    ),
}
# '*' stands for any key.
RECIPE = {
    'name': TEXT.means('The name of its runs: they lie in `runs/<name>/<seed>`.'),
    'title': _optional(TEXT).means('A line about the recipe, for `mtpd recipes` and the report.'),
    'paper': _optional(DICT).means(
        "The published results of the sequence. The report puts it beside the run's AP."
    ),
    'seed': NOT_NEGATIVE.means('The seed of all random numbers. `--seed` sets it, too.'),
    'data': {
        'root': TEXT_OR_NONE.means("A dataset's folder in COCO format. None: DigitScenes."),
        'cache': TEXT.means('The folder where DigitScenes are made.'),
        'splits': {
            'train': PLACE.means(
                'The training split: its name in the layout, or a dict of its `annotations` and `images`.'
            ),
            'val': PLACE.means('The validation split, in the same two forms.'),
        },
        'corrupt_limit': _optional(NOT_NEGATIVE).means(
            'The largest number of corrupt images of a split that are left out. 0: none.'
        ),
        'scenes': {
            'train': POSITIVE.means('The number of training DigitScenes.'),
            'val': POSITIVE.means('The number of validation DigitScenes.'),
            'size': POSITIVE.means('The side of a scene, in pixels.'),
            'seed': NOT_NEGATIVE.means('The seed that the scenes are drawn with.'),
        },
    },
    'image': {
        'scale': _of_type(int, list, tuple).means(
            'The size that images are resized to fit in: a side, or (width, height).'
        ),
        'flip': Rule(NUMBER).means('The share of training images that are mirrored, from 0 to 1.'),
        'mean': LIST.means('The mean of each colour. It is subtracted.'),
        'std': LIST.means('The standard deviation of each colour. Pixels are divided by it.'),
        'to_rgb': _of_type(bool).means(
            'Whether colours come as red, green, blue. False: as blue, green, red.'
        ),
        'divisor': POSITIVE.means('The sides of a batch are padded to multiples of this number.'),
    },
    'student': DETECTOR,
    'teachers': {'*': TEACHER},
    'arms': {
        '*': {
            'label': _optional(TEXT).means('Its name in tables and figures. Left out: its key.'),
            # 'auto': see `mtpd.pipeline.teacher_order.resolve_auto_arms`
            'teachers': _of_type(list, tuple, str).means(
                "A teacher for each stage, None for a stage without one; or `'auto'`: the sequence that adaptation costs suggest."
            ),
        }
    },
    'distill': {
        'method': TEXT.means('The distillation loss: a key of `distill.settings`.'),
        'settings': {
            '*': DICT.means(
                "A loss's `type` and its settings. `levels`, `student_module` and `teacher_module` in it replace the recipe's."
            )
        },
        'levels': LIST.means(
            "The student's FPN levels that are compared. 0 is the finest. The teacher's are those of the same strides."
        ),
        'student_module': TEXT.means(
            "The student's module whose output is compared. `{level}` stands for each level; `auto` finds the module in any neck."
        ),
        'teacher_module': TEXT.means(
            "The teacher's module whose output is compared. `{level}` is the level of the same stride; `auto` finds the module in any neck."
        ),
        'start': _one_of('baseline', 'inherit', 'random').means(
            "What stage 1 starts from: the baseline, the teacher's neck and head (inherit), or the student's config (random)."
        ),
        'inherit_allow': LIST.means(
            'Patterns of weights that may not fit when the student inherits.'
        ),
        'teacher_mode': _one_of('eval', 'train').means(
            "The teacher's mode while it teaches. `'train'` is the authors' way."
        ),
        'keep_adapters': _optional(_of_type(bool)).means(
            "Whether a stage goes on with the distillation losses' weights of the stage before. Left out: they are new."
        ),
    },
    'order': {
        'images': Rule((int,), least=2).means(
            'The number of validation images that adaptation costs are measured on.'
        ),
        'max_length': POSITIVE.means('The largest number of teachers in a suggested sequence.'),
        'method': _one_of('backward_greedy', 'shortest_path').means(
            'How a sequence is searched: from the best teacher backward, or as the path of least cost.'
        ),
        'min_gain': _of_type(*NUMBER, NONE).means(
            'The AP, from 0 to 1, by which a teacher must exceed the one before it. None: no such rule.'
        ),
    },
    'schedule': {
        'batch_size': POSITIVE.means('The images of an update, over all processes.'),
        'lr_batch_size': _optional(_of_type(int, NONE)).means(
            'The batch size that the learning rate is stated for. Another one scales it linearly. Left out or None: no scaling.'
        ),
        'baseline': POSITIVE.means("The updates of the student's baseline."),
        'arm': POSITIVE.means('The updates of every arm, split evenly over its stages.'),
        'teacher': POSITIVE.means('The updates of a teacher that is trained here.'),
        'optimizer': DICT.means('The optimizer and its settings.'),
        'grad_clip': _of_type(dict, NONE).means('How gradients are clipped. None: not at all.'),
        'lr': DICT.means(
            "mmcv's learning rate policy. Every training goes through the whole policy. A list of `step` has shares of the training."
        ),
        'arm_lr': _optional(_of_type(*NUMBER, NONE)).means(
            "The peak of the learning rate in arms. Left out or None: the baseline's."
        ),
        'log_interval': POSITIVE.means('The updates between two rows of `log.json`.'),
        'checkpoint_interval': POSITIVE.means('The updates between two checkpoints.'),
        'eval_interval': NOT_NEGATIVE.means(
            'The updates between two evaluations during training. 0: at the end only.'
        ),
        'loggers': _optional(LIST).means(
            "mmcv's logger hooks beside `log.json`, such as `[dict(type='TensorboardLoggerHook')]`."
        ),
    },
    'evaluation': {
        'metrics': LIST.means("`'bbox'`, and `'segm'` for masks."),
        'batch_size': POSITIVE.means('The images of a batch in evaluations.'),
        'library': _optional(_one_of(*LIBRARIES)).means(
            'The library that computes AP. `auto`: faster-coco-eval where it is installed. The numbers are the same.'
        ),
    },
    'runtime': {
        'device': TEXT.means('`auto`, `cpu` or `cuda`.'),
        'gpus': _optional(POSITIVE).means(
            'The number of processes, each with a GPU. Left out: 1, or as many as torchrun or SLURM started.'
        ),
        'workers': Rule((int, str), least=0, choices=('auto',)).means(
            'The processes that load images, for each process that trains.'
        ),
        'threads': NOT_NEGATIVE.means("torch's threads on the CPU. 0: one per core."),
        'jobs': POSITIVE.means('The number of arms that train side by side and share the cores.'),
    },
    'speed': {
        'precision': _optional(_one_of('auto', 'fp32', 'tf32', 'bf16')).means(
            "For training only. `bf16`: convolutions and matrix products in bfloat16; losses, targets, heads' outputs and the optimizer stay in float32. `tf32`: a GPU rounds factors to 10 bits, as the authors' torch did. `fp32`: no rounding."
        ),
        **{
            name: _optional(_one_of('auto', True, False)).means(text)
            for name, text in SWITCHES.items()
        },
    },
}


def value_problems(cfg: dict) -> list[str]:
    """Everything wrong with a recipe's keys and values, a line each; empty when all is well."""
    problems = _table_problems(cfg, RECIPE)
    for check in (
        _method,
        _splits,
        _metrics,
        _arms,
        _arm_rate,
        _loss_name,
        _levels,
        _image,
        _features_only,
    ):
        try:
            problems += check(cfg)
        except (KeyError, TypeError, AttributeError, ValueError):
            if not problems:  # a value of a wrong shape is among them, and can't be looked into
                raise
    return problems


def fill_splits(data: Any) -> None:
    """Gives a config's `data` the splits 'train' and 'val' under their own names where it states no other place."""
    splits = data.get('splits', {}) if isinstance(data, dict) else None
    if isinstance(splits, dict):
        data['splits'] = type(data)(train='train', val='val') | splits
        for node in (data['splits'], *data['splits'].values()):
            if isinstance(node, dict):  # mmcv's word, of recipes whose base stated splits
                node.pop('_delete_', None)


def drop_split_names(data: Any, overrides: dict) -> None:
    """Takes out of a config's `data` the splits under a name that overrides give by their files.

    mmcv lays no dict over a text.
    """
    splits = data.get('splits') if isinstance(data, dict) else None
    given = overrides.get('data.splits')
    names = {key.split('.')[2] for key in overrides if key.startswith('data.splits.')}
    for name in names.union(given if isinstance(given, dict) else ()):
        if isinstance(splits, dict) and isinstance(splits.get(name), str):
            del splits[name]


def split_problems(data: dict) -> list[str]:
    """What is wrong with the splits of a config's `data`, which has `root` and `splits`."""
    rules = {'data': {'root': TEXT_OR_NONE, 'splits': RECIPE['data']['splits']}}
    problems = _table_problems({'data': data}, rules)
    return problems + (_splits({'data': data}) if isinstance(data['splits'], dict) else [])


def drop_unknown_keys(node: dict, rules: dict = RECIPE) -> dict:
    """The values whose keys are known."""
    known = {}
    for key, value in node.items():
        rule = rules.get(key, rules.get('*'))
        deeper = isinstance(rule, dict) and isinstance(value, dict)
        if rule is not None:
            known[key] = drop_unknown_keys(value, rule) if deeper else value
    return known


def _table_problems(node: dict, rules: dict, place: str = '') -> list[str]:
    """Keys that are unknown or absent, and values that their rules refuse."""
    problems = []
    for key, value in node.items():
        rule = rules.get(key, rules.get('*'))
        path = f'{place}{key}'
        if rule is None:
            problems.append(unknown_name('key', path, [f'{place}{name}' for name in rules]))
        elif isinstance(rule, Rule):
            problems.append(rule.problem(path, value))
        elif isinstance(value, dict):
            problems += _table_problems(value, rule, f'{path}.')
        else:
            problems.append(f'{path} is {value!r}: {_dict_words(rule)} is needed.')
    absent = [
        key for key, rule in rules.items() if key not in ('*', *node) and not _may_be_absent(rule)
    ]
    if absent:
        names = ', '.join(f'{place}{key}' for key in absent)
        verb, them = ('is', 'it') if len(absent) == 1 else ('are', 'them')
        problems.append(
            f'{names} {verb} missing. Add {them}, or build on a recipe that has {them}: _base_.'
        )
    return [*filter(None, problems)]


def _dict_words(rules: dict) -> str:
    """What a dict of these rules has."""
    if '*' not in rules:
        return f'a dict with {", ".join(rules)}'
    entries = rules['*']
    keys = f' ({", ".join(entries)})' if isinstance(entries, dict) else ''
    return f'a dict of dicts by name{keys}'


# How values must fit together


def _method(cfg: dict) -> list[str]:
    distill = cfg['distill']
    if distill['method'] in distill['settings']:
        return []
    return [unknown_name('distill.method', distill['method'], distill['settings'])]


def _splits(cfg: dict) -> list[str]:
    """Splits that name their files."""
    problems, splits = [], cfg['data']['splits']
    for split, place in splits.items():
        if isinstance(place, dict):
            problems += _table_problems(place, PLACE_KEYS, f'data.splits.{split}.')
    if cfg['data']['root'] is None and any(isinstance(p, dict) for p in splits.values()):
        problems.append('data.splits names files, and data.root is None: set data.root=FOLDER.')
    return problems


def _metrics(cfg: dict) -> list[str]:
    metrics, known = cfg['evaluation']['metrics'], ['bbox', 'segm']
    if isinstance(metrics, str):  # reported as no list
        return []
    problems = []
    if 'bbox' not in metrics:
        problems.append('evaluation.metrics lacks bbox, which compares detectors: add it.')
    return problems + [
        unknown_name('evaluation.metrics', str(metric), known)
        for metric in metrics
        if metric not in known
    ]


def _arms(cfg: dict) -> list[str]:
    problems = [
        f'teachers.{name}: this name is taken, choose another.'
        for name in ('student', 'baseline', 'none')
        if name in cfg['teachers']
    ]
    if not cfg['arms']:
        problems.append('arms is empty: name at least one sequence of teachers.')
    updates = cfg['schedule']['arm']
    uneven: dict[int, list[str]] = {}  # names of arms, by their number of stages
    for name, arm in cfg['arms'].items():
        teachers = arm['teachers']
        check = _auto_arm if isinstance(teachers, str) else _arm
        problems += check(cfg, name, teachers)
        if not isinstance(teachers, str) and teachers and updates > 0 and updates % len(teachers):
            uneven.setdefault(len(teachers), []).append(f'arms.{name}')
    for stages, names in uneven.items():
        verb = 'has' if len(names) == 1 else 'have'
        problems.append(f'{", ".join(names)} {verb} {_uneven_stages(stages, cfg)}')
    return problems


def _arm_rate(cfg: dict) -> list[str]:
    rate = cfg['schedule'].get('arm_lr')
    if rate is None or rate > 0:
        return []
    return [f'schedule.arm_lr is {rate}: the peak of the learning rate in arms must be above 0.']


def _arm(cfg: dict, name: str, teachers: list) -> list[str]:
    if not teachers:
        return [f'arms.{name}.teachers is empty: [None] is a stage without a teacher.']
    known = list(cfg['teachers'])
    return [
        f'arms.{name}: ' + unknown_name('teacher', str(teacher), known)
        for teacher in teachers
        if teacher is not None and teacher not in known
    ]


def _auto_arm(cfg: dict, name: str, word: str) -> list[str]:
    if word != 'auto':
        return [f"arms.{name}.teachers is {word!r}: a list of teachers is needed, or 'auto'."]
    if not cfg['teachers']:
        return [
            f'arms.{name}: there are no teachers to choose from. Name at least one in `teachers`.'
        ]
    for count in range(1, _longest_choice(cfg) + 1):
        if cfg['schedule']['arm'] % count:
            text = _uneven_stages(count, cfg, ' (order.max_length)')
            return [f'arms.{name} may get {text}']
    return []


def _longest_choice(cfg: dict) -> int:
    """How many teachers an arm may get that says 'auto'."""
    return min(cfg['order']['max_length'], len(cfg['teachers']))


def _uneven_stages(count: int, cfg: dict, origin: str = '') -> str:
    updates, lengths = cfg['schedule']['arm'], [1]
    for arm in cfg['arms'].values():
        is_auto = isinstance(arm['teachers'], str)
        lengths += range(1, _longest_choice(cfg) + 1) if is_auto else [len(arm['teachers']) or 1]
    divisor = math.lcm(*lengths)
    return (
        f'{count} stages{origin}, which do not divide schedule.arm = {updates} evenly: every arm gets the same number '
        f'of updates. Set schedule.arm to a multiple of {divisor}, such as {-(-updates // divisor) * divisor}.'
    )


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
    problems = [
        f'{place} is {levels!r}: FPN levels 0, 1, ... are needed.'
        for place, levels in places.items()
        if not (isinstance(levels, (list, tuple)) and levels)
        or any(not isinstance(level, int) or level < 0 for level in levels)
    ]
    if not problems and not set.intersection(*map(set, places.values())):
        both = ' and '.join(f'{place} {list(levels)}' for place, levels in places.items())
        problems.append(
            f'{both} have no level in common: nothing would be distilled. Set them to levels that both have.'
        )
    return problems


def _image(cfg: dict) -> list[str]:
    """Of the recipe's `image`, and of teachers' own."""
    places = {'image': cfg['image']}
    places |= {
        f'teachers.{n}.image': t['image'] for n, t in cfg['teachers'].items() if 'image' in t
    }
    problems = []
    for place, image in places.items():
        if 'scale' in image:
            problems += _scale_problems(f'{place}.scale', image['scale'])
        for key, above, words in (('mean', -math.inf, ''), ('std', 0, ', above 0')):
            values = image.get(key, (1, 1, 1))
            good = all(isinstance(v, NUMBER) and math.isfinite(v) and v > above for v in values)
            if len(values) != 3 or not good:
                problems.append(
                    f'{place}.{key} is {values!r}: a number per colour is needed{words}.'
                )
    if not 0 <= cfg['image']['flip'] <= 1:
        problems.append(f'image.flip is {cfg["image"]["flip"]}: a share from 0 to 1 is needed.')
    return problems


def _scale_problems(key: str, scale: Any) -> list[str]:
    sides = scale if isinstance(scale, (list, tuple)) else (scale, scale)
    if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides):
        return []
    return [f'{key} is {scale!r}: pixels, or (width, height) in pixels, are needed.']


def _features_only(cfg: dict) -> list[str]:
    """Teachers without AP: they have weights already, nobody inherits from them, and no order is chosen by it."""
    problems = []
    for name, teacher in cfg['teachers'].items():
        if not teacher.get('features_only'):
            continue
        key = f'teachers.{name}.features_only'
        if not teacher.get('checkpoint'):
            problems.append(
                f'{key}: a teacher with features_only is not trained here. Give teachers.{name}.checkpoint, or leave features_only out.'
            )
        arms = [arm for arm, value in cfg['arms'].items() if [*value['teachers']][:1] == [name]]
        if arms and cfg['distill']['start'] == 'inherit':
            problems.append(
                f"{key}: arms.{arms[0]} begins with this teacher's head (distill.start is 'inherit'), but the teacher has "
                "features only. Set distill.start to 'baseline' or 'random', or leave features_only out."
            )
        for arm, value in cfg['arms'].items():
            if value['teachers'] == 'auto':
                problems.append(
                    f'{key}: arms.{arm} chooses its teachers by AP, and this teacher has no AP. Name the teachers of the arm, '
                    'or leave features_only out.'
                )
    return problems


# Overrides


def parse_overrides(text: str) -> dict[str, Any]:
    """``KEY=VALUE KEY=VALUE ...`` as a dict; values are Python literals, never evaluated, or text.

    A dict may be written ``dict(a=1, b=2)``, too.

    Raises:
        ValueError: a part without ``=``.
    """
    overrides, rest = {}, text.strip()
    while rest:
        ends = [match.start() for match in re.finditer(r'\s+(?=[\w.]+=)', rest)] + [len(rest)]
        # What looks like the next key may be part of a value with brackets or quotes.
        last = len(ends) if re.match(r'[\w.]+=(dict\(|[(\[{\'"])', rest) else 1
        for end in ends[:last]:
            key, equals, value = rest[:end].partition('=')
            if not equals or not key:
                raise ValueError(f'{rest[:end]!r} is not KEY=VALUE. Write it like seed=1.')
            try:
                overrides[key] = _literal(value)
                break
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue  # text, or nested too deeply
        else:
            end = ends[0]
            key, _, overrides[key] = rest[:end].partition('=')
        rest = rest[end:].lstrip()
    return overrides


class _DictCalls(ast.NodeTransformer):
    """``dict(a=1)`` as ``{'a': 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names = [item.arg for item in node.keywords]
        if getattr(node.func, 'id', '') != 'dict' or node.args or None in names:
            return node
        keys = [ast.Constant(name) for name in names]
        return ast.Dict(keys, [item.value for item in node.keywords])


def _literal(text: str) -> Any:
    return ast.literal_eval(_DictCalls().visit(ast.parse(text.lstrip(' \t'), mode='eval')))
