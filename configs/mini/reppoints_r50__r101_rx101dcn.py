# The paper's fifth sequence (RepPoints R50 <- R101 -> X101-DCN) at pocket size. On COCO: direct 42.3 AP, progressive 42.9; the
# student alone has 38.1 after 12 epochs, 38.6 after 24.
#
# Prerequisites: none. DigitScenes are made on the spot; the teachers are trained here, from the shipped RetinaNets' weights
#   that fit.
# Launch: mtpd run configs/mini/reppoints_r50__r101_rx101dcn.py
# Expected: a smoke test. The teachers are trained for minutes; no AP is worth comparing (results/mini_twins.json: an earlier,
#   shorter schedule).
_base_ = ['../_base_/pocket.py', '../_base_/distill/methods_reppoints.py']
name = 'mini_reppoints_r50__r101_rx101dcn'
title = 'RepPoints at pocket size on DigitScenes: a ResNet-34 and a deformable ResNeXt-50 teach a narrow ResNet-18'
paper = dict(
    student='RepPoints R50',
    baseline=38.1,
    baseline_2x=38.6,
    direct=42.3,
    progressive=42.9,
    result=42.9,
)

student = dict(config='../_base_/models/pocket_reppoints.py')
teachers = dict(
    r101=dict(
        label='teacher 1: ResNet-34, width 16',
        config='../_base_/models/pocket_reppoints.py',
        model=dict(
            backbone=dict(depth=34, base_channels=16), neck=dict(in_channels=[16, 32, 64, 128])
        ),
        init='teachers/r101/model.pth',
        updates=400,
    ),
    rx101dcn=dict(
        label='teacher 2: ResNeXt-50 DCN, width 16',
        config='../_base_/models/pocket_reppoints.py',
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
        updates=400,
    ),
)
arms = dict(
    direct=dict(teachers=['rx101dcn']),
    repeated=dict(teachers=['rx101dcn', 'rx101dcn']),
    progressive=dict(teachers=['r101', 'rx101dcn']),
    reverse=dict(teachers=['rx101dcn', 'r101']),
)
# MGD's alpha: 0.6 to 0.7 times the detection loss, measured at the start of either stage (the short schedule of
# benchmarks/twins.py). The other methods keep COCO's weights, which are far too large here.
distill = dict(
    settings=dict(mgd=dict(alpha=2e-6)),
    levels=[0, 1, 2],
    start='baseline',  # all arms continue the same trained student
    # With start='inherit': backbones of other widths.
    inherit_allow=['neck.lateral_convs.*.conv.weight'],
)
