"""Reads run directories: numbers, statistics and sentences. What notebooks need of them and of lower rooms, by one import."""

from ..utils.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        '.run': ('Run', 'load_run', 'loss_rows', 'class_aps'),
        '.study': ('load_study',),
        '.verdict': ('run_summary', 'study_summary', 'study_verdict'),
        '.findings': ('diagnose', 'run_findings', 'stage_sentences'),
        '.methods': ('compare_methods', 'methods_caption'),
        '.paper': (
            *('load_run_or_plan', 'checkpoint_metrics', 'checkpoint_detections'),
            *('paper_rows', 'paper_verdict', 'dataset_name'),
        ),
        '.published': ('paper_chart', 'chart_notes', 'paper_finding', 'paper_gains'),
        '.dataset': ('sample_images', 'dataset_statistics'),
        '.error_types': ('count_objects', 'errors_by_detector', 'objects_found_and_lost'),
        '.feature_maps': (
            *('stage_checkpoints', 'feature_rows', 'feature_images', 'distance_to_teachers'),
            *('feature_strengths', 'feature_differences', 'pca_colours'),
        ),
        '.generalisation': ('measure_seeds',),
        '.generalisation_gap': ('gap_rows', 'gap_difference_rows', 'gap_verdict'),
        # What notebooks do with lower rooms.
        '..engine.loop': ('speed_settings',),
        '..pipeline.doctor': ('run_checks',),
        '..pipeline.detectors': ('prepare_detector',),
        '..pipeline.teacher_order': ('suggest_sequence', 'calibration_text', 'order_conclusion'),
        '..utils.machine': ('write_environment',),
    },
)
