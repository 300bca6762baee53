"""The numbers: errors of an image and distances between sets of features, on torchmetrics wherever it has them.

Images are (B,3,H,W) in [0,1], holes (B,1,H,W), hole where > 0: a soft mask counts as hole wherever anything may change.
Numbers are computed in float64; SSIM in float32 as torchmetrics does, where rounding is worth up to 0.0003 in flat regions.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel

from rad.evaluation.results import Metric

SMALLEST = 11
"""Least height and width of a crop, in pixels: the Gaussian window of SSIM."""

PSNR_LIMIT = 10 * math.log10(12 * 255**2)
"""58.92 dB: that of the rounding to 8 bits, mean squared error (1/255)^2/12. Files say nothing about smaller errors."""

NEIGHBOURS = 3

ROWS = 1024
"""Of a matrix of distances or kernels between all images that are in memory at once."""

Box = tuple[int, int, int, int]
"""top, left, bottom, right, in pixels; bottom and right are the first pixels outside."""


# ------------------------------------------------------------------------------------------------ one image


def crop_box(hole: Tensor) -> Box:
    """The bounding box of a hole (1,H,W), where > 0: what every metric of a crop is computed on.

    A side shorter than `SMALLEST` grows to it, evenly on both sides as far as the image reaches.

    Raises ValueError for an empty hole, and for an image smaller than `SMALLEST`.
    """
    height, width = hole.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"{height}x{width} pixels are too few: SSIM needs at least {SMALLEST}x{SMALLEST}")
    fill = hole[0] > 0
    if not fill.any():
        raise ValueError("the mask is empty: nothing was filled, so there is nothing to be scored")
    (top, bottom), (left, right) = (
        _at_least(int(line.nonzero()[0]), int(line.nonzero()[-1]) + 1, len(line)) for line in (fill.any(1), fill.any(0))
    )
    return top, left, bottom, right


def _at_least(first: int, end: int, length: int) -> tuple[int, int]:
    missing = max(0, SMALLEST - (end - first))
    first = min(max(0, first - missing // 2), length - max(SMALLEST, end - first))
    return first, max(end, first + SMALLEST)


def crop(image: Tensor, box: Box) -> Tensor:
    """The pixels of (...,H,W) inside a box."""
    top, left, bottom, right = box
    return image[..., top:bottom, left:right]


def psnr(image: Tensor, reference: Tensor, hole: Tensor | None = None) -> Tensor:
    """(B) float64, dB, range 1, over all pixels, or over those of the hole with at most `PSNR_LIMIT`.

    Equal images have that of images of which one value differs by one of 255 levels, or the limit. NaN for an empty hole.
    """
    image, reference = image.double(), reference.double()
    share: Tensor | float = 1.0
    if hole is not None:  # outside, the error is made zero; the mean is then taken over the hole alone
        fill = (hole > 0).double()
        image, reference, share = image * fill, reference * fill, fill.mean((1, 2, 3))
    whole = peak_signal_noise_ratio(image, reference, data_range=1.0, dim=(1, 2, 3), reduction="none")
    value = whole + 10 * torch.log10(torch.as_tensor(share, dtype=torch.float64, device=image.device))
    return value.clamp(max=10 * math.log10(255**2 * image[0].numel()) if hole is None else PSNR_LIMIT)


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """(B) float32: structural similarity (Wang et al. 2004), Gaussian window of 11 pixels, sigma 1.5, range 1."""
    value = structural_similarity_index_measure(
        image.float(), reference.float(), sigma=1.5, kernel_size=SMALLEST, data_range=1.0, reduction="none"
    )
    assert isinstance(value, Tensor)
    return value.reshape(len(image))


def band_width(height: int, width: int) -> int:
    """Pixels of the hole beside its border that `seam` looks at: a 64th of the shorter side, at least one."""
    return max(1, int(min(height, width) / 64 + 0.5))


def seam(image: Tensor, reference: Tensor, hole: Tensor) -> Tensor:
    """(B) float64: mean absolute error in grey levels (0 to 255) of hole pixels beside the border of the hole.

    Beside means within `band_width` pixels of a known one, sideways or diagonally. Known pixels equal the
    reference, so that this is the error of the step across the border. NaN where there is no border.
    """
    fill = (hole > 0).double()
    band = band_width(*hole.shape[-2:])
    near = functional.max_pool2d(1 - fill, 2 * band + 1, stride=1, padding=band)
    return _levels(image, reference, near * fill)


def known_error(raw: Tensor, reference: Tensor, hole: Tensor) -> Tensor:
    """(B) float64: mean absolute error in grey levels (0 to 255) of known pixels; NaN where there is none.

    That of results is 0, that of raw outputs, before known pixels are put back, is not.
    """
    return _levels(raw, reference, (hole <= 0).double())


def hole_error(image: Tensor, reference: Tensor, hole: Tensor) -> Tensor:
    """(B) float64: mean absolute error in grey levels (0 to 255) of the pixels of the hole; NaN for an empty one."""
    return _levels(image, reference, (hole > 0).double())


def _levels(image: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    error = 255 * (image.double() - reference.double()).abs().mean(1, keepdim=True)
    return (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


# --------------------------------------------------------------------------------------------- sets of images


class ReferenceFeatures:
    """Features (N,D) of the references, and what is computed of them once for all methods; float64.

    Args:
        names: of the images. A result of an image of that name is not compared with it, where a metric is over pairs:
            the filled image shares the known pixels of its own original, unlike those of an image drawn anew.
    """

    def __init__(self, features: Tensor, names: Sequence[str] = ()) -> None:
        self.features, self.names = features.double(), names

    def of(self, names: Collection[str]) -> "ReferenceFeatures":
        """Those of the images called so."""
        rows = [row for row, name in enumerate(self.names) if name in names]
        if len(rows) == len(self.names):
            return self
        return ReferenceFeatures(self.features[rows], [self.names[row] for row in rows])

    @cached_property
    def radii(self) -> Tensor:
        """(N) distances to the `NEIGHBOURS`-th nearest other one."""
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
        """(D,D), the symmetric square root."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    @cached_property
    def kernel_mean(self) -> float:
        """Mean kernel of two different references."""
        own = torch.arange(len(self.features))
        return float(_mean_kernels(self.features, self.features, own).mean())


class _AsGiven(nn.Module):
    """Takes the place of the network, whose features are there already."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_features = count

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: Tensor, reference: ReferenceFeatures) -> float:
    """Frechet distance (Heusel et al. 2017) of features (N,D) from those of the references, by torchmetrics, float64.

    All samples of all images are one set. Biased upwards for few images, and downwards where the originals of the results
    are among the references: only rows of equal counts and references can be compared. Where D exceeds the number of all
    images, both sets are first rotated into the space that they span, which changes no distance and is quicker.

    Raises ValueError for less than two images in either set.
    """
    _need_two(features, reference)
    first, second = features.double() - reference.mean, reference.features - reference.mean
    if len(first) + len(second) < first.shape[1]:
        basis = torch.linalg.qr(torch.cat([first, second]).T).Q
        first, second = first @ basis, second @ basis
    metric = FrechetInceptionDistance(feature=_AsGiven(first.shape[1]))
    metric.update(second, real=True)
    metric.update(first, real=False)
    return float(metric.compute())


def kernel_distance(features: Tensor, reference: ReferenceFeatures, images: Sequence[str] | None = None) -> float:
    """Squared maximum mean discrepancy of features (N,D) with the cubic kernel (1 + <x,y>/D)^3 of KID (Binkowski et al. 2018).

    Over all pairs of different images in both sets and between them, without random subsets: unbiased, for a result is
    not paired with its own original or with another sample of its image. The kernel is that of torchmetrics; the
    sum is here, because that of torchmetrics is right only for sets of equal size. The value may be negative.

    Args:
        images: (N) name of the image that each result is a sample of; None: each is of an image of its own.

    Raises ValueError for less than two images in either set.
    """
    _need_two(features, reference)
    return KernelTerms(features, reference, images).whole


class FrechetTerms:
    """The Frechet distance of many resamples of features (N,D), quicker than `frechet_distance` and equal to it.

    With A the centred features over sqrt(N - 1), so that their covariance is A'A, and R the covariance of the
    references, Tr sqrt(A'A R) is the sum of the singular values of A sqrt(R): a matrix of N rows at most.
    """

    def __init__(self, features: Tensor, reference: ReferenceFeatures) -> None:
        self.features = features.double() - reference.mean
        self.rotated = self.features @ reference.covariance_root
        self.trace = float(reference.covariance.trace())

    def distance(self, weight: Tensor) -> float:
        """The distance where image n is taken weight[n] times, float64."""
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
    """The kernels that `kernel_distance` sums: computed once, summed for many resamples."""

    def __init__(self, features: Tensor, reference: ReferenceFeatures, images: Sequence[str] | None = None) -> None:
        features, own = features.double(), _places(images or [""] * len(features), reference.names)
        self.between = _mean_kernels(features, reference.features, own)
        self.owner = _places(images, sorted(set(images))) if images else torch.arange(len(features))
        self.within = poly_kernel(features, features).masked_fill_(self.owner[:, None] == self.owner, 0)
        self.reference = reference.kernel_mean

    @property
    def whole(self) -> float:
        """The distance of all results."""
        return self.distance(torch.ones_like(self.between))

    def distance(self, weight: Tensor) -> float:
        """The distance where result n is taken weight[n] times; pairs of an image with itself are left out."""
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
    """(N) float64: 1 for a result that lies among the references. The mean is the precision.

    Improved precision (Kynkaanniemi et al. 2019, arXiv:1904.06991, equation 1): within the distance of some
    reference, not its own original, to its third nearest other one.

    Args:
        images: (N) name of the image of each result; None: no original is among the references.
    """
    own = _places(images or [""] * len(features), reference.names)
    return _covered(features.double(), reference.features, reference.radii, own)


def recalled(features: Tensor, reference: ReferenceFeatures, images: Sequence[str] | None = None) -> Tensor:
    """(number of references) float64: 1 for a reference that lies among the results. The mean is the recall; see `precise`.

    Of results (N,D), one an image: other samples of an image would be neighbours that are no images of their own.
    """
    features = features.double()
    own = _places(reference.names or [""] * len(reference.features), images or ())
    return _covered(reference.features, features, _radii(features), own)


def _places(names: Sequence[str], among: Sequence[str]) -> Tensor:
    """(N) where each name is in another list, -1 where it is not."""
    known = {name: place for place, name in enumerate(among)}
    return torch.tensor([known.get(name, -1) for name in names])


def _blocks(points: Tensor, own: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`ROWS` of the points at a time; those of them that have an own one among the others, and where that is."""
    for some, places in zip(points.split(ROWS), own.split(ROWS), strict=True):
        with_own = (places >= 0).nonzero()[:, 0]
        yield some, with_own, places[with_own]


def _mean_kernels(points: Tensor, others: Tensor, own: Tensor) -> Tensor:
    """(N) mean kernel of each point (N,D) with all others (M,D) but that at its place `own` (N), -1 for none."""
    means = []
    for some, with_own, places in _blocks(points, own):
        kernel = poly_kernel(some, others)
        kernel[with_own, places] = 0
        counts = torch.full((len(some),), len(others)).index_add_(0, with_own, -torch.ones_like(with_own))
        means.append(kernel.sum(1) / counts)
    return torch.cat(means)


def _radii(features: Tensor) -> Tensor:
    if len(features) <= NEIGHBOURS:
        raise ValueError(f"precision and recall need more than {NEIGHBOURS} images, not {len(features)}")
    radii = []
    for some, rows, places in _blocks(features, torch.arange(len(features))):
        distances = torch.cdist(some, features)
        distances[rows, places] = math.inf
        radii.append(distances.kthvalue(NEIGHBOURS).values)
    return torch.cat(radii)


def _covered(points: Tensor, centres: Tensor, radii: Tensor, own: Tensor) -> Tensor:
    """(N) whether each point is within the radius of any centre but its own one."""
    covered = []
    for some, with_own, places in _blocks(points, own):
        distances = torch.cdist(some, centres)
        distances[with_own, places] = math.inf
        covered.append((distances <= radii).any(1).double())
    return torch.cat(covered)


def diversity(distance: Callable[[Tensor, Tensor], Tensor], samples: Tensor, *, batch_size: int) -> float:
    """Mean distance between two different samples of one input, of (S,3,H,W), S >= 2.

    Args:
        distance: of two batches (B,3,H,W), symmetric: (B).
    """
    pairs = torch.combinations(torch.arange(len(samples))).split(batch_size)
    return float(
        torch.cat([distance(samples[some[:, 0]], samples[some[:, 1]]).double().cpu() for some in pairs]).mean()
    )


# ------------------------------------------------------------------------------------------------- their names


def cropped(name: str) -> str:
    """The name of a metric on the crop: "psnr" -> "psnr-crop", "fd/inception" -> "fd-crop/inception"."""
    kind, slash, extractor = name.partition("/")
    return f"{kind}-crop{slash}{extractor}"


def renamed(name: str, kind: str) -> str:
    """Another metric of the same extractor: ("fd/inception", "recall") -> "recall/inception"."""
    return "/".join([kind, *name.split("/")[1:]])


def pixel_metrics(*, raw: bool) -> list[Metric]:
    """What is computed without a network; `raw`: whether there are raw outputs."""
    base = {"library": f"torchmetrics {torchmetrics.__version__}", "range": "[0,1] from 8-bit RGB", "resize": "none"}
    own = base | {"library": "rad"}
    whole, bounds = {"region": "whole image"}, {"region": REGION_CROP}
    limit = {"limit": f"{PSNR_LIMIT:.2f} dB, that of 8-bit rounding"}
    equal = {"limit": "one value differs by one of 255 levels"}
    window = {"window": "Gaussian, 11 pixels, sigma 1.5", "colours": "mean over RGB"}
    band = {"region": "hole pixels within max(1, side/64) pixels of a known one"}
    made = [
        Metric("psnr", "PSNR (dB)", "higher", 2, base | whole | equal),
        Metric("psnr-crop", "PSNR crop (dB)", "higher", 2, base | bounds | equal),
        Metric("psnr-hole", "PSNR hole (dB)", "higher", 2, base | {"region": "hole pixels only"} | limit),
        Metric("ssim", "SSIM", "higher", 3, base | whole | window),
        Metric("ssim-crop", "SSIM crop", "higher", 3, base | bounds | window),
        Metric("seam", "seam (grey levels)", "lower", 1, own | band),
    ]
    if raw:
        known = {"region": "known pixels of the raw output"}
        made.append(Metric("known-raw", "known, raw (grey levels)", "lower", 2, own | known))
    return made


REGION_CROP = f"bounding box of the hole, at least {SMALLEST} pixels a side"


def distance_metrics(name: str, provenance: dict[str, str], *, samples: bool) -> list[Metric]:
    """A perceptual distance on both regions, and the diversity by it where there are several samples."""
    title = _title(name)
    made = [
        Metric(name, title, "lower", 4, provenance | {"region": "whole image"}),
        Metric(cropped(name), f"{title} crop", "lower", 3, provenance | {"region": REGION_CROP}),
    ]
    if samples:
        what = {"region": "whole image", "of": "pairs of samples of one input, mean over inputs"}
        made.append(Metric(renamed(name, "diversity"), f"diversity ({title})", "none", 3, provenance | what))
    return made


def set_metrics(
    frechet: str | None, kernel: str | None, provenance: dict[str, str], *, references: dict[str, str]
) -> list[Metric]:
    """Distances between sets, of whole images and of crops, and precision and recall.

    Args:
        references: number and hash of the images that the results are compared with.
    """
    whole = provenance | references | {"region": "whole image"}
    bounds = provenance | {"references": "crops of the originals of the images of the row", "region": REGION_CROP}
    exact = f"torchmetrics {torchmetrics.__version__}, float64"
    among = {"neighbours": str(NEIGHBOURS), "definition": "improved precision and recall, arXiv:1904.06991"}
    made: list[Metric] = []

    def add(name: str | None, better: Literal["higher", "lower"], digits: int, more: dict[str, str]) -> None:
        if name is not None:
            made.append(Metric(name, _title(name), better, digits, whole | more))
            made.append(Metric(cropped(name), f"{_title(name)} crop", better, digits, bounds | more))

    apart = {"own originals": "never compared with their own results"}
    among |= apart
    add(frechet, "lower", 2, {"computed": exact, "samples": "all together"})
    add(kernel, "lower", 4, {"computed": exact, "kernel": "(1 + <x,y>/D)^3, all pairs of different images"} | apart)
    if frechet is not None:
        add(renamed(frechet, "precision"), "higher", 3, among)
        add(renamed(frechet, "recall"), "higher", 3, among)
    return made


_KINDS = {"fd": "FD", "kd": "KD", "fid": "FID", "kid": "KID", "lpips": "LPIPS"}


def _title(name: str) -> str:
    kind, _, extractor = name.partition("/")
    return f"{_KINDS.get(kind, kind)} {extractor}".strip()
