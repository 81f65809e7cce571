"""Controls beside a figure in JupyterLab; the same cell is the figure alone in papermill's output and in HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from IPython.display import display
from torch import Tensor

from .. import plots
from ..analysis import dataset, feature_maps
from ..analysis.error_types import classify_detections
from ..analysis.run import Run
from ..config.recipe import Recipe
from ..engine.features import feature_batches, load_detectors
from ..plots import Figure


def show_with_controls(
    draw: Callable[..., Figure], **choices: tuple[Any, Sequence[Any] | range]
) -> None:
    """Shows ``draw(**values)``, and controls that draw it anew with other values.

    A kernel behind the page does the drawing: in a static page the figure stays as it was made, and the controls are
    not there.

    Args:
        draw: takes the choices by name.
        choices: ``name=(first, others)``: the value that is shown first, and all that there are: a `range` becomes a
            slider, numbers a slider over them, other values a menu.
    """
    import ipywidgets

    controls = {name: make_control(name, *choice) for name, choice in choices.items()}

    def drawn() -> Figure:
        return draw(**{name: control.value for name, control in controls.items()})

    shown = display(drawn(), display_id=True)

    def changed(_) -> None:
        shown.update(drawn())

    for control in controls.values():
        control.observe(changed, 'value')
    box = ipywidgets.HBox(list(controls.values()), layout={'flex_flow': 'row wrap'})
    # Without its text, which pages that can't show the controls would show in their place.
    display(box._repr_mimebundle_() | {'text/plain': ''}, raw=True)


def make_control(name: str, first: Any, others: Sequence[Any]):
    import ipywidgets

    text = name.replace('_', ' ')
    if isinstance(others, range):
        look = dict(min=others.start, max=others[-1], step=others.step, continuous_update=False)
        return ipywidgets.IntSlider(value=first, description=text, **look)
    options = list(others) if first in others else [first, *others]
    if all(isinstance(value, float) for value in options):
        look = dict(options=sorted(options), continuous_update=False)
        return ipywidgets.SelectionSlider(value=first, description=text, **look)
    return ipywidgets.Dropdown(value=first, options=options, description=text)


# Figures that notebooks draw again and again with other choices. What they are made of is loaded once.

Checkpoints = Mapping[str, tuple[str, Path]]  # by label: name in the recipe, file


class DetectionsView:
    """Ground truth, and what the student found at the baseline and after each arm, and the strongest teacher."""

    def __init__(self, recipe: Recipe, run: Run, more: dict[str, Path] | None = None):
        """`more`: detections.json of others, by label."""
        self.recipe = recipe
        files = {
            f'{run.label("student")}, baseline': run.path / 'detectors/student/detections.json'
        }
        for row in run.results():
            if row['role'] == 'arm' and row['AP'] is not None:
                files[row['label']] = run.stage_dirs(row['name'])[-1] / 'detections.json'
        teachers = [row for row in run.results() if row['role'] == 'teacher' and row['AP']]
        for row in sorted(teachers, key=lambda row: row['AP'])[-1:]:
            files[row['label']] = run.path / 'detectors' / row['name'] / 'detections.json'
        files |= more or {}
        self.files = {label: path for label, path in files.items() if path.is_file()}

    def __len__(self) -> int:
        """Images to choose from."""
        return len(dataset.objects_by_image(self.recipe, 'val'))

    def __call__(self, image: int = 0, threshold: float = 0.3) -> plots.Figure:
        """Of a validation image, in file order, objects scored at least `threshold`; what is new or lost is against the
        first detector."""
        example = dataset.sample_images(self.recipe, 'val', 1, skip=image)[0]
        truth = {key: example[key] for key in ('boxes', 'labels')}
        panels, first = {}, None
        for label, path in self.files.items():
            detections = dataset.read_detections(path, self.recipe, [example['id']], masks=True)
            objects = detections[example['id']]
            classified = classify_detections(truth, objects, threshold)
            first = classified.matched if first is None else first
            panels[label] = objects | {
                'right': np.array([kind == 'correct' for kind in classified.kinds], bool),
                'matched': classified.matched,
                'before': first,
            }
        if example['masks'] is not None:
            truth['masks'] = example['masks']
        return plots.detections(example['image'], truth, panels, self.recipe.classes, threshold)


class FeaturesView:
    """Neck features of an arm's students and teachers on one validation image: their strength, differences, or colours."""

    VIEWS = ('strength', 'difference', 'colours')

    def __init__(self, recipe: Recipe, arms: Mapping[str, Checkpoints], images: int):
        """`arms`: by label, what `feature_maps.stage_checkpoints` gives; `images`: how many, the first in file order."""
        self.recipe, self.arms = recipe, arms
        self.pictures = feature_maps.feature_images(recipe, images)
        self._levels: dict[Path, list[list[Tensor]]] = {}  # by checkpoint and image

    def __len__(self) -> int:
        """Images to choose from."""
        return len(self.pictures)

    @property
    def levels(self) -> range:
        """FPN levels that all the detectors have; 0 is the finest."""
        counts = [len(levels) for arm in self.arms for _, levels in self._row(arm, 0)]
        return range(min(counts))

    def __call__(
        self, arm: str, image: int = 0, level: int = 0, view: str = 'strength'
    ) -> plots.Figure:
        row = [(label, levels[level]) for label, levels in self._row(arm, image)]
        pictures, first, last = [self.pictures[image]], row[0][0], row[-1][0]
        if view == 'difference':
            return plots.feature_differences(
                feature_maps.feature_differences([row]), pictures, first
            )
        if view == 'colours':
            return plots.feature_colours(feature_maps.pca_colours([row], last), pictures, last)
        return plots.feature_maps(feature_maps.feature_strengths([row]), pictures)

    def _row(self, arm: str, image: int) -> list[tuple[str, list[Tensor]]]:
        """(label, levels (C, H, W)) of each detector; what is shared by arms is computed once."""
        missing = {str(p): (n, p) for n, p in self.arms[arm].values() if p not in self._levels}
        models = load_detectors(self.recipe, missing)
        self._levels |= {Path(path): [] for path in models}
        for features, _, metas in feature_batches(self.recipe, models, len(self)) if models else ():
            for path, levels in features.items():
                self._levels[Path(path)] += [[x[i] for x in levels] for i in range(len(metas))]
        return [(label, self._levels[path][image]) for label, (_, path) in self.arms[arm].items()]
