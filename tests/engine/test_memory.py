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
    Fit,
    config_setting_names,
    explain_out_of_memory,
    fixed_bytes,
    is_out_of_memory,
    largest_fit,
    out_of_memory_text,
    recipe_setting_names,
    scaled_image,
)
from mtpd.errors import MtpdError
from mtpd.pipeline.detectors import train_detector_run
from mtpd.pipeline.mmdet_config import load_config
from mtpd.runtime import checkpoints


def test_a_batch_that_fits_by_hand():
    # 4 GiB whatever the images, 16 images take 64 GiB, 4 each; 0.9 * 60 - 4 = 50 leave room for 12.
    fit = largest_fit(16, 1, 4, 68, 60)
    assert fit.images == 12 and fit.side == pytest.approx(math.sqrt(50 / 64))
    # Four processes with four images each, of a GPU each: 50 leave room for 3 images of 16.
    assert largest_fit(16, 4, 4, 68, 60).images == 12
    assert largest_fit(16, 8, 4, 36, 30).images == 8  # (27 - 4) / 16: one each


def test_what_fits_stays():
    assert largest_fit(16, 2, 4, 20, 40) == Fit(16, 1.0)
    assert largest_fit(16, 2, 4, 36, 40) == Fit(16, 1.0)  # a tenth to spare, exactly
    assert largest_fit(16, 2, 4, 37, 40).images == 14


def test_where_one_image_is_too_much_its_sides_shrink():
    # One image takes 40, and there is room for 0.9 * 30 - 2 = 25: sides by the root of 25 / 40.
    assert largest_fit(2, 2, 2, 42, 30) == Fit(None, pytest.approx(math.sqrt(25 / 40)))
    assert largest_fit(8, 2, 2, 162, 30) == Fit(None, pytest.approx(math.sqrt(25 / 40)))
    assert largest_fit(8, 2, 28, 30, 30) == Fit(None, None)  # the weights alone


def test_advice_that_is_taken_fits():
    for batch, count, fixed, each, available in [
        (16, 4, 3, 7, 25),
        (64, 8, 10, 3.3, 40),
        (6, 1, 1, 9, 31),
    ]:
        fit = largest_fit(batch, count, fixed, fixed + each * batch / count, available)
        need = fixed + each * fit.images / count
        assert fit.images % count == 0 and need <= 0.9 * available
        assert need + each > 0.9 * available  # one more would not
        sides = fixed + each * batch / count * fit.side**2
        assert sides == pytest.approx(0.9 * available)


def test_what_stays_whatever_the_images():
    assert fixed_bytes(100, 40) == 100  # evaluation
    assert fixed_bytes(100, 40, 'SGD') == 180 and fixed_bytes(100, 40, 'AdamW') == 220


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


def advice(error, training=True, **settings):
    recipe = load_recipe(MINI, SMALL | settings)
    names = recipe_setting_names(recipe.cfg, settings.get('runtime.gpus', 1))
    return out_of_memory_text(error, names, training)


def test_a_shortage_of_the_host_and_a_vague_one_are_named_as_such():
    device = 'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED'
    assert advice(RuntimeError(device)).startswith('GPU memory ran out')
    host = 'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED'
    assert advice(RuntimeError(host)).startswith('memory ran out')
    assert advice(MemoryError('Unable to allocate 1.50 GiB')).startswith('memory ran out')
    # The error itself is quoted: what CUDA says here may have another cause.
    vague = 'GET was unable to find an engine to execute this computation'
    assert advice(RuntimeError(vague)).startswith('GPU memory ran out')
    assert advice(RuntimeError(vague)).endswith(f'({vague})')


def test_the_batch_is_halved_or_the_area_of_images():
    error = torch.OutOfMemoryError(OOM)
    assert advice(error, **{'schedule.batch_size': 16, 'image.scale': (1333, 800)}) == (
        'GPU memory ran out with schedule.batch_size 16: lower it to 8 (schedule.lr_batch_size=16 scales the learning '
        'rate with it), or image.scale to (942, 565). Each halves the memory of the images. (CUDA out of memory. Tried to '
        'allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 512.00 MiB is free. Process 77 has 1.50 '
        'GiB memory in use. Including non-PyTorch memory, this process has 6.00 GiB memory in use. Of the ...)'
    )
    assert math.floor(1333 / math.sqrt(2)) == 942 and math.floor(800 / math.sqrt(2)) == 565
    # Four processes with three images each: one each is what is left by halves.
    assert 'lower it to 4 (' in advice(error, **{'schedule.batch_size': 12, 'runtime.gpus': 4})


def test_with_one_image_for_each_process_only_its_size_is_left():
    for settings in ({'schedule.batch_size': 1}, {'schedule.batch_size': 2, 'runtime.gpus': 2}):
        text = advice(torch.OutOfMemoryError(OOM), **settings)
        assert (
            f'with schedule.batch_size {settings["schedule.batch_size"]}: lower image.scale to 45, which halves the memory '
            'of the images, or choose a smaller detector. (CUDA out'
        ) in text
    assert scaled_image(None, 0.8767) == '0.87 of its sides'


def test_an_evaluation_has_a_batch_of_its_own():
    text = advice(torch.OutOfMemoryError(OOM), training=False, **{'evaluation.batch_size': 4})
    assert 'with evaluation.batch_size 4: lower it to 2, or image.scale to 45.' in text


def test_a_shortage_in_a_data_worker_says_so():
    text = advice(MemoryError('Caught MemoryError in DataLoader worker process 0.\nTraceback ...'))
    assert 'fewer workers (runtime.workers) take less, too' in text


def test_other_errors_pass_and_a_shortage_names_the_checkpoint(tmp_path):
    names = recipe_setting_names(load_recipe(MINI, SMALL).cfg, 1)
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match='on purpose'), explain_out_of_memory(names, model):
        raise ValueError('on purpose')
    with (
        pytest.raises(MtpdError, match=r'No checkpoint was written yet: .* other settings need'),
        explain_out_of_memory(names, model, tmp_path),
    ):
        raise torch.OutOfMemoryError(OOM)


def test_settings_by_their_keys(tmp_path, tiny_coco):
    names = recipe_setting_names(load_recipe(MINI, SMALL).cfg, 1)
    assert (names.batch, names.images, names.scale) == ('schedule.batch_size', 2, 64)
    assert 'schedule.lr_batch_size=2 scales' in names.rate
    assert names.lr == 'schedule.lr.max_lr'
    other = recipe_setting_names(load_recipe(MINI, SMALL | {'schedule.lr_batch_size': 16}).cfg, 2)
    assert other.rate == 'schedule.lr_batch_size scales the learning rate' and other.processes == 2
    config = plain(tmp_path, tiny_coco, 'oom')
    plain_config = load_config(config)
    names = config_setting_names(plain_config.cfg, plain_config.batch, 'val_dataloader')
    assert (names.batch, names.images, names.workers) == (
        'data.samples_per_gpu', 2, 'data.workers_per_gpu'
    )  # fmt: skip
    config.write_text(
        config.read_text().replace(
            'samples_per_gpu=2, ', 'train_dataloader=dict(samples_per_gpu=3), '
        )
    )
    plain_config = load_config(config)
    names = config_setting_names(plain_config.cfg, plain_config.batch, 'test_dataloader')
    assert (names.batch, names.images) == ('data.train_dataloader.samples_per_gpu', 3)
    assert (names.evaluation, names.evaluated) == ('data.test_dataloader.samples_per_gpu', 1)


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
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert 'Traceback' not in result.output
    return result.output


@pytest.mark.long
def test_a_training_of_a_plain_config(tmp_path, tiny_coco):
    path, out = plain(tmp_path, tiny_coco, 'oom', at=5), tmp_path / 'run'
    output = refused('train', path, '--work-dir', out)
    assert (
        'mtpd: GPU memory ran out with data.samples_per_gpu 2: lower it to 1 (auto_scale_lr.enable=True scales the '
        "learning rate), or img_scale in the pipelines' Resize to 0.7 of its sides. Each halves the memory of the images. "
        '(CUDA out of memory. Tried to allocate 2.00 GiB. '
    ) in output
    assert (
        ' latest.pth stays as update 3 left it: the same command goes on from there; other settings need another '
        '--work-dir.'
    ) in output
    assert checkpoints.load_checkpoint(out / 'latest.pth')['meta']['iter'] == 3
    # Another process's fifth update: it goes on, to the end.
    done = CliRunner().invoke(main, ['train', str(path), '--work-dir', str(out)])
    assert done.exit_code == 0, done.output


def test_memory_of_the_cpu(tmp_path, tiny_coco):
    output = refused('train', plain(tmp_path, tiny_coco, 'ram'), '--work-dir', tmp_path / 'run')
    assert 'mtpd: memory ran out with data.samples_per_gpu 2: lower it to 1 (' in output
    assert "DefaultCPUAllocator: can't allocate memory" in output
    assert 'No checkpoint was written yet: the same command begins again' in output


def test_evaluation_during_and_after_training(tmp_path, tiny_coco):
    path, out = plain(tmp_path, tiny_coco, 'oom_test'), tmp_path / 'run'
    output = refused('train', path, '--work-dir', out)
    assert 'with data.val_dataloader.samples_per_gpu 1: lower img_scale' in output
    assert checkpoints.load_checkpoint(out / 'latest.pth')['meta']['iter'] == 3
    output = refused('eval', path, '--checkpoint', out / 'latest.pth')
    assert 'with data.test_dataloader.samples_per_gpu 1: lower img_scale' in output


def test_a_recipes_training_and_evaluation(tmp_path, tiny_coco):
    more = {'data.root': str(tiny_coco(tmp_path / 'coco')), 'evaluation.batch_size': 4}
    for kind, message in {
        'oom': r'with schedule\.batch_size 2: lower it to 1 \(schedule.lr_batch_size=2 scales the learning rate with '
        r'it\), or image\.scale to 45\. Each halves .* No checkpoint',
        'oom_test': r'with evaluation\.batch_size 4: lower it to 2, or image\.scale to 45\. Each halves',
    }.items():
        model = {'student.model.type': 'Failing', 'student.model.kind': kind}
        recipe = load_recipe(MINI, SMALL | more | model)
        with pytest.raises(MtpdError, match=message):
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
            MtpdError, match=r'GPU memory ran out with schedule.* \(CUDA out of memory'
        ) as error:
            cfg = recipe.model('student')
            train_model(recipe, lambda: failing.build(cfg), cfg, tmp_path / 'run', 2, 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 'image.scale to ' in str(error.value)


def test_the_advice_on_a_teachers_training_names_its_own_size():
    recipe = load_recipe(MINI, SMALL | {'teachers.r101.image.scale': (400, 200)})
    names = recipe_setting_names(recipe.cfg, 1, 'r101')
    assert (names.side, names.scale) == ('teachers.r101.image.scale', (400, 200))
    for other in ('student', 'rx101', 'student taught by r101'):
        names = recipe_setting_names(recipe.cfg, 1, other)
        assert (names.side, names.scale) == ('image.scale', 64)
