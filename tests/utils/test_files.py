"""Files that are written whole or not at all, and what is said of those that are not."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from mtpd.errors import MtpdError
from mtpd.utils import files
from mtpd.utils.paths import ROOT


def names(folder) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / 'new' / 'a.bin'
    with files.atomic(path) as temporary:
        temporary.write_bytes(b'first')
        assert temporary.parent == path.parent and not path.exists()
    with files.atomic(path) as temporary:
        temporary.write_bytes(b'second')
        assert path.read_bytes() == b'first'
    assert path.read_bytes() == b'second' and names(path.parent) == ['a.bin']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / 'a.json'
    files.write_json(path, {'old': 1})
    with pytest.raises(error), files.atomic(path) as temporary:
        temporary.write_text('half')
        raise error
    with pytest.raises(TypeError):
        files.write_json(path, {'new': object()})
    assert files.read_json(path) == {'old': 1} and names(tmp_path) == ['a.json']


def test_a_block_that_writes_nothing_is_an_error_and_the_old_file_stays(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(FileNotFoundError), files.atomic(path):
        pass
    assert path.read_text() == 'old'


def test_a_file_in_the_place_of_a_folder_is_the_error_that_is_seen(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        files.write_text(tmp_path / 'file' / 'a.txt', 'x')


def test_values_of_json(tmp_path):
    value = {1: np.float32(0.5), 'path': tmp_path, 'rows': (np.arange(2), math.nan, [math.inf])}
    files.write_json(tmp_path / 'a.json', value)
    text = (tmp_path / 'a.json').read_text()
    assert json.loads(text) == {'1': 0.5, 'path': str(tmp_path), 'rows': [[0, 1], None, [None]]}


def test_broken_json_is_named_or_counts_for_none(tmp_path, capsys):
    path = tmp_path / 'a.json'
    assert files.read_json(path, 'default') == 'default'
    assert files.read_json(tmp_path / 'a.json' / 'b.json') is None
    path.write_text('{"a": 1')
    with pytest.raises(MtpdError, match=r'a\.json is not valid JSON .*Remove it'):
        files.read_json(path)
    assert files.read_json_if_valid(path, {}) == {} and str(path) in capsys.readouterr().out


def test_rows_of_a_log_are_those_with_an_update_and_numbers(tmp_path):
    path = tmp_path / 'log.json'
    rows = [{'update': 1, 'loss': 2.0}, {'update': 2, 'loss': None}, {'update': 3, 'bbox_mAP': 0.1}]
    others = [{'loss': 1.0}, {'update': True}, {'update': 4, 'loss_cls': 'x'}, [1]]
    lines = [json.dumps(row) for row in [*rows, *others]]
    path.write_text('\n'.join([*lines, '{"update": 5, "lo']))
    assert files.read_log(path) == rows
    assert files.read_log(tmp_path / 'none.json') == []


def test_dotted_keys():
    assert dict(files.flatten({'a': {'b': 1, 'c': {}}, 'd': 2})) == {'a.b': 1, 'a.c': {}, 'd': 2}


def test_the_checksum_that_is_stated_for_a_checkpoint(tmp_path):
    path = tmp_path / 'student-7ee888e0.pth'
    assert files.stated_sha256(path) == '7ee888e0'
    files.write_json(tmp_path / 'metrics.json', {'checkpoint': path.name, 'sha256': 'ab' * 32})
    assert files.stated_sha256(path) == 'ab' * 32
    assert files.stated_sha256(tmp_path / 'other.pth') is None


def test_disk_space_and_folders(tmp_path):
    files.check_disk_space(tmp_path, 1, 'A byte')
    with pytest.raises(MtpdError, match=r'It takes 1000000000\.0 GB.*or set X\.'):
        files.check_disk_space(tmp_path, 10**18, 'It', 'set X')
    assert files.nearest_existing_folder(tmp_path / 'a' / 'b') == tmp_path
    files.make_writable_folder(tmp_path / 'a')
    assert names(tmp_path / 'a') == []
    (tmp_path / 'file').write_text('')
    with pytest.raises(MtpdError, match='Choose another folder'):
        files.make_writable_folder(tmp_path / 'file')


def test_what_the_command_line_needs_at_once_loads_neither_numpy_nor_torch():
    code = (
        'import sys; from mtpd.utils import files, machine, paths, processes, progress;'
        'print([name for name in ("numpy", "torch", "mmcv", "requests") if name in sys.modules])'
    )
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
