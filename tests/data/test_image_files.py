"""Images are found under the names that annotation files have for them."""

import os
import unicodedata

import pytest

from mtpd.data.image_files import path_on_disk, paths_on_disk

DECOMPOSED = unicodedata.normalize('NFD', 'grün.png')
COMPOSED = unicodedata.normalize('NFC', 'grün.png')


@pytest.mark.parametrize(
    ('file', 'name'),
    [
        ('a.png', 'a.png'),
        ('a.png', './a.png'),
        ('a.png', 'A.PNG'),
        ('A.JPG', 'a.jpg'),
        (DECOMPOSED, COMPOSED),
        (COMPOSED, DECOMPOSED),
        ('sub/a.png', 'sub\\a.png'),
        ('a.png', 'images\\a.png'),
        ('a.png', 'C:\\photos\\a.png'),
        ('a.png', '/home/someone/photos/a.png'),
        ('sub/a.png', 'photos/Sub/a.PNG'),
    ],
)
def test_other_spellings(tmp_path, file, name):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b'x')
    path = path_on_disk(tmp_path, name)
    assert path is not None and path.samefile(tmp_path / file)
    assert paths_on_disk(tmp_path, [name]) == {name: path}


def test_a_name_that_two_files_fit_is_none(tmp_path):
    for file in ('a.png', 'A.png'):
        (tmp_path / file).write_bytes(b'x')
    assert path_on_disk(tmp_path, 'a.PNG') is None
    assert path_on_disk(tmp_path, 'A.png') == tmp_path / 'A.png'  # exactly
    assert paths_on_disk(tmp_path, ['a.png', 'a.PNG', 'b.png']) == {'a.png': tmp_path / 'a.png'}


def test_only_the_missing_part_of_a_path_is_left_out(tmp_path):
    """Other folders may stand before the name; a file in another subfolder is another image."""
    (tmp_path / 'left').mkdir()
    (tmp_path / 'left' / 'a.png').write_bytes(b'x')
    assert path_on_disk(tmp_path, 'right/a.png') is None
    assert path_on_disk(tmp_path, 'a.png') is None
    assert path_on_disk(tmp_path / 'none', 'a.png') is None


def test_a_file_that_comes_into_a_subfolder_is_seen_by_the_next_check(tmp_path):
    """The folder's own time stays as it was."""
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub' / 'a.png').write_bytes(b'x')
    names = ['photos/sub/a.png', 'photos/sub/b.png']
    assert paths_on_disk(tmp_path, names) == {names[0]: tmp_path / 'sub/a.png'}
    (tmp_path / 'sub' / 'b.png').write_bytes(b'x')
    assert len(paths_on_disk(tmp_path, names)) == 2
    (tmp_path / 'sub' / 'a.png').unlink()
    assert paths_on_disk(tmp_path, names) == {names[1]: tmp_path / 'sub/b.png'}


def test_a_check_lists_a_folder_once_for_all_images(tmp_path, monkeypatch):
    (tmp_path / 'sub').mkdir()
    for number in range(20):
        (tmp_path / 'sub' / f'{number}.png').write_bytes(b'x')
    walks, walk = [], os.walk
    monkeypatch.setattr(os, 'walk', lambda folder: walks.append(folder) or walk(folder))
    names = [f'photos/sub/{number}.png' for number in range(30)]
    assert len(paths_on_disk(tmp_path, names)) == 20
    assert walks == [tmp_path]
