"""Blended Latent Diffusion. Avrahami, Fried, Lischinski, Blended Latent Diffusion, SIGGRAPH 2023, arXiv 2206.02779.

Blended Diffusion on latents: between the steps, known cells are overwritten by the known latents at the noise of the level,
and the first levels are left out, so that the chain starts from a noised image:

    x <- hole x + known (a y + s n)          x_start = a (known y + hole f) + s n

Thin holes are widened at first, ring by ring less. For the last levels pixels may be blended instead,
x_u = a_u Enc(hole Dec(x0) + known image) + s_u n. After decoding, what the decoder made of the known pixels can be repaired:
over its weights or the latents z, from the result z_0 on, Adam minimises

    mean (hole (Dec_0(z_0) - Dec(z)))^2 + 100 mean (known (image - Dec(z)))^2

Hooks: plan, on_start, before_denoise, after_step, decode.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.diffusion.step import Denoised
from rad.methods.guidance import drawn_at, known_at, skip_levels, warm_start
from rad.models.vae import Autoencoder
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.state import State
from rad.sampling.task import Task

Reconstruct = Literal["none", "latent", "weights"]
RATES = {"latent": 0.1, "weights": 1e-4}
"""Adam's, of the official code."""
KNOWN_WEIGHT = 100.0


@dataclass(frozen=True)
class BlendedLatent(SamplingMethod):
    """The text does the work: on a model without it, or without a prompt, this is replacement with a warm start, and as biased.

    Its defaults on pixels are `blended`, of another preset; with skip = 0 `replacement`, bit by bit. f is the mean of the
    known latents: the source in the official code, which edits, and would show here what is to be found. At the end known
    cells are y. The repair starts from the latents themselves (official: from the encoded result), image by image.
    """

    paper = "Avrahami, Fried, Lischinski 2023, arXiv 2206.02779"
    preset_steps = 50
    preset_eta = 0.0

    skip: float = setting(0.25, "part of the steps left out, the noisiest, rounded down: 12 of 50", low=0, high=0.99)
    blend: Literal["u", "t", "before"] = setting(
        "u",
        'when, and at which level: after a step at its end "u", or its beginning "t" (official SD); "before" it (LDM)',
    )
    dilations: int = setting(0, "rings of cells by which the hole is wider at first, for thin ones", low=0)
    pixel_fraction: float = setting(0.0, "part of the steps, the last, that blend pixels instead", low=0, high=1)
    reconstruct: Reconstruct = setting(
        "none", "what is fitted to the known pixels after decoding; weights: the decoder's"
    )
    iterations: int = setting(75, "steps of Adam of that fit", low=1)

    def plan(self, times: list[float]) -> list[float]:
        return skip_levels(times, self.skip)

    def on_start(self, state: State) -> Tensor:
        _check(self.reconstruct, state.task.autoencoder)
        return state.x if self.skip == 0 else warm_start(state)

    def before_denoise(self, state: State) -> Tensor:
        if self.blend == "before" and not self.in_pixels(state):
            return torch.lerp(known_at(state, state.now), state.x, self.hole(state))
        return state.x

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        if self.in_pixels(state):
            task = state.task
            blended = torch.lerp(task.image, task.autoencoder.decode(denoised.x0), task.image_hole)
            return drawn_at(state, task.autoencoder.encode(blended), state.next)
        if self.blend == "before":
            return x_next
        return torch.lerp(known_at(state, state.next if self.blend == "u" else state.now), x_next, self.hole(state))

    def in_pixels(self, state: State) -> bool:
        """Whether this is one of the last steps, which blend pixels."""
        return state.step >= int(state.steps * (1 - self.pixel_fraction) + 1e-9)

    def hole(self, state: State) -> Tensor:
        """(B,1,H,W), widened by `dilations` rings at the first steps, then by one less each, all for as many steps."""
        hole = state.task.hole
        rings = self.dilations - state.step * (self.dilations + 1) // state.steps
        rings = min(max(0, rings), max(hole.shape[2:]))  # more than that is the whole image too
        return F.max_pool2d(hole, 2 * rings + 1, stride=1, padding=rings)

    def decode(self, x: Tensor, task: Task) -> Tensor:
        if self.reconstruct == "none":
            return task.autoencoder.decode(x)
        _check(self.reconstruct, task.autoencoder)
        # In full precision: autocast would keep the decoder's first weights.
        full = torch.autocast(x.device.type, enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), full:
            rows = zip(x.detach().clone().split(1), task.image.split(1), task.image_hole.split(1), strict=True)
            return torch.cat([self._repaired(task.autoencoder, *row) for row in rows])

    def _repaired(self, autoencoder: Autoencoder, z: Tensor, image: Tensor, hole: Tensor) -> Tensor:
        """The decoded image (1,3,H,W) of the latents z (1,C,h,w), fitted to the known pixels of `image`."""
        fitted = [z] if self.reconstruct == "latent" else list(_decoder(autoencoder).parameters())
        before = [(one.detach().clone(), one.requires_grad) for one in fitted]
        made = autoencoder.decode(z).detach().to(image.dtype)
        try:
            for one in fitted:
                one.requires_grad_()
            optimiser = torch.optim.Adam(fitted, lr=RATES[self.reconstruct])
            for _ in range(self.iterations):
                now = autoencoder.decode(z)
                known = ((1 - hole) * (image - now)).square().mean()
                loss = (hole * (made - now)).square().mean() + KNOWN_WEIGHT * known
                for one, gradient in zip(fitted, torch.autograd.grad(loss, fitted), strict=True):
                    one.grad = gradient
                optimiser.step()
            return autoencoder.decode(z).detach().clamp(-1, 1)
        finally:
            for one, (value, differentiated) in zip(fitted, before, strict=True):
                one.requires_grad_(differentiated).grad = None
                one.data.copy_(value)


def _decoder(autoencoder: Autoencoder) -> nn.Module:
    """The network that an autoencoder decodes with, which it may show as `decoder`."""
    decoder = getattr(autoencoder, "decoder", None)
    assert isinstance(decoder, nn.Module)
    return decoder


def _check(reconstruct: Reconstruct, autoencoder: Autoencoder) -> None:
    """Raises ValueError where there is nothing to fit."""
    if reconstruct != "none" and autoencoder.factor == 1:
        raise ValueError(
            f"reconstruct is {reconstruct!r}, and this model works on pixels, which need no repair: use 'none'"
        )
    if reconstruct == "weights" and getattr(autoencoder, "decoder", None) is None:
        raise ValueError("reconstruct is 'weights', and this model's decoder cannot be fitted: use 'latent' or 'none'")
