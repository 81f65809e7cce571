"""Figures: returned and never shown, with labelled axes, units and alt text.

Every function gives a `Figure`, an ordinary matplotlib figure that says in `fig.alt` what it shows.
As the last line of a notebook cell, or through `display(fig)`, it is an image with that alt text.
"""

from ..utils.numerals import gain, signed
from .curves import ap_over_stages, level_shares, loss_curves
from .dataset import class_counts, size_histogram
from .errors import error_types
from .features import feature_colours, feature_differences, feature_maps
from .figure import Figure, display, empty
from .generalisation import flatness, generalisation
from .images import detections, scenes
from .methods import direct_against_progressive
from .order import cost_matrix, sequence_graph
from .overlay import overlaid_curves
from .paper import paper_next_to_ours
from .results import ap_by_arm, ap_versus_cost, per_class
from .study import ap_versus_order, predicted_and_measured
from .walk import walk_through

__all__ = [
    'Figure',
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
    'generalisation',
    'level_shares',
    'loss_curves',
    'overlaid_curves',
    'paper_next_to_ours',
    'per_class',
    'predicted_and_measured',
    'scenes',
    'sequence_graph',
    'signed',
    'size_histogram',
    'walk_through',
]
