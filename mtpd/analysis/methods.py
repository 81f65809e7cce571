"""Direct against progressive distillation by method, from runs that differ in nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from statistics import mean, stdev

from ..config.recipe import Recipe, load_recipe
from ..config.schema import parse_overrides
from ..errors import MtpdError
from ..utils.files import read_json
from ..utils.paths import ROOT, display_path
from .run import Run, arm_kinds, load_run
from .settings import (
    Settings,
    named_runs,
    recipe_settings,
    run_settings,
    setting_differences,
    sibling_runs,
)

COMPARED_KINDS = ('direct', 'progressive')
METRIC_COLUMNS = {'box': 'AP', 'mask': 'mask_AP'}  # and their columns in `Run.results()`
METHOD_ORDER = (
    'CWD',
    'FGD',
    'MGD',
    'PKD',
    'FeatureMSE',
)  # the paper's, then those that it does not have


@dataclass(frozen=True)
class MethodComparison:
    """AP of the direct and the progressive arm by method.

    Attributes:
        bars: {'box' or 'mask': {method: {'direct' or 'progressive': {'mean', 'sd', 'n'}}}}: AP points over `n` seeds
            and their standard deviation, None for one seed. What has not been measured is not there.
        sources: {method: the files and folders that it is from}.
        left_out: runs that seemed to belong here, each with the reason.
    """

    bars: dict[str, dict]
    sources: dict[str, list[str]]
    left_out: list[str]


def compare_methods(
    recipe: Recipe, run: Run, folders: Sequence[str] = (), results: Path = ROOT / 'results'
) -> MethodComparison:
    """The comparison over `run`, others of its recipe, and committed results.

    Runs are comparable where they differ in the seed, and in the method with its settings, levels and hook points;
    those of one method in the seed only. A seed counts once per method.

    Args:
        folders: the other runs, or folders of runs. None given: the neighbours of `run`, and those in the folders
            beside it whose names begin with the recipe's (``runs/<name>-fgd/0``).
        results: ``<name>/*.json`` in it count for the methods that no run has, where they are comparable.

    Raises:
        MtpdError: a folder that was given is no run, or not comparable: all of them in one message.
    """
    reference = run_settings(run) or recipe_settings(recipe, display_path(run.path))
    measured = _ComparableRuns(reference)
    measured.add(reference, run.results())
    others = named_runs(recipe.source, folders) if folders else sibling_runs(run)
    problems = [measured.add_run(path) for path in others if path != run.path.resolve()]
    problems = [problem for problem in problems if problem]
    if folders and problems:
        raise MtpdError('\n'.join(f'compare: {problem}' for problem in problems))
    methods = {settings.method for settings, _ in measured.entries}
    for settings, rows in committed_results(recipe, run.arms, results / recipe.name):
        if settings.method not in methods:
            measured.add(settings, rows)
    measured.entries.sort(key=lambda entry: _method_rank(entry[0].method))
    return MethodComparison(measured.bars(), measured.sources(), problems)


class _ComparableRuns:
    """Settings and the AP (points) by metric and arm of runs, all comparable with `reference`."""

    def __init__(self, reference: Settings):
        self.reference = reference
        self.entries: list[tuple[Settings, dict[tuple[str, str], float]]] = []

    def add_run(self, path: Path) -> str | None:
        """Adds a run directory, or says why not."""
        try:
            run = load_run(path)
            if settings := run_settings(run):
                return self.add(settings, run.results())
        except MtpdError as error:
            return str(error)
        return f'{display_path(path)} has no recipe.py.'

    def add(self, settings: Settings, rows: list[dict]) -> str | None:
        """Adds rows as `Run.results()` gives them, or says why not."""
        same_method = [entry for entry, _ in self.entries if entry.method == settings.method]
        for other in (self.reference, *same_method[:1]):
            if keys := setting_differences(other, settings):
                more = f' and {len(keys) - 3} more' if len(keys) > 3 else ''
                return (
                    f'{settings.source} differs from {other.source} in {", ".join(keys[:3])}{more}.'
                )
        aps = {
            (metric, row['kind']): row[column]
            for metric, column in METRIC_COLUMNS.items()
            for row in rows
            if row['kind'] in COMPARED_KINDS and row.get(column) is not None
        }
        twin = next((entry for entry in same_method if entry.seed == settings.seed), None)
        if aps and twin:
            return f'{settings.source} repeats {twin.source} ({settings.method}, seed {settings.seed}).'
        if aps:
            self.entries.append((settings, aps))
        return None

    def bars(self) -> dict:
        values: dict[str, dict] = {}
        for settings, aps in self.entries:
            for (metric, arm), value in aps.items():
                arms = values.setdefault(metric, {}).setdefault(settings.method, {})
                arms.setdefault(arm, []).append(value)
        return {
            metric: {
                method: {arm: _bar(aps) for arm, aps in arms.items()}
                for method, arms in methods.items()
            }
            for metric, methods in values.items()
        }

    def sources(self) -> dict[str, list[str]]:
        by_method: dict[str, dict[str, None]] = {}
        for settings, _ in self.entries:
            by_method.setdefault(settings.method, {})[settings.source] = None
        return {method: list(sources) for method, sources in by_method.items()}


def _method_rank(method: str) -> tuple[int, str]:
    return METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER), method


def _bar(values: list[float]) -> dict:
    """AP over seeds."""
    return {
        'mean': mean(values),
        'sd': stdev(values) if len(values) > 1 else None,
        'n': len(values),
    }


def methods_caption(
    comparison: MethodComparison, paper: dict, student: str | None, dataset: str
) -> str:
    """What a reader of the two charts must know: scales, sources, seeds, what is missing.

    Args:
        paper: `mtpd.analysis.paper_chart(student)`.
        dataset: `mtpd.analysis.paper.dataset_name(recipe)`.
    """
    text = []
    if paper:
        text.append(
            f"The paper's bars are read off its chart for {student}, to about 0.05 points; its teachers may be others "
            "than this recipe's. Both bars of a pair stand for 24 epochs, direct at once, progressive 12 + 12."
        )
    if not comparison.bars:
        text.append('No run has been measured here yet, so there are no bars of ours.')
    elif paper and dataset == 'COCO':
        text.append('Both sides are AP on COCO.')
    elif paper:
        text.append(
            f"The scales differ: the paper's AP is on COCO at full size, ours on {dataset} with this recipe's detectors. "
            'Only the direction from direct to progressive can be compared.'
        )
    text += [
        f'{method}: {_seeds_text(method, comparison.bars)} ({_sources_text(sources)}).'
        for method, sources in comparison.sources.items()
    ]
    numbers = [
        bar for m in comparison.bars.values() for arms in m.values() for bar in arms.values()
    ]
    if any(bar['n'] > 1 for bar in numbers):
        text.append('Bars are means over the seeds, whiskers one standard deviation up and down.')
    if any(bar['n'] == 1 for bar in numbers):
        text.append('A single seed has no whiskers: its noise is not known.')
    missing = [
        f'{method} {arm}'
        for method in comparison.bars.get('box', {})
        for arm in COMPARED_KINDS
        if arm not in comparison.bars['box'][method]
    ]
    if missing:
        text.append(f'Not measured, so not drawn: {", ".join(missing)}.')
    if comparison.left_out:
        text.append(f'Left out: {" ".join(comparison.left_out)}')
    return ' '.join(text)


def _sources_text(sources: list[str]) -> str:
    """Runs of one folder together: runs/a/0, 1, 2."""
    by_folder: dict[str, list[str]] = {}
    for source in sources:
        folder, _, name = source.rpartition('/')
        by_folder.setdefault(folder, []).append(name)
    return '; '.join(f'{folder}/{", ".join(names)}' for folder, names in by_folder.items())


def _seeds_text(method: str, bars: dict) -> str:
    counts = {bar['n'] for methods in bars.values() for bar in methods.get(method, {}).values()}
    low, high = min(counts), max(counts)
    return f'{low if low == high else f"{low} to {high}"} seed{"s" if high > 1 else ""}'


# Committed results: copies of a run's results.json, and summaries by benchmarks/seeds.py.


def committed_results(
    recipe: Recipe, arms: list[dict], folder: Path
) -> Iterator[tuple[Settings, list[dict]]]:
    """Every seed in `folder`'s JSON files, single runs first: its settings, and rows as `Run.results()` gives them.

    The settings are those of today's recipe with the overrides of the command in the file.

    Args:
        arms: those of the run to compare with, as in run.json. Files with other arms or updates are passed over.
    """
    kinds = arm_kinds(arms)
    labels = {arm.get('label') or arm['name']: arm for arm in arms}
    files = [(path, read_json(path)) for path in sorted(folder.glob('*.json'))]
    files = [(path, content) for path, content in files if isinstance(content, dict)]
    for path, content in files:
        if {'run', 'results'} <= content.keys() and not content['run'].get('smoke'):
            info = content['run']
            if _arm_plans(info['arms']) == _arm_plans(arms):
                yield from _settings_of_command(
                    recipe, info['command'], info['seed'], path, content['results']
                )
    for path, content in files:
        if {'seeds', 'rows', 'commands'} <= content.keys():
            known = [
                (row, labels[row['label']]) for row in content['rows'] if row['label'] in labels
            ]
            if any(row.get('updates', arm['updates']) != arm['updates'] for row, arm in known):
                continue
            for k, seed in enumerate(content['seeds']):
                rows = [{'kind': kinds[arm['name']], 'AP': row['AP'][k]} for row, arm in known]
                yield from _settings_of_command(recipe, content['commands'][k], seed, path, rows)


def _arm_plans(arms: list[dict]) -> list[tuple]:
    return [(arm['name'], arm['teachers'], arm['updates']) for arm in arms]


def _settings_of_command(
    recipe: Recipe, command: str, seed: int, path: Path, rows: list[dict]
) -> Iterator:
    words = shlex.split(command)
    start = words.index('--cfg-options') + 1 if '--cfg-options' in words else len(words)
    overrides = takewhile(lambda word: not word.startswith('--'), words[start:])
    try:
        same = load_recipe(recipe.source, parse_overrides(' '.join(overrides)))
    except (MtpdError, ValueError):  # overrides that the recipe does not know any more
        return
    yield replace(recipe_settings(same, display_path(path)), seed=seed), rows
