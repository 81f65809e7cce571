# RepPoints R50 <- R101 -> X101-DCN: 42.9 AP on COCO, as released; the student alone has 38.1 after 12 epochs, 38.6 after the
# 24 of two stages. The paper's pair is direct 42.3, progressive 42.9.
#
# Prerequisites: COCO 2017 in data/coco (mtpd data coco); the checkpoints are fetched from mmdet's model zoo.
# Launch: mtpd run configs/paper/reppoints_r50__r101_rx101dcn.py
# Expected: the AP as released, above, not measured with this kit. GPU hours: not measured either; each of the two
#   stages sees 1.41 million images, so divide 2.8 million by 3600 times the images a second of benchmarks/full_size.py.
_base_ = [
    '../_base_/datasets/coco.py',
    '../_base_/schedules/coco_1x.py',
    '../_base_/distill/methods_reppoints.py',
]
name = 'paper_reppoints_r50__r101_rx101dcn'
title = 'RepPoints R50 taught by RepPoints R101, then RepPoints X101-DCN'
paper = dict(
    student='RepPoints R50',
    baseline=38.1,
    baseline_2x=38.6,
    direct=42.3,
    progressive=42.9,
    result=42.9,
)
student = dict(
    label='RepPoints R50',
    config='mmdet::reppoints/reppoints_moment_r50_fpn_gn-neck+head_1x_coco.py',
    checkpoint='https://download.openmmlab.com/mmdetection/v2.0/reppoints/reppoints_moment_r50_fpn_gn-neck%2Bhead_1x_coco/reppoints_moment_r50_fpn_gn-neck%2Bhead_1x_coco_20200329_145952-3e51b550.pth',
)
teachers = dict(
    r101=dict(
        label='RepPoints R101',
        config='mmdet::reppoints/reppoints_moment_r101_fpn_gn-neck+head_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/reppoints/reppoints_moment_r101_fpn_gn-neck%2Bhead_2x_coco/reppoints_moment_r101_fpn_gn-neck%2Bhead_2x_coco_20200329-4fbc7310.pth',
    ),
    rx101dcn=dict(
        label='RepPoints X101-DCN',
        config='mmdet::reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck+head_2x_coco.py',
        checkpoint='https://download.openmmlab.com/mmdetection/v2.0/reppoints/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco/reppoints_moment_x101_fpn_dconv_c3-c5_gn-neck%2Bhead_2x_coco_20200329-f87da1ea.pth',
    ),
)
arms = dict(
    none=dict(label='no teacher', teachers=[None]),
    direct=dict(label='teacher 2 only', teachers=['rx101dcn']),
    repeated=dict(label='teacher 2 → teacher 2', teachers=['rx101dcn', 'rx101dcn']),
    progressive=dict(label='teacher 1 → teacher 2', teachers=['r101', 'rx101dcn']),
    reverse=dict(label='teacher 2 → teacher 1', teachers=['rx101dcn', 'r101']),
)
