# RetinaNet on Swin-T, 36 epochs with multi-scale crops, fp16: teacher 1 of configs/paper/retinanet_r50__swint_swins.py.
#
# Prerequisites: COCO 2017 in data/coco (mtpd data coco); Swin-T's ImageNet weights are fetched from GitHub.
# Launch: mtpd train configs/teachers/retinanet_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco.py
# Expected: the paper's own teacher was not published, nor its AP; not measured with this kit.
# A plain mmdet config, which mmdet's own tools take too: the model of mmdet's 1x RetinaNet on Swin-T, trained as mmdet
# trains Mask R-CNN on Swin-T, without the masks. Batches other than 16 images scale the learning rate linearly.
from importlib import resources

import mmcv

__swin = f'{resources.files("mmdet")}/.mim/configs/swin'
__mask_rcnn = mmcv.Config.fromfile(f'{__swin}/mask_rcnn_swin-t-p4-w7_fpn_fp16_ms-crop-3x_coco.py')
_base_ = f'{__swin}/retinanet_swin-t-p4-w7_fpn_1x_coco.py'

train_pipeline = __mask_rcnn.train_pipeline
train_pipeline[1] = dict(type='LoadAnnotations', with_bbox=True)
train_pipeline[-1] = dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])
data = dict(train=dict(pipeline=train_pipeline))
optimizer = dict(_delete_=True, **__mask_rcnn.optimizer)
lr_config = dict(_delete_=True, **__mask_rcnn.lr_config)
runner = __mask_rcnn.runner
fp16 = __mask_rcnn.fp16
auto_scale_lr = dict(enable=True, base_batch_size=16)
