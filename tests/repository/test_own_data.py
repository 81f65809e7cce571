"""The recipe for one's own data, on photographs that are wider than high, as most are."""

import json
import math
import re
from html import unescape
from pathlib import Path

import nbformat
import pytest

from helpers.tiny_training import MINI, SMALL
from mtpd import load_recipe, predict, run_recipe
from mtpd.pipeline.stages import train_stage
from mtpd.report.run import make_report

SHORT = {
    'schedule.batch_size': 4,
    'schedule.baseline': 1,
    'schedule.arm': 2,
    'schedule.log_interval': 1,
    'teachers.rx101.updates': 1,
    'runtime.workers': 0,
    'runtime.threads': 1,
}


@pytest.mark.long
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


NAMES = (
    '$x$ $y',
    '$\\frac$5',
    'a^b_{c',
    '<b>bold</b>',
    'it\'s "q"',
    '汉字',
    'a/b',
    'x\\(y\\)',
    '%s {0}',
    '`c` *d* |e|',
)


@pytest.mark.slow
def test_names_of_classes_are_shown_as_they_are_from_data_to_report(tiny_coco, tmp_path):
    """A whole run: notebooks, their figures, numbers, the report and drawings."""
    root = tiny_coco(tmp_path / 'data', classes=NAMES)
    for split in ('train', 'val'):
        path = root / f'annotations/{split}.json'
        table = json.loads(path.read_text())
        ids = [item['id'] for item in table['categories']]
        first = table['annotations']
        more = [item | {'id': item['id'] + 1000, 'bbox': [9, 9, 24, 24]} for item in first]
        for k, item in enumerate([*first, *more]):
            item['category_id'] = ids[k % len(ids)]
        path.write_text(json.dumps(table | {'annotations': [*first, *more]}))
    options = SMALL | {
        'data.root': str(root),
        'teachers.rx101.checkpoint': None,
        'teachers.rx101.init': None,
    }
    run_dir = run_recipe(load_recipe(MINI, options), tmp_path / 'run', smoke=True)
    for path in (run_dir / 'detectors').glob('*/metrics.json'):
        assert tuple(json.loads(path.read_text())['per_class']['bbox']) == NAMES
    texts = {}
    for path in sorted((run_dir / 'notebooks').glob('*.ipynb')):
        outputs = [
            output
            for cell in nbformat.read(path, as_version=4).cells
            for output in cell.get('outputs', [])
        ]
        assert not [o for o in outputs if o.output_type == 'error']
        written = ''.join(o.text for o in outputs if o.output_type == 'stream')
        assert not re.search('warning|Glyph|findfont', written, re.IGNORECASE), written
        texts[path.stem] = [o.data.get('text/plain', '') for o in outputs if 'data' in o]
    shown = ' '.join(texts['01_data'])
    assert all(name in shown for name in NAMES)
    # The page of a notebook has the same text, and no name has become markup.
    make_report(run_dir)
    pages = {path.stem: path.read_text() for path in (run_dir / 'report').glob('*.html')}
    assert len(pages) == 15
    alts = ' '.join(map(unescape, re.findall(r' alt="([^"]*)"', pages['01_data'])))
    assert all(name in alts for name in NAMES)
    assert not [name for name, page in pages.items() if '<b>bold' in page]
    student = predict.detector(run_dir / 'stages/none/1_no_teacher/student.pth')
    assert tuple(student.CLASSES) == NAMES
    (row,) = predict.predict(student, [root / 'val/000001.png'], tmp_path / 'drawn', 0.0)
    assert {item['class'] for item in row['objects']} <= set(NAMES)
    assert Path(row['drawn']).is_file()
