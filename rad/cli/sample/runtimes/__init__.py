"""What computes a run of `rad sample`: PyTorch, or ONNX Runtime without torch."""
