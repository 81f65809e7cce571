"""A teacher's own images: its normalisation, its size, and its features on the student's grid."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.resampled import by_hand
from helpers.tiny import batch, detector, retinanet
from mtpd.distill import Distiller
from mtpd.distill.teacher_images import normalise_bytes, on_students_grid, renormalise
from mtpd.errors import MtpdError

TORCHVISION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
RAW = dict(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], to_rgb=False)


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def as_batch(images):
    """Images (h, w, 3) as bytes (N, 3, H, W), padded by 0."""
    high, wide = (max(image.shape[axis] for image in images) for axis in (0, 1))
    padded = [mmcv.impad(image, shape=(high, wide)) for image in images]
    return torch.from_numpy(np.stack(padded)).permute(0, 3, 1, 2).contiguous()


# --- features on the student's grid -------------------------------------------------------------


def test_each_image_of_a_batch_has_a_ratio_of_its_own():
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 4, 15, 20, generator=generator)
    students, teachers = [(64, 100, 3), (60, 96, 3)], [(117, 160, 3), (90, 144, 3)]
    ours = on_students_grid(feature, (8, 13), ((64, 104), (120, 160)), (students, teachers))
    for k in range(2):
        wanted = by_hand(feature[k], (8, 13), students[k], teachers[k])
        assert np.abs(ours[k].double().numpy() - wanted).max() < 1e-5
    assert ours.shape == (2, 4, 8, 13) and ours.dtype == torch.float32


def test_with_one_ratio_it_is_torchs_interpolation():
    feature = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    for size, teacher in (((6, 10), (96, 160)), ((24, 40), (96, 160))):
        student = (8 * size[0], 8 * size[1]) if size[0] == 6 else (192, 320)
        ours = on_students_grid(feature, size, (student, teacher), ([student] * 2, [teacher] * 2))
        wanted = F.interpolate(feature, size=size, mode='bilinear', align_corners=False)
        assert torch.allclose(ours, wanted, atol=1e-5)


def test_twice_the_size_is_the_mean_of_four_cells():
    feature = torch.arange(16.0).view(1, 1, 4, 4)
    ours = on_students_grid(feature, (2, 2), ((16, 16), (32, 32)), ([(16, 16)], [(32, 32)]))
    assert ours.flatten().tolist() == pytest.approx([2.5, 4.5, 10.5, 12.5], abs=1e-5)


def test_a_map_of_another_stride_is_refused():
    feature = torch.zeros(1, 3, 16, 16)
    with pytest.raises(MtpdError, match='hook modules of the same stride in both'):
        on_students_grid(feature, (16, 16), ((128, 128), (256, 256)), ([(128, 128)], [(256, 256)]))


def test_a_half_precision_map_is_compared_in_full():
    feature = torch.randn(1, 2, 4, 4).bfloat16()
    ours = on_students_grid(feature, (2, 2), ((16, 16), (32, 32)), ([(16, 16)], [(32, 32)]))
    wanted = feature.float().view(1, 2, 2, 2, 2, 2).mean((3, 5))
    assert torch.allclose(ours, wanted, atol=1e-6)


# --- normalisation ------------------------------------------------------------------------------


@pytest.mark.parametrize('norm', [TORCHVISION, CAFFE, RAW])
def test_bytes_are_normalised_as_by_mmcv(norm):
    images = [pixels(0, 40, 64), pixels(1, 64, 50)]
    ours = normalise_bytes(as_batch(images), norm, [image.shape for image in images])
    for image, values in zip(images, ours, strict=True):
        height, width = image.shape[:2]
        settings = np.float32(norm['mean']), np.float32(norm['std']), norm['to_rgb']
        wanted = torch.from_numpy(mmcv.imnormalize(image, *settings)).permute(2, 0, 1)
        assert torch.allclose(values[:, :height, :width], wanted, atol=1e-6)
        assert not values[:, height:].any() and not values[:, :, width:].any()


@pytest.mark.parametrize('before', [TORCHVISION, CAFFE, RAW])
@pytest.mark.parametrize('after', [TORCHVISION, CAFFE, RAW])
def test_renormalised_images_are_those_that_were_never_normalised_otherwise(before, after):
    images = [pixels(0, 40, 64), pixels(1, 64, 50)]
    shapes = [image.shape for image in images]
    ours = renormalise(normalise_bytes(as_batch(images), before, shapes), before, after, shapes)
    for image, values in zip(images, ours, strict=True):
        channels = image[..., ::-1] if after['to_rgb'] else image
        wanted = (channels.astype(np.float64) - after['mean']) / after['std']
        height, width = image.shape[:2]
        inside = values[:, :height, :width].permute(1, 2, 0).double().numpy()
        assert np.abs(inside - wanted).max() < 1e-4 / min(after['std'])
        assert not values[:, height:].any() and not values[:, :, width:].any()


# --- a stage ------------------------------------------------------------------------------------

LEVELS = [0, 1]
STUDENT, TEACHER = retinanet(), retinanet(depth=34)


def distiller(**options) -> Distiller:
    place = 'neck.fpn_convs.{}.conv'
    cfg = [
        dict(
            student_module=place.format(level),
            teacher_module=place.format(level),
            methods=[
                dict(
                    type='FeatureMSE',
                    name=f'loss_mse_{level}',
                    student_channels=16,
                    teacher_channels=16,
                )
            ],
        )
        for level in LEVELS
    ]
    model = Distiller(STUDENT, TEACHER, cfg, teacher_checkpoint='random', **options)
    model.student.load_state_dict(detector(STUDENT, 1).state_dict())
    model.teacher.load_state_dict(detector(TEACHER, 2).state_dict(), strict=False)
    return model


def test_a_stage_shows_the_teacher_images_normalised_its_way():
    data, images = batch(), [pixels(0, 64, 64), pixels(1, 48, 64)]
    shapes = [image.shape for image in images]
    data['img'] = normalise_bytes(as_batch(images), TORCHVISION, shapes)
    for meta, shape in zip(data['img_metas'], shapes, strict=True):
        meta |= {'img_shape': shape, 'img_norm_cfg': TORCHVISION}
    losses = distiller(teacher_norm=CAFFE).forward_train(**data)
    with torch.no_grad():
        of_student = detector(STUDENT, 1).train().extract_feat(data['img'])
        seen = normalise_bytes(as_batch(images), CAFFE, shapes)
        of_teacher = detector(TEACHER, 2).extract_feat(seen)
    for level in LEVELS:
        wanted = (of_student[level] - of_teacher[level]).square().mean().item()
        assert losses[f'loss_mse_{level}'].item() == pytest.approx(wanted, rel=1e-4)
    unchanged = distiller().forward_train(**data)
    assert torch.equal(losses['loss_cls'][0], unchanged['loss_cls'][0])  # the student's


@pytest.mark.parametrize('factor', [0.5, 1.5, 2])
def test_a_stage_compares_features_of_another_size_on_the_students_grid(factor):
    data, images = batch(), [pixels(0, 64, 64), pixels(1, 64, 64)]
    large = [mmcv.imrescale(image, factor) for image in images]
    metas = {'teacher_shape': large[0].shape, 'img_norm_cfg': TORCHVISION}
    data['img'] = normalise_bytes(as_batch(images), TORCHVISION, [(64, 64)] * 2)
    data['img_metas'] = [meta | metas for meta in data['img_metas']]
    model = distiller(teacher_norm=CAFFE)
    losses = model.forward_train(**data, teacher_img=as_batch(large))
    with torch.no_grad():
        of_student = detector(STUDENT, 1).train().extract_feat(data['img'])
        seen = normalise_bytes(as_batch(large), CAFFE, [image.shape for image in large])
        of_teacher = detector(TEACHER, 2).extract_feat(seen)
    for level in LEVELS:
        size = of_student[level].shape[2:]
        on_grid = [
            by_hand(feature, size, (64, 64), large[0].shape) for feature in of_teacher[level]
        ]
        wanted = np.square(of_student[level].double().numpy() - np.stack(on_grid)).mean()
        assert losses[f'loss_mse_{level}'].item() == pytest.approx(wanted, rel=1e-4)
