"""The recipes that there are."""

from __future__ import annotations

from ..utils.paths import ROOT, shown
from .recipe import load_recipe


def recipes() -> list[dict]:
    """For each recipe in configs/ its ``path``, ``title``, and the paper's AP on COCO of the sequence it follows, or None."""
    found = []
    for path in sorted((ROOT / 'configs').glob('[!_]*/*.py')):
        if path.parent.name == 'teachers':  # detectors
            continue
        cfg = load_recipe(path).cfg
        title, paper = cfg.get('title', cfg.name), cfg.get('paper', {})
        found.append({'path': shown(path), 'title': title, 'paper': paper.get('result')})
    return found
