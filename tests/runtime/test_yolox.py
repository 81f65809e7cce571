"""YOLOX's random image sizes."""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import copy
import random
from types import SimpleNamespace

import pytest
import torch
from mmcv import ConfigDict
from mmdet.models import build_detector
from mmdet.models.detectors import YOLOX

from mtpd.distill.distiller import Distiller
from mtpd.engine.hooks import SeedUpdate
from mtpd.runtime import yolox

CONFIG = dict(
    type='YOLOX',
    input_size=(64, 64),
    random_size_range=(1, 3),
    random_size_interval=2,
    backbone=dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=0.125),
    neck=dict(type='YOLOXPAFPN', in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1),
    bbox_head=dict(type='YOLOXHead', num_classes=2, in_channels=32, feat_channels=32),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)),
)


def model(seed=0):
    torch.manual_seed(seed)
    return build_detector(ConfigDict(copy.deepcopy(CONFIG)))


def data(height=64, width=64):
    torch.manual_seed(1)
    shape = (height, width, 3)
    box = torch.tensor([[8.0, 16.0, 40.0, 48.0]])
    return dict(
        img=torch.rand(2, 3, height, width) * 255,
        img_metas=[dict(img_shape=shape, pad_shape=shape, scale_factor=1.0)] * 2,
        gt_bboxes=[box, box + 8],
        gt_labels=[torch.tensor([0]), torch.tensor([1])],
    )


def at(detector, update):
    detector._progress_in_iter = update
    return detector


def test_images_of_the_input_size_are_resized_as_by_mmdet():
    detector, batch = model(), data()
    for update in (2, 4, 6, 8):
        factors = yolox.drawn_factors(at(detector, update))
        detector._input_size = tuple(round(64 * factor) for factor in factors)
        wanted = YOLOX._preprocess(detector, batch['img'], [b.clone() for b in batch['gt_bboxes']])
        result = detector.resize_batch(*(batch[k] for k in ('img', 'img_metas', 'gt_bboxes')))
        assert torch.equal(wanted[0], result[0])
        for a, b in zip(wanted[1], result[2], strict=True):
            torch.testing.assert_close(a, b)


def test_boxes_stay_on_their_objects_in_images_of_any_size():
    detector, batch = model(), data(96, 160)
    images = torch.zeros(2, 3, 96, 160)
    for image, (box,) in zip(images, batch['gt_bboxes'], strict=True):
        left, top, right, bottom = box.int().tolist()
        image[:, top:bottom, left:right] = 1
    sizes = set()
    for update in range(2, 40, 2):
        img, metas, boxes = at(detector, update).resize_batch(images, batch['img_metas'], batch['gt_bboxes'])  # fmt: skip
        high, wide = img.shape[2:]
        sizes.add((high, wide))
        assert metas[0]['pad_shape'] == metas[0]['img_shape'] == (high, wide, 3)
        for image, (box,) in zip(img, boxes, strict=True):
            rows, columns = torch.nonzero(image[0] > 0.5, as_tuple=True)
            extent = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            torch.testing.assert_close(extent.float(), box, rtol=0, atol=1.01)
    assert len(sizes) == 3 and not any(side % 32 for size in sizes for side in size)


def test_sizes_depend_on_seed_and_update_alone():
    detector = model()
    drawn = [yolox.drawn_factors(at(detector, update)) for update in range(40)]
    assert drawn[:2] == [(1, 1)] * 2 and len(set(drawn)) == 3
    assert all(drawn[update] == drawn[update + 1] for update in range(0, 40, 2))
    random.seed(5)
    assert [yolox.drawn_factors(at(model(1), update)) for update in range(40)] == drawn
    detector.size_seed = 7
    assert [yolox.drawn_factors(at(detector, update)) for update in range(40)] != drawn


def test_after_a_restart_the_sizes_go_on():
    batch = data()

    def sizes(first, last):
        detector, hook = model(), SeedUpdate(seed=3)
        runner = SimpleNamespace(model=detector, iter=first)
        hook.before_run(runner)
        for runner.iter in range(first, last):
            hook.before_train_iter(runner)
            yield detector.resize_batch(*(batch[k] for k in ('img', 'img_metas', 'gt_bboxes')))[
                0
            ].shape

    whole = list(sizes(0, 20))
    assert len(set(whole)) > 1
    assert all(list(sizes(update, 20)) == whole[update:] for update in (1, 6, 11))


@pytest.mark.long
def test_the_teacher_sees_the_students_images():
    link = dict(
        student_module='neck.out_convs.0.conv',
        teacher_module='neck.out_convs.0.conv',
        methods=[dict(type='FGD', name='loss_fgd', student_channels=32, teacher_channels=32)],
    )
    distiller = Distiller(CONFIG, CONFIG, [link], teacher_checkpoint='random')
    seen = []
    distiller.teacher.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    distiller.student.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    sizes = set()
    for _ in range(12):
        losses = distiller.forward_train(**data(96, 64))
        assert all(torch.isfinite(torch.as_tensor(loss)).all() for loss in losses.values())
        theirs, mine = seen[-2:]
        assert torch.equal(theirs, mine)
        sizes.add(tuple(mine.shape[2:]))
    assert distiller.student._progress_in_iter == 12 and len(sizes) > 1
