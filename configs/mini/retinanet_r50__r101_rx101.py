# The paper's first sequence (RetinaNet R50 <- R101 -> X101-64x4d) at pocket size. On COCO: direct 41.0 AP, progressive 41.4.
# The release has 41.7, from stronger teachers; the student alone 36.5 after 12 epochs, 37.4 after 24.
#
# Prerequisites: none. DigitScenes are made on the spot. The teachers are shipped in configs/mini/teachers/, the student's
#   baseline in configs/mini/student/; student.checkpoint=None trains another one, as each seed of the study does.
# Launch: mtpd run configs/mini/retinanet_r50__r101_rx101.py
# Expected: see the README's table. Every arm continues the same baseline for the same number of updates. With 3,000 scenes
#   the baseline has stopped improving: training on without a teacher brings little, so that orders can be judged.
_base_ = ['../_base_/pocket.py', '../_base_/distill/methods.py']
name = 'mini_retinanet_r50__r101_rx101'
title = 'RetinaNet at pocket size on DigitScenes: a ResNet-34 and a ResNeXt-50 teach a ResNet-18'
paper = dict(
    student='RetinaNet R50',
    baseline=36.5,
    baseline_2x=37.4,
    direct=41.0,
    progressive=41.4,
    result=41.7,
    walk_through=[36.5, 37.9, 39.9],  # a figure of its own: another loss, or a drawing
)

student = dict(
    label='student: ResNet-18, width 16',
    config='../_base_/models/pocket_retinanet_width16.py',
    checkpoint='student/model.pth',
)
teachers = dict(
    r101=dict(
        label='teacher 1: ResNet-34, width 16',
        config='../_base_/models/pocket_retinanet.py',
        model=dict(
            backbone=dict(depth=34, base_channels=16), neck=dict(in_channels=[16, 32, 64, 128])
        ),
        checkpoint='teachers/r101/model.pth',
        updates=4000,
        scenes=24000,
    ),
    rx101=dict(
        label='teacher 2: ResNeXt-50, width 16',
        config='../_base_/models/pocket_retinanet.py',
        model=dict(
            backbone=dict(type='ResNeXt', depth=50, base_channels=16, groups=8, base_width=4),
            neck=dict(in_channels=[64, 128, 256, 512]),
        ),
        checkpoint='teachers/rx101/model.pth',
        init='teachers/r101/model.pth',
        updates=7000,
        scenes=24000,
    ),
)
schedule = dict(baseline=6000, arm=1200)
arms = dict(
    direct=dict(teachers=['rx101']),
    repeated=dict(teachers=['rx101', 'rx101']),
    progressive=dict(teachers=['r101', 'rx101']),
    reverse=dict(teachers=['rx101', 'r101']),
)
distill = dict(
    levels=[0, 1, 2],
    start='baseline',  # all arms continue the same trained student
    # With start='inherit': backbones of other widths.
    inherit_allow=['neck.lateral_convs.*.conv.weight'],
)
