"""Noise schedules: betas, sigmas, and the inverse map from a noise level to its timestep."""

import torch
from torch import Tensor


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """DDPM's linear schedule (Ho et al. 2020, arXiv 2006.11239): (steps,) float64."""
    return torch.linspace(first, last, steps, dtype=torch.float64, device="cpu")


def log_cumulative(betas: Tensor) -> Tensor:
    """log A_t = sum_{u<=t} log(1 - beta_u), (T+1,) float64. The last entry, at index CLEAN = -1, is 0."""
    logs = torch.log1p(-betas.to(torch.float64)).cumsum(0)
    return torch.cat([logs, logs.new_zeros(1)])


def shifted_sigmas(steps: int = 1000, *, shift: float = 3.0) -> Tensor:
    """Stable Diffusion 3's schedule: sigma = shift tau / (1 + (shift - 1) tau) at tau = 1/T .. 1 (arXiv 2403.03206, eq. 23)."""
    tau = torch.arange(1, steps + 1, dtype=torch.float64, device="cpu") / steps
    return shift * tau / (1 + (shift - 1) * tau)


def karras_sigmas(steps: int = 1000, *, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's schedule: (steps,) increasing, even in sigma^(1/rho) (arXiv 2206.00364, eq. 5)."""
    roots = torch.linspace(low ** (1 / rho), high ** (1 / rho), steps, dtype=torch.float64, device="cpu")
    return roots**rho


def noise_grid(log_A: Tensor) -> Tensor:
    """RAD's grid g_0 = 0, g_j = 1 - A_(j-1): noise intensity at integer tau = j; (T+1,) float64."""
    return torch.cat([log_A.new_zeros(1), -torch.expm1(log_A)])


def fractional_timesteps(intensity: Tensor, grid: Tensor) -> Tensor:
    """Invert the schedule: tau in [0,T] with g(tau) = `intensity` (bbar, any shape), linear between points of `grid` (T+1,)."""
    below = (torch.searchsorted(grid, intensity.contiguous(), right=True) - 1).clamp(0, len(grid) - 2)
    low, high = grid[below], grid[below + 1]
    return (below + (intensity - low) / (high - low)).clamp(0, len(grid) - 1)
