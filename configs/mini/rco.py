# RCO's sequence (Jin et al., ICCV 2019, arXiv 1904.09149): a teacher's own earlier checkpoint, then its end.
#
# Prerequisites: the checkpoint, which is not shipped: teacher 2 after 3,000 of its 12,000 updates, 20 minutes of one core.
#   mtpd train configs/mini/retinanet_r50__r101_rx101.py --detector rx101 --work-dir runs/early --cfg-options \
#     teachers.rx101.checkpoint=None schedule.batch_size=8 schedule.optimizer.lr=1.2e-3 schedule.lr.max_lr=1.2e-3 runtime.threads=1
#   Stop it by Ctrl-C at update 3,000. Then: mtpd export runs/early/detectors/rx101/latest.pth early.pth, and move
#   the file that it names to configs/mini/teachers/early.pth.
# Launch: mtpd sweep configs/mini/rco.py --orders early,rx101 --seeds 2-6 --cfg-options student.checkpoint=None
# Expected: results/regime/rco.json.
_base_ = ['retinanet_r50__r101_rx101.py']
name = 'mini_rco'
title = 'A teacher and its own earlier checkpoint (RCO) teach a ResNet-18, at pocket size on DigitScenes'
teachers = dict(
    early=dict(
        label='teacher 2 after 3,000 of its 12,000 updates',
        config='../_base_/models/pocket_retinanet.py',
        model={{_base_.teachers.rx101.model}},
        checkpoint='teachers/early.pth',
    )
)
arms = dict(
    progressive=dict(label='teacher 2, early → late', teachers=['early', 'rx101']),
    reverse=dict(_delete_=True, label='teacher 2, late → early', teachers=['rx101', 'early']),
)
