# COCO 2017 as mmdet's 1x configs read it: at most 1333 x 800, flipped half of the time.
data = dict(
    root='data/coco',
    cache='data',
    corrupt_limit=0,  # images of a split that may be corrupt, and are left out
    scenes=dict(train=3000, val=300, size=128, seed=0),
)
image = dict(
    scale=(1333, 800),
    flip=0.5,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    divisor=32,
)
evaluation = dict(metrics=['bbox'], batch_size=1, library='pycocotools')  # as published numbers
