"""Zip archives, unpacked safely, and gone on with where that was interrupted."""

from __future__ import annotations

import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ..errors import MtpdError
from .files import room

DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def unpack(archive: Path, root: Path, prefix: str = '') -> int:
    """Unpacks the members whose names begin with `prefix`, except those that are there with the right size.

    Each is compared with its CRC-32 and gets its name when it is whole.

    Returns:
        How many were written.

    Raises:
        MtpdError: no zip, or a damaged one; a member that is a link, a device or would lie outside `root` (nothing is
            unpacked then); no space, or no permission.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [member for member in zipped.infolist() if not member.is_dir()]
            for member in members:
                _refuse_trap(archive, member)
            todo = [
                member
                for member in members
                if member.filename.startswith(prefix) and not _there(root / member.filename, member)
            ]
            room(root, sum(member.file_size for member in todo), f'Unpacking {archive.name}')
            slow = 0.1 if sys.stderr.isatty() else 30
            for member in tqdm(todo, f'unpacking {archive.name}', unit='file', mininterval=slow):
                _write(zipped, member, root / member.filename)
    except DAMAGED as error:
        raise MtpdError(
            f'{archive} is damaged or no zip file ({error}): remove it and repeat, and it is fetched again.'
        ) from error
    except OSError as error:
        raise MtpdError(
            f'{archive} cannot be unpacked to {root} ({error.strerror or error}): check permissions and free '
            'space, and repeat; what is unpacked stays.'
        ) from error
    return len(todo)


def _refuse_trap(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was made on Windows
    outside = path.is_absolute() or '..' in path.parts
    if outside or kind not in (0, stat.S_IFREG):
        what = 'would lie outside the folder' if outside else 'is a link or a device'
        raise MtpdError(
            f'{archive} is not unpacked: its member {member.filename!r} {what}. '
            'It is not what it should be; remove it.'
        )


def _there(path: Path, member: zipfile.ZipInfo) -> bool:
    return path.is_file() and path.stat().st_size == member.file_size


def _write(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    with zipped.open(member) as source, part.open('wb') as target:
        shutil.copyfileobj(source, target)
    part.replace(path)
