"""A student at hand as a checkpoint only: tested, beside the paper's numbers, also in notebook 05."""

from __future__ import annotations

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split

import nbformat
import pytest
import torch
from mmcv import ConfigDict
from mmdet.models import build_detector

from helpers.fake_run import CLASSES, make_run, put
from mtpd.analysis.paper import (
    checkpoint_detections,
    checkpoint_metrics,
    load_run_or_plan,
    paper_rows,
    paper_verdict,
)
from mtpd.analysis.run import class_aps, load_run
from mtpd.config.recipe import load_recipe
from mtpd.errors import MtpdError, RecipeError
from mtpd.pipeline.notebooks import execute_notebook
from mtpd.report.tables import cell_text, markdown_table
from mtpd.utils.files import file_sha256, read_json
from mtpd.utils.paths import ROOT

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
MASKS = 'configs/paper/mask_rcnn_r50__swint_swins.py'
FEW = {'data.scenes.train': 6, 'data.scenes.val': 8}


def released(path, recipe):
    """An untrained student's checkpoint."""
    model = build_detector(ConfigDict(recipe.model('student')))
    torch.save({'state_dict': model.state_dict()}, path)
    return path


def coco_like(root, images, categories):
    table = {'images': [{'id': k} for k in range(images)], 'annotations': []}
    table['categories'] = [{'id': k, 'name': f'class {k}'} for k in range(categories)]
    put(root / 'annotations' / 'val.json', table)
    (root / 'val').mkdir()
    return root


NUMBERS = {'bbox_mAP': 0.4231, 'bbox_mAP_50': 0.6, 'bbox_mAP_l': None, 'segm_mAP': 0.38}
NUMBERS |= {'num_images': 5000, 'checkpoint': 'student-0.pth'}


def test_numbers_stand_beside_the_papers(tmp_path):
    root = coco_like(tmp_path / 'coco', 5000, 80)
    rows = paper_rows(NUMBERS, load_recipe(MASKS, {'data.root': str(root)}))
    assert [row['name'] for row in rows] == ['box AP', 'box AP50', 'mask AP']
    box, half, mask = rows
    assert (box['baseline'], box['baseline_2x'], box['paper']) == (38.2, 39.2, 42.6)
    assert box['ours'] == pytest.approx(42.31) and box['difference'] == '−0.3'
    assert (mask['baseline'], mask['baseline_2x'], mask['paper']) == (34.7, 35.4, 38.4)
    assert mask['difference'] == '−0.4'
    assert half['paper'] is half['difference'] is None
    text = paper_verdict(NUMBERS, load_recipe(MASKS, {'data.root': str(root)}))
    assert text == (
        'student-0.pth on 5,000 images of COCO: box AP 42.3, the release 42.6; mask AP 38.0, the release 38.4.'
    )


def test_other_data_have_no_difference(tmp_path):
    root = coco_like(tmp_path / 'part', 4999, 80)
    recipe = load_recipe(MASKS, {'data.root': str(root)})
    assert {row['difference'] for row in paper_rows(NUMBERS, recipe)} == {None}
    assert 'images of part. The paper' in paper_verdict(NUMBERS, recipe)
    assert 'the scales differ' in paper_verdict(NUMBERS, load_recipe(MINI))
    assert paper_verdict(None, load_recipe(MINI)) == ''
    assert paper_rows(None, load_recipe(MINI)) == [] and checkpoint_detections(None) == {}


def test_a_checkpoint_is_tested_into_the_run_directory(tmp_path):
    recipe = load_recipe(MINI, {**FEW, 'data.cache': str(tmp_path)})
    file = released(tmp_path / 'student-1.pth', recipe)
    numbers = checkpoint_metrics(recipe, str(file), work_dir=tmp_path / 'run')
    folder = tmp_path / 'run' / 'tested' / 'student-1'
    assert numbers['folder'] == folder and numbers['num_images'] == 8
    written = read_json(folder / 'metrics.json')
    assert written['sha256'] == file_sha256(file) and written['bbox_mAP'] == numbers['bbox_mAP']
    assert checkpoint_detections(numbers) == {'student-1.pth': folder / 'detections.json'}
    assert (folder / 'detections.json').is_file()
    assert checkpoint_metrics(recipe, '') is None


def test_mistakes_are_named(tmp_path):
    recipe = load_recipe(MINI)
    with pytest.raises(RecipeError, match=r"unknown metric 'box'"):
        checkpoint_metrics(recipe, 'a.pth', ['box'], tmp_path)
    with pytest.raises(MtpdError, match=r'nowhere\.pth: no such file'):
        checkpoint_metrics(recipe, 'nowhere.pth', [], tmp_path)
    with pytest.raises(MtpdError, match='is not a run'):
        load_run_or_plan(recipe, tmp_path / 'none')
    plan = load_run_or_plan(recipe, tmp_path / 'none', 'a.pth')
    assert [row['AP'] for row in plan.results()] == [None] * 8
    assert class_aps(plan)[:2] == ({}, {})


def test_a_run_that_is_there_is_taken(tmp_path):
    path = make_run(tmp_path / 'run')
    assert load_run_or_plan(load_recipe(MINI), path, 'a.pth').info['seconds'] == 812.0
    control, best, labels = class_aps(load_run(path))
    assert labels == ('No teacher', 'Teacher 1 → teacher 2')
    assert control[CLASSES[0]] == pytest.approx(0.276)
    assert best[CLASSES[1]] == pytest.approx(0.8 * 0.306)


@pytest.mark.slow
def test_notebook_05_tests_a_checkpoint_without_a_run(tmp_path):
    options = ' '.join(f'{key}={value}' for key, value in FEW.items()) + f' data.cache={tmp_path}'
    file = released(tmp_path / 'student-1.pth', load_recipe(MINI, options))
    given = {'recipe': MINI, 'cfg_options': options, 'work_dir': str(tmp_path / 'run')}
    given |= {'checkpoint': str(file), 'metrics': ['bbox']}
    out = tmp_path / 'out.ipynb'
    execute_notebook(ROOT / 'notebooks' / '05_evaluate.ipynb', out, given)
    outputs = [
        o.data for c in nbformat.read(out, 4).cells for o in c.get('outputs', []) if 'data' in o
    ]
    texts = '\n'.join(data.get('text/markdown', '') for data in outputs)
    ap = 100 * read_json(tmp_path / 'run/tested/student-1/metrics.json')['bbox_mAP']
    assert f'| box AP | {cell_text(ap)} | 41.7 | 36.5 | 37.4 | – |' in texts
    assert 'student-1.pth on 8 images of DigitScenes' in texts
    alts = '\n'.join(data.get('text/plain', '') for data in outputs)
    assert 'No arm has been evaluated yet.' in alts
    assert 'student-1.pth: ' in alts  # among the detections
    assert 'The paper, on COCO, box AP: CWD direct 39.8, progressive 40.2' in alts


def test_no_rows_make_no_table():
    assert markdown_table([], {'name': 'Name'}).data == ''
    assert (
        markdown_table([{'name': 'a|b', 'AP': 12.34}]).data.splitlines()[-1] == r'| a\|b | 12.3 |'
    )
