"""LanPaint: Training-Free Diffusion Inpainting with Asymptotically Exact and Fast Conditional Sampling (Zheng, Lan, Wang 2025,
arXiv 2502.03491).

At each level of a short ODE sampler, n steps of Langevin dynamics dx = g dt + sqrt(2) dW, on hole and known pixels together:

    hole:   g = -(x - a D(x)) / s^2                                          (the score)
    known:  g = [-(1 + lam) (x - a y) + lam (x - a D(x))] / s^2              (the guided score: known pixels give way)

Let A = 1 / s^2 in the hole, (1 + lam) / s^2 elsewhere, and C(x) = g + A x. At a fixed C, the flow of
dx = (C - A x) dt + sqrt(2) dW is exact. A step of length dt = eta s^2 is half a flow, x <- x + (C(x) - C) dt, half a flow, both
with the old C (Strang). The first step at a level is one flow with its own C. After the ODE's step, known pixels are a y + s n.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rad.diffusion.step import Denoised
from rad.methods.guidance import replace_known
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State


@dataclass(frozen=True)
class LanPaint(SamplingMethod):
    """Defaults are the paper's benchmark's. At finite s the guided score belongs to no density; exact as s -> 0, n -> inf.

    First order, as in the newer official code: the paper's friction of 15 damps its momentum almost at once. Known pixels get
    fresh noise at each level; the paper keeps one forward path of y, the newer code one noise image. The number of inner steps
    is constant; the newer code lowers it with s^2, which leaves the bias of replacement at low levels.
    """

    paper = "Zheng, Lan, Wang 2025, arXiv 2502.03491"
    preset_steps = 20
    preset_eta = 0.0

    inner: int = setting(5, "Langevin steps n at each level; the paper also has 10", low=0)
    step: float = setting(0.15, "length eta of a Langevin step, in units of s^2", low=0)
    guidance: float = setting(8.0, "lam, how far known pixels follow the hole; 0: not at all", low=0)

    def cost(self, timesteps: list[float]) -> Cost:
        return Cost(super().cost(timesteps).nfe * (1 + self.inner))

    def before_denoise(self, state: State) -> Tensor:
        x = state.x
        if self.inner == 0:
            return x
        target = self.target(state, x)
        x = self.flow(state, x, target, length=self.step)
        for _ in range(self.inner - 1):
            x = self.flow(state, x, target, length=self.step / 2)
            new_target = self.target(state, x)
            x = x + self.step * self._stiffness(state) * (new_target - target)
            x = self.flow(state, x, target, length=self.step / 2)
            target = new_target
        return x

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return replace_known(state, x_next, state.next)

    def target(self, state: State, x: Tensor) -> Tensor:
        """C / A, the flow's limit: a D(x) in the hole, a y + lam (x - a D(x)) / (1 + lam) elsewhere; (B,C,H,W). 1 NFE."""
        task, a = state.task, state.now.alpha_map(x)
        known, x0 = 1 - task.hole, a * state.denoiser.denoise(x, state.now).x0
        guided = (1 + self.guidance) * a * task.known + self.guidance * (x - x0)
        return (task.hole * x0 + known * guided) / self._stiffness(state)

    def flow(self, state: State, x: Tensor, target: Tensor, *, length: float) -> Tensor:
        """x after the time `length` s^2 at a fixed target: an exact draw of the Ornstein-Uhlenbeck process."""
        stiffness, s = self._stiffness(state), state.now.sigma_map(x)
        stays = torch.exp(-length * stiffness)
        deviation = s * ((1 - stays.square()) / stiffness).sqrt()
        return torch.lerp(target, x, stays) + deviation * state.randn()

    def _stiffness(self, state: State) -> Tensor:
        """A s^2, (B,1,H,W): 1 in the hole, 1 + lam at known pixels."""
        return 1 + self.guidance * (1 - state.task.hole)
