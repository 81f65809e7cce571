"""MTPD reproduction kit: distil a detector from a sequence of teachers (ICML 2023, arXiv 2308.09105)."""

from .utils.lazy import lazy_names

__version__ = '0.1.0'

# Looked up on first use: `import mtpd` and `mtpd --help` stay light.
__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        '.errors': ('MtpdError', 'RecipeError'),
        '.config.recipe': ('Recipe', 'load_recipe'),
        '.pipeline.detectors': ('train_detector_run',),
        '.pipeline.stages': ('train_stage',),
        '.pipeline.teacher_order': ('adaptation_costs',),
        '.pipeline.run': ('run_recipe',),
        '.distill.teacher_sequence': ('choose_sequence',),
        '.engine.evaluation': ('evaluate',),
        '.runtime.checkpoints': ('export_student',),
        '.analysis.run': ('load_run',),
        '.report.run': ('make_report',),
        '.edge': ('EdgeDetector',),
        '.plots': (),
    },
)
