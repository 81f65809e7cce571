"""The shipped detectors give the AP that is stated beside them."""

import json

import pytest

from mtpd import load_recipe
from mtpd.engine.evaluation import evaluate
from mtpd.utils.files import file_sha256, read_log
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
FOLDERS = sorted(path.parent for path in (ROOT / 'configs/mini').rglob('model.pth'))


@pytest.mark.long
@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_the_weights_give_the_stated_ap(folder, tmp_path):
    recipe = load_recipe(MINI, {'data.scenes.train': 1, 'data.cache': str(tmp_path)})
    stated = json.loads((folder / 'metrics.json').read_text())
    assert stated['sha256'] == file_sha256(folder / 'model.pth')
    metrics = evaluate(recipe, folder / 'model.pth', detector=folder.name)
    assert stated['num_images'] == metrics['num_images'] == 300
    # Not bit-equal: other processors add in another order.
    assert metrics['bbox_mAP'] == pytest.approx(stated['bbox_mAP'], abs=0.002)


def test_the_baseline_had_stopped_improving():
    """So the regime index of the demo is small: `log.json` of the student's training has AP every 1,000 updates."""
    rows = read_log(ROOT / 'configs/mini/student/log.json')
    aps = [100 * row['bbox_mAP'] for row in rows if 'bbox_mAP' in row]
    assert len(aps) == 6 and aps[-1] - aps[-2] < 1 < aps[2] - aps[1]


def test_all_of_them_are_small():
    files = list((ROOT / 'configs').rglob('*.pth'))
    assert files and sum(path.stat().st_size for path in files) < 20e6
