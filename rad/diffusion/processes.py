"""Noise processes x_t = a x_0 + s e: one level for the whole image, or RAD's own schedule for every pixel.

RAD (Kim, Suh, Lee, CVPR 2025, arXiv 2412.09191): with a hole map m in [0,1] and a DDPM schedule A_t whose last value is
1 - nu, a pixel is noised in two phases,

    phase 1, t <  T1:  abar_t = (1 - nu m)^G_t                               (the hole is noised, the known waits)
    phase 2, t >= T1:  abar_t = (1 - nu m) ((1 - nu) / (1 - nu m))^G_(t-T1)  (the known follows, the hole waits)

where G_t = log A_t / log(1 - nu). A map holds as many noise levels as the hole map has values, so everything here is
computed for the K levels of an image, in float64, and only looked up for the pixels. Nothing is remembered between calls.
"""

from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN, NoiseLevel, NoiseRegions
from rad.diffusion.schedules import fractional_times, log_cumulative, noise_grid

LEAST_SIGNAL = 2.0**-12
"""The least a of a flow's levels: where its table ends in pure noise, a ratio s / a would be infinite."""


TimeOrigin = Literal["official", "adm", "image"]


class Process(Protocol):
    """A family of noise levels, numbered t = 0 (least noise) to steps - 1; CLEAN is no noise."""

    steps: int
    """Number of noise levels that training visits."""
    sampled_steps: int
    """Number of them that the reverse process visits: it starts at sampled_steps - 1."""

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """The noise at times t (B,) in [CLEAN, steps - 1], for images with these regions.

        `t` holds whole numbers (int64) or fractional ones (any float). A whole number gives the same noise in both dtypes.
        """
        ...


@runtime_checkable
class Invertible(Protocol):
    """A process that finds the time of a noise level, which the spacing "logsnr" needs."""

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The fractional times in [CLEAN, sampled_steps - 1] at which log(a / s) of the hole is `log_snr`; float64."""
        ...


def _checked(t: Tensor, steps: int) -> Tensor:
    """Times `t` as int64 or, where they may be fractional, as float64. Raises ValueError outside [CLEAN, steps - 1]."""
    if t.device.type == "cpu" and len(t) and not (t.min() >= CLEAN and t.max() <= steps - 1):
        raise ValueError(
            f"t runs from {t.min().item():g} to {t.max().item():g}; allowed are {CLEAN} (clean) to {steps - 1}, the last step"
        )
    return t.to(torch.float64) if t.is_floating_point() else t


def _between(table: Tensor, t: Tensor) -> Tensor:
    """Entries of `table` at times t, any shape: the table's own at whole times, linear between them.

    Args:
        table: (T+1,) float64, the last entry for time CLEAN.
    """
    if not t.is_floating_point():
        return table[t]
    below = t.floor()
    at = below.long()
    above = torch.where(at < len(table) - 2, at + 1, at)
    return torch.where(t == below, table[at], torch.lerp(table[at], table[above], t - below))


def _log_abar(log_A: Tensor, t: Tensor) -> Tensor:
    """log A at times t, any shape: the table's own at whole times; between them 1 - A is linear, as in `fractional_times`."""
    if not t.is_floating_point():
        return log_A[t]
    between = torch.log1p(-_between(-torch.expm1(log_A), t))
    return torch.where(t == t.floor(), log_A[t.floor().long()], between)


def _time_of(intensity: Tensor, table: Tensor) -> Tensor:
    """The inverse of `_between`, for a table that increases from 0 at time CLEAN."""
    return fractional_times(intensity, torch.cat([table[-1:], table[:-1]])) - 1


class Uniform:
    """One variance-preserving level for the whole image: a = sqrt(A_t), s = sqrt(1 - A_t). DDPM, ADM.

    Args:
        betas: (T,) in (0,1), the variance added by each step.
    """

    def __init__(self, betas: Tensor) -> None:
        self.betas = betas.to(torch.float64)
        self.steps = self.sampled_steps = len(betas)
        self.log_A = log_cumulative(self.betas)

    def noise(self, t: Tensor, regions: NoiseRegions | None = None) -> NoiseLevel:
        """t (B,). `regions` may be given, for one signature with RegionAware; the level does not depend on it."""
        t = _checked(t, self.steps)
        log_abar = _log_abar(self.log_A.to(t.device), t)[:, None]
        return NoiseLevel(*_amplitudes(log_abar), timesteps=t.clamp(min=0)[:, None].to(torch.float64))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """See `Invertible`."""
        return _time_of(torch.sigmoid(-2 * log_snr), -torch.expm1(self.log_A))


class Flow:
    """One level of a rectified flow for the whole image: a = 1 - sigma, s = sigma (Liu et al. 2022, arXiv 2209.03003).

    Args:
        sigmas: (T,) in (0,1], increasing; the last is held below 1 by `LEAST_SIGNAL`.
        scale: the network is told scale * sigma, of the very sigma that x has.
    """

    def __init__(self, sigmas: Tensor, *, scale: float = 1000.0) -> None:
        self.sigmas = sigmas.to(torch.float64).clamp(max=1 - LEAST_SIGNAL)
        if not (len(sigmas) and self.sigmas[0] > 0 and bool((self.sigmas.diff() > 0).all())):
            raise ValueError("the sigmas of a flow must increase from above 0 to at most 1")
        self.scale = scale
        self.steps = self.sampled_steps = len(sigmas)
        self.table = torch.cat([self.sigmas, self.sigmas.new_zeros(1)])

    def noise(self, t: Tensor, regions: NoiseRegions | None = None) -> NoiseLevel:
        """t (B,); `regions` changes nothing. At fractional times sigma is linear between its neighbours."""
        t = _checked(t, self.steps)
        sigma = _between(self.table.to(t.device), t)[:, None]
        return NoiseLevel(1 - sigma, sigma, timesteps=self.scale * sigma)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """See `Invertible`."""
        return _time_of(torch.sigmoid(-log_snr), self.table)


class EDM:
    """One level for the whole image in EDM's units: a = 1, s = sigma (Karras et al. 2022, arXiv 2206.00364).

    Args:
        sigmas: (T,) above 0, increasing. The network is told ln(sigma) / 4, which is the paper's c_noise.
    """

    def __init__(self, sigmas: Tensor) -> None:
        self.sigmas = sigmas.to(torch.float64)
        if not (len(sigmas) and self.sigmas[0] > 0 and bool((self.sigmas.diff() > 0).all())):
            raise ValueError("the sigmas must increase from above 0")
        self.steps = self.sampled_steps = len(sigmas)
        self.table = torch.cat([self.sigmas, self.sigmas.new_zeros(1)])

    def noise(self, t: Tensor, regions: NoiseRegions | None = None) -> NoiseLevel:
        """t (B,); `regions` changes nothing. The clean level is told as the least one.

        At fractional times sigma is linear between its neighbours.
        """
        t = _checked(t, self.steps)
        sigma = _between(self.table.to(t.device), t)[:, None]
        return NoiseLevel(torch.ones_like(sigma), sigma, timesteps=sigma.clamp(min=float(self.sigmas[0])).log() / 4)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """See `Invertible`."""
        return _time_of(torch.exp(-log_snr), self.table)


class RegionAware:
    """RAD's two-phase process: pixel by pixel, from a hole map (0 known, 1 to be filled, between: partly noised).

    Args:
        betas: (T1,) in (0,1), the schedule of either phase; T = 2 T1 steps in all.
        time_origin: what the network is told of a level. "official": the paper's fractional index tau (0 clean, j for the
            noise of DDPM step j-1). "adm": max(tau - 1, 0), which is what the pretrained network was trained with. "image":
            the same of the noisiest pixel, for all pixels: no spatial embedding, for the ablation.
    """

    def __init__(self, betas: Tensor, *, time_origin: TimeOrigin = "adm") -> None:
        if time_origin not in get_args(TimeOrigin):
            raise ValueError(f"time_origin is {time_origin!r}; allowed are {', '.join(get_args(TimeOrigin))}")
        self.betas = betas.to(torch.float64)
        self.time_origin: TimeOrigin = time_origin
        self.sampled_steps = len(betas)
        self.steps = 2 * len(betas)
        self.log_A = log_cumulative(self.betas)
        self.grid = noise_grid(self.log_A[:-1])

    def log_abar(self, t: Tensor, m: Tensor) -> Tensor:
        """log abar_t(m) for times t (B,) in [CLEAN, 2 T1 - 1] and hole values m (B,K) float64: (B,K) float64."""
        log_A = self.log_A.to(t.device)
        last = log_A[self.sampled_steps - 1]  # log(1 - nu)
        nu = -torch.expm1(last)
        phase1_end = torch.where(m == 1, last, torch.log1p(-nu * m))  # log(1 - nu m), exact at both ends
        in_phase2 = t > self.sampled_steps - 1
        fraction = (_log_abar(log_A, torch.where(in_phase2, t - self.sampled_steps, t)) / last)[:, None]  # G_t
        return torch.where(in_phase2[:, None], phase1_end + fraction * (last - phase1_end), fraction * phase1_end)

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """t (B,) in [CLEAN, 2 T1 - 1], each image its own (the phases may be mixed in a batch)."""
        if regions is None:
            raise ValueError("the region-aware process needs the regions of a hole map: Regions.of(hole)")
        log_abar = self.log_abar(_checked(t, self.steps), regions.values)
        times = fractional_times(-torch.expm1(log_abar), self.grid.to(t.device))
        return NoiseLevel(*_amplitudes(log_abar), timesteps=_told(times, self.time_origin), index=regions.index)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """See `Invertible`."""
        return _time_of(torch.sigmoid(-2 * log_snr), -torch.expm1(self.log_A))


class RegionAwareFlow:
    """RAD's two phases for a rectified flow, with S the largest sigma of the flow and g_t its levels:

        phase 1:  sigma_t = m g_t        phase 2:  sigma_t = m S + (1 - m) g_(t-T1)

    Ours: the paper has variance-preserving levels alone. As there, phase 1 noises the hole while the known pixels wait.
    """

    def __init__(self, base_process: Flow) -> None:
        self.base_process, self.sampled_steps, self.steps = base_process, base_process.steps, 2 * base_process.steps

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """t (B,) in [CLEAN, 2 T1 - 1], each image its own."""
        if regions is None:
            raise ValueError("the region-aware process needs the regions of a hole map: Regions.of(hole)")
        t = _checked(t, self.steps)
        table, m = self.base_process.table.to(t.device), regions.values
        second = t > self.sampled_steps - 1
        g = _between(table, torch.where(second, t - self.sampled_steps, t))[:, None]
        sigma = torch.where(second[:, None], m * table[-2] + (1 - m) * g, m * g)
        return NoiseLevel(1 - sigma, sigma, timesteps=self.base_process.scale * sigma, index=regions.index)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """See `Invertible`."""
        return self.base_process.time_of(log_snr)


def region_aware(base_process: Process, *, time_origin: TimeOrigin = "adm") -> Process:
    """RAD's process for a model whose own is `own`. Raises ValueError for one that has no such form."""
    if isinstance(base_process, Uniform):
        return RegionAware(base_process.betas, time_origin=time_origin)
    if isinstance(base_process, Flow):
        return RegionAwareFlow(base_process)
    raise ValueError("RAD needs a variance-preserving model or a flow; this model has another kind of noise")


def get_betas(base_process: Process) -> Tensor:
    """The betas of a variance-preserving model. Raises ValueError for a model of another kind."""
    if not isinstance(base_process, Uniform):
        raise ValueError("the method needs a variance-preserving model; this one is a flow or has EDM's noise levels")
    return base_process.betas


class PerPixel:
    """TD-Paint's process (Mayet et al., ICLR 2025, arXiv 2410.09306): a whole step for every pixel of one DDPM schedule.

    Args:
        betas: (T,) in (0,1).
        time_origin: as for `RegionAware`.
        known: the time of pixels whose hole value is 0: CLEAN in sampling; 0, the least noise, in training.
    """

    def __init__(self, betas: Tensor, *, time_origin: TimeOrigin = "adm", known: int = CLEAN) -> None:
        self.betas = betas.to(torch.float64)
        self.time_origin: TimeOrigin = time_origin
        self.steps = self.sampled_steps = len(betas)
        self.log_A = log_cumulative(self.betas)
        self.known = known

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """t (B,) for pixels with a hole value above 0; the others never have more noise than these."""
        if regions is None:
            raise ValueError("a process with a step for every pixel needs the regions of a hole map: Regions.of(hole)")
        t = _checked(t, self.steps)
        times = torch.where(regions.values > 0, t[:, None], t[:, None].clamp(max=self.known))
        return _steps(self.log_A, times, regions, self.time_origin)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """See `Invertible`."""
        return _time_of(torch.sigmoid(-2 * log_snr), -torch.expm1(self.log_A))


class Bands:
    """Parts of a hole that are released one after the other, each with the whole DDPM schedule to itself.

    Args:
        betas: (T,) in (0,1).
        time_origin: as for `RegionAware`.
        bands: B, into how many parts values in (0,1] are cut: (0, 1/B] goes first.
        overlap: 0: a band starts when the one before it is clean; 1: all go together; between: linear.
    """

    def __init__(self, betas: Tensor, *, bands: int, overlap: float, time_origin: TimeOrigin = "adm") -> None:
        self.betas = betas.to(torch.float64)
        self.time_origin: TimeOrigin = time_origin
        self.steps = self.sampled_steps = len(betas)
        self.log_A = log_cumulative(self.betas)
        self.bands, self.overlap = bands, overlap

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """t (B,), counted over the whole of the release; fractional times are rounded."""
        if regions is None:
            raise ValueError("a process with a step for every pixel needs the regions of a hole map: Regions.of(hole)")
        t = _checked(t, self.steps).round().long() if t.is_floating_point() else _checked(t, self.steps)
        band = (regions.values * self.bands - 1e-6).ceil().clamp(min=1) - 1  # 0, the first, to B - 1
        duration = self.overlap + (1 - self.overlap) / self.bands
        begin = band * (1 - duration) / max(1, self.bands - 1)
        progress = ((self.steps - 1 - t[:, None]) / self.steps - begin) / duration  # 0 at the first level of a band
        times = (self.steps - 1 - (progress * self.steps).round()).clamp(CLEAN, self.steps - 1).long()
        times = torch.where((regions.values > 0) & (t[:, None] > CLEAN), times, CLEAN)
        return _steps(self.log_A, times, regions, self.time_origin)


def _steps(log_A: Tensor, times: Tensor, regions: NoiseRegions, origin: TimeOrigin) -> NoiseLevel:
    """Levels at the times (B,K) of one schedule; tau is t + 1, for 0 is clean."""
    told = _told((times + 1).to(torch.float64), origin)
    return NoiseLevel(*_amplitudes(_log_abar(log_A.to(times.device), times)), timesteps=told, index=regions.index)


def _told(tau: Tensor, origin: TimeOrigin) -> Tensor:
    """What the network is told of the fractional indices tau (B,K), by `origin`; see `RegionAware`."""
    if origin == "official":
        return tau
    times = (tau - 1).clamp(min=0)
    return times.amax(dim=1, keepdim=True).expand_as(times) if origin == "image" else times


def _amplitudes(log_abar: Tensor) -> tuple[Tensor, Tensor]:
    return torch.exp(0.5 * log_abar), torch.sqrt(-torch.expm1(log_abar))
