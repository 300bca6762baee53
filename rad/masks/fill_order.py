"""The order in which a hole is filled from its boundary inwards: bands of equal area by distance to known pixels."""

import numpy as np
import torch
from scipy.ndimage import distance_transform_cdt
from torch import Tensor


def fill_order(hole: Tensor, bands: int) -> Tensor:
    """Band b = 1..bands of each hole pixel as b / bands; 0 where the image is known.

    Args:
        hole: (B,1,H,W) in [0,1]; pixels above 0 count as hole.
        bands: number of bands of equal area, by 4-neighbour distance to known pixels; ties from top to bottom. An image
            without known pixels has one band.

    Returns (B,1,H,W) float64.
    """
    orders = []
    for inside in (hole[:, 0] > 0).cpu().numpy():
        order = np.zeros(inside.shape)
        if inside.all():
            order[:] = 1 / bands
        elif inside.any():
            distances = np.asarray(distance_transform_cdt(inside, metric="taxicab"))[inside]
            rank = np.empty(len(distances))
            rank[np.argsort(distances, kind="stable")] = np.arange(1, len(distances) + 1)
            order[inside] = np.ceil(rank * bands / len(distances)) / bands
        orders.append(torch.from_numpy(order))
    return torch.stack(orders)[:, None].to(hole.device)
