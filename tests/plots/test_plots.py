"""Figures: what they draw, their axes and their alt text, and that they touch no global state."""

from __future__ import annotations

import base64
import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from helpers.fake_run import CLASSES, make_run
from mtpd import plots
from mtpd.analysis.run import load_run, loss_rows
from mtpd.plots import figure
from mtpd.plots.curves import moving_mean
from mtpd.plots.figure import spread_apart

IMAGE = np.zeros((48, 64, 3), np.uint8)
MASK = np.zeros((1, 48, 64), bool)
MASK[0, 10:20, 10:30] = True
OBJECTS = {'boxes': np.array([[10.0, 10, 30, 20]]), 'labels': np.array([1]), 'masks': MASK}
DETECTIONS = {
    'boxes': np.array([[10.0, 10, 30, 20], [1, 1, 5, 5]]),
    'labels': np.array([1, 0]),
    'scores': np.array([0.9, 0.1]),
}
PAPER = {
    'box': {
        'FGD': {'direct': 40.7, 'progressive': 41.5},
        'MGD': {'direct': 41.0, 'progressive': 41.4},
    }
}
NOTES = {'box': {'FGD': 'another source has 41.1', 'CWD': 'no bar'}, 'mask': {'MGD': 'no bar'}}
OURS = {
    'box': {
        'MGD': {
            'direct': {'mean': 11.2, 'sd': 0.6, 'n': 3},
            'progressive': {'mean': 10.9, 'sd': None, 'n': 1},
        },
        'PKD': {'progressive': {'mean': 9.5, 'sd': None, 'n': 1}},
    }
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return load_run(make_run(tmp_path_factory.mktemp('runs') / 'recipe' / '0'))


@pytest.fixture(scope='module')
def figures(run):
    rows = run.results()
    shares = {'zero': 0.1, 'one': 0.3, 'two': None}, {'zero': 0.25, 'one': 0.2, 'two': 0.4}
    maps = [('student', np.full((4, 6), 1.0)), ('teacher', np.full((4, 6), 3.0))]
    return {
        'loss_curves': plots.loss_curves(run.curves()),
        'ap_over_stages': plots.ap_over_stages(run.stage_aps()),
        'ap_by_arm': plots.ap_by_arm(rows),
        'ap_versus_cost': plots.ap_versus_cost(rows),
        'paper': plots.paper_next_to_ours(run.paper, run.key_aps(), 'digits'),
        'paper_walk': plots.paper_walk_through(run.paper, run.key_aps(), 'digits'),
        'methods': plots.direct_against_progressive(PAPER, OURS, 'digits', NOTES),
        'cost_matrix': plots.cost_matrix(['a', 'b'], [[0, 0.4], [None, 0]]),
        'sequence_graph': plots.sequence_graph(
            {
                'detectors': ['student', 'a', 'b'],
                'cost': [[0, 0.3, 0.9], [0.3, 0, 0.4], [0.9, 0.4, 0]],
            },
            {'student': 0.1, 'a': 0.4, 'b': 0.5},
            ['a', 'b'],
            {'a': 'teacher A'},
        ),
        'size_histogram': plots.size_histogram({'train': [100, 1023, 1024, 9216], 'val': [50]}),
        'class_counts': plots.class_counts({'train': [3, 1, 4]}, CLASSES),
        'per_class': plots.per_class(*shares, ('baseline', 'distilled')),
        'scenes': plots.scenes([IMAGE] * 2, *[[OBJECTS[k]] * 2 for k in OBJECTS], CLASSES),
        'detections': plots.detections(IMAGE, OBJECTS, {'ours': DETECTIONS}, CLASSES),
        'feature_maps': plots.feature_maps(maps, IMAGE),
    }


def test_alt_texts_say_the_numbers(figures):
    parts_by_figure = {
        'loss_curves': ['Teacher 1 → teacher 2: detection loss from', 'over 800 updates'],
        'ap_over_stages': ['baseline at 20.2', '26.1 after Teacher 1, 30.6 after', '+10.4 points'],
        'ap_by_arm': ['No teacher 27.6', 'Teacher 2 52.3', 'baseline 20.2'],
        'ap_versus_cost': ['AP 43.2, 2.90 million parameters, 1.20 GFLOPs'],
        'paper': [
            'baseline after 12 epochs 36.5: no teacher, 24 epochs 37.4 (+0.9); last teacher only 41.0',
            'progressive 41.4 (+4.9, +4.0 over no teacher).',
            'baseline 20.2: no teacher 27.6 (+7.4); last teacher only 29.0 (+8.8, +1.4 over no',
        ],
        'paper_walk': [
            '36.5 to 37.9 to 39.9.',
            '20.2 to 26.1 to 30.6.',
            'another loss, or a drawing',
        ],
        'cost_matrix': ['a to b 0.40'],
        'methods': [
            'The paper, on COCO, box AP: FGD direct 40.7, progressive 41.5; MGD direct 41.0',
            '* another source has 41.1.',
            'Ours, on digits, box AP: MGD direct 11.2 ± 0.6 over 3 seeds, progressive 10.9',
        ],
        'sequence_graph': ['teacher A at cost 0.30, AP 40.0', 'student → teacher A → b'],
        # 32 x 32 and 96 x 96 pixels begin medium and large.
        'size_histogram': ['small 50 % (train), 100 % (val); medium 25 %', 'large 25 % (train)'],
        'class_counts': ['8 objects, <b>one</b> the rarest class with 1'],
        'per_class': ['1 classes better, 1 worse', 'gain: zero, 10.0 to 25.0', '30.0 to 20.0'],
        'scenes': ['2 images with 2 marked objects', '2 of class <b>one</b>'],
        'detections': ['ground truth: 1 objects (<b>one</b>)', 'ours: 1 objects (<b>one</b>)'],
        'feature_maps': ['from 1.00 to 3.00', 'teacher mean 3.00'],
    }
    for name, parts in parts_by_figure.items():
        for part in parts:
            assert part in figures[name].alt, (name, figures[name].alt)


def test_every_axis_of_a_chart_is_labelled(figures):
    for name, fig in figures.items():
        if fig.photo or name == 'cost_matrix':
            continue
        for row in {ax.get_subplotspec().rowspan.start for ax in fig.axes}:
            axes = [ax for ax in fig.axes if ax.get_subplotspec().rowspan.start == row]
            named = [t.get_text() for ax in axes for t in ax.get_yticklabels()]
            assert axes[0].get_ylabel() or any(named), name
        bottom = [ax for ax in fig.axes if ax.get_subplotspec().is_last_row()]
        assert all(ax.get_xlabel() or ax.get_xticklabels()[0].get_text() for ax in bottom), name


def test_figures_become_images_with_alt_text_in_a_notebook(figures):
    for name in ('ap_by_arm', 'detections'):
        fig = figures[name]
        data, metadata = fig._repr_mimebundle_()
        mime = 'image/jpeg' if name == 'detections' else 'image/png'
        assert metadata[mime]['alt'] == fig.alt and data['text/plain'] == fig.alt
        image = Image.open(io.BytesIO(base64.b64decode(data[mime])))
        assert image.format == mime.split('/')[1].upper()
        assert image.width > metadata[mime]['width']  # sharper than its place on the page


@pytest.mark.parametrize('sign', [1, -1])
def test_numbers_of_arms_stand_inside_the_axes(sign):
    """Above the baseline they stand right of their dots, below it left, where the names of the arms begin."""
    gains = {'No teacher': 0.4, 'Teacher 2 only': 10.6, 'Teacher 1, then teacher 2': 7}
    rows = [{'role': 'baseline', 'label': 'Student', 'AP': 42.4}]
    rows += [
        {'role': 'arm', 'label': label, 'AP': 42.4 + sign * gain} for label, gain in gains.items()
    ]
    chart = plots.ap_by_arm(rows)
    renderer = FigureCanvasAgg(chart).get_renderer()
    chart.draw(renderer)
    axes = chart.axes[0].get_window_extent()
    numbers = [text for text in chart.axes[0].texts if '(' in text.get_text()]
    assert len(numbers) == 3
    for text in numbers:
        place = text.get_window_extent(renderer)
        assert axes.x0 < place.x0 and place.x1 < axes.x1


def test_stages_are_shaded_and_their_teachers_named(run):
    fig = plots.loss_curves(run.curves('progressive'))
    top, bottom = fig.axes
    assert [t.get_text() for t in top.texts] == ['stage 1\nTeacher 1', 'stage 2\nTeacher 2']
    assert len(top.lines) == len(bottom.lines) == 4  # raw and smooth for each stage
    assert bottom.get_yscale() == 'log' and top.get_yscale() == 'linear'
    control = plots.loss_curves(run.curves('none'))
    assert [t.get_text() for t in control.axes[1].texts] == ['no teacher']
    plain = plots.loss_curves(loss_rows(run.path / 'detectors/r50/log.json'))
    assert len(plain.axes) == 1 and not plain.axes[0].texts
    assert 'over 900 updates' in plain.alt


def heights(ax) -> list[float]:
    return [round(bar.get_height(), 6) for bar in ax.patches]


def test_the_papers_pair_and_its_walk_through_are_figures_apart(run, figures):
    """reference.md, section 1: the pair is 41.0 and 41.4; the walk-through is another training; 41.7 is in neither."""
    paper, ours = figures['paper'].axes
    assert heights(paper) == pytest.approx([37.4 - 36.5, 41.0 - 36.5, 41.4 - 36.5])
    assert heights(ours) == pytest.approx([27.6 - 20.2, 29.0 - 20.2, 30.6 - 20.2])
    dashed = [line.get_ydata()[0] for ax in (paper, ours) for line in ax.lines[:1]]
    assert dashed == pytest.approx([37.4 - 36.5, 27.6 - 20.2])
    walks = [list(ax.lines[0].get_ydata()) for ax in figures['paper_walk'].axes]
    assert walks == [[36.5, 37.9, 39.9], pytest.approx([20.2, 26.1, 30.6])]
    texts = [figures[name].alt for name in ('paper', 'paper_walk')]
    assert not any('41.7' in text for text in texts)
    assert '37.9' not in texts[0] and '41.' not in texts[1]
    alone = {'baseline': 36.5, 'baseline_2x': 37.4, 'result': 42.0}
    fig = plots.paper_next_to_ours(alone, run.key_aps())
    assert heights(fig.axes[0]) == pytest.approx([37.4 - 36.5, 42.0 - 36.5])
    assert 'progressive (the release) 42.0 (+5.5, +4.6 over no teacher)' in fig.alt
    (only,) = plots.paper_walk_through(run.paper, {}).axes
    assert only.get_title(loc='left') == 'The paper, on COCO'


def test_methods_are_pairs_of_bars_and_what_is_missing_has_none(figures):
    paper, ours = figures['methods'].axes
    assert heights(paper) == [40.7, 41.5, 41.0, 41.4] and heights(ours) == [11.2, 10.9, 9.5]
    # Direct to the left of its method's place, progressive to the right.
    assert [round(bar.get_x() + bar.get_width() / 2, 2) for bar in ours.patches] == [
        -0.18,
        0.18,
        1.18,
    ]
    names = [t.get_text() for t in ours.get_xticklabels()]
    assert names == ['MGD\n3 and 1 seeds', 'PKD\n1 seed']
    assert [t.get_text() for t in paper.get_xticklabels()] == ['FGD*', 'MGD']
    assert figures['methods'].get_supxlabel() == '* another source has 41.1.'
    whiskers = [c for c in ours.collections if hasattr(c, 'get_segments')]
    assert len(whiskers) == 1
    assert whiskers[0].get_segments()[0][:, 1].tolist() == pytest.approx([10.6, 11.8])
    assert not paper.collections
    spans = [ax.get_ylim()[1] - ax.get_ylim()[0] for ax in (paper, ours)]
    assert spans[0] == pytest.approx(spans[1])  # a point is equally high in both
    for ax in (paper, ours):
        assert ax.get_ylim()[0] > 0 and ax.get_ylabel() == 'box AP (points; axis cut)'
        assert max(heights(ax)) < ax.get_ylim()[1]
    legend = [text.get_text() for text in figures['methods'].legends[0].get_texts()]
    assert legend == ['direct: last teacher only', 'progressive: teachers in sequence']


def test_methods_with_masks_without_runs_and_without_a_paper():
    two = plots.direct_against_progressive({**PAPER, 'mask': {'MGD': {'direct': 38.1}}}, OURS)
    drawn = [ax for ax in two.axes if ax.axison]
    assert [ax.get_ylabel().split()[0] for ax in drawn] == ['box', 'box', 'mask']
    (alone,) = plots.direct_against_progressive(PAPER, {}).axes
    assert alone.get_title(loc='left') == 'The paper, on COCO' and len(alone.patches) == 4
    (ours,) = plots.direct_against_progressive({}, OURS, 'cells').axes
    assert ours.get_title(loc='left') == 'Ours, on cells'
    zero = {'box': {'MGD': {'direct': {'mean': 0.0, 'sd': None, 'n': 1}}}}
    (ax,) = plots.direct_against_progressive({}, zero).axes
    assert ax.get_ylim()[0] == 0 and ax.get_ylabel() == 'box AP (points)'


def test_feature_maps_share_one_stated_scale(figures):
    fig = figures['feature_maps']
    scales = {ax.images[0].get_clim() for ax in fig.axes[1:3]}
    assert scales == {(1.0, 3.0)}
    assert 'one scale for all' in fig.axes[-1].get_ylabel()


def test_masks_are_painted_where_they_are_and_boxes_enclose_their_pixels(figures):
    ax = figures['scenes'].axes[0]
    painted = np.asarray(ax.images[0].get_array()).any(-1)
    assert (painted == MASK[0]).all()
    box = ax.patches[0]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (9.5, 9.5, 20, 10)


def test_nothing_there_yet_says_so_instead_of_failing():
    empty = [
        plots.loss_curves({}),
        plots.ap_over_stages({}),
        plots.ap_by_arm([]),
        plots.ap_versus_cost([]),
        plots.direct_against_progressive({}, {}),
        plots.cost_matrix([], []),
        plots.sequence_graph({'detectors': ['student'], 'cost': [[0]]}, {}, [], {}),
        plots.size_histogram([]),
        plots.scenes([], [], []),
        plots.paper_next_to_ours({}, {'baseline': 20.0}),
        plots.paper_walk_through({'baseline': 36.5}, {'walk_through': [1.0, 2.0]}),
        plots.per_class({'cat': None}, {'cat': 0.2}),
    ]
    assert all(fig.alt and not fig.axes for fig in empty)
    blank = {'boxes': np.zeros((0, 4)), 'labels': np.zeros(0, int)}
    fig = plots.detections(IMAGE, blank, {'ours': blank | {'scores': np.zeros(0)}})
    assert 'ours: 0 objects' in fig.alt and fig.encoded()[1]


def test_drawing_leaves_matplotlib_as_it_was(run):
    before = dict(mpl.rcParams)
    plots.ap_by_arm(run.results()).encoded()
    assert dict(mpl.rcParams) == before
    code = "import sys, mtpd.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


def test_gains_lie_at_their_regime_index():
    rows = [
        {'label': 'steep', 'index': 2.0, 'gains': {'T2': {0: 1.0, 1: 3.0}}},
        {'label': 'plateau', 'index': 0.25, 'gains': {'T2': {0: 7.0}, 'T1 → T2': {0: -0.5}}},
    ]
    fig = plots.gain_by_regime(rows)
    assert 'T2 +7.0 at 0.25, +2.0 at 2; T1 → T2 −0.5 at 0.25.' in fig.alt
    lines = {line.get_label(): line for line in fig.axes[0].get_lines()}
    assert lines['T2'].get_xydata().tolist() == [[0.25, 7], [2, 2]]
    low, high = fig.axes[0].get_xlim()
    assert low < 0.25 and high > 2
    assert 'No sweep' in plots.gain_by_regime([{'label': '', 'index': None, 'gains': {}}]).alt


def test_labels_are_moved_apart_and_keep_their_order():
    assert spread_apart([1.0, 5.0], 1) == [1.0, 5.0]
    assert spread_apart([5.0, 5.0, 5.0], 2) == [3.0, 5.0, 7.0]
    placed = spread_apart([10.0, 9.9, 3.0, 9.8, 8.5], 1)
    assert np.argsort(placed).tolist() == [2, 4, 3, 1, 0]
    assert np.diff(sorted(placed)).min() >= 1 - 1e-9
    assert spread_apart([], 1) == []


def test_moving_mean_by_hand():
    assert moving_mean(np.array([0.0, 3, 6, 0]), 1).tolist() == [1.5, 3, 3, 3]
    assert moving_mean(np.array([4.0]), 3).tolist() == [4.0]


@pytest.mark.parametrize(
    ('value', 'text'), [(1.24, '+1.2'), (-0.44, '−0.4'), (0.04, '±0.0'), (-0.04, '±0.0')]
)
def test_signed(value, text):
    assert plots.signed(value) == text


def test_dollars_in_names_are_dollars_and_powers_of_ten_are_powers():
    """matplotlib takes what stands between two dollars for a formula, and fails at one that it does not know."""
    name = '$\\href{x}$ and $5'
    fig = figure.empty(name)
    ax = fig.subplots()
    ax.barh([name, 'b'], [1, 1000])
    ax.set_xscale('log')
    assert fig.encoded()[1][:4] == b'\x89PNG'
    texts = {t.get_text(): t.get_parse_math() for t in [*fig.texts, *ax.get_yticklabels()]}
    assert texts == {name: False, 'b': True}
    powers = [t for t in ax.get_xticklabels() if 'mathdefault' in t.get_text()]
    assert powers and all(t.get_parse_math() for t in powers)


def font_of_blocks(path: Path, characters: str) -> Path:
    """A font in which each of the characters is a black square, as large as the line, and no other exists."""
    pen = TTGlyphPen(None)
    for move, corner in zip('mlll', ((0, 0), (0, 900), (1000, 900), (1000, 0)), strict=True):
        (pen.moveTo if move == 'm' else pen.lineTo)(corner)
    pen.closePath()
    block, names = pen.glyph(), {ord(c): f'u{ord(c):x}' for c in characters}
    order = ['.notdef', *names.values()]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(order)
    font.setupCharacterMap(names)
    font.setupGlyf(dict.fromkeys(order, block))
    font.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({'familyName': f'Blocks {path.stem}', 'styleName': 'Regular'})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


@pytest.fixture
def fonts(monkeypatch):
    """A list of font files in place of those that the system has."""
    files: list[Path] = []
    known = list(font_manager.fontManager.ttflist)
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [*map(str, files)])
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', known)
    figure.fallback_families.cache_clear()
    yield files
    figure.fallback_families.cache_clear()


def ink_of(text: str, **style) -> np.ndarray:
    """The share of dark pixels in each sixth of a text from left to right, drawn alone."""
    fig = figure.new_figure(4, 1)
    fig.text(0, 0.2, text, fontsize=40, **style)
    picture = np.asarray(Image.open(io.BytesIO(fig.encoded()[1])).convert('L')) < 128
    rows, columns = np.nonzero(picture)
    cut = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.array([part.mean() for part in np.array_split(cut, 6, axis=1)])


@pytest.mark.parametrize('style', [{}, {'fontweight': 'bold'}], ids=['plain', 'bold'])
def test_characters_come_from_the_fonts_that_have_them(fonts, style, tmp_path, caplog):
    """No system font is needed for this test, and none is used."""
    broken = tmp_path / 'broken.ttf'
    broken.write_bytes(b'no font')
    fonts += [
        broken,
        font_of_blocks(tmp_path / 'one.ttf', '猫a'),
        font_of_blocks(tmp_path / 'two.ttf', '\ud55c猫'),
    ]
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter('error')
        ink = ink_of('猫\ud55c', **style)
        mixed = ink_of('猫 o', **style)
    assert (ink > 0.98).all()
    assert mixed[0] > 0.98 and mixed[-1] < 0.5  # the first font's own o, which has a hole
    assert caplog.messages == []
    assert figure.fallback_families(frozenset('猫\ud55c')) == ('Blocks one', 'Blocks two')


def test_without_a_font_squares_are_drawn_and_nothing_is_warned_of(fonts, caplog):
    name = '猫 dog'
    fig = figure.empty(name)
    fig.subplots().barh([name, 'b'], [1, 2])
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter('error')
        assert fig.encoded()[1][:4] == b'\x89PNG'
        fig.axes[0].set_title('ünï − ▁ ≥')  # in matplotlib's own font
        fig.encoded()
    assert caplog.messages == [] and fig.alt == name
    families = [fig.texts[0].get_fontfamily(), fig.axes[0].title.get_fontfamily()]
    assert families == [['sans-serif'], ['sans-serif']]
    with pytest.warns(UserWarning, match='missing from font'):  # other figures warn as before
        plain = mpl.figure.Figure()
        plain.text(0, 0, name)
        plain.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ('size', 'factor'), [((480, 640), 1), ((1001, 703), 1), ((64, 96), 6), ((1, 1500), 1)]
)
def test_an_annotated_image_keeps_its_pixels(size, factor, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    nothing = {'boxes': np.zeros((0, 4)), 'labels': np.zeros(0, int), 'scores': np.zeros(0)}
    fig = plots.annotated(pixels, nothing)
    fig.savefig(tmp_path / 'a.png', dpi=fig.dpi)
    drawn = np.asarray(Image.open(tmp_path / 'a.png').convert('RGB'))
    enlarged = pixels.repeat(factor, 0).repeat(factor, 1)
    assert drawn.shape == enlarged.shape
    assert np.abs(drawn.astype(int) - enlarged).max() <= 1  # matplotlib's rounding
    assert fig.alt == '0 objects: none.'


def test_labels_of_an_annotated_image_are_inside_it_and_masks_are_tinted(tmp_path):
    pixels = np.full((480, 640, 3), 200, np.uint8)
    mask = np.zeros((3, 480, 640), bool)
    mask[0, 20:40, 30:60] = True
    objects = {
        'boxes': np.array([[10.0, 10, 200, 200], [560, 100, 660, 300], [-5, 300, 639, 470]]),
        'labels': np.array([0, 1, 2]),
        'scores': np.array([0.9, 0.85, 1.0]),
        'masks': mask,
    }
    classes = ['$x$ $y', 'a name as long as this', 'c']
    fig = plots.annotated(pixels, objects, classes)
    fig.savefig(tmp_path / 'a.png', dpi=fig.dpi)
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.texts] == [
        '$x$ $y .90',
        'a name as long as this .85',
        'c 1.00',
    ]
    renderer = FigureCanvasAgg(fig).get_renderer()
    for text in ax.texts:
        place = text.get_window_extent(renderer)
        assert place.x0 > -1 and place.x1 < 641 and place.y0 > -1 and place.y1 < 481
    tint = [255 * part for part in mpl.colors.to_rgb(plots.images.CLASS_COLOURS[0])]
    drawn = np.asarray(Image.open(tmp_path / 'a.png').convert('RGB')).astype(float)
    assert np.abs(drawn[30, 45] - (100 + np.array(tint) / 2)).max() <= 1
    assert (drawn[250, 300] == 200).all()
    assert (pixels == 200).all()  # the caller's picture
