"""A plain mmdet config, to be filled with a model, the folder of a data set, and META."""

# As mmdet's configs are written; flips and crops as little as a test needs.
TEXT = """
model = {model}
norm = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(64, 64), keep_ratio=True),
    dict(type='Normalize', **norm),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'], meta_keys={meta}),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(64, 64), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip', flip_ratio=0.0),
            dict(type='Normalize', **norm),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='Collect', keys=['img']),
        ],
    ),
]
root = {root!r}
common = dict(type='CocoDataset', classes=('cat', 'dog'))
val = dict(**common, ann_file=root + '/annotations/val.json', img_prefix=root + '/val/', pipeline=test_pipeline)
train = dict(**common, data_root=root, ann_file='annotations/train.json', img_prefix='train/', pipeline=train_pipeline)
data = dict(
    samples_per_gpu=2, workers_per_gpu=0, val=val, test=val,
    train=dict(type='RepeatDataset', times=2, dataset=train),
)
evaluation = dict(interval=1, metric='bbox')
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(policy='step', warmup='linear', warmup_iters=2, warmup_ratio=0.001, step=[1])
runner = dict(type='EpochBasedRunner', max_epochs=2)
checkpoint_config = dict(interval=1)
log_config = dict(interval=2, hooks=[dict(type='TextLoggerHook')])
custom_hooks = [dict(type='NumClassCheckHook')]
fp16 = dict(loss_scale=512.0)
auto_scale_lr = dict(enable=False, base_batch_size=16)
"""
META = (
    *('filename', 'ori_filename', 'ori_shape', 'img_shape'),
    *('pad_shape', 'scale_factor', 'img_norm_cfg'),
)
