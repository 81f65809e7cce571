"""Downloads that break, and a file of an earlier stage that is damaged: what there is stays."""

import hashlib

import pytest
import torch

from helpers.place import ARMS, CAFFE, MINI, call, fitting, refuse
from mtpd.runtime.checkpoints import save_atomic
from mtpd.utils import download


def of_teacher(place, address: str, *words: str, **settings):
    """A command whose teacher 1 is at that address."""
    first, *more = words
    given = {**ARMS, 'teachers.r101.checkpoint': address, **settings}
    return lambda _: [*place.command(first, MINI, **given), *more]


@pytest.mark.long
@pytest.mark.parametrize('command', [('run',), ('train', '--arm', 'direct')])
def test_a_broken_download_keeps_what_came(place, site, monkeypatch, command):
    monkeypatch.setattr(download, 'RETRY_WAITS', ())
    save_atomic(fitting(place), place.folder / 't.pth')
    content = (place.folder / 't.pth').read_bytes()
    name = f't-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    site.files = {f'/{name}': content}
    site.faults.extend([{'cut': download.CHUNK_SIZE}, {'cut': 0}])
    make = of_teacher(place, f'{site.url}/{name}', *command)
    result = call(make(place))
    assert result.exit_code == 2 and 'Traceback' not in result.output
    assert (
        f'{site.url}/{name} cannot be fetched' in result.output and 'then repeat' in result.output
    )
    part = place.folder / 'cache' / 'checkpoints' / f'{name}.part'
    assert part.read_bytes() == content[: download.CHUNK_SIZE]
    assert not place.run.exists()


def test_a_download_of_another_sum_is_not_kept_and_the_old_file_is(place, site):
    save_atomic(fitting(place), place.folder / 't.pth')
    site.files = {'/t-00000000.pth': (place.folder / 't.pth').read_bytes()}
    old = place.folder / 'cache' / 'checkpoints' / 't-00000000.pth'
    old.parent.mkdir(parents=True)
    old.write_bytes(b'another one')
    make = of_teacher(place, f'{site.url}/t-00000000.pth', 'train', '--arm', 'direct')
    result = call(make(place))
    assert result.exit_code == 2 and 'Traceback' not in result.output
    assert 'is not the expected file' in result.output
    assert '00000000 is expected' in result.output
    assert old.read_bytes() == b'another one' and not place.run.exists()


def test_a_teacher_of_caffe_images_is_refused_by_its_config_and_not_fetched(place, site):
    given = {'student.config': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'}
    given |= {'teachers.r101.config': CAFFE}
    make = of_teacher(place, f'{site.url}/r101.pth', 'train', '--arm', 'direct', **given)
    message = refuse(place, make, r'Set --cfg-options .teachers\.r101\.image\.mean=')
    assert f'to_rgb False ({CAFFE})' in message and site.asked == []


@pytest.mark.long
def test_a_damaged_predecessor_is_made_again_or_named(place):
    torch.save(fitting(place), place.folder / 't.pth')
    given = {**ARMS, 'teachers.r101.checkpoint': place.folder / 't.pth'}
    stages = [place.train('--arm', 'progressive', '--stage', str(k), **given) for k in (1, 2)]
    first = call(stages[0])
    assert first.exit_code == 0, first.output
    student = place.run / 'stages/progressive/1_r101/student.pth'
    whole = student.read_bytes()
    student.write_bytes(whole[: len(whole) // 2])
    latest = student.with_name('latest.pth')
    content = latest.read_bytes()
    latest.write_bytes(b'')
    message = refuse(place, lambda _: stages[1], 'remove it, and the same command makes it again')
    assert f'{student} is damaged' in message

    latest.write_bytes(content)
    second = call(stages[1])
    assert second.exit_code == 0, second.output
    assert f'{student} is damaged' in second.output
    assert student.read_bytes() == whole
