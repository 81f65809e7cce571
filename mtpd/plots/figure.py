"""What all figures share: the figure type, colours, markers and axes."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import matplotlib.figure
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

# Okabe & Ito's colours, told apart by colour-blind readers; grey first, for the control. Markers,
# lines and hatches carry the same information for a reader without colours.
COLOURS = ('#595959', '#E69F00', '#0072B2', '#CC79A7', '#009E73', '#56B4E9', '#D55E00')
MARKERS = ('o', 's', 'D', '^', 'v', 'P', 'X')
LINES = ('-', (0, (5, 2)), (0, (8, 2, 2, 2)), (0, (2, 2)), (0, (1, 1)), (0, (6, 1)), (0, (3, 1)))
HATCHES = ('...', '///', '', 'xxx', '\\\\\\', '++', 'oo')
INK, FAINT = '#262626', '#8a8a8a'
TEXT = 9.5


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure with `alt`, the text for those who don't see it.

    `photo` figures hold image panels and are encoded as JPEG, the others as PNG.
    """

    alt: str = ''
    photo: bool = False

    def draw(self, renderer) -> None:
        """Names are shown as they are.

        matplotlib would take what is between two dollars for a formula. It would draw squares, with a warning each, for
        characters that its font lacks: other fonts of the system have them (`fallback_families`). Where none has, the
        squares stay, without warnings.
        """
        ticks = set()
        for axis in (a for ax in self.axes for a in (ax.xaxis, ax.yaxis)):
            labels = axis.get_ticklabels(which='both')  # brings them up to date
            if axis.get_scale() == 'log':  # powers of ten, which are formulas
                ticks |= {id(label) for label in labels}
        for text in self.findobj(Text):
            if id(text) not in ticks and '$' in text.get_text():
                text.set_parse_math(False)
        with _fonts_for(self.findobj(Text)):
            super().draw(renderer)

    def encoded(self) -> tuple[str, bytes]:
        """MIME type and bytes of the image."""
        kind, options = 'png', {'dpi': 160, 'metadata': {'Software': None}}
        if self.photo:
            kind, options = 'jpeg', {'dpi': 130, 'pil_kwargs': {'quality': 88}}
        buffer = io.BytesIO()
        self.savefig(buffer, format=kind, facecolor='white', **options)
        return f'image/{kind}', buffer.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        mime, data = self.encoded()
        # Without a width a notebook would show all pixels, twice as large as meant.
        metadata = {'alt': self.alt, 'width': round(96 * self.get_figwidth())}
        return {mime: base64.b64encode(data).decode(), 'text/plain': self.alt}, {mime: metadata}


@contextlib.contextmanager
def _fonts_for(texts: Iterable[Text]) -> Iterator[None]:
    """Gives texts the fonts that their characters need; in the block no missing glyph is warned of."""
    lacking = {text: characters for text in texts if (characters := _lacking_characters(text))}
    if not lacking:
        yield
        return
    families = fallback_families(frozenset().union(*lacking.values()))
    for text in lacking:
        names = text.get_fontfamily()
        text.set_fontfamily([*names, *(name for name in families if name not in names)])
    log = logging.getLogger('matplotlib.font_manager')
    log.addFilter(_names_no_weight)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', r'Glyph .* missing from font')
            yield
    finally:
        log.removeFilter(_names_no_weight)


def _names_no_weight(record: logging.LogRecord) -> bool:
    """Leaves out that a family has no bold font: its only one takes the place."""
    return 'Failed to find font weight' not in record.msg


def _lacking_characters(text: Text) -> set[str]:
    """The characters of a text that its first font lacks."""
    characters = {c for c in text.get_text() if not c.isascii()}
    if not characters:
        return characters
    font = font_manager.get_font(font_manager.findfont(text.get_fontproperties()))
    return {c for c in characters if not font.get_char_index(ord(c))}


@lru_cache(maxsize=256)
def fallback_families(characters: frozenset[str]) -> tuple[str, ...]:
    """Families of the system's fonts that together have the characters, but for those that no font has."""

    def rank(path: str) -> tuple[bool, str]:
        return 'regular' not in Path(
            path
        ).stem.lower(), path  # the weights of a family lie side by side

    missing, families = set(characters), []
    # matplotlib's list of fonts is of the day when it was first used: a font may have been installed since.
    for path in sorted(font_manager.findSystemFonts(), key=rank):
        if not missing:
            break
        try:
            font = FT2Font(path)
            present = {c for c in missing if font.get_char_index(ord(c))}
            if present and font.family_name not in font_manager.get_font_names():
                font_manager.fontManager.addfont(path)
        except Exception:  # each kind of file that matplotlib cannot use has its own
            continue
        if present:
            families.append(font.family_name)
        missing -= present
    return tuple(families)


def display(fig: Figure) -> None:
    """Show a figure in a notebook; the output's metadata hold its alt text."""
    from IPython.display import display as show

    show(fig)


def new_figure(width: float, height: float, photo: bool = False) -> Figure:
    """An empty figure of `width` x `height` inches."""
    fig = Figure(figsize=(width, height), layout='constrained', facecolor='white')
    fig.photo = photo
    return fig


def style_axes(
    ax: Axes, xlabel: str = '', ylabel: str = '', title: str = '', grid: str = ''
) -> Axes:
    """Labels, quiet spines and, along `grid` ('x', 'y', 'both'), thin lines under the data."""
    # Set on the axes and not in rcParams, which are the user's.
    ax.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    ax.set_ylabel(ylabel, fontsize=TEXT, color=INK)
    if title:
        ax.set_title(title, fontsize=TEXT + 0.5, color=INK, loc='left', fontweight='bold')
    ax.spines[['top', 'right']].set_visible(False)
    ax.spines[['left', 'bottom']].set_color(FAINT)
    ax.tick_params(labelsize=TEXT - 1, colors=FAINT, labelcolor=INK)
    if grid:
        ax.grid(axis=grid, color='#e4e4e4', linewidth=0.7)
        ax.set_axisbelow(True)
    return ax


def series_style(index: int) -> dict:
    """Colour, marker and line of the series number `index`."""
    return {
        'color': COLOURS[index % len(COLOURS)],
        'marker': MARKERS[index % len(MARKERS)],
        'linestyle': LINES[index % len(LINES)],
    }


def empty(reason: str) -> Figure:
    """A figure that says why there is nothing to see."""
    fig = new_figure(6, 1.6)
    fig.text(0.5, 0.5, reason, ha='center', va='center', fontsize=TEXT + 1, color=INK)
    fig.alt = reason
    return fig


def spread_apart(values: Iterable[float], gap: float) -> list[float]:
    """`values` moved as little as needed for neighbours to be `gap` apart, their order kept."""
    values = list(values)
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[tuple[list[int], float]] = []  # members and their centre
    for index in order:
        groups.append(([index], values[index]))
        while len(groups) > 1:
            (low, a), (high, b) = groups[-2:]
            if b - a >= gap * (len(low) + len(high)) / 2:
                break
            members = low + high
            offset = sum(values[m] - gap * k for k, m in enumerate(members)) / len(members)
            groups[-2:] = [(members, offset + gap * (len(members) - 1) / 2)]
    placed = [0.0] * len(values)
    for members, centre in groups:
        for k, member in enumerate(members):
            placed[member] = centre + gap * (k - (len(members) - 1) / 2)
    return placed


def break_label(label: str) -> str:
    """A label on several lines, broken after colons and commas."""
    return label.replace(': ', ':\n').replace(', ', ',\n')
