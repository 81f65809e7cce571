"""Memory that runs out: the arithmetic by hand, and what a training says that meets it."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import gc
import math
import weakref

import pytest
import torch
from click.testing import CliRunner

from helpers import failing
from helpers.failing import OOM
from helpers.plain_config import META, TEXT
from helpers.tiny import retinanet
from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.cli.main import main
from mtpd.engine import memory
from mtpd.engine.loop import train_model
from mtpd.engine.memory import (
    GIB,
    Advice,
    Shortage,
    advise,
    config_setting_names,
    explain_out_of_memory,
    fixed_bytes,
    is_out_of_memory,
    parse_shortage,
    recipe_setting_names,
    scaled_image,
    shortage_text,
)
from mtpd.errors import MtpdError
from mtpd.pipeline.detectors import train_detector_run
from mtpd.pipeline.mmdet_config import load_config
from mtpd.runtime import checkpoints


def test_a_batch_that_fits_by_hand():
    # 4 GiB whatever the images, 16 images take 64 GiB, 4 each; 0.9 * 60 - 4 = 50 leave room for 12.
    found = advise(16, 1, 4, 68, 60)
    assert found.images == 12 and found.side == pytest.approx(math.sqrt(50 / 64))
    # Four processes with four images each, of a GPU each: 50 leave room for 3 images of 16.
    assert advise(16, 4, 4, 68, 60).images == 12
    assert advise(16, 8, 4, 36, 30).images == 8  # (27 - 4) / 16: one each


def test_what_fits_stays():
    assert advise(16, 2, 4, 20, 40) == Advice(16, 1.0)
    assert advise(16, 2, 4, 36, 40) == Advice(16, 1.0)  # a tenth to spare, exactly
    assert advise(16, 2, 4, 37, 40).images == 14


def test_where_one_image_is_too_much_its_sides_shrink():
    # One image takes 40, and there is room for 0.9 * 30 - 2 = 25: sides by the root of 25 / 40.
    assert advise(2, 2, 2, 42, 30) == Advice(None, pytest.approx(math.sqrt(25 / 40)))
    assert advise(8, 2, 2, 162, 30) == Advice(None, pytest.approx(math.sqrt(25 / 40)))
    assert advise(8, 2, 28, 30, 30) == Advice(None, None)  # the weights alone


def test_advice_that_is_taken_fits():
    for batch, count, own, each, there in [
        (16, 4, 3, 7, 25),
        (64, 8, 10, 3.3, 40),
        (6, 1, 1, 9, 31),
    ]:
        found = advise(batch, count, own, own + each * batch / count, there)
        need = own + each * found.images / count
        assert found.images % count == 0 and need <= 0.9 * there
        assert need + each > 0.9 * there  # one more would not
        sides = own + each * batch / count * found.side**2
        assert sides == pytest.approx(0.9 * there)


def test_what_stays_whatever_the_images():
    assert fixed_bytes(100, 40) == 100  # evaluation
    assert fixed_bytes(100, 40, 'SGD') == 180 and fixed_bytes(100, 40, 'AdamW') == 220


def test_what_torch_and_numpy_say():
    assert parse_shortage(OOM) == Shortage(round(6.5 * GIB), 6 * GIB, 2 * GIB)
    kept = OOM.replace('512.00 MiB is free.', '1.00 GiB is free. 6.25 GiB allowed;')
    assert parse_shortage(kept).there == round(6.25 * GIB)
    ram = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."
    assert parse_shortage(ram) == Shortage(None, None, 4096)
    assert parse_shortage('Unable to allocate 1.50 GiB for an array') == Shortage(
        None, None, 1.5 * GIB
    )
    assert parse_shortage('CUDA error: out of memory') == Shortage(None, None, None)


@pytest.mark.parametrize(
    'text',
    [
        'CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported',
        'cuDNN error: CUDNN_STATUS_ALLOC_FAILED',
        'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED',
        'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED',
        'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`',
        'CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`',
        'GET was unable to find an engine to execute this computation',
        'FIND was unable to find an engine to execute this computation',
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
        "NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    ],
)
def test_all_words_for_a_shortage_are_known(text):
    assert is_out_of_memory(RuntimeError(text)) and not is_out_of_memory(ValueError(text))


@pytest.mark.parametrize(
    'text',
    [
        'cuDNN error: CUDNN_STATUS_BAD_PARAM',
        'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR',
        'CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`',
        'CUDA error: device-side assert triggered',
        'index 7 is out of bounds for dimension 0 with size 7',
    ],
)
def test_other_errors_are_no_shortage(text):
    assert not is_out_of_memory(RuntimeError(text))


def test_a_shortage_of_the_host_and_a_vague_one_are_named_as_such():
    def said(text):
        named = recipe_setting_names(load_recipe(MINI, SMALL).cfg, 1)
        with (
            pytest.raises(MtpdError) as caught,
            explain_out_of_memory(named, torch.nn.Linear(2, 1)),
        ):
            raise RuntimeError(text)
        return str(caught.value)

    device = said('cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED')
    assert device.startswith('GPU memory ran out') and 'another cause' not in device
    assert said('cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED').startswith(
        'memory ran out'
    )
    vague = said('GET was unable to find an engine to execute this computation')
    assert vague.startswith('GPU memory ran out')
    assert "CUDA says 'unable to find an engine to execute this computation', which may" in vague


SIDE = ('image.scale', (1333, 800))


def test_the_message_with_all_numbers():
    short = Shortage(round(79.1 * GIB), round(75.3 * GIB), 6 * GIB)
    # 81.3 GiB for 16 images and 5 GiB of weights: 76.3 for 0.9 * 79.1 - 5 = 66.19, which is 13.88 images.
    text = shortage_text('GPU memory', short, 5 * GIB, ('schedule.batch_size', 16, 4), SIDE, 'rate')
    assert text == (
        'GPU memory ran out (79.1 GiB, 75.3 in use, 6.0 more wanted) with schedule.batch_size 16: lower it to 12 '
        '(rate), or image.scale to (1241, 745).'
    )
    assert math.floor(1333 * math.sqrt(66.19 / 76.3)) == 1241


def test_the_message_without():
    short = Shortage(None, None, 2 * GIB)
    text = shortage_text('GPU memory', short, 0, ('b', 6, 2), ('image.scale', 640))
    assert (
        text
        == 'GPU memory ran out (2.0 GiB more wanted) with b 6: lower it to 2, or image.scale to 452.'
    )
    short = Shortage(10 * GIB, 9 * GIB, 2 * GIB)
    assert shortage_text('memory', short, GIB, ('b', 2, 2), SIDE).endswith(
        'with b 2: lower image.scale to (1192, 715).'
    )
    short = Shortage(10 * GIB, 9 * GIB, 30 * GIB)  # 39 GiB, 1 of weights: 19 an image, 8 are free
    assert 'lower b to 1 and image.scale to (864, 519).' in shortage_text(
        'm', short, GIB, ('b', 2, 1), SIDE
    )
    assert 'the weights alone take 9.5 GiB' in shortage_text(
        'm', short, round(9.5 * GIB), ('b', 2, 1), SIDE
    )
    # By the numbers it would fit, and it did not.
    short = Shortage(10 * GIB, GIB, GIB)
    assert 'lower it to 7, or image.scale to 95.' in shortage_text(
        'm', short, 0, ('b', 8, 1), ('image.scale', 100)
    )
    assert scaled_image(None, 0.8767) == '0.87 of its sides'


def test_settings_by_their_keys(tmp_path, tiny_coco):
    named = recipe_setting_names(load_recipe(MINI, SMALL).cfg, 1)
    assert (named.batch, named.images, named.scale) == ('schedule.batch_size', 2, 64)
    assert 'schedule.lr_batch_size=2 scales' in named.rate
    assert named.lr == 'schedule.lr.max_lr'
    other = recipe_setting_names(load_recipe(MINI, SMALL | {'schedule.lr_batch_size': 16}).cfg, 2)
    assert other.rate == 'schedule.lr_batch_size scales the learning rate' and other.sharing == 2
    config = plain(tmp_path, tiny_coco, 'oom')
    found = load_config(config)
    named = config_setting_names(found.cfg.data, found.batch, 'val_dataloader')
    assert (named.batch, named.images, named.workers) == (
        'data.samples_per_gpu', 2, 'data.workers_per_gpu'
    )  # fmt: skip
    config.write_text(
        config.read_text().replace(
            'samples_per_gpu=2, ', 'train_dataloader=dict(samples_per_gpu=3), '
        )
    )
    found = load_config(config)
    named = config_setting_names(found.cfg.data, found.batch, 'test_dataloader')
    assert (named.batch, named.images) == ('data.train_dataloader.samples_per_gpu', 3)
    assert (named.evaluation, named.evaluated) == ('data.test_dataloader.samples_per_gpu', 1)


class Circle:
    """As a detector it is reached from itself, so that only the garbage collector ends it."""

    def __init__(self, device='cpu'):
        self.itself, self.weights = self, torch.ones(2**20, device=device)


def test_what_nobody_uses_is_given_back_before_peaks_count(monkeypatch):
    ends = []
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: ends.append(gone() is None))
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda: ends.append(gone() is None))
    gc.disable()
    try:
        gone = weakref.ref(Circle())
        assert gone() is not None
        memory.reset_peak('cuda')
    finally:
        gc.enable()
    assert ends == [True, True]


@pytest.mark.gpu
def test_a_gpu_has_its_memory_back():
    memory.reset_peak('cuda')
    before = memory.memory_used('cuda')
    gc.disable()
    try:
        Circle('cuda')
        assert memory.memory_used('cuda')[0] == before[0] + 4 * 2**20
        memory.reset_peak('cuda')
    finally:
        gc.enable()
    assert memory.memory_used('cuda')[:2] == before[:2]


# In trainings


def plain(folder, tiny_coco, kind, at=1):
    model = retinanet(num_classes=2) | dict(type='Failing', kind=kind, at=at)
    path = folder / 'pets.py'
    path.write_text(TEXT.format(model=model, root=str(tiny_coco(folder / 'coco')), meta=META))
    return path


def refused(*arguments) -> str:
    found = CliRunner().invoke(main, [str(item) for item in arguments])
    assert found.exit_code == 2, (found.output, found.exception)
    assert 'Traceback' not in found.output
    return found.output


def test_a_training_of_a_plain_config(tmp_path, tiny_coco):
    path, out = plain(tmp_path, tiny_coco, 'oom', at=5), tmp_path / 'run'
    said = refused('train', path, '--work-dir', out)
    # 8 GiB for two images and next to nothing besides, in 5.85: one, or sides by the root of 0.731.
    assert (
        'mtpd: GPU memory ran out (6.5 GiB, 6.0 in use, 2.0 more wanted) with data.samples_per_gpu 2: lower it to 1 '
        "(auto_scale_lr.enable=True scales the learning rate), or img_scale in the pipelines' Resize to 0.85 of its "
        'sides. latest.pth stays as update 3 left it: the same command goes on from there; other settings need another '
        '--work-dir.'
    ) in said
    assert checkpoints.load_checkpoint(out / 'latest.pth')['meta']['iter'] == 3
    # Another process's fifth update: it goes on, to the end.
    done = CliRunner().invoke(main, ['train', str(path), '--work-dir', str(out)])
    assert done.exit_code == 0, done.output


def test_memory_of_the_cpu(tmp_path, tiny_coco):
    said = refused('train', plain(tmp_path, tiny_coco, 'ram'), '--work-dir', tmp_path / 'run')
    assert 'mtpd: memory ran out (' in said and ' in use, 4294967296.0 more wanted)' in said
    assert 'with data.samples_per_gpu 2: lower data.samples_per_gpu to 1 and img_scale' in said
    assert 'No checkpoint was written yet: the same command begins again' in said


def test_evaluation_during_and_after_training(tmp_path, tiny_coco):
    path, out = plain(tmp_path, tiny_coco, 'oom_test'), tmp_path / 'run'
    said = refused('train', path, '--work-dir', out)
    assert 'with data.val_dataloader.samples_per_gpu 1: lower img_scale' in said
    assert checkpoints.load_checkpoint(out / 'latest.pth')['meta']['iter'] == 3
    said = refused('eval', path, '--checkpoint', out / 'latest.pth')
    assert 'with data.test_dataloader.samples_per_gpu 1: lower img_scale' in said


def test_a_recipes_training_and_evaluation(tmp_path, tiny_coco):
    more = {'data.root': str(tiny_coco(tmp_path / 'coco')), 'evaluation.batch_size': 4}
    for kind, said in {
        'oom': r'with schedule\.batch_size 2: lower it to 1 \(schedule.lr_batch_size=2 scales the learning rate with '
        r'it\), or image\.scale to 54\. No checkpoint',
        'oom_test': r'with evaluation\.batch_size 4: lower it to 2, or image\.scale to 54\.$',
    }.items():
        model = {'student.model.type': 'Failing', 'student.model.kind': kind}
        recipe = load_recipe(MINI, SMALL | more | model)
        with pytest.raises(MtpdError, match=said):
            train_detector_run(recipe, 'student', tmp_path / kind)


@pytest.mark.gpu
def test_a_real_shortage_on_a_gpu(tmp_path, tiny_coco):
    more = {
        'data.root': str(tiny_coco(tmp_path / 'coco')),
        'image.scale': 2048,
        'runtime.device': 'cuda',
    }
    recipe = load_recipe(MINI, SMALL | more)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.1 * GIB / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(
            MtpdError, match=r'GPU memory ran out \(.* in use, .* more wanted\) with schedule'
        ) as error:
            cfg = recipe.model('student')
            train_model(recipe, lambda: failing.build(cfg), cfg, tmp_path / 'run', 2, 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 'image.scale to ' in str(error.value)
