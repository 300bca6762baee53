"""RAD without torch: images are filled with NumPy and ONNX Runtime; `export` alone needs torch."""
