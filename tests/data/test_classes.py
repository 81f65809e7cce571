"""Classes of checkpoints, matched with a dataset's by name."""

import pytest

from mtpd.data.classes import known_classes, match_classes, same_classes
from mtpd.errors import MtpdError


def test_outputs_keep_the_checkpoint_s_order_and_get_the_dataset_s_names():
    assert match_classes(['cat', 'dog'], None, 'x') == ('cat', 'dog')
    assert match_classes(['cat', 'dog'], ['dog', 'cat'], 'x') == ('dog', 'cat')
    assert match_classes(['traffic light'], ['bus', 'Traffic_Light'], 'x') == (
        'bus',
        'traffic light',
    )
    # Where case tells classes apart, it matters.
    assert match_classes(['cat', 'Cat'], ['Cat', 'cat'], 'x') == ('Cat', 'cat')


def test_a_checkpoint_that_lacks_a_class_is_refused():
    with pytest.raises(
        MtpdError,
        match=r'lacks 1 of the 2 classes of the dataset \(emu\), and has 2 \(cat, dog\).*ignore-classes',
    ):
        match_classes(['cat', 'emu'], ['cat', 'dog'], 'x')
    with pytest.raises(MtpdError, match='lacks 2 of the 3 classes') as error:
        match_classes(['cat', 'emu', 'owl'], ['cat'], 'x')
    assert 'ignore-classes' not in str(error.value)  # its outputs are too few


def test_what_a_checkpoint_says():
    assert known_classes(['a', 'b']) == known_classes(('a', 'b')) == ('a', 'b')
    assert known_classes('a') == ('a',)
    assert (
        known_classes(None) is known_classes([]) is known_classes([1]) is known_classes({}) is None
    )
    assert same_classes(['traffic_light'], ['Traffic light'])
    assert not same_classes(['a', 'b'], ['b', 'a'])
