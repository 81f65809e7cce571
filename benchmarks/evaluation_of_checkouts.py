"""What evaluating a detector takes beside its forward passes, in two checkouts of the kit that take turns.

git worktree add /tmp/before dc11107
python benchmarks/evaluation_of_checkouts.py /tmp/before . --out results/bench/evaluation_of_checkouts.json

Timed: reading the annotations, making detections of the arrays that a detector returns, writing them as `detections.json`,
and COCO's numbers. The arrays are made up, of COCO's shape: 5,000 images x 100 detections, 7 objects an image.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IMAGES, CLASSES, OBJECTS, DETECTIONS = 5000, 80, 7, 100


def make(folder: Path, images: int) -> tuple[dict, list]:
    """A dataset's config, and an array `(n, 5)` for each class of each image."""
    import numpy as np

    rng = np.random.default_rng(0)
    annotations, results, far = [], [], DETECTIONS - 3 * OBJECTS
    for image in range(images):
        sides = np.exp(rng.uniform(np.log(6), np.log(400), (OBJECTS, 2)))
        corners = rng.uniform(0, 1, (OBJECTS, 2)) * np.maximum((640, 480) - sides, 1)
        kinds, boxes = rng.integers(CLASSES, size=OBJECTS), np.c_[corners, sides]
        for kind, box in zip(kinds.tolist(), boxes.tolist(), strict=True):
            area, number = box[2] * box[3], len(annotations) + 1
            item = dict(image_id=3 * image + 7, category_id=kind + 1, bbox=box, iscrowd=0)
            annotations.append(item | dict(id=number, area=area))
        near = np.repeat(boxes, 3, axis=0) * rng.normal(1, 0.1, (3 * OBJECTS, 4))
        rest = np.c_[rng.uniform(0, 400, (far, 2)), np.exp(rng.uniform(2, 5.5, (far, 2)))]
        kinds = np.r_[np.repeat(kinds, 3), rng.integers(CLASSES, size=far)]
        scores = np.r_[rng.uniform(0.2, 1, 3 * OBJECTS), rng.uniform(0, 0.6, far)]
        rows = np.c_[np.r_[near, rest], scores]
        rows[:, 2:4] += rows[:, :2]
        rows = rows.astype(np.float32)
        results.append([rows[kinds == kind] for kind in range(CLASSES)])
    sizes = [
        dict(id=3 * i + 7, file_name=f'{i:06}.jpg', width=640, height=480) for i in range(images)
    ]
    names = [f'kind {k}' for k in range(CLASSES)]
    categories = [dict(id=k + 1, name=name) for k, name in enumerate(names)]
    path = folder / 'annotations.json'
    path.write_text(json.dumps(dict(images=sizes, annotations=annotations, categories=categories)))
    cfg = dict(type='CocoDataset', ann_file=str(path), pipeline=[], test_mode=True, classes=names)
    return cfg, results


def measure(checkout: Path, images: int) -> dict:
    """Seconds by part, in this process, and AP."""
    sys.path.insert(0, str(checkout))
    from mtpd.engine import evaluation, pipelines

    if not Path(evaluation.__file__).is_relative_to(checkout):
        raise SystemExit(f'mtpd comes from {evaluation.__file__}, not from {checkout}')
    seconds: dict = {}

    @contextlib.contextmanager
    def timed(part: str):
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            yield
        seconds[part] = time.perf_counter() - began

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cfg, results = make(folder, images)
        with timed('annotations'):
            data = pipelines.quiet_dataset(cfg)
        with timed('detections'):
            if hasattr(data, 'detections'):
                detections = data.detections(results)
                text = json.dumps(data.with_file_ids(detections['bbox']))
                (folder / 'detections.json').write_text(text)
            else:  # up to commit dc11107, by mmdet
                detections, _ = data.format_results(results, str(folder / 'results'))
                text = Path(detections['bbox']).read_text()
                (folder / 'detections.json').write_text(text)
        with timed('numbers'):
            numbers = evaluation.coco_metrics(data, detections, ('bbox',), 'faster_coco_eval')
    return {'seconds': seconds, 'bbox_mAP': numbers['bbox_mAP']}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('before', type=Path, help='a checkout')
    parser.add_argument('after', type=Path, help='another one')
    parser.add_argument('--images', type=int, default=IMAGES)
    parser.add_argument('--pairs', type=int, default=5)
    parser.add_argument('--one', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one.resolve(), options.images)))
        return
    rows: dict = {'before': [], 'after': []}
    for _ in range(options.pairs):
        for side, taken in rows.items():
            command = [sys.executable, '-W', 'ignore', *sys.argv, '--one', getattr(options, side)]
            process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            taken.append(json.loads(process.stdout.splitlines()[-1]))
    whole = {side: [sum(row['seconds'].values()) for row in taken] for side, taken in rows.items()}
    ratio = statistics.median(b / a for a, b in zip(*whole.values(), strict=True))
    for side, taken in whole.items():
        print(f'{side}: {statistics.median(taken):.1f} s, AP {rows[side][0]["bbox_mAP"]:.5f}')
    print(f'after / before, the median of {options.pairs} pairs: {ratio:.2f}')
    if options.out:
        from mtpd.utils.files import write_json
        from mtpd.utils.machine import describe_environment

        commits = {}
        for side in rows:
            command = ['git', '-C', str(getattr(options, side)), 'rev-parse', 'HEAD']
            commits[side] = subprocess.check_output(command, text=True).strip()
        report = {
            'command': ' '.join(['python', *sys.argv]),
            'commits': commits,
            'images': options.images,
            'ratio': ratio,
            'rows': rows,
            'environment': describe_environment(),
        }
        write_json(options.out, report)


if __name__ == '__main__':
    main()
