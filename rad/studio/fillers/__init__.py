"""Loaded models behind one interface: with torch, or with ONNX Runtime alone."""
