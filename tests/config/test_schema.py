"""What a recipe may say: all that is wrong comes in one message, with the nearest right name."""

import pytest

from mtpd.config.recipe import load_recipe
from mtpd.config.schema import parse_overrides
from mtpd.errors import RecipeError

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
PLACE = {'annotations': 'valid/a b.json', 'images': 'valid'}


def refused(overrides) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(MINI, overrides)
    return str(error.value)


def test_all_problems_come_in_one_message_with_the_nearest_names():
    text = refused({'schedul': 1, 'image.scal': 128, 'seed': 'one', 'data.scenes.train': 2.5})
    for part in (
        "unknown key 'schedul'. Did you mean 'schedule'?",
        "unknown key 'image.scal'. Did you mean 'image.scale'?",
        "seed is 'one' (str): int is needed",
        'data.scenes.train is 2.5 (float): int is needed',
        'has 4 problems',
    ):
        assert part in text


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (
            {'arms.progressive.teachers': ['r11', 'rx101']},
            "unknown teacher 'r11'. Did you mean 'r101'?",
        ),
        ({'arms.progressive.teachers': []}, 'arms.progressive.teachers is empty'),
        (
            {'schedule.arm': 1201},
            'arms.repeated, arms.progressive, arms.reverse have 2 stages, which do not divide schedule.arm = 1201',
        ),
        ({'schedule.baseline': 0}, 'schedule.baseline is 0: it must be at least 1'),
        ({'distill.method': 'mgt'}, "unknown distill.method 'mgt'. Did you mean 'mgd'?"),
        ({'distill.start': 'basline'}, "Did you mean 'baseline'?"),
        ({'distill.levels': []}, 'FPN levels 0, 1, ... are needed'),
        (
            {'distill.settings.mgd.levels': [-1]},
            'distill.settings.mgd.levels is [-1]: FPN levels 0, 1, ... are needed',
        ),
        ({'distill.settings.mgd.levels': 3}, 'distill.settings.mgd.levels is 3'),
        (
            {'distill.method': 'cwd', 'distill.levels': [4]},
            'distill.levels [4] and distill.settings.cwd.levels [0, 1, 2, 3] have no level in common',
        ),
        ({'evaluation.metrics': ['bboxes']}, "unknown evaluation.metrics 'bboxes'"),
        (
            {'evaluation.metrics': 'bbox'},
            "evaluation.metrics is 'bbox' (str): list or tuple is needed. In a shell: "
            '--cfg-options "evaluation.metrics=[\'bbox\']".',
        ),
        ({'seed': -1}, 'seed is -1: it must not be negative'),
        ({'seed': True}, 'seed is True (bool): int is needed'),
        ({'order.images': 1}, 'order.images is 1: it must be at least 2'),
        (
            {'distill.start': 5},
            "distill.start is 5 (int): one of 'baseline', 'inherit', 'random' is needed",
        ),
        (
            {'runtime.workers': 2.5},
            "runtime.workers is 2.5 (float): a number, or 'auto', is needed",
        ),
        ({'student.config': 'nowhere.py'}, 'student.config'),
        ({'student.config': 'mmdet::retinanet/nothing.py'}, 'mmdet has no such config'),
        ({'data.splits': {'test': 'test'}}, "unknown key 'data.splits.test'"),
        ({'data.splits.val': PLACE}, 'data.splits names files, and data.root is None'),
    ],
)
def test_values_that_do_not_fit_together(overrides, message):
    assert message in refused(overrides)


@pytest.mark.parametrize(
    ('lengths', 'updates', 'suggested'), [((2, 3), 7, 12), ((1, 3), 1, 3), (('auto', 2), 9, 12)]
)
def test_the_suggested_number_of_updates_fits_all_arms(lengths, updates, suggested):
    """The least common multiple of the stages; an arm that says auto may get one, two or three."""
    arms = {
        f'a{number}': {'teachers': 'auto' if length == 'auto' else [None] * length}
        for number, length in enumerate(lengths)
    }
    teacher = load_recipe(MINI).cfg.teachers.r101.to_dict()
    settings = {'arms': {'_delete_': True, **arms}, 'order.max_length': 3, 'teachers.x': teacher}
    assert f'such as {suggested}.' in refused(settings | {'schedule.arm': updates})
    assert load_recipe(MINI, settings | {'schedule.arm': suggested}).cfg.schedule.arm == suggested


def test_what_is_missing_is_one_line():
    text = refused({'order': {'_delete_': True, 'images': 4}})
    assert 'has a problem' in text
    assert 'order.max_length, order.method, order.min_gain are missing. Add them' in text


def test_overrides_are_literals_and_never_evaluated():
    assert parse_overrides("a=1 b.c=None d=[1,2] e=__import__('os') f=two words g=x=y") == {
        'a': 1,
        'b.c': None,
        'd': [1, 2],
        'e': "__import__('os')",
        'f': 'two words',
        'g': 'x=y',
    }
    assert parse_overrides('') == {}
    with pytest.raises(ValueError, match='KEY=VALUE'):
        parse_overrides('seed')


@pytest.mark.parametrize(
    ('text', 'values'),
    [
        ("a=dict(b=1, c='x y') d=2", {'a': {'b': 1, 'c': 'x y'}, 'd': 2}),
        ("a={'b': 'x c=1'} d=[1, dict(e=(2, 3))]", {'a': {'b': 'x c=1'}, 'd': [1, {'e': (2, 3)}]}),
        ("a='x b=1' c=2", {'a': 'x b=1', 'c': 2}),
        ('a=[1, b=2', {'a': '[1,', 'b': 2}),
        ('a=dict(open()) b=1', {'a': 'dict(open())', 'b': 1}),
        ('a=dict(**{}) b=dict(1)', {'a': 'dict(**{})', 'b': 'dict(1)'}),
    ],
)
def test_a_value_in_brackets_or_quotes_is_one(text, values):
    assert parse_overrides(text) == values


@pytest.mark.parametrize(
    'overrides',
    [
        {'data.splits': {'val': PLACE}},
        {'data.splits.val': PLACE},
        {'data.splits': {'_delete_': True, 'val': {'_delete_': True, **PLACE}}},
        "data.splits={'val': {'annotations': 'valid/a b.json', 'images': 'valid'}}",
        "data.splits.val=dict(annotations='valid/a b.json', images='valid')",
        'data.splits.val.annotations=valid/a b.json data.splits.val.images=valid',
    ],
)
def test_splits_name_their_files_in_any_of_the_forms(overrides):
    if isinstance(overrides, str):
        overrides = parse_overrides(overrides)
    recipe = load_recipe(MINI, {'data.root': 'x', **overrides})
    assert recipe.cfg.data.splits == {'train': 'train', 'val': PLACE}
    # A run is repeated from its resolved recipe, which states the splits: another dict takes the place of a name.
    again = load_recipe(recipe, {'data.splits.train': PLACE})
    assert again.cfg.data.splits == {'train': PLACE, 'val': PLACE}


def test_every_fault_of_the_splits_is_named_at_once():
    text = refused(
        {
            'data.root': 'x',
            'data.splits.train': {'annotation': 'a.json', 'images': 3},
            'data.splits.val.annotations': 'b.json',
            'data.splits.valid': 'valid',
        }
    )
    for part in (
        'has 5 problems',
        "unknown key 'data.splits.train.annotation'. Did you mean 'data.splits.train.annotations'?",
        'data.splits.train.annotations is missing.',
        'data.splits.train.images is 3 (int): str is needed.',
        'data.splits.val.images is missing.',
        "unknown key 'data.splits.valid'. Did you mean 'data.splits.val'?",
    ):
        assert part in text
    assert 'data.splits.val is [1] (list): str or dict is needed.' in refused(
        {'data.splits.val': [1]}
    )


def test_no_detector_trains_for_less_than_one_update():
    options = {'teachers.r101.updates': -4, 'teachers.rx101.scenes': 0, 'schedule.arm': -5}
    with pytest.raises(RecipeError) as error:
        load_recipe(MINI, options)
    text = str(error.value)
    assert 'teachers.r101.updates is -4: it must be at least 1.' in text
    assert 'teachers.rx101.scenes is 0' in text and 'schedule.arm is -5' in text
    assert 'divide' not in text and '3 problems' in text


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'teachers.r101.image.scale': 0}, 'teachers.r101.image.scale is 0: pixels, or (width'),
        ({'teachers.r101.image.std': [1, 1]}, 'teachers.r101.image.std is [1, 1]: a number per'),
        (
            {'teachers.r101.image.flip': 0.5},
            "unknown key 'teachers.r101.image.flip'. Did you mean",
        ),
        ({'student.image.scale': 64}, "unknown key 'student.image'"),
    ],
)
def test_a_teachers_images_have_a_size_and_a_normalisation(overrides, message):
    assert message in refused(overrides)


def test_a_teacher_has_what_its_image_states_and_the_rest_of_the_recipes():
    options = {'teachers.r101.image.scale': [400, 200], 'teachers.r101.image.to_rgb': False}
    recipe = load_recipe(MINI, options | {'teachers.rx101.image.mean': [123.675, 116.28, 103.53]})
    ours, theirs = recipe.image('student'), recipe.image('r101')
    assert ours == recipe.cfg.image and theirs.scale == [400, 200] and not theirs.to_rgb
    assert {**theirs, 'scale': ours.scale, 'to_rgb': True} == ours
    norm = {'mean': ours.mean, 'std': ours.std, 'to_rgb': False}
    assert recipe.own_normalisation('r101') == norm
    assert recipe.own_normalisation('rx101') is None  # it states what the student has


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'teachers.r101.checkpoint': None}, 'Give teachers.r101.checkpoint'),
        ({'distill.start': 'inherit'}, "begins with this teacher's head"),
        (
            {'arms.direct.teachers': 'auto'},
            'arms.direct chooses its teachers by AP, and this teacher has no AP',
        ),
    ],
)
def test_a_teacher_of_features_alone_gives_neither_a_head_nor_an_ap(overrides, message):
    alone = {'teachers.r101.features_only': True, 'distill.start': 'baseline'}
    assert load_recipe(MINI, alone).is_features_only('r101')
    text = refused(alone | overrides)
    assert 'teachers.r101.features_only: ' in text and message in text
