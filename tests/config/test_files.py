"""Config files of mmcv, and what is laid over them."""

from pathlib import Path

import pytest
from mmcv import Config

from mtpd.config.files import override_values
from mtpd.errors import RecipeError


def test_a_dict_takes_the_place_of_none_and_of_a_text():
    cfg = Config(dict(a=None, b=dict(c='text', d=1), e=dict(f=1, g=2), h=3))
    overrides = {'a.x': 1, 'b': {'c': {'y': {'z': 2}}}, 'e.f': 5, 'i.j.k': 4}
    override_values(cfg, overrides, Path('r.py'))
    assert cfg._cfg_dict == {
        'a': {'x': 1},
        'b': {'c': {'y': {'z': 2}}, 'd': 1},
        'e': {'f': 5, 'g': 2},
        'h': 3,
        'i': {'j': {'k': 4}},
    }
    assert overrides['b'] == {'c': {'y': {'z': 2}}}  # as given, for the run's record
    with pytest.raises(RecipeError, match='does not load'):
        override_values(cfg, {'h': {'x': 1}}, Path('r.py'))
