"""The recipe for one's own data, on photographs that are wider than high, as most are."""

import json
import math

import pytest

from mtpd import load_recipe
from mtpd.pipeline.stages import train_stage

SHORT = {
    'schedule.batch_size': 4,
    'schedule.baseline': 1,
    'schedule.arm': 2,
    'schedule.log_interval': 1,
    'teachers.rx101.updates': 1,
    'runtime.workers': 0,
    'runtime.threads': 1,
}


@pytest.mark.parametrize('source', ['generated', pytest.param('bccd', marks=pytest.mark.slow)])
def test_a_stage_trains_on_wide_images(source, tiny_coco, request, tmp_path):
    if source == 'generated':
        root = tiny_coco(tmp_path / 'own', width=96)
    else:
        root = request.getfixturevalue('shared_data') / source
    recipe = load_recipe(
        'configs/own_data/retinanet.py',
        SHORT | {'data.root': str(root), 'image.scale': (256, 192)},
    )
    made = train_stage(recipe, 1, 'direct', tmp_path / 'run')
    classes = {'generated': {'cat', 'dog'}, 'bccd': {'RBC', 'WBC', 'Platelets'}}[source]
    assert set(made['metrics']['per_class']['bbox']) == classes
    (row,) = map(json.loads, (made['dir'] / 'log.json').read_text().splitlines()[-1:])
    assert math.isfinite(row['loss']) and row['loss_mgd_fpn_0'] > 0
