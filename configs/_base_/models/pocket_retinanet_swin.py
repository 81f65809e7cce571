# RetinaNet at pocket size on a Swin transformer: width 24, windows of 4 x 4 tokens, 8 blocks (with depths [2, 2, 6, 2]: 12).
_base_ = ['pocket_retinanet.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=24,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        drop_path_rate=0.1,
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[48, 96, 192], start_level=0),
)
