"""Zip archives: only what is missing is unpacked, and nothing outside the folder or damaged."""

import zipfile

import pytest

from mtpd.errors import MtpdError
from mtpd.utils.download import unpack_zip


def archive(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, 'w') as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


def test_only_what_is_missing_is_unpacked(tmp_path):
    packed = archive(tmp_path / 'a.zip', {'a/1.jpg': b'one', 'a/2.jpg': b'two', 'b/3.jpg': b'3'})
    assert unpack_zip(packed, tmp_path, 'a/') == 2
    (tmp_path / 'a' / '1.jpg').write_bytes(b'cut')
    (tmp_path / 'a' / '2.jpg').write_bytes(b'tw')
    assert unpack_zip(packed, tmp_path, 'a/') == 1
    assert (tmp_path / 'a' / '2.jpg').read_bytes() == b'two'
    assert not (tmp_path / 'b').exists()


@pytest.mark.parametrize('name', ['../evil.jpg', 'a/../../evil.jpg', '/evil.jpg'])
def test_a_member_that_leads_outside_is_refused(tmp_path, name):
    packed = archive(tmp_path / 'a.zip', {'a/1.jpg': b'one', name: b'evil'})
    with pytest.raises(MtpdError, match='would lie outside'):
        unpack_zip(packed, tmp_path / 'data')
    assert not list(tmp_path.rglob('*.jpg'))


@pytest.mark.parametrize('mode', [0o120777, 0o020666, 0o060666, 0o010644, 0o140777])
def test_a_link_a_device_a_pipe_and_a_socket_are_refused(tmp_path, mode):
    link = zipfile.ZipInfo('a/link')
    link.external_attr = mode << 16
    with pytest.raises(MtpdError, match='is a link or a device'):
        unpack_zip(archive(tmp_path / 'a.zip', {'a/1.jpg': b'one', link: b'/etc'}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['a.zip']


def test_damaged_archives(tmp_path):
    packed = archive(tmp_path / 'a.zip', {'a/1.jpg': b'the first image'})
    packed.write_bytes(packed.read_bytes().replace(b'first', b'worst', 1))
    with pytest.raises(MtpdError, match=r'damaged .*CRC'):
        unpack_zip(packed, tmp_path)
    assert not (tmp_path / 'a' / '1.jpg').exists()
    packed.write_bytes(b'no zip')
    with pytest.raises(MtpdError, match='no zip file'):
        unpack_zip(packed, tmp_path)
