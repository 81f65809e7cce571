# RetinaNet R50 <- Swin-T -> Swin-S: 42.0 AP on COCO, as released; the student alone has 36.5 after 12 epochs, 37.4 after the
# 24 of two stages.
#
# Prerequisites: COCO 2017 in data/coco (mtpd data coco). The teachers of the paper were not published: train them
#   (configs/teachers/), and give teachers.swint.checkpoint and teachers.swins.checkpoint, or put them to checkpoints/.
# Launch: mtpd run configs/paper/retinanet_r50__swint_swins.py
# Expected: the AP as released, above, not measured with this kit. GPU hours: not measured either; each of the two
#   stages sees 1.41 million images, so divide 2.8 million by 3600 times the images a second of benchmarks/full_size.py.
_base_ = ['retinanet_r50__r101_rx101.py']
name = 'paper_retinanet_r50__swint_swins'
title = 'RetinaNet R50 taught by RetinaNet Swin-T, then RetinaNet Swin-S'
paper = dict(_delete_=True, student='RetinaNet R50', baseline=36.5, baseline_2x=37.4, result=42.0)
teachers = dict(
    _delete_=True,
    swint=dict(
        label='RetinaNet Swin-T',
        config='../teachers/retinanet_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco.py',
        checkpoint='checkpoints/retinanet_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco-db1f3f49.pth',
    ),
    swins=dict(
        label='RetinaNet Swin-S',
        config='../teachers/retinanet_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco.py',
        checkpoint='checkpoints/retinanet_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco-d5f20abb.pth',
    ),
)
arms = dict(
    direct=dict(teachers=['swins']),
    repeated=dict(teachers=['swins', 'swins']),
    progressive=dict(teachers=['swint', 'swins']),
    reverse=dict(teachers=['swins', 'swint']),
)
# Swin's features have other widths: at the laterals, and at the first extra level, which is made from them.
distill = dict(inherit_allow=['neck.lateral_convs.*.conv.weight', 'neck.fpn_convs.3.conv.weight'])
