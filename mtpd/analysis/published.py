"""Published figures that belong together, and the gains between them.

All are AP points on COCO val2017, of detectors of full size. Four kinds, each a training of its own:

- the student alone, as mmdet publishes it: after 12 epochs (1x), and after the 24 (2x) that two stages of 12 take;
- the pair of the paper's bar chart: direct distillation against progressive, by the same loss in equally many epochs;
- the release: the student that the authors publish, after both stages; its teachers may be others than the pair's;
- the walk-through: another loss or a drawing, which starts from a trained baseline.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..utils.statistics import format_number, printed_difference

# (direct, the last teacher only; progressive), read off the paper's bar chart to about 0.05.
PAPER_CHART = {
    'RetinaNet R50': {'box': {'CWD': (39.8, 40.2), 'FGD': (40.7, 41.5), 'MGD': (41.0, 41.4)}},
    'RepPoints R50': {'box': {'CWD': (42.0, 42.4), 'FGD': (42.0, 42.5), 'MGD': (42.3, 42.9)}},
    'Mask R-CNN R50': {
        'box': {'CWD': (41.0, 41.2), 'FGD': (42.1, 42.4), 'MGD': (42.4, 42.5)},
        'mask': {'CWD': (37.0, 37.2), 'FGD': (37.8, 38.0), 'MGD': (38.1, 38.2)},
    },
}
CHART_NOTES = {
    'RetinaNet R50': {
        'box': {
            'CWD': "CWD's own repository has 40.5 AP, directly from X101 in 24 epochs: above both bars"
        }
    }
}
# Prefixes of a recipe's `paper` figures, by metric.
METRIC_PREFIXES = {'box': '', 'mask': 'mask_'}


def paper_chart(student: str | None) -> dict:
    """The paper's bars of a student ('RetinaNet R50'): {'box' or 'mask': {method: {'direct', 'progressive'}}}.

    AP points on COCO; empty for a student that the chart does not have.
    """
    return {
        metric: {
            method: dict(zip(('direct', 'progressive'), pair, strict=True))
            for method, pair in methods.items()
        }
        for metric, methods in PAPER_CHART.get(student, {}).items()
    }


def chart_notes(student: str | None) -> dict:
    """Footnotes to the bars of `paper_chart`: {'box' or 'mask': {method: sentence}}."""
    return CHART_NOTES.get(student, {})


def paper_figures(paper: Mapping | None) -> dict:
    """The `paper` of a recipe or of a run, in today's keys.

    Returns:
        AP points, those that are known: `baseline` and `baseline_2x`, the student alone after 12 and 24 epochs; `direct` and
        `progressive`, the chart's pair with MGD, both or none; `result`, the release; `walk_through`, from its baseline on;
        `mask_baseline`, `mask_baseline_2x`, `mask_result`. And `student`, its name in the chart.
    """
    figures = dict(paper or {})
    # Version 0.1 had the walk-through's stages beside the release, and `direct` without the figure that it belongs to.
    stages = figures.pop('after_stage', None)
    if stages and 'baseline' in figures:
        figures.setdefault('walk_through', [figures['baseline'], *stages])
    if 'direct' in figures and 'progressive' not in figures:
        pair = paper_chart(figures.get('student')).get('box', {}).get('MGD')
        direct = figures.pop('direct')
        if pair and pair['direct'] == direct:
            figures |= pair
    return figures


def paper_gains(paper: Mapping | None) -> list[dict]:
    """A row per metric with a released student: its AP, the student's alone, and the gain against either.

    Returns:
        `name` ('box AP'), `result`, `baseline`, `baseline_2x` in AP points, `gain` and `gain_2x` as text ('+4.3'). None where
        a figure is not known.
    """
    figures, rows = paper_figures(paper), []
    for metric, prefix in METRIC_PREFIXES.items():
        result = figures.get(f'{prefix}result')
        if result is None:
            continue
        row = {'name': f'{metric} AP', 'result': result}
        for end in ('', '_2x'):
            alone = figures.get(f'{prefix}baseline{end}')
            gain = None if alone is None else printed_difference(result, alone)
            row |= {f'baseline{end}': alone, f'gain{end}': gain}
        rows.append(row)
    return rows


def paper_finding(paper: Mapping | None) -> dict[str, str]:
    """What the paper finds for a sequence, in sentences by question; empty where no figure is known."""
    figures = paper_figures(paper)
    sentences = [_pair_text(figures), *map(_release_text, paper_gains(figures))]
    if figures.get('result', 0) > figures.get('progressive', float('inf')):
        sentences.append(
            f'The release had stronger teachers than the pair, so {format_number(figures["result"])} cannot be compared with '
            f'{format_number(figures["direct"])}.'
        )
    text = ' '.join(filter(None, sentences))
    return {'What does the paper find?': text} if text else {}


def _pair_text(figures: Mapping) -> str:
    if 'progressive' not in figures:
        return ''
    gain = printed_difference(figures['progressive'], figures['direct'])
    return (
        f'On COCO, with detectors of full size and MGD, {gain} AP for the sequence against the last teacher alone '
        f'({format_number(figures["progressive"])} against {format_number(figures["direct"])}, read off its bar chart; 12 + 12 '
        'epochs against 24).'
    )


def _release_text(row: Mapping) -> str:
    gains = [
        f'{row[f"gain{end}"]} against {student} after {epochs} epochs ({format_number(row[f"baseline{end}"])})'
        for end, epochs, student in (('', 12, 'the student alone'), ('_2x', 24, 'it'))
        if row[f'gain{end}']
    ]
    text = f'The released student has {format_number(row["result"])} {row["name"]} on COCO'
    return f'{text}{": " if gains else ""}{", ".join(gains)}.'
