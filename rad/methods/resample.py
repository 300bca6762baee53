"""ReSample: Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency (Song et al. 2024, arXiv 2307.08123).

DDIM with guidance, x_u <- x_u - dps (a_t^2 / 2) grad_x_t || known (y - Dec(x0)) ||^2. From a third of the steps on, every f-th
step finds a z near x0 that agrees with the known pixels. It then draws x_u from the product of N(x_u, g) and N(a_u z, s_u^2):

    second third:  z = Enc(p),  p = known y + hole Dec(x0)          (the solution of min_p || known (y - p) ||, from Dec(x0))
    last third:    z = argmin || known (y - Dec(z)) ||^2 by Adam from x0, at most J steps
    x_u <- (s_u^2 x_u + g a_u z) / (g + s_u^2) + sqrt(s_u^2 g / (g + s_u^2)) n,    g = S s_u^2 (1 - (a_t s_u / (a_u s_t))^2)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.levels import per_image
from rad.diffusion.step import Denoised, step_levels
from rad.methods.guidance import Space, data_gradient, data_shift, squared_misfit, squared_norm, vp_scale
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State
from rad.sampling.task import Task


@dataclass(frozen=True)
class ReSample(SamplingMethod):
    """Deterministic between these events. No event follows the last step. vjp counts the network's gradients, not the decoder's.

    Differences from the official code: pixels of the second third take their exact solution. Adam has no weight decay. Each image
    stops alone, at a mean square of its known values of tolerance^2; the official sum over the batch rarely reaches its limit.
    The draw has the level of x_u (official: a_t and s_t, legacy_level "t"). The guidance scales the squared norm in an image by
    values in x / values in the image, and does not grow with the decoder.
    """

    paper = "Song et al. 2024, arXiv 2307.08123"
    uses_strength = False  # its stages are thirds of the whole schedule
    preset_steps = 50
    preset_eta = 0.0
    needs_grad = True

    frequency: int = setting(5, "f, interval of the events in steps; the paper's 10 is for 500 steps", low=1)
    sigma_scale: float = setting(40.0, "S, how far the draw goes from x_u towards z, no unit", low=0)
    dps: float = setting(
        0.15, "guidance by known pixels in every step, for values in [-1,1]; 0: none, no gradient", low=0
    )
    iterations: int = setting(200, "J, most steps of Adam at an event", low=0)
    rate: float = setting(5e-3, "learning rate of Adam on latents", low=0)
    pixel_rate: float = setting(1e-2, "learning rate of Adam on pixels, if exact is false", low=0)
    tolerance: float = setting(0.01, "root mean square misfit at which Adam stops, for values in [-1,1]", low=0)
    exact: bool = setting(True, "take the second third's solution in closed form, not by Adam")
    legacy_level: Literal["u", "t"] = setting("u", "level of a and s in the draw; t as in the official code")
    space: Space = setting("pixels", "where to compare known values: latent (no decoder, no encoder) or pixels")

    def cost(self, timesteps: list[float]) -> Cost:
        calls = super().cost(timesteps).nfe
        return Cost(calls, calls if self.dps else 0)

    def differentiates(self, state: State) -> bool:
        return self.dps > 0

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        x0 = denoised.x0
        if self.dps:
            misfit = self.dps / 2 * squared_misfit(state.task, x0, self.space)
            signal = state.now.alpha_map(x_next) / vp_scale(state.now, x_next)
            x_next = x_next - data_shift(state, misfit, rate=signal.square())
        x_next, third = x_next.detach(), (state.steps + 1) // 3
        due = state.step % self.frequency == 1 % self.frequency and state.step >= third
        if not due or state.is_clean(state.next):
            return x_next
        with torch.no_grad():
            z = self.consistent(state.task, x0.detach(), by_latents=state.step >= 2 * third)
        return self.resampled(state, x_next, z)

    def resampled(self, state: State, x_next: Tensor, z: Tensor) -> Tensor:
        """Draw between x_next and the clean z, (B,C,H,W)."""
        level, nxt = (state.now if self.legacy_level == "t" else state.next), state.next
        unit = vp_scale(nxt, x_next) / vp_scale(level, x_next)
        a, s = unit * level.alpha_map(x_next), unit * level.sigma_map(x_next)
        g = nxt.spread((self.sigma_scale * step_levels(state.now, nxt).posterior).to(x_next.dtype))
        weight = g / (g + s.square())
        return torch.lerp(x_next, a * z, weight) + s * weight.sqrt() * state.randn()

    def consistent(self, task: Task, x0: Tensor, *, by_latents: bool) -> Tensor:
        """z for the estimate x0, (B,C,H,W)."""
        known, hole = (task.known, task.hole) if self.space == "latent" else (task.image, task.image_hole)
        if by_latents:
            return self.descended(x0, hole, lambda z: data_gradient(task, z, self.space), self.rate)
        p = x0 if self.space == "latent" else task.autoencoder.decode(x0)
        if self.exact:
            p = torch.lerp(known, p, hole)
        else:

            def pixel_gradient(p: Tensor) -> tuple[Tensor, Tensor]:
                difference = (1 - hole) * (known - p)
                return difference, difference

            p = self.descended(p, hole, pixel_gradient, self.pixel_rate)
        return p if self.space == "latent" else task.autoencoder.encode(p)

    def descended(
        self, z: Tensor, hole: Tensor, gradient: Callable[[Tensor], tuple[Tensor, Tensor]], rate: float
    ) -> Tensor:
        """z (B,C,H,W) after Adam. `gradient` returns minus the gradient at z, and the residual outside `hole`."""
        z, known = z.clone(), (1 - hole).flatten(1).sum(1)
        adam = torch.optim.Adam([z], lr=rate)
        for _ in range(self.iterations):
            change, difference = gradient(z)
            moving = squared_norm(difference) > self.tolerance**2 * difference.shape[1] * known
            if not bool(moving.any()):
                break
            before, z.grad = z.clone(), -change
            adam.step()
            z.copy_(torch.where(per_image(moving), z, before))
        return z
