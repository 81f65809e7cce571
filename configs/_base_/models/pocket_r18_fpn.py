# Backbone and neck of the pocket-size detectors: ResNet-18 of width 8, 64 channels and three FPN levels (strides 8, 16,
# 32). Batch norm in the neck, because these detectors are trained from scratch.
model = dict(
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=8,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    ),
    neck=dict(
        type='FPN',
        in_channels=[8, 16, 32, 64],
        out_channels=64,
        start_level=1,
        num_outs=3,
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
)
