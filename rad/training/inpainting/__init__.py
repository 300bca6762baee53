"""Held-out images, inpainted during training: metrics, the best model, and early stopping."""

from rad.training.inpainting.metrics import InpaintingMetrics

__all__ = ["InpaintingMetrics"]
