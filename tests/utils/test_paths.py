"""Where the cache and recipes' files are."""

from __future__ import annotations

import pytest

from mtpd.errors import RecipeError
from mtpd.utils import paths


def test_cache_lies_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('MTPD_CACHE', raising=False)
    assert paths.cache_dir() == tmp_path / 'mtpd'
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path / 'mine'))
    assert paths.cache_dir() == tmp_path / 'mine'


def test_checkpoints_of_one_name_and_two_addresses_have_two_paths(monkeypatch, tmp_path):
    monkeypatch.setenv('MTPD_CACHE', str(tmp_path))
    one, other = (paths.cached_checkpoint(f'https://{host}/student.pth') for host in ('a', 'b'))
    assert one != other and one.name.endswith('-student.pth')
    with_sum = paths.cached_checkpoint('https://a/x/student-7ee888e0.pth?download=1')
    assert with_sum == tmp_path / 'checkpoints' / 'student-7ee888e0.pth'


def test_a_path_is_the_first_that_exists(monkeypatch, tmp_path):
    here, recipe = tmp_path / 'here', tmp_path / 'recipes' / 'r.py'
    here.mkdir()
    recipe.parent.mkdir()
    monkeypatch.chdir(here)
    assert paths.resolve_path('x.pth', recipe) == here / 'x.pth'
    (recipe.parent / 'x.pth').touch()
    assert paths.resolve_path('x.pth', recipe) == recipe.parent / 'x.pth'
    (here / 'x.pth').touch()
    assert paths.resolve_path('x.pth', recipe) == here / 'x.pth'
    assert paths.resolve_path('README.md', recipe) == paths.ROOT / 'README.md'


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'r.py').touch()
    assert paths.find_config_file('~/r.py') == tmp_path / 'r.py'
    assert paths.resolve_path('~/none', tmp_path / 'r.py') == tmp_path / 'none'
    assert str(paths.user_path('~no_such_user/x')) == '~no_such_user/x'
    assert str(paths.user_path('a~/x')) == 'a~/x'


def test_a_config_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(
        RecipeError, match=r"Did you mean 'configs/mini/retinanet_r50__r101_rx101\.py'"
    ):
        paths.find_config_file('configs/mini/retinanet_r50__r101_rx10.py')
    name = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    assert paths.find_config_file(name).is_file()
    with pytest.raises(RecipeError, match=f"Did you mean '{name}'"):
        paths.find_config_file(name.replace('1x', '1y'))


def test_paths_are_shown_as_below_the_checkout(tmp_path):
    assert paths.display_path(paths.ROOT / 'runs' / '..' / 'configs') == 'configs'
    assert paths.display_path(tmp_path) == str(tmp_path)
