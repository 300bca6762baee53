"""Averages of the weights whose length is chosen after training (Karras et al. 2024, arXiv 2312.02696)."""
