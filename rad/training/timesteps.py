"""Densities of training timesteps: fixed ones of Stable Diffusion 3, and iDDPM's, which follows the losses.

Level j = 0 .. L-1 of a phase, from the least to the most noise, covers the interval [j/L, (j+1)/L) of a position y in [0,1], and
has the probability that the density gives it. A flow with even levels has sigma = y; other processes have it in terms of t.

    logit_normal        logit(y) ~ N(mean, std^2)                          Esser et al. 2024, arXiv 2403.03206, eq. 19
    mode                y = 1 - u - scale (cos^2(pi u / 2) - 1 + u)        eq. 20, u uniform
    cosmap              y = 1 - 1 / (tan(pi u / 2) + 1)                    eq. 21
    loss_second_moment  p_j ~ sqrt(E[L_j^2]), the loss divided by L p_j    Nichol & Dhariwal 2021, arXiv 2102.09672, section 3.3
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.losses import Losses
from rad.training.schedules import require_choice

DensityName = Literal["uniform", "logit_normal", "mode", "cosmap", "loss_second_moment"]

HISTORY = 10
"""Losses of each level that the second moment is the mean of (iDDPM)."""

UNIFORM_SHARE = 1e-3
"""Share of the uniform density in iDDPM's code: every level keeps a probability, and the weights a limit."""

LARGEST_SCALE = 2 / (math.pi - 2)
"""Largest `scale` for which "mode" is a density."""


@dataclass(frozen=True)
class TimestepDensity:
    """Density of the training timesteps within each phase; validation is always uniform, so that runs compare.

    Args:
        name: see `rad.training.timesteps`; "uniform" is the method of DDPM and RAD.
        mean, std: of "logit_normal"; a mean above 0 favours noise. scale: of "mode", -1 to 1.75; SD3's search ends at 1.29.
        reweight: divide each loss by L p, which keeps the expected loss of uniform timesteps. SD3 does not;
            "loss_second_moment" always does.
    """

    name: DensityName = "uniform"
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29
    reweight: bool = False

    def __post_init__(self) -> None:
        require_choice("process.density.name", self.name, DensityName)
        for field, default, names in (
            ("mean", 0.0, ("logit_normal",)),
            ("std", 1.0, ("logit_normal",)),
            ("scale", 1.29, ("mode",)),
            ("reweight", False, ("logit_normal", "mode", "cosmap")),
        ):
            value = getattr(self, field)
            if value != default and self.name not in names:
                raise ValueError(
                    f"process.density.{field} is {value}, and {self.name!r} has no such setting: remove it, or use "
                    f"{' or '.join(names)}"
                )
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf and -1 <= self.scale <= LARGEST_SCALE):
            raise ValueError(
                f"process.density has mean {self.mean}, std {self.std} and scale {self.scale}; allowed are finite, > 0, and -1 "
                f"to {LARGEST_SCALE:.4g}"
            )

    @property
    def learns(self) -> bool:
        """Whether the density follows the losses."""
        return self.name == "loss_second_moment"

    @property
    def weighs(self) -> bool:
        return self.reweight or self.learns

    def probabilities(self, levels: int) -> Tensor:
        """(levels,) float64, sum 1; before the first loss for "loss_second_moment"."""
        edges = torch.arange(levels + 1, dtype=torch.float64, device="cpu") / levels
        return self._cumulative()(edges).diff()

    def _cumulative(self) -> Callable[[Tensor], Tensor]:
        """Cumulative distribution function of the position."""
        if self.name == "logit_normal":
            return lambda y: torch.special.ndtr((torch.logit(y) - self.mean) / self.std)
        if self.name == "mode":
            return lambda y: 1 - _inverse_mode(y, self.scale)
        if self.name == "cosmap":
            return lambda y: torch.atan2(y, 1 - y) * 2 / math.pi
        return lambda y: y


UNIFORM = TimestepDensity()


def _inverse_mode(y: Tensor, scale: float) -> Tensor:
    """u with 1 - u - scale (cos^2(pi u / 2) - 1 + u) = y, by bisection of the falling function."""
    low, high = torch.zeros_like(y), torch.ones_like(y)
    for _ in range(60):
        u = (low + high) / 2
        above = 1 - u - scale * (torch.cos(math.pi * u / 2).square() - 1 + u) > y
        low, high = torch.where(above, u, low), torch.where(above, high, u)
    return torch.where(y == 0, 1.0, torch.where(y == 1, 0.0, (low + high) / 2))


class TimestepSampler:
    """Maps uniform draws to timesteps of a `TimestepDensity`, on their device and without reading from it.

    Args:
        density: density within each phase.
        uniform: maps draws (B,2) to timesteps (B,) of the uniform density; also for validation.
        levels: L, number of levels of a phase; phases: 1, or 2 for RAD.
        phase2: fraction of samples in the second phase.
    """

    def __init__(
        self,
        density: TimestepDensity,
        uniform: Callable[[Tensor], Tensor],
        *,
        levels: int,
        phases: int,
        phase2: float,
    ) -> None:
        self.density, self.uniform, self.levels, self.phases = density, uniform, levels, phases
        self.phase2 = phase2 if phases == 2 else 0.0
        self.probabilities = density.probabilities(levels).repeat(phases, 1)
        rows = phases * levels if density.learns else 0
        # The last row takes what is not kept.
        self.history = torch.zeros(rows + 1, HISTORY, dtype=torch.float64, device="cpu")
        self.counts = torch.zeros(rows, dtype=torch.int64, device="cpu")
        self._accumulate()
        self._recorded: list[tuple[Tensor, Tensor, Tensor]] = []

    def draw(self, times: Tensor, *, training: bool) -> Tensor:
        """Timesteps t (B,) int64 for `times` (B,2) float64 in [0,1): the level and the phase of each sample."""
        if not training or self.density.name == "uniform":
            return self.uniform(times)
        self._move(times.device)
        phase = (times[:, 1] < self.phase2).long()
        level = torch.searchsorted(self.cumulative[phase], times[:, :1].contiguous(), right=True)[:, 0]
        return phase * self.levels + level.clamp(max=self.levels - 1)

    def weigh(self, losses: Losses, t: Tensor) -> Losses:
        """`losses` at t (B,), with the total times 1 / (L p) if the density asks for it."""
        if not self.density.weighs:
            return losses
        return replace(losses, total=losses.total * self.weights(t).to(losses.total))

    def weights(self, t: Tensor) -> Tensor:
        """1 / (L p) at t (B,), float64: factors that keep the expected loss of uniform timesteps."""
        self._move(t.device)
        return 1 / (self.levels * self.probabilities.flatten()[t])

    def record(self, position: Tensor, t: Tensor, total: Tensor) -> None:
        """Keep losses of `weigh` (B,) at t (B,) of the samples at `position` (B,) until the end of the optimiser step."""
        if self.density.learns:
            loss = total.detach().to(torch.float64) / self.weights(t)
            self._recorded.append((position.to(t.device, non_blocking=True), t, loss))

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Update the history with the losses of all processes since the last step; `gather`: from (N,) to (processes, N)."""
        if self._recorded:
            parts = [torch.cat(part) for part in zip(*self._recorded, strict=True)]
            self._recorded = []
            self.update(*(gather(part).flatten() for part in parts))

    @torch.no_grad()
    def update(self, position: Tensor, t: Tensor, loss: Tensor) -> None:
        """Add losses (N,) of one optimiser step to the history, in the order of `position`; those not finite are left out."""
        self._move(t.device)
        order = position.argsort()
        t, loss = t[order], loss[order]
        finite = loss.isfinite()
        same = (t[:, None] == t) & finite
        kept = finite & (same.triu(1).sum(1) < HISTORY)  # of more than that in one step, the last
        slot = (self.counts[t] + same.tril(-1).sum(1)) % HISTORY
        self.history[torch.where(kept, t, len(self.counts)), slot] = loss
        self.counts.index_add_(0, t, finite.long())
        self._refresh()

    def _refresh(self) -> None:
        """Recompute the density from the history; a phase is uniform until each of its levels has `HISTORY` losses."""
        moments = self.history[:-1].square().mean(1).sqrt().view(self.phases, self.levels)
        density = moments / moments.sum(1, keepdim=True).clamp(min=1e-300)
        density = (1 - UNIFORM_SHARE) * density + UNIFORM_SHARE / self.levels
        complete = (self.counts.view(self.phases, self.levels) >= HISTORY).all(1, keepdim=True)
        self.probabilities = torch.where(complete, density, 1 / self.levels)
        self._accumulate()

    def _accumulate(self) -> None:
        cumulative = self.probabilities.cumsum(1)
        self.cumulative = cumulative / cumulative[:, -1:]

    def _move(self, device: torch.device) -> None:
        """Buffers of a module would be converted to its precision, and sent between processes at every step."""
        if self.probabilities.device != device:
            for name in ("probabilities", "cumulative", "history", "counts"):
                setattr(self, name, getattr(self, name).to(device))

    def state_dict(self) -> dict[str, Tensor]:
        """The history, which a resumed run needs; empty for fixed densities."""
        return {"history": self.history[:-1], "counts": self.counts} if self.density.learns else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue with the history of a checkpoint; without one, or for other levels, it starts anew."""
        if self.density.learns and state and state["history"].shape == self.history[:-1].shape:
            self.history[:-1].copy_(state["history"])
            self.counts.copy_(state["counts"])
            self._refresh()
