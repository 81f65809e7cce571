"""Loss curves that grow in a notebook while a training runs, and the time that it has left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from .. import plots
from ..analysis.run import loss_rows
from ..config.plan import stage_dir
from ..config.recipe import Recipe
from ..utils.files import read_log

MIN_PAUSE = 2.0  # seconds between two figures
PAUSE_FACTOR = 20  # a pause is at least this many times as long as drawing took


@contextmanager
def live_losses(
    folder: Path,
    teacher: str | None = None,
    show: Callable[[plots.Figure], None] | None = None,
    before: Mapping[Path, str] | None = None,
) -> Iterator[None]:
    """Shows the losses of the training that the block runs into `folder`, again and again, and at its end.

    The same in JupyterLab and in papermill's output, where the last figure stays. Where `folder` holds a training that is
    done already, its figure is shown once.

    Args:
        folder: a training's, with its log.json.
        teacher: its label; None: without a panel for distillation.
        show: gets each figure; by default a place below the cell.
        before: folders of what may have to be trained first, and what each is called.
    """
    show, log, ended = show or _display_place(), folder / 'log.json', threading.Event()
    names = {path / 'log.json': name for path, name in (before or {}).items()}
    modified = {path: _modified_ns(path) for path in names}

    def current() -> Path:
        """The log of what is being trained: of those before, one that was written since; else the folder's."""
        changed = [path for path in names if _modified_ns(path) != modified[path]]
        return max([*changed, log], key=_modified_ns) if changed else log

    def draw(shown: Path = log) -> float:
        began = time.perf_counter()
        fig = plots.loss_curves(loss_rows(shown, teacher if shown == log else None))
        title = progress_text(read_log(shown))
        if shown in names:
            title = f'first, {names[shown]}: {title}'
        if fig.axes:
            fig.suptitle(title, x=0.01, ha='left', fontsize=9)
            fig.alt = f'{title}. {fig.alt}'
        show(fig)
        return time.perf_counter() - began

    def watch() -> None:
        pause, drawn = MIN_PAUSE, None
        while not ended.wait(pause):
            shown = current()
            state = shown, _modified_ns(shown)
            if state != drawn:
                drawn = state
                pause = max(MIN_PAUSE, PAUSE_FACTOR * draw(shown))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        draw()


def train_stage_live(
    recipe: Recipe, stage: int, arm: str = 'progressive', work_dir: str | Path | None = None
) -> dict:
    """As `stages.train_stage`, its losses shown in the meantime."""
    from ..pipeline import stages

    plan = recipe.arm(arm, stage)
    teacher = plan.teachers[stage - 1]
    label = recipe.detectors[teacher].get('label', teacher) if teacher else None
    before = {recipe.run_dir(work_dir) / 'detectors' / 'student': 'baseline'}
    before |= {stage_dir(recipe, plan, k, work_dir): f'stage {k}' for k in range(1, stage)}
    with live_losses(stage_dir(recipe, plan, stage, work_dir), label, before=before):
        return stages.train_stage(recipe, stage, arm, work_dir)


def _modified_ns(log: Path) -> int:
    """When a log was written, in ns; 0 where there is none."""
    return log.stat().st_mtime_ns if log.is_file() else 0


def progress_text(rows: list[dict]) -> str:
    """How far a training is, from its log's rows: 'update 150 of 300, 0.10 s an update, 0:00:15 left'."""
    rows = [row for row in rows if 'time' in row]
    if not rows:
        return 'no update yet'
    update, updates, seconds = (rows[-1][key] for key in ('update', 'updates', 'time'))
    text = f'update {update} of {updates}, {seconds:.2f} s an update'
    if update >= updates:
        return text
    return f'{text}, {timedelta(seconds=round(seconds * (updates - update)))} left'


def _display_place() -> Callable[[plots.Figure], None]:
    """Shows each figure below the cell in the place of the one before; nowhere outside of a notebook."""
    from IPython.display import display

    handle = display(plots.empty('The first losses come soon.'), display_id=True)
    return handle.update if handle else lambda figure: None
