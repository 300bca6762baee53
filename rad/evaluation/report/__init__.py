"""The report of a comparison: summary.md, and report.html with plots and images in one file.

Example:
    write_report(evaluate(folder, references=originals), folder)
"""

from rad.evaluation.report.page import open_reference, write_report

__all__ = ["open_reference", "write_report"]
