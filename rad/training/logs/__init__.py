"""Curves and loggers of a training run."""
