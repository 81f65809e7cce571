"""The demo's recipe, and overrides that train a baseline, a teacher and stages for a few updates."""

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
SMALL = {
    'image.scale': 64,
    'schedule.batch_size': 2,
    'schedule.baseline': 3,
    'schedule.arm': 4,
    'schedule.teacher': 2,
    'schedule.log_interval': 2,
    'schedule.checkpoint_interval': 2,
    'runtime.workers': 0,
    'student.checkpoint': None,
    # Narrower than the teacher, whose weights then fit in part.
    'student.config': 'configs/_base_/models/pocket_retinanet.py',
    'runtime.threads': 1,
    'teachers.r101.checkpoint': None,
    'teachers.r101.model.backbone.depth': 18,
    'teachers.r101.updates': 2,
}
