"""Figures: returned and never shown, with labelled axes, units and alt text.

Every function gives a `Figure`, an ordinary matplotlib figure that says in `fig.alt` what it shows.
As the last line of a notebook cell, or through `display(fig)`, it is an image with that alt text.
"""

from ..utils.statistics import format_signed as signed
from ..utils.statistics import printed_difference as gain
from .curves import ap_over_stages, level_shares, loss_curves, overlaid_curves, walk_through
from .features import feature_colours, feature_differences, feature_maps
from .figure import Figure, display, empty
from .generalisation import flatness, generalisation
from .images import annotated, class_counts, detections, scenes, size_histogram
from .paper import direct_against_progressive, paper_next_to_ours, paper_walk_through
from .results import ap_by_arm, ap_versus_cost, error_types, per_class
from .teacher_order import (
    ap_versus_order,
    cost_matrix,
    gain_by_regime,
    predicted_and_measured,
    sequence_graph,
)

__all__ = [
    'Figure',
    'annotated',
    'ap_by_arm',
    'ap_over_stages',
    'ap_versus_cost',
    'ap_versus_order',
    'class_counts',
    'cost_matrix',
    'detections',
    'direct_against_progressive',
    'display',
    'empty',
    'error_types',
    'feature_colours',
    'feature_differences',
    'feature_maps',
    'flatness',
    'gain',
    'gain_by_regime',
    'generalisation',
    'level_shares',
    'loss_curves',
    'overlaid_curves',
    'paper_next_to_ours',
    'paper_walk_through',
    'per_class',
    'predicted_and_measured',
    'scenes',
    'sequence_graph',
    'signed',
    'size_histogram',
    'walk_through',
]
