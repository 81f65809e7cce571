# Mask R-CNN R50 <- Swin-T -> Swin-S: box 42.6, mask 38.4 AP on COCO, as released; the student alone has 38.2 / 34.7 after
# 12 epochs, 39.2 / 35.4 after the 24 of two stages.
#
# Prerequisites: COCO 2017 in data/coco (mtpd data coco); the checkpoints are fetched from mmdet's model zoo.
# Launch: mtpd run configs/paper/mask_rcnn_r50__swint_swins.py
# Expected: the AP as released, above, not measured with this kit. GPU hours: not measured either; each of the two
#   stages sees 1.41 million images, so divide 2.8 million by 3600 times the images a second of benchmarks/full_size.py.
_base_ = [
    '../_base_/datasets/coco.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/distill/methods_mask_rcnn.py',
]
name = 'paper_mask_rcnn_r50__swint_swins'
title = 'Mask R-CNN R50 taught by Mask R-CNN Swin-T, then Mask R-CNN Swin-S'
paper = dict(
    student='Mask R-CNN R50',
    baseline=38.2,
    baseline_2x=39.2,
    result=42.6,
    mask_baseline=34.7,
    mask_baseline_2x=35.4,
    mask_result=38.4,
)
student = dict(
    label='Mask R-CNN R50',
    config='mmdet::mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py',
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth',
)
teachers = dict(
    swint=dict(
        label='Mask R-CNN Swin-T',
        config='mmdet::swin/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco_20210908_165006-90a4008c.pth',
    ),
    swins=dict(
        label='Mask R-CNN Swin-S',
        config='mmdet::swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco_20210903_104808-b92c91f1.pth',
    ),
)
arms = dict(
    none=dict(label='no teacher', teachers=[None]),
    direct=dict(label='teacher 2 only', teachers=['swins']),
    repeated=dict(label='teacher 2 → teacher 2', teachers=['swins', 'swins']),
    progressive=dict(label='teacher 1 → teacher 2', teachers=['swint', 'swins']),
    reverse=dict(label='teacher 2 → teacher 1', teachers=['swins', 'swint']),
)
# Swin's features have other widths.
distill = dict(inherit_allow=['neck.lateral_convs.*.conv.weight'])
schedule = dict(optimizer=dict(lr=0.02))
evaluation = dict(metrics=['bbox', 'segm'])
