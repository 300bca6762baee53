"""Metrics: errors of images, distances between sets of features, and the columns of the tables.

Example:
    error = psnr(image, reference, hole)                                      # (B) in dB, over the hole
    distance = frechet_distance(features, ReferenceFeatures(references))      # of features (N,D) and (M,D)
"""

from rad.evaluation.metrics.pixels import crop as crop
from rad.evaluation.metrics.pixels import crop_box as crop_box
from rad.evaluation.metrics.pixels import gradient_energy as gradient_energy
from rad.evaluation.metrics.pixels import psnr as psnr
from rad.evaluation.metrics.sets import ReferenceFeatures as ReferenceFeatures
from rad.evaluation.metrics.sets import frechet_distance as frechet_distance
