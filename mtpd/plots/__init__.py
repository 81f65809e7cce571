"""Figures: returned and never shown, with labelled axes, units and alt text.

Every function gives a `Figure`, an ordinary matplotlib figure that says in `fig.alt` what it shows.
As the last line of a notebook cell, or through `display(fig)`, it is an image with that alt text.
"""

from .curves import ap_over_stages, loss_curves
from .dataset import class_counts, size_histogram
from .figure import Figure, display, signed
from .images import detections, feature_maps, scenes
from .methods import direct_against_progressive
from .order import cost_matrix, sequence_graph
from .paper import paper_next_to_ours
from .results import ap_by_arm, ap_versus_cost, per_class

__all__ = [
    'Figure',
    'ap_by_arm',
    'ap_over_stages',
    'ap_versus_cost',
    'class_counts',
    'cost_matrix',
    'detections',
    'direct_against_progressive',
    'display',
    'feature_maps',
    'loss_curves',
    'paper_next_to_ours',
    'per_class',
    'scenes',
    'sequence_graph',
    'signed',
    'size_histogram',
]
