"""PILOT. Coherent and Multi-modality Image Inpainting via Latent Space Optimization (inPainting vIa Latent OpTimization), 2024,
arXiv 2407.08019.

At every `interval`-th step the latent descends, by a few steps of heavy ball,

    L = L_bg + lambda(t) L_sc,    L_bg = 1/4 |known (D(x_t) - y)|^2,
    L_sc = mean over layers of (share of attention of the prompt's words, mean over cells outside the hole - inside it),
    q <- momentum q - lr(t) grad L,    x_t <- x_t + q,    q = 0 at each outer step,

with D of the prompt alone. In all calls text acts in the hole alone (semantic boundary control, `rad.networks.attention`). Below
t = T (1 - coherence) nothing is optimised, and known latents are replaced before the step: x_t <- hole x_t + known (a y + s n).
The steps are DDIM with classifier-free guidance.
Hooks: view, before_denoise.
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
"""Noise levels of the models that the paper's settings are for; on a model with more or fewer they scale."""


@dataclass(frozen=True)
class PILOT(SamplingMethod):
    """Presets are those of the official configuration for text with 100 steps; the paper has 200.

    Losses are an image's own, in the official code those of a batch; levels are spread evenly from T - 1 to 0, there 991 to 1;
    known latents are put back at the end, there not. Without a prompt only L_bg is left, and an image that is all hole is not
    optimised, for both losses are 0. L_sc leaves out the layers with the most cells, those of 64x64 in Stable Diffusion 1 as in
    XL; the official code counts them by number, and knows no XL.
    """

    paper = "Pan et al. 2024, arXiv 2407.08019"
    preset_steps = 100
    preset_eta = 0.0
    needs_grad = True
    needs_text = True

    interval: int = setting(10, "tau: every so-manieth step optimises", low=1)
    iterations: int = setting(10, "J, gradient steps each time; a VJP and a call each", low=0)
    coherence: float = setting(
        1.0, "gamma, part of the levels, from the noisiest, that optimise; below them blending", low=0, high=1
    )
    rate: float = setting(0.025, "lr, of a gradient step at t = T", low=0)
    first_rate: float = setting(0.007, "lr at the first step", low=0)
    growth: float = setting(1.002, "factor of lr for each level below T; 1: constant", low=1)
    momentum: float = setting(0.7, "of heavy ball", low=0, high=0.999)
    weight: float = setting(
        150.0, "of L_sc at t = T, where 1499 of 64x64 cells are known; proportional to their part", low=0
    )
    decay: Literal["linear", "constant"] = setting(
        "linear", "lambda(t): falls to a tenth at t = 0.3 T and stays there; or does not"
    )
    layers: Literal["coarse", "all"] = setting("coarse", "of L_sc; all: those with the most cells too")

    def view(self, denoiser: Denoiser, task: Task) -> Denoiser:
        if not isinstance(denoiser, TextDenoiser):
            raise ValueError(
                "method 'pilot' looks at where a prompt acts: it needs a text-to-image model with cross-attention "
                "(Stable Diffusion 1, 2, XL)"
            )
        return denoiser.bounded(task.hole)

    def cost(self, times: list[float]) -> Cost:
        plain, levels = super().cost(times), times[0] + 1
        rounds = sum(self._optimises(number, t, levels) for number, t in enumerate(times[:-1]))
        return Cost(plain.nfe + rounds * self.iterations, rounds * self.iterations)

    def differentiates(self, state: State) -> bool:
        return False

    def before_denoise(self, state: State) -> Tensor:
        if self._blends(state.time, state.process.sampled_steps):
            return replace_known(state, state.x, state.now)
        if not self._optimises(state.step, state.time, state.process.sampled_steps):
            return state.x
        scale, rate = vp_scale(state.now, state.x), self.rate_at(state)
        x, velocity = state.x, torch.zeros_like(state.x)
        for _ in range(self.iterations):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                said = state.denoiser.semantic(x, state.now, fine=self.layers == "all")
                gradient = state.denoiser.gradient(self.loss(state, said), x)
            velocity = self.momentum * velocity - rate * scale * gradient
            x = x.detach() + scale * velocity
        return x

    def loss(self, state: State, said: Semantics) -> Tensor:
        """(B,)."""
        return background_loss(state.task, said) + self.weight_at(state) * semantic_loss(state.task, said)

    def rate_at(self, state: State) -> float:
        """lr(t)."""
        if state.step == 0:
            return self.first_rate
        return self.rate * self.growth ** (LEVELS * (1 - state.time / state.process.sampled_steps))

    def weight_at(self, state: State) -> Tensor:
        """lambda(t) of each image (B,)."""
        part = 1.0
        if self.decay == "linear":
            part = 0.1 + 0.9 * max(0.0, (LEVELS * state.time / state.process.sampled_steps - 300) / 699)
        known = (1 - state.task.hole).flatten(1).mean(1)
        return part * self.weight * known * 64 * 64 / 1499

    def _blends(self, t: float, levels: float) -> bool:
        return t < levels * (1 - self.coherence)

    def _optimises(self, step: int, t: float, levels: float) -> bool:
        return step % self.interval == 0 and not self._blends(t, levels)


def background_loss(task: Task, said: Semantics) -> Tensor:
    """L_bg (B,): a quarter of the squared error on known latents, for the official code halves their range."""
    return 0.25 * squared_norm((1 - task.hole) * (said.estimate.x0 - task.known))


def semantic_loss(task: Task, said: Semantics) -> Tensor:
    """L_sc (B,) in [-1,1]: -1: the words look at the hole alone. Layers whose cells are all inside or all outside count as 0."""
    scores = []
    for share in said.shares:
        where = shrunk(task.hole, (share.shape[1], share.shape[2])).flatten(1).to(share.dtype)
        total, cells = where.sum(1), where.shape[1]
        within = (where * share.flatten(1)).sum(1) / total.clamp(min=1)
        without = ((1 - where) * share.flatten(1)).sum(1) / (cells - total).clamp(min=1)
        scores.append(torch.where((total > 0) & (total < cells), without - within, 0.0))
    return torch.stack(scores).mean(0)
