# DigitScenes, made on the spot. Own data: data.root names a COCO-format folder, then classes follow from it.
data = dict(
    root=None,
    cache='data',
    corrupt_limit=0,  # images of a split that may be corrupt, and are left out
    scenes=dict(train=3000, val=300, size=128, seed=0),
)
image = dict(
    scale=128,
    flip=0.0,  # a mirrored digit is another sign
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
    divisor=32,
)
evaluation = dict(metrics=['bbox'], batch_size=16, library='auto')
