"""Adaptation costs in closed form against explicit least squares on stacked pixels, and against 1 x 1 convolutions
trained by Adam: all on the same features, fitted on one half of the images and measured on the other.

python benchmarks/adaptation_cost.py RECIPE --out results/bench/adaptation_cost.json
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mtpd.config.recipe import load_recipe
from mtpd.distill.adaptation_cost import costs_from_features
from mtpd.engine.features import load_detectors
from mtpd.pipeline.detectors import detector_checkpoint
from mtpd.pipeline.teacher_order import image_features
from mtpd.utils.files import write_json
from mtpd.utils.machine import describe_environment
from mtpd.utils.paths import display_path
from mtpd.utils.progress import progress_bar

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def stacked(images: list[dict], name: str, stride: int) -> torch.Tensor:
    """All images' features at one stride, (N, C, H, W)."""
    return torch.stack([image[name][stride] for image in images])


def share(residual: torch.Tensor, target: torch.Tensor) -> float:
    """Of the variance of `target` (N, C, H, W), what `residual` leaves."""
    centred = target.double() - target.double().mean((0, 2, 3), keepdim=True)
    return float(residual.double().square().sum() / centred.square().sum())


def explicit_cost(source: tuple, target: tuple, options) -> float:
    """By numpy's least squares in float64, a row per pixel."""

    def rows(x):
        return x.double().movedim(1, -1).reshape(-1, x.shape[1]).numpy()

    def with_one(x):
        return np.c_[rows(x), np.ones(x[:, 0].numel())]

    weights = np.linalg.lstsq(with_one(source[0]), rows(target[0]), rcond=None)[0]
    return share(torch.from_numpy(with_one(source[1]) @ weights - rows(target[1])), target[1])


def trained_cost(source: tuple, target: tuple, options) -> float:
    """By an adapter trained with Adam and a cosine schedule."""
    torch.manual_seed(0)
    (fit_x, held_x), (fit_y, held_y) = source, target
    adapter = nn.Conv2d(fit_x.shape[1], fit_y.shape[1], 1)
    steps = options.epochs * -(-len(fit_x) // options.batch)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(fit_x)).split(options.batch):
            loss = nn.functional.mse_loss(adapter(fit_x[chosen]), fit_y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return share(adapter(held_x) - held_y, held_y)


def every_pair(names: list[str], strides: list[int], halves: list, cost, options) -> np.ndarray:
    """Costs (D, D), the mean over the strides, by a function of (source, target, options)."""
    costs = np.zeros((len(strides), len(names), len(names)))
    for level, stride in enumerate(progress_bar('levels', strides)):
        data = {n: tuple(stacked(half, n, stride) for half in halves) for n in names}
        for i, a in enumerate(names):
            for j, b in enumerate(names):
                if a != b:
                    costs[level, i, j] = cost(data[a], data[b], options)
    return costs.mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('recipe', nargs='?', default=MINI)
    parser.add_argument('--work-dir', help='a run whose detectors to use')
    parser.add_argument('--images', type=int, default=256)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--lr', type=float, default=1e-2)
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe)
    files = {n: (n, detector_checkpoint(recipe, n, options.work_dir)) for n in recipe.detectors}
    models, seconds = load_detectors(recipe, files), {}

    def timed(what, function):
        began = time.perf_counter()
        result = function()
        seconds[what] = round(time.perf_counter() - began, 3)
        return result

    halves = timed(
        'features',
        lambda: [list(image_features(recipe, models, options.images, k)) for k in (0, 1)],
    )
    closed = timed('closed', lambda: costs_from_features(*halves, replicates=0))
    names, strides = closed['detectors'], sorted(closed['levels'])
    costs = {'closed': closed['cost']}
    for what, cost in (('explicit', explicit_cost), ('trained', trained_cost)):
        costs[what] = timed(what, lambda c=cost: every_pair(names, strides, halves, c, options))
    print(f'{"pair":<20}{"closed form":>12}{"explicit":>10}{"trained":>10}')
    apart = ~np.eye(len(names), dtype=bool)
    for i, j in np.argwhere(apart):
        values = (f'{costs[what][i, j]:10.4f}' for what in costs)
        print(f'{names[i] + " -> " + names[j]:<22}' + ''.join(values))
    gaps = {what: (costs['closed'] - costs[what])[apart] for what in ('explicit', 'trained')}
    print(f'largest |closed - explicit| {np.abs(gaps["explicit"]).max():.1e}')
    print(f'closed - trained from {gaps["trained"].min():+.4f} to {gaps["trained"].max():+.4f}')
    print(', '.join(f'{what} {value:.2f} s' for what, value in seconds.items()), end='; ')
    print(f'trained / closed {seconds["trained"] / seconds["closed"]:.0f}')
    if options.out:
        words = [
            display_path(Path(word)) if Path(word).is_absolute() else word for word in sys.argv
        ]
        report = {
            'command': ' '.join(['python', *words]),
            'detectors': names,
            **{what: cost.tolist() for what, cost in costs.items()},
            'seconds': seconds,
            'settings': {k: v for k, v in vars(options).items() if k not in ('out', 'work_dir')},
            'environment': describe_environment(threads=1),
        }
        write_json(options.out, report)


if __name__ == '__main__':
    main()
