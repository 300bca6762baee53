"""The columns of the tables: names, titles, direction, and provenance of each metric."""

import torchmetrics

from rad.evaluation.metrics.pixels import PSNR_LIMIT, SMALLEST
from rad.evaluation.metrics.sets import NEIGHBOURS
from rad.evaluation.results import Better, Metric

REGION_CROP = f"bounding box of the hole, at least {SMALLEST} pixels a side"
WHOLE = {"region": "whole image"}
_KINDS = {"fd": "FD", "kd": "KD", "fid": "FID", "kid": "KID", "lpips": "LPIPS"}


def cropped(name: str) -> str:
    """Name of a metric on the crop: "psnr" -> "psnr-crop", "fd/inception" -> "fd-crop/inception"."""
    kind, slash, extractor = name.partition("/")
    return f"{kind}-crop{slash}{extractor}"


def renamed(name: str, kind: str) -> str:
    """Another metric of the same extractor: ("fd/inception", "recall") -> "recall/inception"."""
    return "/".join([kind, *name.split("/")[1:]])


def _title(name: str) -> str:
    kind, _, extractor = name.partition("/")
    return f"{_KINDS.get(kind, kind)} {extractor}".strip()


def pixel_metrics(*, raw: bool) -> list[Metric]:
    """Metrics without a network; `raw`: whether there are raw outputs."""
    base = {"library": f"torchmetrics {torchmetrics.__version__}", "range": "[0,1] from 8-bit RGB", "resize": "none"}
    ours = base | {"library": "rad"}
    bounds = {"region": REGION_CROP}
    limit = {"limit": f"{PSNR_LIMIT:.2f} dB, that of 8-bit rounding"}
    equal = {"limit": "one value differs by one of 255 levels"}
    window = {"window": "Gaussian, 11 pixels, sigma 1.5", "colours": "mean over RGB"}
    band = {"region": "hole pixels within max(1, side/64) pixels of a known one"}
    columns = [
        Metric("psnr", "PSNR (dB)", "higher", 2, base | WHOLE | equal),
        Metric("psnr-crop", "PSNR crop (dB)", "higher", 2, base | bounds | equal),
        Metric("psnr-hole", "PSNR hole (dB)", "higher", 2, base | {"region": "hole pixels only"} | limit),
        Metric("ssim", "SSIM", "higher", 3, base | WHOLE | window),
        Metric("ssim-crop", "SSIM crop", "higher", 3, base | bounds | window),
        Metric("seam", "seam (grey levels)", "lower", 1, ours | band),
    ]
    if raw:
        known = {"region": "known pixels of the raw output"}
        columns.append(Metric("known-raw", "known, raw (grey levels)", "lower", 2, ours | known))
    return columns


def distance_metrics(name: str, provenance: dict[str, str], *, samples: bool) -> list[Metric]:
    """A perceptual distance on both regions, with its diversity for several samples."""
    title = _title(name)
    columns = [
        Metric(name, title, "lower", 4, provenance | WHOLE),
        Metric(cropped(name), f"{title} crop", "lower", 3, provenance | {"region": REGION_CROP}),
    ]
    if samples:
        pairs = WHOLE | {"of": "pairs of samples of one input, mean over inputs"}
        columns.append(Metric(renamed(name, "diversity"), f"diversity ({title})", "none", 3, provenance | pairs))
    return columns


def set_metrics(
    frechet: str | None, kernel: str | None, provenance: dict[str, str], *, references: dict[str, str]
) -> list[Metric]:
    """Distances between sets on both regions, with precision and recall; `references`: their number and hash."""
    bounds = {"references": "crops of the originals of the images of the row", "region": REGION_CROP}
    exact = {"computed": f"torchmetrics {torchmetrics.__version__}, float64"}
    apart = {"own originals": "never compared with their own results"}
    among = {"neighbours": str(NEIGHBOURS), "definition": "improved precision and recall, arXiv:1904.06991"} | apart
    columns: list[Metric] = []

    def add(name: str, better: Better, digits: int, more: dict[str, str]) -> None:
        title = _title(name)
        columns.append(Metric(name, title, better, digits, provenance | references | WHOLE | more))
        columns.append(Metric(cropped(name), f"{title} crop", better, digits, provenance | bounds | more))

    if frechet is not None:
        add(frechet, "lower", 2, exact | {"samples": "all together"})
    if kernel is not None:
        add(kernel, "lower", 4, exact | {"kernel": "(1 + <x,y>/D)^3, all pairs of different images"} | apart)
    if frechet is not None:
        add(renamed(frechet, "precision"), "higher", 3, among)
        add(renamed(frechet, "recall"), "higher", 3, among)
    return columns
