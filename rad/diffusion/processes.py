"""Noise processes x_t = a x_0 + s e: one level for the whole image, or one schedule per pixel.

RAD (Kim, Suh, Lee, CVPR 2025, arXiv 2412.09191): a hole map m in [0,1] and a DDPM schedule A_t, whose last value is
1 - nu, define two phases for each pixel,

    phase 1, t <  T1:  abar_t = (1 - nu m)^G_t                               (the hole gains noise, known pixels wait)
    phase 2, t >= T1:  abar_t = (1 - nu m) ((1 - nu) / (1 - nu m))^G_(t-T1)  (known pixels gain noise, the hole waits)

where G_t = log A_t / log(1 - nu). The symbols are listed in `rad.diffusion`. Processes keep no state between
calls, but for copies of their tables on each device.
"""

from collections.abc import Callable
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from rad.diffusion.levels import CLEAN, NoiseLevel, NoiseRegions
from rad.diffusion.schedules import fractional_timesteps, log_cumulative, noise_grid

LEAST_SIGNAL = 2.0**-12
"""Smallest a of a flow; it keeps s / a finite at pure noise."""


TimeOrigin = Literal["official", "adm", "image"]


class Table:
    """A table of levels, copied once to each device that asks for it."""

    def __init__(self, values: Tensor) -> None:
        self._copies = {values.device: values}
        self._values = values

    def on(self, device: torch.device) -> Tensor:
        if device not in self._copies:
            with torch.inference_mode(False):  # training may follow sampling
                self._copies[device] = self._values.to(device)
        return self._copies[device]

    def __reduce__(self) -> tuple[type["Table"], tuple[Tensor]]:
        return Table, (self._values,)


class Process(Protocol):
    """A family of noise levels, numbered t = 0 (least noise) to steps - 1; CLEAN is no noise."""

    steps: int
    """Number of noise levels in training."""
    sampled_steps: int
    """Number of noise levels in sampling, which starts at sampled_steps - 1."""

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """Levels at t (B,) in [CLEAN, steps - 1]: int64, or floating-point for fractional t. Whole t: equal levels in both."""
        ...


@runtime_checkable
class Invertible(Protocol):
    """A process that can invert its noise schedule; the spacing "logsnr" requires it."""

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Fractional t in [CLEAN, sampled_steps - 1], float64, where log(a / s) of the hole equals `log_snr`."""
        ...


class _VariancePreserving:
    """a = sqrt(A_t), s = sqrt(1 - A_t) for betas (T,) in (0,1), the variance added by each step."""

    def __init__(self, betas: Tensor) -> None:
        self.betas = betas.to(torch.float64)
        self.steps = self.sampled_steps = len(betas)
        self.log_A = log_cumulative(self.betas)
        self._log_A = Table(self.log_A)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return _time_of(torch.sigmoid(-2 * log_snr), -torch.expm1(self.log_A))


class Uniform(_VariancePreserving):
    """One variance-preserving level for the whole image (DDPM, ADM): a = sqrt(A_t), s = sqrt(1 - A_t), for betas (T,) in (0,1).

    Example:
        >>> from rad.diffusion import linear_betas
        >>> level = Uniform(linear_betas()).noise(torch.tensor([999]))
        >>> level.timesteps.item(), round(level.sigma.item(), 3)
        (999.0, 1.0)
    """

    def noise(self, t: Tensor, regions: NoiseRegions | None = None) -> NoiseLevel:
        """Levels at t (B,), K = 1. `regions` has no effect."""
        t = _checked(t, self.steps)
        log_abar = _log_abar(self._log_A.on(t.device), t)[:, None]
        return NoiseLevel(*_amplitudes(log_abar), timesteps=t.clamp(min=0)[:, None].to(torch.float64))


class Flow:
    """One level of a rectified flow for the whole image: a = 1 - sigma, s = sigma (Liu et al. 2022, arXiv 2209.03003).

    Example:
        >>> level = Flow(torch.tensor([0.25, 0.75])).noise(torch.tensor([0, 1]))
        >>> level.alpha.flatten().tolist(), level.timesteps.flatten().tolist()
        ([0.75, 0.25], [250.0, 750.0])

    `sigmas` (T,) increase in (0,1] and are clamped to 1 - `LEAST_SIGNAL`. The network's timestep is `scale` * sigma.
    `plan`: number of steps n -> the n sigmas, increasing, of the model's own scheduler; None: it samples the table evenly.
    """

    def __init__(self, sigmas: Tensor, *, scale: float = 1000.0, plan: Callable[[int], Tensor] | None = None) -> None:
        self.plan = plan
        self.sigmas = sigmas.to(torch.float64).clamp(max=1 - LEAST_SIGNAL)
        self.table, self.scale = _sigma_table(self.sigmas, "a flow's sigmas must increase, in (0,1]"), scale
        self._table = Table(self.table)
        self.steps = self.sampled_steps = len(sigmas)

    def noise(self, t: Tensor, regions: NoiseRegions | None = None) -> NoiseLevel:
        """Levels at t (B,), K = 1; sigma is linear between integers. `regions` has no effect."""
        t = _checked(t, self.steps)
        sigma = _between(self._table.on(t.device), t)[:, None]
        return NoiseLevel(1 - sigma, sigma, timesteps=self.scale * sigma)

    def planned(self, count: int) -> list[float] | None:
        """Fractional t of the levels of `plan`, decreasing; None without a plan."""
        if self.plan is None:
            return None
        sigmas = self.plan(count).to(torch.float64).clamp(max=1 - LEAST_SIGNAL)
        t = self.time_of(torch.log((1 - sigmas) / sigmas)).clamp(0, self.steps - 1)
        return list(dict.fromkeys(t.flip(0).tolist()))

    def on(self, device: torch.device) -> Tensor:
        """`table` on a device."""
        return self._table.on(device)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return _time_of(torch.sigmoid(-log_snr), self.table)


class EDM:
    """One level for the whole image in EDM's units: a = 1, s = sigma (Karras et al. 2022, arXiv 2206.00364).

    `sigmas` (T,) are positive and increase. The network's timestep is the paper's c_noise = ln(sigma) / 4.
    """

    def __init__(self, sigmas: Tensor) -> None:
        self.sigmas = sigmas.to(torch.float64)
        self.table = _sigma_table(self.sigmas, "the sigmas must be positive and increase")
        self._table = Table(self.table)
        self.steps = self.sampled_steps = len(sigmas)

    def noise(self, t: Tensor, regions: NoiseRegions | None = None) -> NoiseLevel:
        """As `Flow.noise`. The clean level has the timestep of the smallest sigma."""
        t = _checked(t, self.steps)
        sigma = _between(self._table.on(t.device), t)[:, None]
        return NoiseLevel(torch.ones_like(sigma), sigma, timesteps=sigma.clamp(min=float(self.sigmas[0])).log() / 4)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return _time_of(torch.exp(-log_snr), self.table)


class RegionAware(_VariancePreserving):
    """RAD's two-phase process, per pixel, from a hole map: 0 known, 1 fill, between: partial noise.

    Example:
        >>> from rad.diffusion import linear_betas
        >>> process, hole = RegionAware(linear_betas()), torch.tensor([[[[0.0, 1.0]]]])
        >>> level = process.noise(torch.tensor([999]), NoiseRegions.from_mask(hole))  # the end of phase 1
        >>> [round(sigma, 3) for sigma in level.sigma_map().flatten().tolist()]
        [0.0, 1.0]

    Args:
        betas: (T1,) in (0,1), the schedule of each phase; 2 T1 steps in all.
        time_origin: the network's timestep for a level; ValueError for others than these. "official": the paper's fractional
            index tau, 0 for clean and j for DDPM step j-1. "adm": max(tau - 1, 0), as in the pretrained network's training.
            "image": "adm" of the noisiest pixel, for all pixels; the ablation without a spatial embedding.
    """

    def __init__(self, betas: Tensor, *, time_origin: TimeOrigin = "adm") -> None:
        if time_origin not in get_args(TimeOrigin):
            raise ValueError(f"time_origin is {time_origin!r}; allowed are {', '.join(get_args(TimeOrigin))}")
        super().__init__(betas)
        self.time_origin: TimeOrigin = time_origin
        self.steps = 2 * len(betas)
        self.grid = noise_grid(self.log_A[:-1])
        self._grid = Table(self.grid)

    def log_abar(self, t: Tensor, m: Tensor) -> Tensor:
        """log abar_t(m), (B,K) float64, for t (B,) in [CLEAN, 2 T1 - 1] and hole values m (B,K) float64."""
        log_A = self._log_A.on(t.device)
        last = log_A[self.sampled_steps - 1]  # log(1 - nu)
        nu = -torch.expm1(last)
        phase1_end = torch.where(m == 1, last, torch.log1p(-nu * m))  # log(1 - nu m), exact at both ends
        in_phase2 = t > self.sampled_steps - 1
        fraction = (_log_abar(log_A, torch.where(in_phase2, t - self.sampled_steps, t)) / last)[:, None]  # G_t
        return torch.where(in_phase2[:, None], phase1_end + fraction * (last - phase1_end), fraction * phase1_end)

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """Levels at t (B,) in [CLEAN, 2 T1 - 1]. A batch may mix the phases."""
        regions = _required(regions)
        log_abar = self.log_abar(_checked(t, self.steps), regions.values)
        tau = fractional_timesteps(-torch.expm1(log_abar), self._grid.on(t.device))
        return NoiseLevel(*_amplitudes(log_abar), _network_timesteps(tau, self.time_origin), index=regions.index)


class RegionAwareFlow:
    """RAD's two phases for a flow with levels g_t, at most S. Our extension: the paper covers variance-preserving processes.

    phase 1:  sigma_t = m g_t        phase 2:  sigma_t = m S + (1 - m) g_(t-T1)
    """

    def __init__(self, base_process: Flow) -> None:
        self.base_process, self.sampled_steps, self.steps = base_process, base_process.steps, 2 * base_process.steps

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """Levels at t (B,) in [CLEAN, 2 T1 - 1]. A batch may mix the phases."""
        regions, t = _required(regions), _checked(t, self.steps)
        table, m = self.base_process.on(t.device), regions.values
        second = t > self.sampled_steps - 1
        g = _between(table, torch.where(second, t - self.sampled_steps, t))[:, None]
        sigma = torch.where(second[:, None], m * table[-2] + (1 - m) * g, m * g)
        return NoiseLevel(1 - sigma, sigma, timesteps=self.base_process.scale * sigma, index=regions.index)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return self.base_process.time_of(log_snr)


def region_aware(base_process: Process, *, time_origin: TimeOrigin = "adm") -> Process:
    """RAD's process for a model with `base_process`. Raises ValueError unless that is `Uniform` or `Flow`."""
    if isinstance(base_process, Uniform):
        return RegionAware(base_process.betas, time_origin=time_origin)
    if isinstance(base_process, Flow):
        return RegionAwareFlow(base_process)
    raise ValueError(
        f"RAD needs a variance-preserving model or a flow; this model's process is {type(base_process).__name__}"
    )


def get_betas(base_process: Process) -> Tensor:
    """The betas of a variance-preserving model. Raises ValueError for other models."""
    if not isinstance(base_process, Uniform):
        raise ValueError(
            f"the method needs a variance-preserving model; this model's process is {type(base_process).__name__}"
        )
    return base_process.betas


class PerPixel(_VariancePreserving):
    """TD-Paint's process (Mayet et al., ICLR 2025, arXiv 2410.09306): an integer DDPM step per pixel, for betas (T,) in (0,1).

    `known`: t of pixels with hole value 0: CLEAN in sampling; 0, the least noise, in training.
    """

    def __init__(self, betas: Tensor, *, time_origin: TimeOrigin = "adm", known: int = CLEAN) -> None:
        super().__init__(betas)
        self.time_origin: TimeOrigin = time_origin
        self.known = known

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """Levels at t (B,) for hole values above 0; known pixels have min(t, known)."""
        regions, t = _required(regions), _checked(t, self.steps)
        t_of_pixels = torch.where(regions.values > 0, t[:, None], t[:, None].clamp(max=self.known))
        return _per_pixel(self._log_A.on(t.device), t_of_pixels, regions, self.time_origin)


class Bands:
    """Bands of a hole that are denoised one after another, each through the whole DDPM schedule of `betas` (T,).

    Args:
        bands: B, number of bands of the hole values (0,1]; (0, 1/B] goes first.
        overlap: in [0,1]. 0: a band starts when the previous band is clean; 1: all bands go together.
    """

    def __init__(self, betas: Tensor, *, bands: int, overlap: float, time_origin: TimeOrigin = "adm") -> None:
        self.time_origin: TimeOrigin = time_origin
        self.steps = self.sampled_steps = len(betas)
        self._log_A = Table(log_cumulative(betas))
        self.bands, self.overlap = bands, overlap

    def noise(self, t: Tensor, regions: NoiseRegions | None) -> NoiseLevel:
        """Levels at t (B,), counted over all bands together; fractional values are rounded."""
        regions, t = _required(regions), _checked(t, self.steps)
        t = t.round().long() if t.is_floating_point() else t
        band = (regions.values * self.bands - 1e-6).ceil().clamp(min=1) - 1  # 0 (first) to B - 1
        duration = self.overlap + (1 - self.overlap) / self.bands
        begin = band * (1 - duration) / max(1, self.bands - 1)
        passed = (self.steps - 1 - t[:, None]).to(torch.float32) / self.steps
        progress = (passed - begin) / duration  # 0 at the first level of the band
        t_of_bands = (self.steps - 1 - (progress * self.steps).round()).clamp(CLEAN, self.steps - 1).long()
        t_of_pixels = torch.where((regions.values > 0) & (t[:, None] > CLEAN), t_of_bands, CLEAN)
        return _per_pixel(self._log_A.on(t.device), t_of_pixels, regions, self.time_origin)


def _required(regions: NoiseRegions | None) -> NoiseRegions:
    if regions is None:
        raise ValueError("a per-pixel process needs the regions of a hole: NoiseRegions.from_mask(hole)")
    return regions


def _checked(t: Tensor, steps: int) -> Tensor:
    """`t` as int64, or as float64 if it is floating-point. Raises ValueError outside [CLEAN, steps - 1]."""
    checks = t.device.type == "cpu" and not torch.compiler.is_compiling()  # a check would wait for an accelerator
    if checks and len(t) and not (t.min() >= CLEAN and t.max() <= steps - 1):
        raise ValueError(
            f"t runs from {t.min().item():g} to {t.max().item():g}; allowed are {CLEAN} (clean) to {steps - 1}, the last step"
        )
    return t.to(torch.float64) if t.is_floating_point() else t


def _sigma_table(sigmas: Tensor, rule: str) -> Tensor:
    """(T+1,), with 0 for CLEAN at the end. Raises ValueError with `rule` unless sigmas (T,) are positive and increase."""
    if not (len(sigmas) and sigmas[0] > 0 and bool((sigmas.diff() > 0).all())):
        raise ValueError(f"sigmas are {sigmas.tolist()[:5]}...; {rule}")
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _between(table: Tensor, t: Tensor) -> Tensor:
    """Entries of `table` (T+1,) at t, any shape; linear between integers. The last entry belongs to CLEAN."""
    if not t.is_floating_point():
        return table[t]
    below = t.floor()
    at = below.long()
    above = torch.where(at < len(table) - 2, at + 1, at)
    return torch.where(t == below, table[at], torch.lerp(table[at], table[above], t - below))


def _log_abar(log_A: Tensor, t: Tensor) -> Tensor:
    """log A at t, any shape. 1 - A is linear between integers, as in `fractional_timesteps`."""
    if not t.is_floating_point():
        return log_A[t]
    between = torch.log1p(-_between(-torch.expm1(log_A), t))
    return torch.where(t == t.floor(), log_A[t.floor().long()], between)


def _time_of(intensity: Tensor, table: Tensor) -> Tensor:
    """Inverse of `_between` for a table that increases from 0 at CLEAN."""
    return fractional_timesteps(intensity, torch.cat([table[-1:], table[:-1]])) - 1


def _per_pixel(log_A: Tensor, t: Tensor, regions: NoiseRegions, origin: TimeOrigin) -> NoiseLevel:
    """Levels of one schedule at t (B,K); tau = t + 1, 0 = clean."""
    timesteps = _network_timesteps((t + 1).to(torch.float64), origin)
    return NoiseLevel(*_amplitudes(_log_abar(log_A, t)), timesteps=timesteps, index=regions.index)


def _network_timesteps(tau: Tensor, origin: TimeOrigin) -> Tensor:
    if origin == "official":
        return tau
    timesteps = (tau - 1).clamp(min=0)
    return timesteps.amax(dim=1, keepdim=True).expand_as(timesteps) if origin == "image" else timesteps


def _amplitudes(log_abar: Tensor) -> tuple[Tensor, Tensor]:
    return torch.exp(0.5 * log_abar), torch.sqrt(-torch.expm1(log_abar))
