# mmdet's 1x schedule on COCO (12 epochs of 7,330 updates of 16 images) for the baseline and each of two stages.
_base_ = '../speed.py'
seed = 0
schedule = dict(
    batch_size=16,
    lr_batch_size=16,  # other batch sizes: scaled linearly
    baseline=87960,
    arm=175920,  # 24 epochs, split evenly over an arm's stages
    teacher=87960,
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
    grad_clip=dict(max_norm=35, norm_type=2),
    lr=dict(
        policy='step',
        warmup='linear',
        warmup_iters=500,
        warmup_ratio=0.001,
        step=[8 / 12, 11 / 12],  # of each training
    ),
    log_interval=50,
    checkpoint_interval=2000,
    eval_interval=0,
)
# workers: processes that load images, for each that trains; 'auto': by device and cores.
runtime = dict(device='auto', workers='auto', threads=0, jobs=1)
