"""COCO's numbers by faster-coco-eval and by pycocotools, in turn, on made-up detections of COCO's shape.

python benchmarks/evaluation.py --out results/bench/evaluation.json     # 5,000 images x 100 detections

Everything that `mtpd.engine.evaluation.coco_metrics` does is timed: indexing the detections, matching, accumulating, per class.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mtpd.engine import evaluation, pipelines
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment
from mtpd.utils.progress import progress_bar

CLASSES = 80
OBJECTS = 7  # an image, as in COCO


def make(folder: Path, images: int, detections: int) -> tuple:
    """The dataset, and detections by metric: three near each object, the others anywhere."""
    rng = np.random.default_rng(0)
    truth, results = [], []
    for image in range(images):
        sides = np.exp(rng.uniform(np.log(6), np.log(400), (OBJECTS, 2)))
        corners = rng.uniform(0, 1, (OBJECTS, 2)) * np.maximum((640, 480) - sides, 1)
        kinds = rng.integers(CLASSES, size=OBJECTS)
        boxes = np.c_[corners, sides]
        for kind, box in zip(kinds, boxes, strict=True):
            item = dict(image_id=image, category_id=int(kind), bbox=box.tolist(), iscrowd=0)
            truth.append(item | dict(id=len(truth) + 1, area=float(box[2] * box[3])))
        near = np.repeat(boxes, 3, axis=0) * rng.normal(1, 0.1, (3 * OBJECTS, 4))
        rest = max(0, detections - len(near))
        far = np.c_[rng.uniform(0, 400, (rest, 2)), np.exp(rng.uniform(2, 5.5, (rest, 2)))]
        kinds = np.r_[np.repeat(kinds, 3), rng.integers(CLASSES, size=rest)]
        scores = np.r_[rng.uniform(0.2, 1, len(near)), rng.uniform(0, 0.6, rest)]
        rows = zip(kinds, np.r_[near, far].round(2), scores, strict=True)
        results += [
            dict(
                image_id=image + 1, category_id=int(kind) + 1, bbox=box.tolist(), score=float(sure)
            )
            for kind, box, sure in list(rows)[:detections]
        ]
    sizes = [dict(id=i, file_name=f'{i:06}.jpg', width=640, height=480) for i in range(images)]
    names = [dict(id=i, name=f'kind {i}') for i in range(CLASSES)]
    table = dict(images=sizes, annotations=truth, categories=names)
    (folder / 'truth.json').write_text(json.dumps(table))
    cfg = dict(type='CocoDataset', ann_file=str(folder / 'truth.json'), pipeline=[], test_mode=True)
    data = pipelines.quiet_dataset(cfg | dict(classes=[name['name'] for name in names]))
    return data, {'bbox': results}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--images', type=int, nargs='+', default=[1250, 2500, 5000])
    parser.add_argument('--detections', type=int, default=100, help='an image')
    parser.add_argument('--pairs', type=int, default=3)
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    rows = []
    for images in options.images:
        seconds: dict = {'pycocotools': [], 'faster_coco_eval': []}
        numbers: dict = {}
        with tempfile.TemporaryDirectory() as folder:
            data, detections = make(Path(folder), images, options.detections)
            for _ in progress_bar(f'{images} images', range(options.pairs)):
                for library, taken in seconds.items():
                    began = time.perf_counter()
                    with contextlib.redirect_stdout(io.StringIO()):
                        numbers[library] = evaluation.coco_metrics(
                            data, detections, ('bbox',), library
                        )
                    taken.append(time.perf_counter() - began)
        theirs, ours = numbers.values()
        names = [f'bbox_{name}' for name in evaluation.COCO_NUMBERS]
        row = {
            'images': images,
            'seconds': {library: statistics.median(taken) for library, taken in seconds.items()},
            'ratio': statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
            'largest_difference': max(abs(theirs[name] - ours[name]) for name in names),
            'bbox_mAP': theirs['bbox_mAP'],
        }
        rows.append(row)
        print(row, flush=True)
    if options.out:
        write_json(
            options.out,
            {
                'command': ' '.join(['python', *sys.argv]),
                'detections_an_image': options.detections,
                'pairs': options.pairs,
                'rows': rows,
                'environment': describe_environment(torch.get_num_threads()),
            },
        )


if __name__ == '__main__':
    main()
