"""Numbers of a student that is there as a checkpoint only, and whether they can be compared with the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..config.recipe import Recipe
from ..data import coco
from ..engine.evaluation import evaluate
from ..errors import RecipeError, unknown_name
from ..pipeline.run_dir import run_info
from ..utils.paths import resolve_path
from ..utils.statistics import format_signed
from .published import paper_gains
from .run import Run, load_run

VAL2017_SIZE = 5000, 80  # images and categories


def dataset_name(recipe: Recipe) -> str:
    """What a recipe's AP is measured on: 'COCO' (val2017 whole, told by its content), 'DigitScenes', else the folder's name."""
    if recipe.cfg.data.root is None:
        return 'DigitScenes'
    if coco.split_size(recipe.split('val')[0]) == VAL2017_SIZE:
        return 'COCO'
    return Path(recipe.ensure_data()).name


METRIC_NAMES = {'bbox': 'box', 'segm': 'mask'}
AP_NAMES = {'': 'AP', '_50': 'AP50', '_75': 'AP75', '_s': 'AP small', '_m': 'AP medium', '_l': 'AP large'}  # fmt: skip


def load_run_or_plan(recipe: Recipe, work_dir: str | Path = '', checkpoint: str = '') -> Run:
    """The recipe's run, or an empty one where there is none but a checkpoint is to be tested.

    Raises:
        MtpdError: there is neither a run nor a checkpoint.
    """
    path = recipe.run_dir(work_dir)
    if checkpoint and not (path / 'run.json').is_file():
        return Run(path, run_info(recipe), {}, {})
    return load_run(path)


def checkpoint_metrics(
    recipe: Recipe, checkpoint: str, metrics: Sequence[str] = (), work_dir: str | Path = ''
) -> dict | None:
    """COCO numbers of a checkpoint, as `evaluate` gives them, with `folder`: metrics.json and detections.json in
    ``tested/<file>`` of the run directory. None without a checkpoint.

    Args:
        checkpoint: relative to the working directory, the recipe or the checkout.
        metrics: 'bbox', 'segm'; the recipe's where none are given.

    Raises:
        MtpdError: no such file, another architecture or number of classes, a metric that cannot be given.
    """
    if not checkpoint:
        return None
    metrics = tuple(metrics) or tuple(recipe.cfg.evaluation.metrics)
    wrong = [
        unknown_name('metric', metric, METRIC_NAMES)
        for metric in metrics
        if metric not in METRIC_NAMES
    ]
    if wrong:
        raise RecipeError(recipe.source, wrong)
    path = resolve_path(checkpoint, recipe.source)
    folder = recipe.run_dir(work_dir) / 'tested' / path.stem
    return evaluate(recipe, path, metrics, out=folder) | {'folder': folder}


def checkpoint_detections(numbers: dict | None) -> dict[str, Path]:
    """{label: detections.json} of what `checkpoint_metrics` gave, empty for None."""
    return {numbers['checkpoint']: numbers['folder'] / 'detections.json'} if numbers else {}


def paper_rows(numbers: dict | None, recipe: Recipe) -> list[dict]:
    """A row per number in AP points: name, ours, paper (the release), baseline and baseline_2x (the student alone after 12 and
    24 epochs), difference ('+0.1').

    The release has box AP and mask AP only, and the difference is there where ours is on COCO too; else None.
    """
    released = {row['name']: row for row in paper_gains(recipe.cfg.get('paper'))}
    comparable, rows = numbers is not None and dataset_name(recipe) == 'COCO', []
    for metric, name in METRIC_NAMES.items():
        for end, kind in AP_NAMES.items():
            ours = (numbers or {}).get(f'{metric}_mAP{end}')
            if ours is None:
                continue
            paper = released.get(f'{name} {kind}', {})
            row = {'name': f'{name} {kind}', 'ours': 100 * ours, 'paper': paper.get('result')}
            row |= {key: paper.get(key) for key in ('baseline', 'baseline_2x')}
            row['difference'] = None
            if comparable and row['paper'] is not None:
                row['difference'] = format_signed(round(100 * ours, 1) - row['paper'])
            rows.append(row)
    return rows


def paper_verdict(numbers: dict | None, recipe: Recipe) -> str:
    """What `paper_rows` say, in a sentence; '' without a checkpoint."""
    if numbers is None:
        return ''
    data = dataset_name(recipe)
    text = f'{numbers["checkpoint"]} on {numbers["num_images"]:,} images of {data}'
    gaps = [row for row in paper_rows(numbers, recipe) if row['difference'] is not None]
    if gaps:
        parts = (f'{row["name"]} {row["ours"]:.1f}, the release {row["paper"]:.1f}' for row in gaps)
        return f'{text}: {"; ".join(parts)}.'
    if data == 'COCO':
        return f'{text}; the recipe names no figure of the paper for it.'
    return f"{text}. The paper's figures are on COCO: the scales differ, so no difference is given."
