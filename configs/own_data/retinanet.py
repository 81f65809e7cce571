# Your own COCO-format dataset, at pocket size on a CPU: baseline, teacher 1, teacher 2, both orders.
#
# Prerequisites: a dataset's folder in COCO format, as docs/own-data.md says: annotations/train.json, annotations/val.json
#   and the images in train/ and val/, or the layout of another tool. Classes and heads follow from it.
# Launch: mtpd run configs/own_data/retinanet.py --cfg-options data.root=/path/to/dataset
# The teachers are trained here, from the digit detectors' weights where they fit.
_base_ = ['../mini/retinanet_r50__r101_rx101.py']
name = 'own_data_retinanet'
title = 'RetinaNet at pocket size on your own data'
paper = dict(_delete_=True)  # its AP is on COCO
data = dict(root='data/own')
image = dict(scale=(256, 256), flip=0.5)
student = dict(
    _delete_=True,
    label='student: ResNet-18, width 8',
    config='../_base_/models/pocket_retinanet.py',
    init=None,
)
teachers = dict(
    r101=dict(checkpoint=None, init='../mini/teachers/r101/model.pth', updates=600),
    rx101=dict(checkpoint=None, init='../mini/teachers/rx101/model.pth', updates=800),
)
schedule = dict(baseline=300, arm=400)
