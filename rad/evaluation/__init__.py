"""Metrics, comparisons of methods, statistics and reports.

Example:
    error = psnr(image, reference, hole)                      # (B,) in dB, over the hole
    comparison = evaluate(folder, references=originals)       # a folder that sample.py wrote for several methods
    write_report(comparison, folder)
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.evaluation.compare import evaluate, evaluate_folders
    from rad.evaluation.features import Extractor, feature_net
    from rad.evaluation.metrics.pixels import hole_error, known_error, psnr, seam, ssim
    from rad.evaluation.metrics.sets import ReferenceFeatures, frechet_distance, kernel_distance
    from rad.evaluation.report import write_report
    from rad.evaluation.results import Comparison, Difference, Interval, Metric, Result, Row
    from rad.evaluation.statistics import holm, interval

__all__ = [
    "Comparison",
    "Difference",
    "Extractor",
    "Interval",
    "Metric",
    "ReferenceFeatures",
    "Result",
    "Row",
    "evaluate",
    "evaluate_folders",
    "feature_net",
    "frechet_distance",
    "hole_error",
    "holm",
    "interval",
    "kernel_distance",
    "known_error",
    "psnr",
    "seam",
    "ssim",
    "write_report",
]

__getattr__ = lazy_names(
    __name__,
    {
        "compare": "evaluate evaluate_folders",
        "features": "Extractor feature_net",
        "metrics.pixels": "hole_error known_error psnr seam ssim",
        "metrics.sets": "ReferenceFeatures frechet_distance kernel_distance",
        "report": "write_report",
        "results": "Comparison Difference Interval Metric Result Row",
        "statistics": "holm interval",
    },
)
