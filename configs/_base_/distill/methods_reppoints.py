# Settings for RepPoints where they differ from RetinaNet's. None are published for CWD: RetinaNet's stay. The output
# convolutions, which the paper's code compares, come before the neck's group norm, its outputs after it: PKD was
# published on these.
_base_ = ['methods.py']
distill = dict(
    settings=dict(
        fgd=dict(alpha=1.6e-3, beta=8e-4, gamma=8e-4, relation=8e-6),  # github.com/yzd-v/FGD
        pkd=dict(student_module='neck.fpn_convs.{level}', teacher_module='neck.fpn_convs.{level}'),
    ),
)
