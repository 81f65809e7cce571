"""A detector as an ONNX file: the boxes that PyTorch gives, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from mmcv import Config
from mmcv.ops import nms
from mmdet.apis import inference_detector
from mmdet.models import build_detector

from mtpd import load_recipe, predict
from mtpd.cli.main import main
from mtpd.edge import EdgeDetector, nms_indices
from mtpd.engine.onnx_export import export_onnx, image_preparation
from mtpd.errors import MtpdError
from mtpd.utils.paths import ROOT, find_config_file

pytest.importorskip('onnxruntime')
MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
TEACHERS = ROOT / 'configs/mini/teachers'


def pictures() -> list[np.ndarray]:
    """Photographs with digits on them, and other formats."""
    recipe = load_recipe(MINI, {'data.scenes.train': 2, 'data.scenes.val': 4})
    _, folder = recipe.split('val')
    scenes = [cv2.imread(str(path)) for path in sorted(folder.glob('*'))[:4]]
    wide = np.concatenate([scenes[0], scenes[1][:, :70]], axis=1)
    return [
        *scenes,
        wide,
        np.ascontiguousarray(wide.transpose(1, 0, 2)),
        cv2.resize(wide, (61, 47)),
    ]


@pytest.mark.parametrize('name', ['r101', 'rx101'])
def test_the_boxes_are_pytorchs(tmp_path, name):
    model = predict.detector(TEACHERS / name / 'model.pth', MINI, name, 'cpu')
    edge = EdgeDetector(export_onnx(model, tmp_path / 'teacher.onnx'))
    with pytest.raises(MtpdError, match='the image is None'):
        edge(cv2.imread(str(tmp_path / 'gone.png')))
    count = 0
    # mmdet pads to a multiple of 32; the exported network has one size, and more of it may be padding.
    model.cfg.data.test.pipeline[1].transforms[3] = dict(type='Pad', size=(128, 128))
    inside = [128, 128]  # what mmdet would have padded the image to, width and height

    forward = model.bbox_head.forward

    def without_cells_of_padding(features):
        outputs = forward(features)
        for scores, stride in zip(outputs[0], (8, 16, 32), strict=True):
            scores[:, :, inside[1] // stride :] = scores[:, :, :, inside[0] // stride :] = -30
        return outputs

    model.bbox_head.forward = without_cells_of_padding
    sizes = set()
    for image in pictures():
        shape = [round(side * 128 / max(image.shape[:2])) for side in image.shape[1::-1]]
        inside[:] = [32 * -(-side // 32) for side in shape]
        sizes.add(tuple(inside))
        theirs = [
            (model.CLASSES[k], *row) for k, rows in enumerate(inference_detector(model, image)) for row in rows
        ]  # fmt: skip
        ours = edge(image)
        assert len(ours) == len(theirs)
        assert [o['score'] for o in ours] == sorted((o['score'] for o in ours), reverse=True)
        for detection in ours:
            same = [row[1:] for row in theirs if row[0] == detection['class']]
            gaps = np.abs(np.array(same) - [*detection['box'], detection['score']]).max(axis=1)
            assert gaps.min() < 1e-3
        count += len(ours)
    assert count > 20 and sizes == {(128, 128), (128, 96), (96, 128)}
    few = edge(pictures()[0], threshold=0.5)
    assert 0 < len(few) <= len(edge(pictures()[0])) and all(o['score'] >= 0.5 for o in few)


def test_suppression_is_mmcvs():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (200, 2)).astype(np.float32)
    boxes = np.c_[corners, corners + rng.uniform(5, 30, (200, 2)).astype(np.float32)]
    scores = rng.permutation(200).astype(np.float32) / 200
    _, indices = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5)
    assert nms_indices(boxes, scores, 0.5).tolist() == indices.tolist()
    assert nms_indices(boxes[:0], scores[:0], 0.5).tolist() == []


def test_from_the_command_line_and_without_torch(tmp_path):
    out = tmp_path / 'teacher.onnx'
    command = ['export', str(TEACHERS / 'r101/model.pth'), str(out), '--config', MINI]
    done = CliRunner().invoke(main, [*command, '--detector', 'r101'])
    assert done.exit_code == 0 and done.output.strip() == str(out), done.output
    image = tmp_path / 'image.png'
    cv2.imwrite(str(image), pictures()[0])
    script = (
        'import sys, cv2, json; from mtpd.edge import EdgeDetector;'
        f'detections = EdgeDetector({str(out)!r})(cv2.imread({str(image)!r}));'
        'print(json.dumps([detections, "torch" in sys.modules, "mmdet" in sys.modules]))'
    )
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=ROOT)
    objects, *imported = json.loads(done.stdout)
    assert imported == [False, False] and objects and len(objects[0]['box']) == 4


def test_what_can_not_be_exported_says_so(tmp_path):
    for recipe, words in (
        (
            'configs/mini/mask_rcnn_r50__swint_swins.py',
            'only one-stage detectors whose head gives scores and deltas of anchors',
        ),
        (
            'configs/mini/reppoints_r50__r101_rx101dcn.py',
            'only one-stage detectors whose head gives scores and deltas of anchors',
        ),
    ):
        from mmdet.models import build_detector

        model = build_detector(load_recipe(recipe).model('student'))
        with pytest.raises(MtpdError, match=words):
            export_onnx(model, tmp_path / 'x.onnx')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'config',
    [
        'atss/atss_r50_fpn_1x_coco',
        'paa/paa_r50_fpn_1x_coco',
        'gfl/gfl_r50_fpn_1x_coco',
        'tood/tood_r50_fpn_1x_coco',
    ],
)
def test_a_head_that_scores_in_another_way_is_refused(config, tmp_path):
    """Centerness, distances or decoded boxes in the place of deltas."""
    cfg = Config.fromfile(str(find_config_file(f'mmdet::{config}.py')))
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.model.pop('pretrained', None)
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    cfg.data.test.pipeline[1].img_scale = (64, 64)
    model = build_detector(cfg.model)
    model.cfg, model.CLASSES = cfg, ('a',)
    with pytest.raises(MtpdError, match='cannot be exported to ONNX: only one-stage'):
        export_onnx(model, tmp_path / 'x.onnx')
    assert not list(tmp_path.iterdir())


def test_a_deformable_teacher_is_named(tmp_path):
    model = predict.detector(TEACHERS / 'r101/model.pth', MINI, 'r101', 'cpu')

    class DeformConv2d(torch.nn.Conv2d):
        pass

    model.backbone.conv1 = DeformConv2d(3, 16, 7)
    with pytest.raises(MtpdError, match=r'backbone\.conv1 is a deformable convolution'):
        export_onnx(model, tmp_path / 'x.onnx')


def test_files_that_are_none(tmp_path):
    with pytest.raises(MtpdError, match='does not exist'):
        EdgeDetector(tmp_path / 'no.onnx')
    (tmp_path / 'bad.onnx').write_bytes(b'\x00nothing')
    with pytest.raises(MtpdError, match='not an ONNX file'):
        EdgeDetector(tmp_path / 'bad.onnx')


def test_the_preparation_is_read_from_the_config():
    model = predict.detector(TEACHERS / 'r101/model.pth', MINI, 'r101', 'cpu')
    steps = image_preparation(model.cfg)
    assert tuple(steps['scale']) == (128, 128) and steps['divisor'] == 32 and steps['to_rgb']
    assert steps['mean'] == [123.675, 116.28, 103.53]
