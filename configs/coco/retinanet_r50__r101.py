# RetinaNet R50 distilled from RetinaNet R101 at full size, with mmdet's own configs, on COCO.
#
# Prerequisites: COCO 2017 in data/coco; the teacher's checkpoint from mmdet's model zoo in checkpoints/.
# Launch: mtpd run configs/coco/retinanet_r50__r101.py
# One stage with MGD, the student inheriting the teacher's neck and head. Images are resized to 1333 x 800 at most.
_base_ = [
    '../_base_/datasets/digits.py',
    '../_base_/schedules/pocket.py',
    '../_base_/distill/methods.py',
]
name = 'coco_retinanet_r50__r101'
title = 'RetinaNet R50 taught by RetinaNet R101 on COCO'
data = dict(root='data/coco')
image = dict(scale=(1333, 800), flip=0.5)
student = dict(label='RetinaNet R50', config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
teachers = dict(
    r101=dict(
        label='RetinaNet R101',
        config='mmdet::retinanet/retinanet_r101_fpn_1x_coco.py',
        checkpoint='checkpoints/retinanet_r101_fpn_mstrain_3x_coco_20210720_214650-7ee888e0.pth',
    ),
)
arms = dict(
    none=dict(label='no teacher', teachers=[None]),
    progressive=dict(label='RetinaNet R101', teachers=['r101']),
)
schedule = dict(
    batch_size=16,
    baseline=87960,  # 12 epochs of 7,330 updates
    arm=87960,
    teacher=87960,
    optimizer=dict(_delete_=True, type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
    lr=dict(
        _delete_=True,
        policy='step',
        warmup='linear',
        warmup_iters=500,
        warmup_ratio=0.001,
        step=[58640, 80630],
    ),
    log_interval=50,
    checkpoint_interval=2000,
)
evaluation = dict(batch_size=1)
runtime = dict(workers=2, jobs=1)
