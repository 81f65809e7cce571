"""Adaptation costs in closed form against the usual way: 1 x 1 convolutions trained by Adam, on the same features.

python benchmarks/adaptation_cost.py --out results/bench/adaptation_cost.json
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mtpd.adaptation import costs_from_features
from mtpd.features import load_all
from mtpd.files import write_json
from mtpd.order import image_features
from mtpd.recipe import load_recipe
from mtpd.train import detector_checkpoint

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'


def stacked(images: list[dict], name: str, stride: int) -> torch.Tensor:
    """All images' features at one stride, (N, C, H, W)."""
    return torch.stack([image[name][stride] for image in images])


def trained_cost(source: tuple, target: tuple, epochs: int, batch: int, lr: float) -> float:
    """Share of the held-out target's variance that a trained adapter leaves unexplained."""
    torch.manual_seed(0)
    (fit_x, held_x), (fit_y, held_y) = source, target
    adapter = nn.Conv2d(fit_x.shape[1], fit_y.shape[1], 1)
    steps = epochs * -(-len(fit_x) // batch)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(fit_x)).split(batch):
            loss = nn.functional.mse_loss(adapter(fit_x[chosen]), fit_y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        residual = (adapter(held_x) - held_y).double().square().sum()
        centred = held_y.double() - held_y.double().mean((0, 2, 3), keepdim=True)
        return float(residual / centred.square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('recipe', nargs='?', default=MINI)
    parser.add_argument('--work-dir', help='a run whose student to use')
    parser.add_argument('--images', type=int, default=256)
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--lr', type=float, default=1e-2)
    parser.add_argument('--out', type=Path, help='where the JSON goes')
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe)
    files = {n: (n, detector_checkpoint(recipe, n, options.work_dir)) for n in recipe.detectors}
    models = load_all(recipe, files)
    began = time.perf_counter()
    halves = [list(image_features(recipe, models, options.images, k)) for k in (0, 1)]
    forward = time.perf_counter() - began
    began = time.perf_counter()
    closed = costs_from_features(*halves, replicates=0)
    closed_seconds = time.perf_counter() - began
    names, strides = closed['detectors'], sorted(closed['levels'])
    trained = np.zeros((len(strides), len(names), len(names)))
    began = time.perf_counter()
    for level, stride in enumerate(strides):
        data = {n: tuple(stacked(half, n, stride) for half in halves) for n in names}
        for i, a in enumerate(names):
            for j, b in enumerate(names):
                if a != b:
                    settings = options.epochs, options.batch, options.lr
                    trained[level, i, j] = trained_cost(data[a], data[b], *settings)
    trained_seconds = time.perf_counter() - began
    other = trained.mean(0)
    print(f'{"pair":<20}{"closed form":>12}{"trained":>10}')
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            if a != b:
                print(f'{a + " -> " + b:<20}{closed["cost"][i, j]:12.4f}{other[i, j]:10.4f}')
    worst = float((closed['cost'] - other).max())
    print(
        f'features {forward:.1f} s; closed form {closed_seconds:.2f} s, trained {trained_seconds:.1f} s:'
    )
    print(
        f'{trained_seconds / closed_seconds:.0f} times as long; largest closed - trained {worst:+.4f}'
    )
    if options.out:
        found = {
            'detectors': names,
            'closed': closed['cost'].tolist(),
            'trained': other.tolist(),
            'seconds': {'features': forward, 'closed': closed_seconds, 'trained': trained_seconds},
            'settings': {k: v for k, v in vars(options).items() if k not in ('out', 'work_dir')},
            'threads': 1,
            'command': f'python benchmarks/adaptation_cost.py {options.recipe} --work-dir RUN '  # of `mtpd run`
            f'--images {options.images} --epochs {options.epochs} --out {options.out}',
        }
        write_json(options.out, found)


if __name__ == '__main__':
    main()
