# The paper's third sequence (Mask R-CNN R50 <- Cascade Mask R-CNN R50-DCN -> X101-DCN) at pocket size. On COCO: direct 42.4
# box AP, progressive 42.5; the release has 42.5 / 38.2, the student alone 38.2 / 34.7 after 12 epochs, 39.2 / 35.4 after 24.
#
# Prerequisites: none. DigitScenes are made on the spot; the teachers are trained here, from rx101's weights that fit.
# Launch: mtpd run configs/mini/mask_rcnn_r50__cascade_r50dcn_rx101dcn.py
# Expected: a smoke test. The teachers are trained for minutes; no AP is worth comparing (results/mini_twins.json: an earlier,
#   shorter schedule).
_base_ = ['../_base_/pocket.py', '../_base_/distill/methods_mask_rcnn.py']
name = 'mini_mask_rcnn_r50__cascade_r50dcn_rx101dcn'
title = 'Mask R-CNN at pocket size on DigitScenes: two cascades with deformable convolutions teach a narrow ResNet-18'
paper = dict(
    student='Mask R-CNN R50',
    baseline=38.2,
    baseline_2x=39.2,
    direct=42.4,
    progressive=42.5,
    result=42.5,
    mask_baseline=34.7,
    mask_baseline_2x=35.4,
    mask_result=38.2,
)

student = dict(config='../_base_/models/pocket_mask_rcnn.py')
teachers = dict(
    cascade_r50dcn=dict(
        label='teacher 1: cascade, ResNet-50 DCN, width 16',
        config='../_base_/models/pocket_cascade_mask_rcnn.py',
        model=dict(
            backbone=dict(
                depth=50,
                base_channels=16,
                dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False),
                stage_with_dcn=(False, False, False, True),
            ),
            neck=dict(in_channels=[64, 128, 256, 512]),
        ),
        init='teachers/rx101/model.pth',
        updates=1000,
    ),
    cascade_rx101dcn=dict(
        label='teacher 2: cascade, ResNeXt-50 DCN, width 16',
        config='../_base_/models/pocket_cascade_mask_rcnn.py',
        model=dict(
            backbone=dict(
                type='ResNeXt',
                depth=50,
                base_channels=16,
                groups=8,
                base_width=4,
                dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False),
                stage_with_dcn=(False, False, False, True),
            ),
            neck=dict(in_channels=[64, 128, 256, 512]),
        ),
        init='teachers/rx101/model.pth',
        updates=600,
    ),
)
arms = dict(
    direct=dict(teachers=['cascade_rx101dcn']),
    repeated=dict(teachers=['cascade_rx101dcn', 'cascade_rx101dcn']),
    progressive=dict(teachers=['cascade_r50dcn', 'cascade_rx101dcn']),
    reverse=dict(teachers=['cascade_rx101dcn', 'cascade_r50dcn']),
)
# MGD's alpha: 0.6 to 0.7 times the detection loss, measured at the start of either stage (the short schedule of
# benchmarks/twins.py). The other methods keep COCO's weights, which are too large here.
distill = dict(
    settings=dict(mgd=dict(alpha=4e-6)),
    levels=[0, 1, 2],
    start='baseline',  # all arms continue the same trained student
    # With start='inherit': backbones of other widths.
    inherit_allow=['neck.lateral_convs.*.conv.weight'],
)
evaluation = dict(metrics=['bbox', 'segm'])
