# RetinaNet R50 distilled from RetinaNet R101 at full size, with mmdet's own configs, on COCO.
#
# Prerequisites: COCO 2017 in data/coco (mtpd data coco). The teacher is fetched from mmdet's model zoo.
# Launch: mtpd run configs/coco/retinanet_r50__r101.py
# One stage with MGD, the student inheriting the teacher's neck and head. Images are resized to 1333 x 800 at most.
_base_ = [
    '../_base_/datasets/coco.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/distill/methods.py',
]
name = 'coco_retinanet_r50__r101'
title = 'RetinaNet R50 taught by RetinaNet R101 on COCO'
student = dict(label='RetinaNet R50', config='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
teachers = dict(
    r101=dict(
        label='RetinaNet R101',
        config='mmdet::retinanet/retinanet_r101_fpn_1x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_mstrain_3x_coco/retinanet_r101_fpn_mstrain_3x_coco_20210720_214650-7ee888e0.pth',
    ),
)
arms = dict(
    none=dict(label='no teacher', teachers=[None]),
    progressive=dict(label='RetinaNet R101', teachers=['r101']),
)
schedule = dict(arm=87960)
