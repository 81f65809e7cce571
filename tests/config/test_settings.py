"""Settings of runs: read as literals, compared key by key."""

import pytest

from mtpd import MtpdError
from mtpd.config.settings import differing_settings, parse_settings, read_settings


def test_settings_are_read_and_no_code_of_the_file_is_run(tmp_path):
    recipe, proof = tmp_path / 'recipe.py', tmp_path / 'ran'
    recipe.write_text("seed = 3\ndata = {'root': None, 'val': (1, 2)}\n")
    assert read_settings(recipe) == {'seed': 3, 'data': {'root': None, 'val': (1, 2)}}
    assert read_settings(tmp_path / 'none.py') is None
    recipe.write_text(f'seed = open({str(proof)!r}, "w").write("x")\n')
    with pytest.raises(MtpdError, match=r'recipe\.py is not as the kit writes it'):
        read_settings(recipe)
    assert not proof.exists()


@pytest.mark.parametrize('text', ['seed =', 'import os', 'a.b = 1', 'def f(): pass', '{[]: 1}'])
def test_what_is_no_list_of_literals_is_refused(text):
    with pytest.raises(MtpdError, match='the text is not as the kit writes it'):
        parse_settings(text, 'the text')


def test_differences_are_named_by_dotted_keys():
    a = {'seed': 0, 'data': {'root': None, 'scale': (1, 2)}, 'schedule': {'lr': 1}}
    b = {'seed': 1, 'data': {'root': 'coco', 'scale': [1, 2]}, 'schedule': {'lr': 1}}
    assert differing_settings(a, b) == ['data.root', 'seed']
    assert differing_settings(a, b, ['data']) == ['seed']
    assert differing_settings(a, b, ['dat', 'see']) == ['data.root', 'seed']  # whole keys only
    assert differing_settings(a, a) == []


def test_what_an_earlier_version_did_not_know_is_no_difference():
    earlier = {'speed': {'precision': 'auto'}}
    later = {'speed': {'precision': 'auto', 'fused_convs': 'auto'}, 'data': {'cache': None}}
    assert differing_settings(earlier, later) == []
    later['speed']['fused_convs'] = False
    assert differing_settings(earlier, later) == ['speed.fused_convs']
