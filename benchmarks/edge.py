"""A run's student and its teachers by PyTorch and exported to ONNX: equal boxes, milliseconds an image, size of the file.

python benchmarks/edge.py --run runs/mini_retinanet_r50__r101_rx101/0 --out results/bench/edge.json

Both take an image as OpenCV reads it and give boxes: preparation, network and non-maximum suppression are in the time. They
take turns, image by image; the first ones, which warm up, are not counted.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from mtpd import load_recipe, load_run, predict
from mtpd.data import coco
from mtpd.edge import EdgeDetector
from mtpd.engine import evaluation
from mtpd.engine.onnx_export import export_onnx
from mtpd.pipeline.detectors import detector_checkpoint
from mtpd.runtime import compat  # noqa: F401  (compat before mmcv)
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment
from mtpd.utils.progress import progress_bar

# isort: split
from mmdet.apis import inference_detector

WARM_UP = 5
SAME = 0.01  # pixels or score: the same box


def timed(call) -> tuple[float, object]:
    began = time.perf_counter()
    result = call()
    return 1000 * (time.perf_counter() - began), result


def differences(classes: tuple[str, ...], theirs: list, ours: list[dict]) -> tuple[int, float]:
    """Boxes that only one of them has, which a suppression on the edge decides, and the largest difference of a coordinate
    (pixels) or score of the others.

    Args:
        theirs: mmdet's results: an array (n, 5) for each class.
        ours: `EdgeDetector`'s.
    """
    alone, most = 0, 0.0
    for kind, rows in zip(classes, theirs, strict=True):
        mine = [[*o['box'], o['score']] for o in ours if o['class'] == kind]
        if not len(rows) or not mine:
            alone += len(rows) + len(mine)
            continue
        gaps = np.abs(rows[:, None] - np.array(mine, np.float32)).max(axis=2)
        for nearest in (*gaps.min(axis=1), *gaps.min(axis=0)):
            alone += nearest > SAME
            most = max(most, float(nearest)) if nearest <= SAME else most
    return int(alone), most


def measure(recipe, name: str, checkpoint: Path, images: list[np.ndarray], threads: int) -> dict:
    model = predict.detector(checkpoint, recipe.source, name, 'cpu')
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(model, Path(folder) / 'detector.onnx')
        edge, megabytes = EdgeDetector(path, threads), path.stat().st_size / 1e6
        times, boxes, alone, most = [], 0, 0, 0.0
        for image in progress_bar('images', images):
            by_torch, theirs = timed(lambda image=image: inference_detector(model, image))
            by_onnx, ours = timed(lambda image=image: edge(image))
            times.append((by_torch, by_onnx))
            boxes += sum(map(len, theirs))
            missed, apart = differences(model.CLASSES, theirs, ours)
            alone, most = alone + missed, max(most, apart)
    by_torch, by_onnx = (statistics.median(part) for part in zip(*times[WARM_UP:], strict=True))
    return {
        'torch_milliseconds': by_torch,
        'onnx_milliseconds': by_onnx,
        'ratio': statistics.median(a / b for a, b in times[WARM_UP:]),
        'megabytes': megabytes,
        'parameters': evaluation.model_cost(recipe, name, 1)['parameters'],
        'boxes': boxes,
        'boxes_of_one_only': alone,
        'largest_difference': most,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--run', default='runs/mini_retinanet_r50__r101_rx101/0', type=Path)
    parser.add_argument('--images', type=int, default=100)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    run = load_run(args.run)
    recipe = load_recipe(run.path / 'recipe.py')
    annotations, folder = recipe.split('val')
    names = [
        item['file_name'] for item in coco.read_annotations(annotations)['images'][: args.images]
    ]
    images = [cv2.imread(str(Path(folder) / name)) for name in names]
    arm = run.arm()
    tried = {'student': ('student', run.stage_dirs(arm['name'])[-1] / 'student.pth')}
    tried |= {name: (name, detector_checkpoint(recipe, name)) for name in recipe.cfg.teachers}
    rows = {}
    for label, (name, checkpoint) in tried.items():
        row = rows[label] = measure(recipe, name, checkpoint, images, args.threads)
        print(
            f'{label:8} PyTorch {row["torch_milliseconds"]:.1f} ms, ONNX Runtime {row["onnx_milliseconds"]:.1f} ms, '
            f'ratio {row["ratio"]:.2f}, {row["megabytes"]:.1f} MB; {row["boxes"]} boxes, of one only '
            f'{row["boxes_of_one_only"]}, largest difference {row["largest_difference"]:.0e}'
        )
    if args.out:
        command = ' '.join(['python', *sys.argv])
        write_json(
            args.out,
            {'command': command, 'rows': rows, 'environment': describe_environment(args.threads)},
        )


if __name__ == '__main__':
    main()
