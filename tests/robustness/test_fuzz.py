"""Anything at all, to what reads files that others wrote: no exception but the documented ones.

Few examples by default; MTPD_FUZZ=20000 tries so many in each test.
"""

import copy
import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mtpd import load_recipe
from mtpd.analysis.run import loss_rows
from mtpd.config import schema
from mtpd.config.files import override_values
from mtpd.data import coco
from mtpd.data.annotations import parse_annotations
from mtpd.errors import MtpdError, RecipeError
from mtpd.runtime import checkpoints
from mtpd.utils.files import read_log

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
EXAMPLES = int(os.environ.get('MTPD_FUZZ', '60'))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES <= 100,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp('fuzz')


# Annotation files

IDS = st.integers(0, 3) | SCALARS
NUMBERS = st.integers(-2, 70) | st.floats()
RUNS = st.fixed_dictionaries(
    {'size': st.lists(st.integers(0, 70), max_size=3), 'counts': VALUES | st.text('0123456789oPm', max_size=9)}
)  # fmt: skip
KINDS = {
    'images': {'id': IDS, 'file_name': st.text(max_size=6), 'width': NUMBERS, 'height': NUMBERS},
    'categories': {'id': IDS, 'name': st.text(max_size=3)},
    'annotations': {
        'id': IDS,
        'image_id': IDS,
        'category_id': IDS,
        'bbox': st.lists(NUMBERS, min_size=4, max_size=4) | VALUES,
        'area': NUMBERS,
        'iscrowd': st.integers(0, 1) | VALUES,
        'segmentation': VALUES | RUNS | st.lists(st.lists(NUMBERS, max_size=8), max_size=2),
    },
}


def listed(keys: dict):
    proper = st.fixed_dictionaries({}, optional={key: some | VALUES for key, some in keys.items()})
    return st.lists(proper | VALUES, max_size=4)


TABLES = st.fixed_dictionaries({kind: listed(keys) for kind, keys in KINDS.items()})


@fuzz
@given(table=TABLES)
@example(table={'images': [], 'annotations': [{'id': 1, 'iscrowd': []}], 'categories': []})
@example(
    table={
        'images': [],
        'annotations': [{'id': 1, 'segmentation': [[10**400] * 6]}],
        'categories': [],
    }
)
def test_annotation_checker(table):
    _, *texts = parse_annotations(table, 'x')
    for text in (text for kind in texts for text in kind):
        assert isinstance(text, str) and text.encode() and len(text) < 1000


@fuzz
@given(
    content=st.binary(max_size=60)
    | VALUES.map(json.dumps).map(str.encode)
    | TABLES.map(json.dumps).map(str.encode)
)
@example(content=b'[' * 100_000)
@example(content=b'{"a": ' + b'9' * 5000 + b'}')
def test_annotation_file(folder, content):
    (folder / 'annotations').mkdir(exist_ok=True)
    (folder / 'annotations' / 'train.json').write_bytes(content)
    texts = coco.split_problems(folder, 'train')
    assert texts and all(text.encode() for text in texts)


# Recipes

KEYS = st.sampled_from(
    ['seed', 'data', 'data.splits', 'data.splits.train', 'image.scale', 'image.mean', 'student', 'student.config',
     'teachers', 'teachers.r101', 'arms', 'arms.direct.teachers', 'arms.direct', 'distill', 'distill.levels', 'distill.method',
     'distill.settings', 'distill.settings.mgd', 'distill.settings.mgd.levels', 'order.images', 'schedule', 'schedule.arm',
     'schedule.lr', 'evaluation.metrics', 'runtime.jobs', 'paper', 'title', '_base_', '_delete_', 'a..b', '.', 'filename', 'text']
) | st.text('abc._[]0', max_size=8)  # fmt: skip


@fuzz
@given(
    text=st.text(max_size=40)
    | st.lists(st.tuples(KEYS, VALUES.map(repr)).map('='.join), max_size=3).map(' '.join)
)
@example(text='a=' + '(' * 300)
@example(text='a=' + '-' * 100_000 + '1')
@example(text='a={[]:1}')
def test_overrides(text):
    try:
        overrides = schema.parse_overrides(text)
    except ValueError:
        return
    assert all(isinstance(key, str) for key in overrides)


@pytest.fixture(scope='module')
def recipe():
    return load_recipe(MINI)


@fuzz
@given(overrides=st.dictionaries(KEYS, VALUES, max_size=3))
@example(overrides={'data.splits': 3})
@example(overrides={'arms.direct.teachers': [['r101']]})
@example(overrides={'distill.levels': [None]})
@example(overrides={'evaluation.metrics': [[]]})
def test_recipe_schema(recipe, overrides):
    """What `load_recipe` does with overrides, but for reading the file again."""
    cfg = copy.deepcopy(recipe.cfg)
    try:
        override_values(cfg, overrides, recipe.source)
    except RecipeError:
        return
    assert all(isinstance(text, str) for text in schema.value_problems(cfg._cfg_dict.to_dict()))


# Checkpoints

GOOD = io.BytesIO()
torch.save({'state_dict': {'backbone.w': torch.ones(3)}, 'meta': {'CLASSES': ('a',)}}, GOOD)
OLD = io.BytesIO()
torch.save({'state_dict': {'w': torch.ones(3)}}, OLD, _use_new_zipfile_serialization=False)


def damaged(content: bytes):
    """The file with some bytes changed, and cut."""
    changes = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)

    def apply(given):
        changed, end = bytearray(content), given[1]
        for place, value in given[0]:
            changed[place] = value
        return bytes(changed[:end])

    return st.tuples(changes, st.integers(len(content) // 2, len(content))).map(apply)


FILES = st.binary(max_size=80) | VALUES.map(lambda value: pickle.dumps(value, 2))
FILES |= damaged(GOOD.getvalue()) | damaged(OLD.getvalue())


@fuzz
@given(content=FILES)
@example(content=b'\x80')
def test_checkpoint_recogniser(folder, content):
    path = folder / 'a.pth'
    path.write_bytes(content)
    try:
        state = checkpoints.student_state(checkpoints.load_checkpoint(path), path)
    except MtpdError as error:
        assert str(path) in str(error)
    else:
        assert all(isinstance(value, torch.Tensor) for value in state.values())


# Logs

ROWS = st.dictionaries(
    st.sampled_from(['update', 'loss', 'loss_cls', 'loss_mgd_fpn_0', 'lr', 'bbox_mAP']),
    SCALARS | VALUES,
    max_size=5,
)


@fuzz
@given(
    content=st.lists(ROWS.map(json.dumps).map(str.encode) | st.binary(max_size=30), max_size=5).map(
        b'\n'.join
    )
)
@example(content=b'[' * 100_000)
@example(content=b'{"update": 1, "loss": "high"}')
@example(content=b'\xff\xfe')
def test_log_reader(folder, content):
    path = folder / 'log.json'
    path.write_bytes(content)
    assert all(isinstance(row, dict) and 'update' in row for row in read_log(path))
    assert len(loss_rows(path)) == len(read_log(path))
