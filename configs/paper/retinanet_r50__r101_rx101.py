# RetinaNet R50 <- R101 -> X101-64x4d: 41.7 AP on COCO, as released; the student alone has 36.5 after 12 epochs, 37.4 after
# the 24 of two stages. The paper's pair is direct 41.0, progressive 41.4: it had weaker teachers than the release.
#
# Prerequisites: COCO 2017 in data/coco (mtpd data coco); the checkpoints are fetched from mmdet's model zoo.
# Launch: mtpd run configs/paper/retinanet_r50__r101_rx101.py
# Expected: the AP as released, above, not measured with this kit. GPU hours: not measured either; each of the two
#   stages sees 1.41 million images, so divide 2.8 million by 3600 times the images a second of benchmarks/full_size.py.
_base_ = [
    '../_base_/datasets/coco.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/distill/methods.py',
]
name = 'paper_retinanet_r50__r101_rx101'
title = 'RetinaNet R50 taught by RetinaNet R101, then RetinaNet X101-64x4d'
paper = dict(
    student='RetinaNet R50',
    baseline=36.5,
    baseline_2x=37.4,
    direct=41.0,
    progressive=41.4,
    result=41.7,
    walk_through=[36.5, 37.9, 39.9],  # a figure of its own: another loss, or a drawing
)
student = dict(
    label='RetinaNet R50',
    config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r50_fpn_1x_coco/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth',
)
teachers = dict(
    r101=dict(
        label='RetinaNet R101',
        config='mmdet::retinanet/retinanet_r101_fpn_mstrain_640-800_3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_mstrain_3x_coco/retinanet_r101_fpn_mstrain_3x_coco_20210720_214650-7ee888e0.pth',
    ),
    rx101=dict(
        label='RetinaNet X101-64x4d',
        config='mmdet::retinanet/retinanet_x101_64x4d_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_x101_64x4d_fpn_mstrain_3x_coco/retinanet_x101_64x4d_fpn_mstrain_3x_coco_20210719_051838-022c2187.pth',
    ),
)
arms = dict(
    none=dict(label='no teacher', teachers=[None]),
    direct=dict(label='teacher 2 only', teachers=['rx101']),
    repeated=dict(label='teacher 2 → teacher 2', teachers=['rx101', 'rx101']),
    progressive=dict(label='teacher 1 → teacher 2', teachers=['r101', 'rx101']),
    reverse=dict(label='teacher 2 → teacher 1', teachers=['rx101', 'r101']),
)
