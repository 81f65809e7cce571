# MGD on the FPN's output convolutions, as in the paper's code. {level} stands for each of `levels`.
distill = dict(
    method='mgd',
    settings=dict(mgd=dict(type='MGD', alpha=2e-5, mask_ratio=0.65)),
    levels=[0, 1, 2, 3, 4],
    student_module='neck.fpn_convs.{level}.conv',
    teacher_module='neck.fpn_convs.{level}.conv',
    start='inherit',  # of stage 1: inherit the teacher's neck and head, or start from the baseline, or random
    inherit_allow=[],  # weights that may differ when inheriting, as patterns
    teacher_mode='eval',
)
