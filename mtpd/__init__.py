"""MTPD reproduction kit: distil a detector from a sequence of teachers (ICML 2023, arXiv 2308.09105)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = '0.1.0'

# Looked up on first use: `import mtpd` and `mtpd --help` stay light.
_PLACES = {
    'MtpdError': 'errors',
    'Recipe': 'config.recipe',
    'RecipeError': 'errors',
    'load_recipe': 'config.recipe',
    'train_detector_run': 'pipeline.detectors',
    'train_stage': 'pipeline.stages',
    'export_student': 'runtime.checkpoints',
    'evaluate': 'engine.evaluation',
    'adaptation_costs': 'pipeline.teacher_order',
    'choose_sequence': 'distill.teacher_sequence',
    'run_recipe': 'pipeline.run',
    'make_report': 'report.run',
    'load_run': 'analysis.run',
    'plots': None,
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    place = _PLACES[name]
    return (
        import_module(f'.{name}', __name__)
        if place is None
        else getattr(import_module(f'.{place}', __name__), name)
    )


def __dir__() -> list[str]:
    return [*globals(), *__all__]
