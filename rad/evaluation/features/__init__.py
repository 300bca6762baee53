"""Feature networks with one interface: LPIPS, Inception, and any network from a file.

Example:
    network = feature_net("checkpoints/features-nature64")
    distances = network.distance(images, references)      # (B), of images (B,3,H,W) in [0,1]
"""

from rad.evaluation.features.extractor import Extractor, tensors_hash
from rad.evaluation.features.network import FeatureNet, feature_net
from rad.evaluation.features.standard import has_lpips, inception, lpips

__all__ = ["Extractor", "FeatureNet", "feature_net", "has_lpips", "inception", "lpips", "tensors_hash"]
