# A pool of six diverse teachers for one pocket RetinaNet on DigitScenes: which of them, in which order?
#
# Prerequisites: none. Two teachers are shipped; the others are trained here, from the weights of r34 that fit.
# Launch: mtpd order configs/mini/pool.py
#         mtpd sweep configs/mini/pool.py --orders "all;auto" --seeds 0-4
# Expected: the sweep is sized for half an hour of one modern GPU, not measured; its teachers train in 21 minutes on 2 CPU
#   cores (results/mini_pool/time.json). pool_reduced.py is the study for those.
_base_ = ['retinanet_r50__r101_rx101.py']
name = 'mini_pool'
title = 'A pool of teachers for RetinaNet at pocket size on DigitScenes: ResNets, a ResNeXt, a Swin, a deformable ResNet'
paper = dict(_delete_=True)

# Narrower than the demo's, and less trained: results/mini_pool/ and mini_pool_reduced/ are of it.
student = dict(
    _delete_=True,
    label='student: ResNet-18, width 8',
    config='../_base_/models/pocket_retinanet.py',
)
schedule = dict(baseline=1000, arm=600)
teachers = dict(
    _delete_=True,
    r18=dict(
        label='ResNet-18, width 16',
        config='../_base_/models/pocket_retinanet.py',
        model=dict(backbone=dict(base_channels=16), neck=dict(in_channels=[16, 32, 64, 128])),
        init='teachers/r101/model.pth',
        updates=2000,
    ),
    r34=dict(
        label='ResNet-34, width 16',
        config='../_base_/models/pocket_retinanet.py',
        model={{_base_.teachers.r101.model}},
        checkpoint='teachers/r101/model.pth',
    ),
    r50=dict(
        label='ResNet-50, width 8',
        config='../_base_/models/pocket_retinanet.py',
        model=dict(backbone=dict(depth=50), neck=dict(in_channels=[32, 64, 128, 256])),
        init='teachers/r101/model.pth',
        updates=3000,
    ),
    x50=dict(
        label='ResNeXt-50, width 16',
        config='../_base_/models/pocket_retinanet.py',
        model={{_base_.teachers.rx101.model}},
        checkpoint='teachers/rx101/model.pth',
    ),
    swin=dict(
        label='Swin of 8 blocks, width 24',
        config='../_base_/models/pocket_retinanet_swin.py',
        init='teachers/r101/model.pth',
        updates=3000,
    ),
    r50dcn=dict(
        label='ResNet-50 DCN, width 16',
        config='../_base_/models/pocket_retinanet.py',
        model=dict(
            backbone=dict(
                depth=50,
                base_channels=16,
                dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False),
                stage_with_dcn=(False, False, False, True),
            ),
            neck=dict(in_channels=[64, 128, 256, 512]),
        ),
        init='teachers/r101/model.pth',
        updates=3000,
    ),
)
# `mtpd run` tests the automatic choice; `mtpd sweep` takes its orders from the command line.
arms = dict(
    _delete_=True,
    none=dict(label='no teacher', teachers=[None]),
    direct=dict(label='ResNeXt-50 only', teachers=['x50']),
    auto=dict(label='chosen by adaptation cost', teachers='auto'),
)
order = dict(max_length=3)
# As in the twins: 0.7 (r34), 1.1 (swin), 1.2 (x50) times the detection loss over the first six updates.
distill = dict(settings=dict(mgd=dict(alpha=4e-6)))
