# RetinaNet on Swin-S, 36 epochs with multi-scale crops, fp16: teacher 2 of configs/paper/retinanet_r50__swint_swins.py.
#
# Prerequisites: COCO 2017 in data/coco (mtpd data coco); Swin-S' ImageNet weights are fetched from GitHub.
# Launch: mtpd train configs/teachers/retinanet_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco.py
# Expected: the paper's own teacher was not published, nor its AP; not measured with this kit.
_base_ = 'retinanet_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco.py'
pretrained = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth'
model = dict(backbone=dict(depths=[2, 2, 18, 2], init_cfg=dict(checkpoint=pretrained)))
