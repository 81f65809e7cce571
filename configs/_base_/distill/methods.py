# Distillation on the FPN's output convolutions, as in the paper's code. {level} stands for each of `levels`. A method
# is chosen by distill.method=fgd; its loss is reported as loss_fgd_fpn_0, ... `levels` in a method's settings: those
# of the recipe's levels that it keeps to; student_module and teacher_module: its own in place of the recipe's.
# The settings are RetinaNet's, published for COCO at 800 x 1333 with 256 channels; methods_reppoints.py and
# methods_mask_rcnn.py hold those that differ. None are published for pocket-size detectors.
distill = dict(
    method='mgd',
    settings=dict(
        # github.com/yzd-v/MGD, and the paper's code
        mgd=dict(type='MGD', alpha=2e-5, mask_ratio=0.65),
        # github.com/pppppM/mmdetection-distiller, X101 -> R50; mmrazor, R101 -> R50, has weight 10 on levels 0-4
        cwd=dict(type='CWD', tau=1.0, weight=5.0, levels=[0, 1, 2, 3]),
        # github.com/yzd-v/FGD, where box_scale is 'img_shape'
        fgd=dict(
            type='FGD',
            temperature=0.5,
            alpha=1e-3,
            beta=5e-4,
            gamma=5e-4,
            relation=5e-6,
            box_scale='pad_shape',
        ),
        # mmrazor, configs/distill/mmdet/pkd, on the neck's outputs: the convolutions' where the neck has no norm
        pkd=dict(type='PKD', weight=10.0, levels=[0, 1, 2, 3]),
        # none published: the plain mean, unweighted
        mse=dict(type='FeatureMSE', weight=1.0),
    ),
    levels=[0, 1, 2, 3, 4],
    student_module='neck.fpn_convs.{level}.conv',
    teacher_module='neck.fpn_convs.{level}.conv',
    # Of stage 1: inherit the teacher's neck and head, or start from the baseline, or as the student's config says
    # (random). An arm without a teacher has nobody to inherit from and starts as the student's config says.
    start='inherit',
    inherit_allow=[],  # weights that may differ when inheriting, as patterns
    teacher_mode='eval',
)
# Notebook 03 and `mtpd order`: validation images that adaptation costs are measured on, and how teachers are chosen.
order = dict(
    images=256,
    max_length=2,
    method='backward_greedy',  # or shortest_path
    min_gain=None,  # AP, 0..1, by which a teacher must exceed the one before it
)
