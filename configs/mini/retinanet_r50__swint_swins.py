# The paper's second sequence (RetinaNet R50 <- Swin-T -> Swin-S) at pocket size. On COCO the release has 42.0 AP, the
# student alone 36.5 after 12 epochs, 37.4 after 24.
#
# Prerequisites: none. DigitScenes are made on the spot; the teachers are trained here, neck and head from r101's weights.
# Launch: mtpd run configs/mini/retinanet_r50__swint_swins.py
# Expected: a smoke test. The teachers are trained for minutes; no AP is worth comparing (results/mini_twins.json: an earlier,
#   shorter schedule).
_base_ = ['retinanet_r50__r101_rx101.py']
name = 'mini_retinanet_r50__swint_swins'
title = 'RetinaNet at pocket size on DigitScenes: two Swin transformers teach a narrow ResNet-18'
paper = dict(_delete_=True, student='RetinaNet R50', baseline=36.5, baseline_2x=37.4, result=42.0)

# Narrower than the demo's, and less trained: its teachers are trained here, for as long as a test may take.
student = dict(
    _delete_=True,
    label='student: ResNet-18, width 8',
    config='../_base_/models/pocket_retinanet.py',
)
schedule = dict(baseline=1000, arm=600)
teachers = dict(
    _delete_=True,
    swint=dict(
        label='teacher 1: Swin of 8 blocks, width 24',
        config='../_base_/models/pocket_retinanet_swin.py',
        init='teachers/r101/model.pth',
        updates=3000,
    ),
    swins=dict(
        label='teacher 2: Swin of 12 blocks, width 24',
        config='../_base_/models/pocket_retinanet_swin.py',
        model=dict(backbone=dict(depths=[2, 2, 6, 2])),
        init='teachers/r101/model.pth',
        updates=4000,
    ),
)
arms = dict(
    direct=dict(teachers=['swins']),
    repeated=dict(teachers=['swins', 'swins']),
    progressive=dict(teachers=['swint', 'swins']),
    reverse=dict(teachers=['swins', 'swint']),
)
# Measured at the start of either stage (the short schedule of benchmarks/twins.py): 0.9 to 1.0 times the detection loss.
# The other methods keep COCO's weights, which are far too large here.
distill = dict(settings=dict(mgd=dict(alpha=4e-6)))
