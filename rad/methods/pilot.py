"""PILOT: Coherent and Multi-modality Image Inpainting via Latent Space Optimization (Pan et al. 2024, arXiv 2407.08019).

Every `interval` steps the latent descends, by a few heavy-ball steps,

    L = L_bg + lambda(t) L_sc,    L_bg = 1/4 |known (D(x_t) - y)|^2,
    L_sc = mean over layers of (share of attention on the prompt's words, mean over cells outside the hole - inside it),
    q <- momentum q - lr(t) grad L,    x_t <- x_t + q,    q = 0 at each outer step,

with D of the prompt alone. In all calls text acts only in the hole (semantic boundary control, `rad.networks.attention`). Below
t = T (1 - coherence) nothing is optimised, and known latents are replaced before the step: x_t <- hole x_t + known (a y + s n).
The steps are DDIM with classifier-free guidance.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.diffusion.denoiser import Denoiser, Semantics, TextDenoiser
from rad.methods.guidance import replace_known, squared_norm, vp_scale
from rad.networks.attention import shrunk
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import Cost, State
from rad.sampling.task import Task

LEVELS = 1000
"""Noise levels of the paper's models; its settings scale for models with another number."""


@dataclass(frozen=True)
class PILOT(SamplingMethod):
    """Defaults are those of the official configuration for text, with 100 steps; the paper has 200.

    Without a prompt only L_bg is left. An image without known pixels is not optimised, since both losses are 0. L_sc leaves out
    the layers with the most cells, 64x64 in Stable Diffusion 1 and XL. Differences from the official code: it counts layers by
    number, without XL. Losses are per image, not per batch. Levels are even from T - 1 to 0 (official: 991 to 1). Known latents
    are replaced at the end.
    """

    paper = "Pan et al. 2024, arXiv 2407.08019"
    uses_strength = False  # its rates and weights count from the noisiest level
    preset_steps = 100
    preset_eta = 0.0
    needs_grad = True
    needs_text = True

    interval: int = setting(10, "tau, interval between optimisation steps", low=1)
    iterations: int = setting(10, "J, gradient steps each time; each costs a VJP and a call", low=0)
    coherence: float = setting(
        1.0, "gamma, fraction of the levels, the noisiest, that optimise; blending below", low=0, high=1
    )
    rate: float = setting(0.025, "lr of a gradient step at t = T", low=0)
    first_rate: float = setting(0.007, "lr at the first step", low=0)
    growth: float = setting(1.002, "factor of lr for each level below T; 1: constant", low=1)
    momentum: float = setting(0.7, "momentum of heavy ball", low=0, high=0.999)
    weight: float = setting(
        150.0, "weight of L_sc at t = T with 1499 of 64x64 cells known; proportional to their fraction", low=0
    )
    decay: Literal["linear", "constant"] = setting(
        "linear", "lambda(t): linear falls to a tenth at t = 0.3 T and stays there"
    )
    layers: Literal["coarse", "all"] = setting("coarse", "layers of L_sc; all: also those with the most cells")

    def view(self, denoiser: Denoiser, task: Task) -> Denoiser:
        if not isinstance(denoiser, TextDenoiser):
            raise ValueError(
                "method 'pilot' reads the attention of a prompt: it needs a text-to-image model with cross-attention "
                "(Stable Diffusion 1, 2, XL)"
            )
        return denoiser.bounded(task.hole)

    def cost(self, timesteps: list[float]) -> Cost:
        plain, levels = super().cost(timesteps), timesteps[0] + 1
        rounds = sum(self._optimises(number, t, levels) for number, t in enumerate(timesteps[:-1]))
        return Cost(plain.nfe + rounds * self.iterations, rounds * self.iterations)

    def differentiates(self, state: State) -> bool:
        return False

    def before_denoise(self, state: State) -> Tensor:
        if self._blends(state.timestep, state.process.sampled_steps):
            return replace_known(state, state.x, state.now)
        if not self._optimises(state.step, state.timestep, state.process.sampled_steps):
            return state.x
        scale, rate = vp_scale(state.now, state.x), self.rate_at(state)
        x, velocity = state.x, torch.zeros_like(state.x)
        for _ in range(self.iterations):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                semantics = state.denoiser.semantic(x, state.now, fine=self.layers == "all")
                gradient = state.denoiser.gradient(self.loss(state, semantics), x)
            velocity = self.momentum * velocity - rate * scale * gradient
            x = x.detach() + scale * velocity
        return x

    def loss(self, state: State, semantics: Semantics) -> Tensor:
        """L of each image, (B,)."""
        return background_loss(state.task, semantics) + self.weight_at(state) * semantic_loss(state.task, semantics)

    def rate_at(self, state: State) -> float:
        """lr(t)."""
        if state.step == 0:
            return self.first_rate
        return self.rate * self.growth ** (LEVELS * (1 - state.timestep / state.process.sampled_steps))

    def weight_at(self, state: State) -> Tensor:
        """lambda(t) of each image, (B,)."""
        fraction = 1.0
        if self.decay == "linear":
            fraction = 0.1 + 0.9 * max(0.0, (LEVELS * state.timestep / state.process.sampled_steps - 300) / 699)
        known = (1 - state.task.hole).flatten(1).mean(1)
        return fraction * self.weight * known * 64 * 64 / 1499

    def _blends(self, t: float, levels: float) -> bool:
        return t < levels * (1 - self.coherence)

    def _optimises(self, step: int, t: float, levels: float) -> bool:
        return step % self.interval == 0 and not self._blends(t, levels)


def background_loss(task: Task, semantics: Semantics) -> Tensor:
    """L_bg (B,): a quarter of the squared error on known latents, because the official code halves their range."""
    return 0.25 * squared_norm((1 - task.hole) * (semantics.estimate.x0 - task.known))


def semantic_loss(task: Task, semantics: Semantics) -> Tensor:
    """L_sc (B,) in [-1,1]; -1: words act only in the hole. Layers entirely inside or outside the hole count as 0."""
    scores = []
    for share in semantics.shares:
        where = shrunk(task.hole, (share.shape[1], share.shape[2])).flatten(1).to(share.dtype)
        total, cells = where.sum(1), where.shape[1]
        within = (where * share.flatten(1)).sum(1) / total.clamp(min=1)
        without = ((1 - where) * share.flatten(1)).sum(1) / (cells - total).clamp(min=1)
        scores.append(torch.where((total > 0) & (total < cells), without - within, 0.0))
    return torch.stack(scores).mean(0)
