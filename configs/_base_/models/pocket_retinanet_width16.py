# The pocket RetinaNet with a ResNet-18 of twice the channels: the student of the demo.
_base_ = 'pocket_retinanet.py'
model = dict(backbone=dict(base_channels=16), neck=dict(in_channels=[16, 32, 64, 128]))
