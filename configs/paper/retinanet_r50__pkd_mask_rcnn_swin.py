# RetinaNet R50 <- Mask R-CNN Swin-S by PKD, one teacher: the strongest rival of the paper's RetinaNet. 41.5 AP on COCO as its
# authors have it (PKD, NeurIPS 2022; mmrazor, configs/distill/mmdet/pkd); the student alone has 37.4 after the same 24 epochs,
# the teacher 48.2. The arm swint has the smaller teacher, of 46.0 AP (mmdet), of which nothing is published.
#
# As mmrazor: 24 epochs in one stage, from the backbone's pretrained weights; weight 6; levels 0 to 3 of the student.
# Another way than mmrazor: levels match by stride, 8 to 64 in both. It matches by number, so that the student's level of
# stride 8 is enlarged to the teacher's of stride 4.
#
# Prerequisites: COCO 2017 in data/coco (mtpd data coco); the checkpoints are fetched from mmdet's model zoo.
# Launch: mtpd run configs/paper/retinanet_r50__pkd_mask_rcnn_swin.py
# Expected: the AP above, not measured with this kit. GPU hours: not measured either; an arm sees 2.8 million images, so divide
#   that by 3600 times the images a second of benchmarks/full_size.py.
_base_ = ['retinanet_r50__r101_rx101.py']
name = 'paper_retinanet_r50__pkd_mask_rcnn_swin'
title = 'RetinaNet R50 taught by Mask R-CNN Swin-S, by PKD'
paper = dict(_delete_=True, student='RetinaNet R50', baseline=36.5, baseline_2x=37.4)
teachers = dict(
    _delete_=True,
    swins=dict(
        label='Mask R-CNN Swin-S',
        config='mmdet::swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco/mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco_20210903_104808-b92c91f1.pth',
    ),
    swint=dict(
        label='Mask R-CNN Swin-T',
        config='mmdet::swin/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/swin/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco_20210908_165006-90a4008c.pth',
    ),
)
arms = dict(
    _delete_=True,
    none=dict(label='no teacher', teachers=[None]),
    direct=dict(label='Swin-S by PKD', teachers=['swins']),
    swint=dict(label='Swin-T by PKD', teachers=['swint']),
)
distill = dict(
    method='pkd',
    settings=dict(pkd=dict(weight=6.0)),
    # Level 4 has stride 128, and the teachers' strides are 4 to 64. That of 64 is a pooling, no convolution: the maps that
    # the necks give are compared.
    levels=[0, 1, 2, 3],
    student_module='neck:{level}',
    teacher_module='neck:{level}',
    # Their heads are another detector's.
    start='random',
)
