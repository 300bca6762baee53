"""Settings of the adaptation that programs without torch need."""

CROPS = 8
"""Crops of a training step. Each costs a training pass, forward and backward."""

SCALED = ("resize", "zoom")
"""Size policies that scale the image. The crops of the adaptation have its own scale."""
