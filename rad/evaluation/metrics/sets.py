"""Distances between sets of features in float64: Fréchet and kernel distance, precision and recall."""

import math
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel

NEIGHBOURS = 3
"""Precision and recall use the distance to this nearest neighbour."""

ROWS = 1024
"""Rows of a pairwise matrix that are in memory at once."""


class ReferenceFeatures:
    """Features (N,D) of the references, with the statistics shared by all methods.

    Pairwise metrics use the image `names` to exclude a result's own original, whose known pixels it shares.
    """

    def __init__(self, features: Tensor, names: Sequence[str] = ()) -> None:
        self.features, self.names = features.double(), names

    def of(self, names: Collection[str]) -> "ReferenceFeatures":
        rows = [row for row, name in enumerate(self.names) if name in names]
        if len(rows) == len(self.names):
            return self
        return ReferenceFeatures(self.features[rows], [self.names[row] for row in rows])

    @cached_property
    def radii(self) -> Tensor:
        """(N) distances to the third nearest other reference."""
        return _radii(self.features)

    @cached_property
    def mean(self) -> Tensor:
        """(D)"""
        return self.features.mean(0)

    @cached_property
    def covariance(self) -> Tensor:
        """(D,D), unbiased."""
        return torch.cov(self.features.T).reshape(self.features.shape[1], -1)

    @cached_property
    def covariance_root(self) -> Tensor:
        """(D,D), symmetric."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    @cached_property
    def kernel_mean(self) -> float:
        """Mean kernel of two different references."""
        places = torch.arange(len(self.features))
        return float(_mean_kernels(self.features, self.features, places).mean())


class _Identity(nn.Module):
    """Replaces the network of torchmetrics: the features are already computed."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: Tensor, reference: ReferenceFeatures) -> float:
    """Fréchet distance (Heusel et al. 2017) of features (N,D) from the references, by torchmetrics.

    Biased upwards for few images, and downwards if the originals of the results are among the references. If D exceeds the
    number of images, both sets are first rotated into their span, which changes no distance.
    Raises ValueError for fewer than two images in either set.
    """
    _need_two(features, reference)
    first, second = features.double() - reference.mean, reference.features - reference.mean
    if len(first) + len(second) < first.shape[1]:
        basis = torch.linalg.qr(torch.cat([first, second]).T).Q
        first, second = first @ basis, second @ basis
    metric = FrechetInceptionDistance(feature=_Identity(first.shape[1]), sync_on_compute=False)  # of this process alone
    metric.update(second, real=True)
    metric.update(first, real=False)
    return float(metric.compute())


def kernel_distance(features: Tensor, reference: ReferenceFeatures, images: Sequence[str] | None = None) -> float:
    """Unbiased squared maximum mean discrepancy with KID's kernel (1 + <x,y>/D)^3 (Binkowski et al. 2018).

    Over all pairs of different images of features (N,D), without random subsets; may be negative. torchmetrics' sum
    would need sets of equal size and cannot leave out pairs.

    `images`: (N) image name of each result; None: each result is of a different image.
    Raises ValueError for fewer than two images in either set.
    """
    _need_two(features, reference)
    return KernelTerms(features, reference, images).whole


class FrechetTerms:
    """The Fréchet distance of many resamples of features (N,D), faster than `frechet_distance` and equal to it.

    A are the centred features over sqrt(N - 1), R is the covariance of the references. Tr sqrt(A'A R) is the sum of the
    singular values of A sqrt(R).
    """

    def __init__(self, features: Tensor, reference: ReferenceFeatures) -> None:
        self.features = features.double() - reference.mean
        self.rotated = self.features @ reference.covariance_root
        self.trace = float(reference.covariance.trace())

    def distance(self, weight: Tensor) -> float:
        taken = weight > 0
        weight, features, rotated = weight[taken, None], self.features[taken], self.rotated[taken]
        count = float(weight.sum())
        mean = (weight * features).sum(0) / count
        scatter = (weight * (features - mean).square()).sum() / (count - 1)
        centred = (weight / (count - 1)).sqrt() * (rotated - (weight * rotated).sum(0) / count)
        gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
        shared = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
        return float(mean.square().sum() + scatter + self.trace - 2 * shared)


class KernelTerms:
    """The kernels of `kernel_distance`, computed once for many resamples."""

    def __init__(self, features: Tensor, reference: ReferenceFeatures, images: Sequence[str] | None = None) -> None:
        features, originals = features.double(), _places(images or [""] * len(features), reference.names)
        self.between = _mean_kernels(features, reference.features, originals)
        self.owner = _places(images, sorted(set(images))) if images else torch.arange(len(features))
        self.within = poly_kernel(features, features).masked_fill_(self.owner[:, None] == self.owner, 0)
        self.reference = reference.kernel_mean

    @property
    def whole(self) -> float:
        return self.distance(torch.ones_like(self.between))

    def distance(self, weight: Tensor) -> float:
        """The distance with weight[n] copies of result n, without pairs of one image."""
        counts = torch.zeros_like(weight).index_add_(0, self.owner, weight)
        pairs = weight.sum() ** 2 - counts.square().sum()
        within = weight @ self.within @ weight / pairs
        return float(within + self.reference - 2 * (weight @ self.between) / weight.sum())


def _need_two(features: Tensor, reference: ReferenceFeatures) -> None:
    if min(len(features), len(reference.features)) < 2:
        raise ValueError(
            f"a distance between sets needs two images of each: there are {len(features)} results and "
            f"{len(reference.features)} references"
        )


def precise(features: Tensor, reference: ReferenceFeatures, images: Sequence[str] | None = None) -> Tensor:
    """(N) float64: 1 for each result among the references; the mean is the precision.

    Improved precision (Kynkäänniemi et al. 2019, arXiv:1904.06991, equation 1). A result counts if any reference is at least
    as near as that reference's third nearest neighbour. The result's own original never counts.
    `images`: (N) image name of each result; None: no original is among the references.
    """
    originals = _places(images or [""] * len(features), reference.names)
    return _covered(features.double(), reference.features, reference.radii, originals)


def recalled(features: Tensor, reference: ReferenceFeatures, images: Sequence[str] | None = None) -> Tensor:
    """(M) float64: 1 for each reference among the results (N,D), one per image; the mean is the recall. See `precise`."""
    features = features.double()
    results = _places(reference.names or [""] * len(reference.features), images or ())
    return _covered(reference.features, features, _radii(features), results)


def _places(names: Sequence[str], among: Sequence[str]) -> Tensor:
    """(N) index of each name in another list, -1 if absent."""
    known = {name: place for place, name in enumerate(among)}
    return torch.tensor([known.get(name, -1) for name in names])


def _blocks(points: Tensor, excluded: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`ROWS` points at a time, with the (row, column) pairs to leave out: `excluded` (N) is a column, or -1."""
    for block, columns in zip(points.split(ROWS), excluded.split(ROWS), strict=True):
        rows = (columns >= 0).nonzero()[:, 0]
        yield block, rows, columns[rows]


def _mean_kernels(points: Tensor, others: Tensor, excluded: Tensor) -> Tensor:
    """(N) mean kernel of each point (N,D) with all others (M,D) except the excluded one."""
    means = []
    for block, rows, columns in _blocks(points, excluded):
        kernel = poly_kernel(block, others)
        kernel[rows, columns] = 0
        counts = torch.full((len(block),), len(others)).index_add_(0, rows, -torch.ones_like(rows))
        means.append(kernel.sum(1) / counts)
    return torch.cat(means)


def _distances(points: Tensor, others: Tensor, excluded: Tensor) -> Iterator[Tensor]:
    """Blocks of the distance matrix (N,M), infinite for excluded pairs."""
    for block, rows, columns in _blocks(points, excluded):
        distances = torch.cdist(block, others)
        distances[rows, columns] = math.inf
        yield distances


def _radii(features: Tensor) -> Tensor:
    if len(features) <= NEIGHBOURS:
        raise ValueError(f"precision and recall need more than {NEIGHBOURS} images, not {len(features)}")
    blocks = _distances(features, features, torch.arange(len(features)))
    return torch.cat([distances.kthvalue(NEIGHBOURS).values for distances in blocks])


def _covered(points: Tensor, centres: Tensor, radii: Tensor, excluded: Tensor) -> Tensor:
    """(N) whether each point is within the radius of any centre except the excluded one."""
    blocks = _distances(points, centres, excluded)
    return torch.cat([(distances <= radii).any(1).double() for distances in blocks])
