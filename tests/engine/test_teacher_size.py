"""A teacher that sees images of its own size and normalisation: what is loaded, trained, measured and compared."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import json

import mmcv
import numpy as np
import pytest
import torch
from mmcv import Config
from mmcv.parallel import collate
from PIL import Image

from helpers.resampled import by_hand
from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe
from mtpd.distill.distiller import Distiller
from mtpd.distill.teacher_images import normalise_bytes
from mtpd.engine import features, pipelines
from mtpd.engine.distill_config import distill_cfg
from mtpd.engine.evaluation import image_size_note, model_cost
from mtpd.pipeline import stages
from mtpd.pipeline.detectors import prepare_detector
from mtpd.pipeline.mmdet_config import recipe_as_mmdet
from mtpd.pipeline.stages import train_stage
from mtpd.pipeline.teacher_order import image_features
from mtpd.preflight import trial
from mtpd.utils.files import read_log

CAFFE = {
    'teachers.r101.image.mean': [103.53, 116.28, 123.675],
    'teachers.r101.image.std': [1.0, 1.0, 1.0],
    'teachers.r101.image.to_rgb': False,
}
LARGE = {'teachers.r101.image.scale': (200, 120)}  # of other sides than the student's, 64


@pytest.fixture(scope='module')
def root(tmp_path_factory, tiny_coco):
    root = tiny_coco(tmp_path_factory.mktemp('coco'), width=96)
    rng = np.random.default_rng(1)
    for split in ('train', 'val'):
        file = root / 'annotations' / f'{split}.json'
        table = json.loads(file.read_text())
        for number, width in enumerate((96, 80, 90)):
            pixels = rng.integers(0, 256, (64, width, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / f'{number:06d}.png')
            table['images'][number]['width'] = width
        file.write_text(json.dumps(table))
    return root


@pytest.fixture(scope='module')
def recipe(root):
    options = {'data.root': str(root), 'arms.direct.teachers': ['r101'], 'image.flip': 0.5}
    return load_recipe(MINI, SMALL | options)


def loaded(recipe, **options):
    """A batch of all training images, each loaded with random numbers of its own."""
    cfg = pipelines.dataset_config(recipe, 'train', **options)
    if recipe.cfg.get('speed', {}).get('byte_batches') is True:
        cfg = pipelines.with_byte_batches(cfg)
    data, items = pipelines.quiet_dataset(cfg), []
    for number in range(len(data)):
        np.random.seed(number)
        items.append((data[number], np.random.random()))
    batch = collate([item for item, _ in items], len(items))
    plain = {key: value.data[0] for key, value in batch.items()}
    return plain, [draw for _, draw in items]


def test_the_students_images_and_draws_stay_as_they_were(recipe):
    without, draws = loaded(recipe)
    beside, more_draws = loaded(load_recipe(recipe, LARGE | CAFFE), teacher='r101')
    assert draws == more_draws
    assert torch.equal(without['img'], beside['img'])
    for a, b in zip(without['gt_bboxes'], beside['gt_bboxes'], strict=True):
        assert torch.equal(a, b)
    assert {meta['flip'] for meta in without['img_metas']} == {True, False}
    # Where the size is the student's, so is the pipeline.
    same = load_recipe(recipe, CAFFE)
    one, other = (pipelines.dataset_config(same, 'train', teacher=t) for t in ('r101', None))
    assert one == other == pipelines.dataset_config(recipe, 'train')


@pytest.mark.parametrize('as_bytes', [True, False])
def test_the_teachers_images_are_those_of_its_own_pipeline(recipe, as_bytes):
    """Loaded by mmdet as where the teacher is trained, with the same draws: its own pixels, none of the student's."""
    chosen = load_recipe(recipe, LARGE | CAFFE | {'speed.byte_batches': as_bytes})
    beside, _ = loaded(chosen, teacher='r101')
    alone, _ = loaded(load_recipe(chosen, {'speed.byte_batches': False}), detector='r101')
    shapes = [meta['teacher_shape'] for meta in beside['img_metas']]
    assert beside['img'].dtype == (torch.uint8 if as_bytes else torch.float32)
    assert beside['teacher_img'].dtype == torch.uint8
    assert shapes == [meta['img_shape'] for meta in alone['img_metas']] and len(set(shapes)) == 3
    seen = normalise_bytes(beside['teacher_img'], chosen.own_normalisation('r101'), shapes)
    assert torch.equal(seen, alone['img'])


def test_features_of_two_sizes_against_a_calculation_by_hand(recipe):
    """From the file to the compared feature: resized by OpenCV, normalised in float64, looked up cell by cell."""
    chosen = load_recipe(recipe, LARGE | CAFFE | {'distill.method': 'mse', 'image.flip': 1.0})
    batch, _ = loaded(chosen, teacher='r101')
    model = trial.untrained_detector(chosen, 'student', 'r101').train()
    compared = {}
    for name, loss in model.distill_losses.items():
        loss.register_forward_pre_hook(
            lambda _, args, name=name: compared.__setitem__(name, args), with_kwargs=False
        )
    model.forward_train(**batch)
    assert len(compared) == len(distill_cfg(chosen, chosen.model('student'), chosen.model('r101')))
    worst = 0.0
    for k, meta in enumerate(batch['img_metas']):
        image = mmcv.imrescale(mmcv.imread(meta['filename']), (200, 120))[:, ::-1]
        norm = chosen.image('r101')
        image = (image.astype(np.float64) - norm.mean) / norm.std
        canvas = np.zeros((*batch['teacher_img'].shape[2:], 3))
        canvas[: image.shape[0], : image.shape[1]] = image
        with torch.no_grad():
            tensor = torch.from_numpy(canvas.transpose(2, 0, 1)[None]).float()
            levels = model.teacher(tensor)
        for (student, teacher), level in zip(compared.values(), levels, strict=True):
            wanted = by_hand(level[0], student.shape[2:], meta['img_shape'], image.shape)
            difference = np.abs(teacher[k].double().numpy() - wanted).max()
            worst = max(worst, difference / np.abs(wanted).max())
    print(f'largest difference of features of two sizes, relative: {worst:.1e}')
    assert worst < 1e-4


def test_a_teacher_is_measured_at_its_own_size_and_normalisation(recipe):
    chosen = load_recipe(recipe, LARGE | CAFFE)
    for detector, scale, mean in (('student', (64, 64), 123.675), ('r101', (200, 120), 103.53)):
        written = Config.fromstring(recipe_as_mmdet(chosen, detector), '.py').data.test.pipeline[1]
        assert tuple(written.img_scale) == scale
        assert next(step.mean[0] for step in written.transforms if 'mean' in step) == mean
        val = pipelines.dataset_config(chosen, 'val', detector=detector)
        assert val['pipeline'][1]['img_scale'] == scale
    assert model_cost(chosen, 'r101', images=1)['input'] == [128, 224]
    assert model_cost(chosen, 'student', images=1)['input'] == [64, 64]


def test_costs_compare_what_each_detector_sees_on_the_students_grid(recipe):
    """With a size of its own a teacher has more cells; its normalisation alone changes only what it sees."""
    chosen = load_recipe(recipe, LARGE | CAFFE)
    torch.manual_seed(0)
    student, teacher = (
        trial.untrained_detector(chosen, name, None).eval() for name in ('student', 'r101')
    )
    teacher.image = chosen.image('r101')
    rows = [*image_features(chosen, {'student': student, 'r101': teacher}, 4, 0)]
    looked_up = [
        (levels, meta)
        for pixels, metas in features.image_batches(chosen, 4, step=2, image=teacher.image)
        for levels, meta in zip(
            zip(*features.neck_features(teacher, pixels), strict=True), metas, strict=True
        )
    ]
    students = [m for _, metas in features.image_batches(chosen, 4, step=2) for m in metas]
    assert len(rows) == len(looked_up) == len(students) == 2
    for row, (levels, meta), student_meta in zip(rows, looked_up, students, strict=True):
        shapes = {name: {s: f.shape[1:] for s, f in of.items()} for name, of in row.items()}
        assert shapes['student'] == shapes['r101']
        for (stride, ours), level in zip(row['r101'].items(), levels, strict=True):
            size = [-(-side // stride) for side in student_meta['img_shape'][:2]]
            wanted = by_hand(level, size, student_meta['img_shape'], meta['img_shape'])
            assert ours.shape[1:] == tuple(size)
            assert np.abs(ours.double().numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.long
@pytest.mark.parametrize('options', [LARGE, CAFFE, LARGE | CAFFE], ids=['size', 'norm', 'both'])
def test_a_stage_and_its_teacher_train_on_their_own_images(recipe, tmp_path, options):
    chosen = load_recipe(recipe, options)
    stage = train_stage(chosen, 1, 'direct', tmp_path)
    rows = read_log(stage['dir'] / 'log.json')
    losses = [value for row in rows for key, value in row.items() if key.startswith('loss_mgd')]
    assert losses and all(np.isfinite(losses))
    teacher = prepare_detector(chosen, 'r101', tmp_path)
    assert teacher['metrics']['bbox_mAP'] is not None
    wide, high = (200, 120) if 'teachers.r101.image.scale' in options else (64, 64)
    assert teacher['model']['input'] == [-(-high // 32) * 32, -(-wide // 32) * 32]
    assert image_size_note(chosen, teacher['checkpoint'], 'r101') is None
    plain = load_recipe(recipe, {'teachers.r101.image.scale': 96})
    assert 'teachers.r101.image.scale' in image_size_note(plain, teacher['checkpoint'], 'r101')


def test_a_teacher_of_the_same_size_has_its_own_normalisation_in_a_stage(
    recipe, tmp_path, monkeypatch
):
    """What the stage gives its Distiller, whose part test_teacher_images.py checks."""
    given = []

    def spy(*args, **kwargs):
        given.append(kwargs['teacher_norm'])
        return Distiller(*args, **kwargs)

    monkeypatch.setattr(stages, 'Distiller', spy)
    train_stage(load_recipe(recipe, CAFFE), 1, 'direct', tmp_path)
    assert given == [{'mean': [103.53, 116.28, 123.675], 'std': [1.0, 1.0, 1.0], 'to_rgb': False}]
    assert load_recipe(recipe, {}).own_normalisation('r101') is None


@pytest.mark.long
def test_the_trial_updates_a_student_beside_a_larger_teacher(recipe):
    chosen = load_recipe(recipe, LARGE | CAFFE)
    kinds = [('student', 'r101'), ('r101', None)]
    overrides = chosen.overrides
    measured = trial.measure_updates(str(chosen.source), overrides, 2, kinds, ['student', 'r101'])
    for row in measured['trainings'].values():
        assert row['seconds'] > 0
    assert measured['images'].keys() == {'student', 'r101'}
