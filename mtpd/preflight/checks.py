"""What would stop a run after hours, found in seconds: everything that is wrong, in one message."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..config.recipe import Recipe, load_recipe
from ..config.trainings import Training
from ..config.trainings import of_recipe as trainings_of
from ..engine.loop import device_of, processes
from ..errors import MtpdError, RecipeError
from ..runtime.distributed import images_per_process
from ..utils.download import fits
from ..utils.files import sha256_in_name
from ..utils.progress import bar
from . import compare, disk, schedule
from .forecast import forecast

Weights = tuple[str, str]  # a detector, and the key of its checkpoint: 'checkpoint' or 'init'


def check(
    recipe: Recipe,
    names: Iterable[str],
    loaded: Iterable[str] | None = None,
    trainings: Iterable[Training] = (),
    folder: Path | None = None,
) -> None:
    """Device, data, detectors, checkpoints, distillation, disk; what the recipe names by a URL is fetched at the end.

    Args:
        names: detectors that are about to be used: 'student' or teachers.
        loaded: those of which the checkpoint is; by default all.
        trainings: what is to be trained, into `folder`.

    Raises:
        RecipeError: everything that is wrong.
        MtpdError: a checkpoint can't be fetched.
    """
    names = list(names)
    loaded = names if loaded is None else list(loaded)
    found = problems(recipe, names, loaded, trainings, folder) or fetched(recipe, names, loaded)
    if found:
        raise RecipeError(recipe.source, found)


def of_run(
    recipe: Recipe, run_dir: Path, tried: bool = True, echo: Callable[[str], None] = print
) -> tuple[list[str], dict | None]:
    """What is wrong with a whole run, and what it will take (`forecast.forecast`) where nothing is and it is `tried`."""
    names, todo, seen = list(recipe.detectors), trainings_of(recipe, run_dir), []

    def try_out() -> list[str]:
        found, wrong = forecast(recipe, todo, run_dir, echo)
        seen.append(found)
        return wrong

    found = problems(recipe, names, names, todo, run_dir, try_out if tried else list)
    return found, seen[0] if seen and not found else None


def fetched(recipe: Recipe, names: Iterable[str], loaded: Iterable[str]) -> list[str]:
    """Fetches the checkpoints that aren't here, and returns what is wrong with them; names as `check` takes them."""
    found = []
    for item in _weights(recipe, names, loaded):
        if not _is_here(recipe, *item):
            recipe.fetch(*item)
            found += _of_weights(recipe, *item)
    return found


def load_whole(
    path: str | Path, overrides: dict | str | None = None, seed: int | None = None
) -> Recipe:
    """As `load_recipe`; where a recipe has wrong keys or values, its error also tells what else is wrong."""
    try:
        return load_recipe(path, overrides, seed)
    except RecipeError as error:
        if error.rest is None:
            raise
        raise RecipeError(error.source, error.problems + _besides(error.rest)) from None


def _besides(recipe: Recipe) -> list[str]:
    """Problems of a recipe that has wrong values, as far as these let them be seen."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # any: what is called trusts the values
        names = list(recipe.detectors)
        return problems(recipe, names, names)
    for look in (recipe.data_problems, recipe.checkpoint_problems):
        with contextlib.suppress(Exception):
            found += look()
    return found


def problems(
    recipe: Recipe,
    names: Iterable[str],
    loaded: Iterable[str],
    trainings: Iterable[Training] = (),
    folder: Path | None = None,
    more: Callable[[], list[str]] = list,
) -> list[str]:
    """As `check`, a text each; of checkpoints those that are here. `more` is called where nothing but room is lacking."""
    names, loaded = list(names), list(loaded)
    found = [*_machine(recipe), *schedule.problems(recipe), *recipe.data_problems()]
    if not _classes_known(recipe):  # which the heads follow from
        return [*found, *recipe.checkpoint_problems(loaded)]
    broken, fine = _without_model(recipe, names)
    found += broken + compare.settings_problems(recipe, fine)
    found += recipe.checkpoint_problems(loaded)
    for name, key in bar('checkpoints', list(_weights(recipe, names, loaded))):
        if name in fine and _is_here(recipe, name, key):
            found += _of_weights(recipe, name, key)
    if 'student' in fine:
        unfit = compare.distillation_problems(recipe, [name for name in fine if name != 'student'])
        found, broken = found + unfit, broken + unfit
    full = disk.problems(recipe, trainings, folder) if folder and not broken else []
    found = list(dict.fromkeys(found))
    return found + full + ([] if found else more())


def _machine(recipe: Recipe) -> Iterator[str]:
    for look in (lambda: images_per_process(recipe.cfg.schedule.batch_size, processes(recipe), recipe.source),
                 lambda: device_of(recipe)):  # fmt: skip
        try:
            look()
        except RecipeError as error:
            yield from error.problems


def _classes_known(recipe: Recipe) -> bool:
    try:
        return bool(recipe.classes)
    except MtpdError:
        return False


def _without_model(recipe: Recipe, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """What is wrong with detectors' configs, and the detectors whose config is right."""
    found, fine = [], []
    for name in bar('detectors', names):
        try:
            recipe.model(name)
            fine.append(name)
        except RecipeError as error:
            found += error.problems
    return found, fine


def _weights(recipe: Recipe, names: Iterable[str], loaded: Iterable[str]) -> Iterator[Weights]:
    """Checkpoints to be loaded, and those that trainings begin with."""
    for name in loaded:
        if recipe.checkpoint(name):
            yield name, 'checkpoint'
    for name in names:
        if not recipe.checkpoint(name) and recipe.checkpoint(name, 'init'):
            yield name, 'init'


def _is_here(recipe: Recipe, name: str, key: str) -> bool:
    path = recipe.checkpoint(name, key)
    if recipe.url(name, key):
        return fits(path, sha256_in_name(path.name))
    return path.is_file() or key == 'init'  # a missing one is told as such by its loading


def _of_weights(recipe: Recipe, name: str, key: str) -> list[str]:
    path = recipe.checkpoint(name, key)
    look = compare.init_problems if key == 'init' else compare.checkpoint_problems
    return look(recipe, name, path)
