"""HTML pages, and tables, live figures and controls for notebooks."""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        '.run': ('make_report',),
        '.comparison': ('compare_runs',),
        '.tables': (
            'markdown_table',
            'show_sentences',
            'detector_rows',
            'stage_rows',
            'study_rows',
        ),
        '.live': ('train_stage_live',),
        '.widgets': ('DetectionsView', 'FeaturesView', 'show_with_controls'),
    },
)
