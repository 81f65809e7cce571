"""`mtpd data coco` from the command line, against a server on localhost with a COCO of 4 + 4 images."""

import hashlib
import io
import zipfile

import pytest
from click.testing import CliRunner

from mtpd.cli.main import main
from mtpd.data import coco, coco_download
from mtpd.utils import download


@pytest.fixture
def mirror(site, tiny_coco, tmp_path, monkeypatch):
    """Serves the archives as COCO's server does; the table of sizes and sums is theirs."""
    source = tiny_coco(tmp_path / 'source')
    table = {}
    for split in ('train', 'val'):
        members = {f'{split}2017/{path.name}': path for path in (source / split).iterdir()}
        table[split] = _serve(site, f'zips/{split}2017.zip', members, images=4)
    members = {
        f'annotations/{kind}_{split}2017.json': source / 'annotations' / f'{split}.json'
        for kind in ('instances', 'captions')
        for split in ('train', 'val')
    }
    path = 'annotations/annotations_trainval2017.zip'
    table['annotations'] = _serve(site, path, members)
    monkeypatch.setattr(coco_download, 'ARCHIVES', table)
    monkeypatch.setattr(download, 'RETRY_WAITS', (0, 0, 0))
    return site


def _serve(site, path, members, images=0):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w') as zipped:
        for name, file in members.items():
            zipped.write(file, name)
    content = site.files[f'/{path}'] = packed.getvalue()
    total = hashlib.sha256(content).hexdigest()
    return coco_download.Archive(path, len(content), total, images)


def call(mirror, root, *options):
    arguments = ['data', 'coco', '--root', str(root), '--server', mirror.url, *options]
    return CliRunner().invoke(main, arguments)


def test_both_splits_in_the_layout_of_coco(mirror, tmp_path):
    root = tmp_path / 'coco'
    result = call(mirror, root)
    assert result.exit_code == 0, result.output
    assert 'val2017: 4 images, all that' in result.output and 'train2017: 4 images' in result.output
    for split in ('train', 'val'):
        assert coco.split_problems(root, split) == []
        assert coco.locate_split(root, split)[0].name == f'instances_{split}2017.json'
    assert not list(root.rglob('captions*'))
    assert len(list(root.glob('*.zip'))) == 3
    asked = len(mirror.asked)
    assert call(mirror, root).exit_code == 0 and len(mirror.asked) == asked == 3


@pytest.mark.parametrize('options', [('--split', 'val'), ('val',)])
def test_one_split_without_keeping_the_archives(mirror, tmp_path, options):
    root = tmp_path / 'coco'
    assert call(mirror, root, *options, '--remove-zips').exit_code == 0
    assert coco.split_problems(root, 'val') == [] and not (root / 'train2017').exists()
    assert not list(root.glob('*.zip'))
    assert call(mirror, root, *options).exit_code == 0  # complete without them
    assert len(mirror.asked) == 2


def test_splits_may_follow_each_other(mirror, tmp_path):
    assert call(mirror, tmp_path / 'a', '--split', 'train', 'val').exit_code == 0
    assert call(mirror, tmp_path / 'b', '--split', 'train', '--split', 'val').exit_code == 0
    assert call(mirror, tmp_path / 'c', '--split', 'trian').exit_code == 2


def test_broken_off_and_called_again(mirror, tmp_path):
    root = tmp_path / 'coco'
    mirror.faults += [{}, {'cut': 20000}, *[{'cut': 0}] * 4]
    result = call(mirror, root, '--split', 'val')
    assert result.exit_code == 2 and 'val2017.zip cannot be fetched' in result.output
    assert 'Traceback' not in result.output
    result = call(mirror, root, '--split', 'val')
    assert result.exit_code == 0, result.output
    assert int(mirror.asked[-1]['Range'][6:-1]) > 10000
    (root / 'val2017' / '000002.png').unlink()
    assert call(mirror, root, '--split', 'val').exit_code == 0  # from the archive that is here
    assert coco.split_problems(root, 'val') == []
    assert len(mirror.asked) == 7


def test_another_archive_than_the_published_one(mirror, tmp_path):
    content = bytearray(mirror.files['/zips/val2017.zip'])
    content[1000] ^= 1
    mirror.files['/zips/val2017.zip'] = bytes(content)
    result = call(mirror, tmp_path / 'coco', '--split', 'val')
    assert result.exit_code == 2 and 'not the expected file' in result.output
    assert not (tmp_path / 'coco' / 'val2017').exists()
    mirror.files['/zips/val2017.zip'] = b'<html>maintenance</html>'
    result = call(mirror, tmp_path / 'coco', '--split', 'val')
    assert result.exit_code == 2 and 'are expected' in result.output


def test_another_dataset_in_the_folder_stays(mirror, tmp_path, tiny_coco):
    root = tmp_path / 'coco'
    call(mirror, root, '--split', 'val')
    path = root / 'annotations' / 'instances_val2017.json'
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    result = call(mirror, root, '--split', 'val')
    assert result.exit_code == 2 and 'belongs to another dataset' in result.output
    assert path.stat().st_size < 100


def test_no_room_is_seen_before_the_first_request(mirror, tmp_path, monkeypatch):
    huge = coco_download.Archive('zips/val2017.zip', 10**18, '0', 4)
    monkeypatch.setitem(coco_download.ARCHIVES, 'val', huge)
    result = call(mirror, tmp_path / 'coco', '--split', 'val')
    assert result.exit_code == 2 and 'free some' in result.output
    assert mirror.asked == []


def test_a_root_that_cannot_be_written(mirror, tmp_path):
    (tmp_path / 'file').write_text('')
    result = call(mirror, tmp_path / 'file' / 'coco')
    assert result.exit_code == 2 and '--root' in result.output


def test_the_published_sizes_and_sums():
    assert {name: a.images for name, a in coco_download.ARCHIVES.items()} == {
        'annotations': 0,
        'train': 118287,
        'val': 5000,
    }
    assert sum(archive.size for archive in coco_download.ARCHIVES.values()) == 20405354669
    assert all(len(archive.sha256) == 64 for archive in coco_download.ARCHIVES.values())
