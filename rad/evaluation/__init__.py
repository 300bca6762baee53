"""Evaluation over files: metrics with passports, paired statistics, tables and a report."""
