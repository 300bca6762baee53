"""Errors of single images: PSNR and SSIM of torchmetrics, mean absolute errors of parts of an image.

Images are (B,3,H,W) in [0,1], holes (B,1,H,W), hole where > 0. Values are computed in float64, SSIM in float32, where
rounding can cost 0.0003 in flat regions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from rad.modes import float32_modes

SMALLEST = 11
"""Smallest side of a crop in pixels: the Gaussian window of SSIM."""

PSNR_LIMIT = 10 * math.log10(12 * 255**2)
"""58.92 dB: the PSNR of 8-bit rounding, whose mean squared error is (1/255)^2/12."""

Box = tuple[int, int, int, int]
"""top, left, bottom, right in pixels; bottom and right are exclusive."""


def crop_box(hole: Tensor) -> Box:
    """Bounding box of a hole (1,H,W); sides below `SMALLEST` grow evenly within the image.

    Raises ValueError for an empty hole, and for an image smaller than `SMALLEST`.
    """
    height, width = hole.shape[-2:]
    if min(height, width) < SMALLEST:
        raise ValueError(f"{height}x{width} pixels are too few: SSIM needs at least {SMALLEST}x{SMALLEST}")
    fill = hole[0] > 0
    if not fill.any():
        raise ValueError("the mask is empty: there is no filled pixel to score")
    (top, bottom), (left, right) = (_extent(fill.any(axis)) for axis in (1, 0))
    return top, left, bottom, right


def _extent(line: Tensor) -> tuple[int, int]:
    """First and last + 1 index of a boolean line, at least `SMALLEST` apart."""
    places = line.nonzero()
    first, end = int(places[0]), int(places[-1]) + 1
    missing = max(0, SMALLEST - (end - first))
    first = min(max(0, first - missing // 2), len(line) - max(SMALLEST, end - first))
    return first, max(end, first + SMALLEST)


def crop(image: Tensor, box: Box) -> Tensor:
    """The part (...,h,w) of an image (...,H,W) inside a box (top, left, bottom, right)."""
    top, left, bottom, right = box
    return image[..., top:bottom, left:right]


@float32_modes()
def psnr(image: Tensor, reference: Tensor, hole: Tensor | None = None) -> Tensor:
    """(B) float64 in dB, of the whole image, or of the hole with at most `PSNR_LIMIT`; NaN for an empty hole.

    Equal whole images get the PSNR of a single value that differs by 1/255.
    """
    image, reference = image.double(), reference.double()
    share: Tensor | float = 1.0
    if hole is not None:  # known pixels have no error; the mean is then corrected to the hole
        fill = (hole > 0).double()
        image, reference, share = image * fill, reference * fill, fill.mean((1, 2, 3))
    whole = peak_signal_noise_ratio(image, reference, data_range=1.0, dim=(1, 2, 3), reduction="none")
    value = whole + 10 * torch.log10(torch.as_tensor(share, dtype=torch.float64, device=image.device))
    return value.clamp(max=10 * math.log10(255**2 * image[0].numel()) if hole is None else PSNR_LIMIT)


@float32_modes()
def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """(B) float32: structural similarity (Wang et al. 2004), Gaussian window of 11 pixels, sigma 1.5."""
    value = structural_similarity_index_measure(
        image.float(), reference.float(), sigma=1.5, kernel_size=SMALLEST, data_range=1.0, reduction="none"
    )
    assert isinstance(value, Tensor)
    return value.reshape(len(image))


def band_width(height: int, width: int) -> int:
    """Width in pixels of the border band of `seam`: 1/64 of the shorter side, at least 1."""
    return max(1, int(min(height, width) / 64 + 0.5))


def seam(image: Tensor, reference: Tensor, hole: Tensor) -> Tensor:
    """(B) float64: mean absolute error in grey levels of hole pixels within `band_width` of a known pixel.

    Diagonal neighbours count. NaN for a hole without border.
    """
    fill = (hole > 0).double()
    band = band_width(*hole.shape[-2:])
    near = functional.max_pool2d(1 - fill, 2 * band + 1, stride=1, padding=band)
    return _mean_error(image, reference, near * fill)


def known_error(raw: Tensor, reference: Tensor, hole: Tensor) -> Tensor:
    """(B) float64: mean absolute error in grey levels of known pixels; NaN for no known pixel."""
    return _mean_error(raw, reference, (hole <= 0).double())


def hole_error(image: Tensor, reference: Tensor, hole: Tensor) -> Tensor:
    """(B) float64: mean absolute error in grey levels of hole pixels; NaN for an empty hole."""
    return _mean_error(image, reference, (hole > 0).double())


def _mean_error(image: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    error = 255 * (image.double() - reference.double()).abs().mean(1, keepdim=True)
    return (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def gradient_energy(image: Tensor, hole: Tensor) -> Tensor:
    """(B) float64: sum of the squared differences between neighbouring pixels that both lie in the hole.

    The texture of results is the sum of their energies divided by that of the originals. 1 is right; less is too smooth.
    """
    fill, energy = hole > 0, torch.zeros(len(image), dtype=torch.float64, device=image.device)
    for axis in (2, 3):
        length = image.shape[axis] - 1
        both = fill.narrow(axis, 0, length) & fill.narrow(axis, 1, length)
        energy += (torch.diff(image.double(), dim=axis).square() * both).sum((1, 2, 3))
    return energy


def diversity(distance: Callable[[Tensor, Tensor], Tensor], samples: Tensor, *, batch_size: int) -> float:
    """Mean of a symmetric distance (B) over all pairs of samples (S,3,H,W) of one input, S >= 2."""
    pairs = torch.combinations(torch.arange(len(samples))).split(batch_size)
    distances = [distance(samples[pair[:, 0]], samples[pair[:, 1]]).double().cpu() for pair in pairs]
    return float(torch.cat(distances).mean())
