"""Controls beside a figure in JupyterLab; the same cell is the figure alone in papermill's output and in HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from IPython.display import display

from ..plots import Figure


def touch(draw: Callable[..., Figure], **choices: tuple[Any, Sequence[Any] | range]) -> None:
    """Shows ``draw(**values)``, and controls that draw it anew with other values.

    A kernel behind the page does the drawing: in a static page the figure stays as it was made, and the controls are
    not there.

    Args:
        draw: takes the choices by name.
        choices: ``name=(first, others)``: the value that is shown first, and all that there are: a `range` becomes a
            slider, numbers a slider over them, other values a menu.
    """
    import ipywidgets

    controls = {name: _control(name, *choice) for name, choice in choices.items()}

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


def _control(name: str, first: Any, others: Sequence[Any]):
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
