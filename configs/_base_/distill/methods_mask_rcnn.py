# Settings for Mask R-CNN where they differ from RetinaNet's. None are published for CWD: RetinaNet's stay. Four
# convolutions feed the FPN's outputs: its fifth level is a pooled fourth.
_base_ = ['methods.py']
distill = dict(
    settings=dict(
        mgd=dict(alpha=5e-7, mask_ratio=0.45),  # github.com/yzd-v/MGD, and the paper's code
        fgd=dict(alpha=5e-5, beta=2.5e-5, gamma=5e-5, relation=5e-7),  # github.com/yzd-v/FGD
        pkd=dict(weight=6.0),  # mmrazor's for Faster R-CNN
    ),
    levels=[0, 1, 2, 3],
)
