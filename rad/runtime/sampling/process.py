"""Noise processes without torch: the levels of `rad.diffusion.processes` in NumPy. The symbols are listed in `rad.diffusion`.

All images of a batch share t. Coefficients are float64 for the K levels of an image, then gathered for its pixels.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rad.arguments import integer
from rad.diffusion.choices import CLEAN, Spacing, spaced_timesteps, whole
from rad.inpainting.canvas.resize import Floats

Doubles = NDArray[np.float64]
Index = NDArray[np.int64]

TimeOrigin = Literal["official", "adm", "image"]


@dataclass(frozen=True)
class Regions:
    """The distinct values of a hole map: `hole[b, 0, y, x] == values[b, index[b, y, x]]`; see `rad.diffusion.NoiseRegions`.

    Args:
        values: (B,K) float64 in [0,1], increasing. Rows with fewer values are padded with 1.
        index: (B,H,W) int64 in [0,K).
    """

    values: Doubles
    index: Index

    @classmethod
    def from_mask(cls, hole: Floats) -> "Regions":
        """Factorise `hole` (B,1,H,W), in [0,1]. The first value is 0 and the last is 1."""
        flat = hole[:, 0].astype(np.float64)
        distinct = [np.union1d(image, (0.0, 1.0)) for image in flat]
        values = np.ones((len(flat), max(map(len, distinct))))
        for row, each in zip(values, distinct, strict=True):
            row[: len(each)] = each
        index = [np.searchsorted(row, image) for row, image in zip(values, flat, strict=True)]
        return cls(values, np.stack(index))


@dataclass(frozen=True)
class NoiseLevel:
    """Noise levels of a batch: alpha, sigma and timesteps (B,K) float64; index (B,H,W), or None for one level (K = 1)."""

    alpha: Doubles
    sigma: Doubles
    timesteps: Doubles
    index: Index | None = None

    def spread(self, levels: Doubles) -> Floats:
        """Map per-level values (B,K) to pixels: (B,1,H,W) float32, or (B,1,1,1) for one level."""
        single = levels.astype(np.float32)
        if self.index is None:
            return single[:, :, None, None]
        return np.take_along_axis(single, self.index.reshape(len(single), -1), 1).reshape(self.index.shape)[:, None]

    def indicators(self, shape: tuple[int, int]) -> Floats:
        """(B,K,H,W), 1 where a pixel has level k, for images of `shape` (height, width)."""
        count = self.alpha.shape[1]
        if self.index is None:
            return np.ones((len(self.alpha), 1, *shape), np.float32)
        return (self.index[:, None] == np.arange(count)[None, :, None, None]).astype(np.float32)

    def unchanged(self, other: "NoiseLevel") -> NDArray[np.bool_]:
        """(B,K): levels equal in both."""
        return (self.alpha == other.alpha) & (self.sigma == other.sigma)


class Uniform:
    """One variance-preserving level for the whole image (DDPM): a = sqrt(A_t), s = sqrt(1 - A_t).

    `betas`: (T,) float64 in (0,1). Raises ValueError for others.
    """

    def __init__(self, betas: Doubles) -> None:
        betas = np.asarray(betas, np.float64)
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(f"betas have shape {betas.shape}; expected (T,) with values between 0 and 1")
        self.steps = self.sampled_steps = len(betas)
        self.log_A = np.append(np.log1p(-betas).cumsum(), 0.0)  # the last entry belongs to CLEAN
        self.grid = np.append(0.0, -np.expm1(self.log_A[:-1]))  # 1 - A at integer tau = t + 1

    def noise(self, t: float, regions: Regions) -> NoiseLevel:
        """Levels at t in [CLEAN, steps - 1] for the images of `regions`, K = 1."""
        alpha, sigma = _amplitudes(np.full((len(regions.values), 1), self.log_abar(t)))
        return NoiseLevel(alpha, sigma, np.full_like(alpha, max(t, 0)))

    def log_abar(self, t: float) -> float:
        """log A at t. 1 - A is linear between integers."""
        below = int(np.floor(t))
        if t == below:
            return float(self.log_A[below])
        low, high = -np.expm1(self.log_A[below]), -np.expm1(self.log_A[min(below + 1, len(self.log_A) - 2)])
        return float(np.log1p(-(low + (t - below) * (high - low))))

    def time_of(self, log_snr: Doubles) -> Doubles:
        """Fractional t where log(a / s) of the hole equals `log_snr`."""
        return self._tau(1 / (1 + np.exp(2 * log_snr))) - 1

    def _tau(self, intensity: Doubles) -> Doubles:
        """tau in [0,T] with 1 - A(tau) = `intensity`, linear between the points of `grid`."""
        below = np.clip(np.searchsorted(self.grid, intensity, side="right") - 1, 0, len(self.grid) - 2)
        low, high = self.grid[below], self.grid[below + 1]
        return np.clip(below + (intensity - low) / (high - low), 0, len(self.grid) - 1)


class RegionAware(Uniform):
    """RAD's two-phase process, per pixel, from a hole map; see `rad.diffusion.RegionAware`.

    Args:
        betas: (T1,) in (0,1), the schedule of each phase; 2 T1 steps in all.
        time_origin: the network's timestep for a level: "official", "adm" or "image". Raises ValueError for others.
    """

    def __init__(self, betas: Doubles, *, time_origin: TimeOrigin = "adm") -> None:
        if time_origin not in get_args(TimeOrigin):
            raise ValueError(f"time_origin is {time_origin!r}; allowed are {', '.join(get_args(TimeOrigin))}")
        super().__init__(betas)
        self.steps, self.time_origin = 2 * self.sampled_steps, time_origin

    def noise(self, t: float, regions: Regions) -> NoiseLevel:
        """Levels at t in [CLEAN, 2 T1 - 1]."""
        m = regions.values
        last = self.log_A[self.sampled_steps - 1]  # log(1 - nu)
        with np.errstate(divide="ignore"):
            phase1_end = np.where(m == 1, last, np.log1p(np.expm1(last) * m))  # log(1 - nu m), exact at both ends
        second = t > self.sampled_steps - 1
        fraction = self.log_abar(t - self.sampled_steps if second else t) / last  # G_t
        log_abar = phase1_end + fraction * (last - phase1_end) if second else fraction * phase1_end
        tau = self._tau(-np.expm1(log_abar))
        return NoiseLevel(*_amplitudes(log_abar), self._network_timesteps(tau), regions.index)

    def _network_timesteps(self, tau: Doubles) -> Doubles:
        if self.time_origin == "official":
            return tau
        timesteps = np.maximum(tau - 1, 0)
        noisiest = timesteps.max(1, keepdims=True)
        return np.broadcast_to(noisiest, timesteps.shape) if self.time_origin == "image" else timesteps


def sampling_timesteps(
    process: Uniform, count: int, *, spacing: Spacing = "even", fractional: bool = False
) -> list[float]:
    """`count` timesteps from sampled_steps - 1 downwards, then CLEAN; see `rad.diffusion.sampling_timesteps`.

    Raises ValueError for a count outside [1, sampled_steps], or an unknown spacing.
    """
    total, count = process.sampled_steps, integer("steps", count)
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing is {spacing!r}; allowed are {', '.join(get_args(Spacing))}")
    if spacing != "logsnr" or count == 1 or not 1 <= count <= total:
        return spaced_timesteps(total, count, spacing="even" if spacing == "logsnr" else spacing, fractional=fractional)
    log_A = process.log_A[[total - 1, 0]]
    noisiest, cleanest = 0.5 * (log_A - np.log(-np.expm1(log_A)))  # log(a / s)
    inner = process.time_of(np.linspace(noisiest, cleanest, count)[1:-1])
    timesteps = [float(total - 1), *inner.tolist(), 0.0]
    return [*(timesteps if fractional else whole(timesteps)), CLEAN]


def _amplitudes(log_abar: Doubles) -> tuple[Doubles, Doubles]:
    return np.exp(0.5 * log_abar), np.sqrt(-np.expm1(log_abar))
