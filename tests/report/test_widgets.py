"""Controls beside a figure, and what they draw."""

from __future__ import annotations

import json

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import ipywidgets
import nbformat
import numpy as np
import pytest
import torch
from mmcv import ConfigDict
from mmdet.models import build_detector
from nbclient import NotebookClient
from pycocotools.mask import encode

from mtpd.analysis import dataset, feature_maps
from mtpd.analysis.run import Run
from mtpd.config.recipe import load_recipe
from mtpd.report import widgets
from mtpd.report.widgets import make_control
from mtpd.runtime import checkpoints

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
TOUCHED = """
from mtpd.plots.figure import empty
from mtpd.report.widgets import show_with_controls

def draw(number, word):
    return empty(f'{number} {word}')

show_with_controls(draw, number=(1, range(5)), word=('a', ['a', 'b']))
"""
MOVED = """
from ipywidgets import IntSlider
from ipywidgets.widgets.widget import _instances
(slider,) = [widget for widget in _instances.values() if isinstance(widget, IntSlider)]
slider.value = 3
"""


@pytest.mark.long
def test_a_moved_control_redraws_the_figure_in_its_place():
    v4 = nbformat.v4
    for code, wanted in (([TOUCHED], '1 a'), ([TOUCHED, MOVED], '3 a')):
        notebook = v4.new_notebook(cells=[v4.new_code_cell(text) for text in code])
        NotebookClient(notebook, kernel_name='python3', timeout=120).execute()
        figure, controls = notebook.cells[0].outputs
        assert figure.data['text/plain'] == wanted and 'image/png' in figure.data
        assert figure.metadata['image/png']['alt'] == wanted
        assert 'application/vnd.jupyter.widget-view+json' in controls.data
        assert controls.data['text/plain'] == ''


def test_controls_fit_what_there_is_to_choose():
    slider = make_control('image', 2, range(8))
    assert isinstance(slider, ipywidgets.IntSlider) and (slider.min, slider.max) == (0, 7)
    assert slider.value == 2
    scores = make_control('least_score', 0.3, [0.5, 0.3])
    assert isinstance(scores, ipywidgets.SelectionSlider) and scores.value == 0.3
    assert scores.description == 'least score' and scores.options == (0.3, 0.5)
    assert make_control('threshold', 0.4, [0.3, 0.5]).options == (0.3, 0.4, 0.5)
    menu = make_control('view', 'b', ('a', 'b'))
    assert isinstance(menu, ipywidgets.Dropdown) and menu.value == 'b'


@pytest.fixture(scope='module')
def plan(tmp_path_factory):
    few = {'data.scenes.train': 2, 'data.scenes.val': 3}
    return load_recipe(MINI, few | {'data.cache': str(tmp_path_factory.mktemp('digits'))})


def test_features_are_looked_at_by_image_level_and_view(plan, tmp_path):
    files = {}
    for seed, label in enumerate(('before', 'after')):
        torch.manual_seed(seed)
        model = build_detector(ConfigDict(plan.model('student')))
        checkpoints.save_atomic({'state_dict': model.state_dict()}, tmp_path / f'{label}.pth')
        files[label] = ('student', tmp_path / f'{label}.pth')
    one = {'before': files['before'], 'later': files['before']}
    look = widgets.FeaturesView(plan, {'a': files, 'b': one}, 2)
    assert len(look) == 2 and look.levels == range(3)
    rows = feature_maps.feature_rows(plan, files, 2, level=1)
    (_, first), (_, second) = rows[1]
    fig = look('a', image=1, level=1)
    wanted = first.abs().mean(0).numpy()
    assert np.asarray(fig.axes[1].images[0].get_array()) == pytest.approx(wanted, rel=1e-5)
    fig = look('a', image=1, level=1, view='difference')
    wanted = (second.abs().mean(0) - first.abs().mean(0)).numpy()
    assert np.asarray(fig.axes[1].images[0].get_array()) == pytest.approx(wanted, abs=1e-6)
    assert 'principal components of after' in look('a', view='colours').alt
    fig = look('b', image=1, level=1, view='difference')
    assert (np.asarray(fig.axes[1].images[0].get_array()) == 0).all()  # of one checkpoint
    assert fig.axes[1].get_title() == 'later'


def test_detections_are_looked_at_by_image_and_score(plan, tmp_path):
    truth = json.loads(plan.split('val')[0].read_text())['annotations']
    path = tmp_path / 'found.json'
    detections = [
        {key: item[key] for key in ('image_id', 'category_id', 'bbox')} | {'score': 0.5}
        for item in truth
    ]
    path.write_text(json.dumps(detections))
    # Without the first object of each image, and with one where there is none.
    poor, seen = tmp_path / 'poor.json', set()
    rest = [item for item in detections if item['image_id'] in seen or seen.add(item['image_id'])]
    wrong = [item | {'bbox': [0, 0, 1, 1]} for item in detections if item not in rest]
    poor.write_text(json.dumps(rest + wrong))
    look = widgets.DetectionsView(plan, Run(tmp_path, {}, {}, {}), {'poor': poor, 'perfect': path})
    assert len(look) == 3
    ids = sorted({item['image_id'] for item in truth})
    for image in (0, 2):
        count = sum(item['image_id'] == ids[image] for item in truth)
        alt = look(image=image).alt
        assert f'ground truth: {count} objects' in alt
        assert f'poor: {count - 1} found, 1 wrong (' in alt
        assert f'perfect: {count} found, 0 wrong, 1 new (' in alt
        assert 'perfect: 0 found, 0 wrong.' in look(image=image, threshold=0.6).alt
    look = widgets.DetectionsView(plan, Run(tmp_path, {}, {}, {}), {'perfect': path, 'poor': poor})
    assert '1 wrong, 1 lost (' in look().alt
    titles = [ax.get_title() for ax in look().axes]
    assert len(titles) == 3 and titles[2].startswith('poor:')


def test_masks_are_shown_where_they_were_found(plan, tmp_path):
    (example,) = dataset.sample_images(plan, 'val', 1)
    ids = [item['id'] for item in json.loads(plan.split('val')[0].read_text())['categories']]
    items = []
    for label, box, mask in zip(
        *(example[key] for key in ('labels', 'boxes', 'masks')), strict=True
    ):
        shape = encode(np.asfortranarray(mask.astype(np.uint8)))
        shape['counts'] = shape['counts'].decode()
        corner = [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
        item = {'image_id': example['id'], 'category_id': ids[label], 'score': 0.9}
        items.append(item | {'bbox': corner, 'segmentation': shape})
    path = tmp_path / 'found.json'
    path.write_text(json.dumps(items))
    detections = dataset.read_detections(path, plan, [example['id']], masks=True)[example['id']]
    assert (detections['masks'] == example['masks']).all() and detections['masks'].any()
    assert 'masks' not in dataset.read_detections(path, plan, [example['id']])[example['id']]
    look = widgets.DetectionsView(plan, Run(tmp_path, {}, {}, {}), {'perfect': path})
    truth, ours = (np.asarray(ax.images[0].get_array()) for ax in look().axes[:2])
    assert (truth == ours).all() and (ours != example['image']).any()
