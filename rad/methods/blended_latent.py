"""Blended Latent Diffusion (Avrahami, Fried, Lischinski, SIGGRAPH 2023, arXiv 2206.02779).

Replaces known latents at the level's noise between steps, and skips the noisiest levels:

    x_start = a (known y + hole f) + s n        x <- hole x + known (a y + s n)

For thin holes, the hole can start wider and shrink ring by ring. The last levels can blend in pixels,
x_u = a_u Enc(hole Dec(x0) + known image) + s_u n. After decoding, Adam can fit the latents z, from the result z_0 on, or the
decoder's weights, to

    mean (hole (Dec_0(z_0) - Dec(z)))^2 + 100 mean (known (image - Dec(z)))^2
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.diffusion.step import Denoised
from rad.methods.blended import Blended
from rad.methods.guidance import known_at, noise_to
from rad.models.vae import Autoencoder
from rad.sampling.method import setting
from rad.sampling.state import State
from rad.sampling.task import Task

Reconstruct = Literal["none", "latent", "weights"]
RATES = {"latent": 0.1, "weights": 1e-4}
"""Adam's learning rates in the official code."""
KNOWN_WEIGHT = 100.0


@dataclass(frozen=True)
class BlendedLatent(Blended):
    """Needs a prompt. Without one this is replacement with a warm start, and as biased.

    On pixels the defaults equal `blended` with another preset; skip = 0 equals `replacement`, bit for bit. Differences from the
    official code: f is the mean of the known latents, not the source, which leaks. Known cells are y at the end. The repair
    starts from the latents themselves, not from the encoded result, and treats each image alone.
    """

    paper = "Avrahami, Fried, Lischinski 2023, arXiv 2206.02779"
    preset_steps = 50
    preset_eta = 0.0

    skip: float = setting(0.25, "fraction of the steps to skip, the noisiest, rounded down: 12 of 50", low=0, high=0.99)
    blend: Literal["u", "t", "before"] = setting(
        "u",
        'when to blend: after a step, at the level of its end "u" or its start "t" (official SD); "before" it (LDM)',
    )
    dilations: int = setting(0, "rings of cells by which the hole starts wider, for thin holes", low=0)
    pixel_fraction: float = setting(0.0, "fraction of the steps, the last, that blend pixels instead", low=0, high=1)
    reconstruct: Reconstruct = setting("none", "what to fit to the known pixels after decoding; weights: the decoder's")
    iterations: int = setting(75, "Adam steps of that fit", low=1)

    def check_autoencoder(self, autoencoder: Autoencoder) -> None:
        _check(self.reconstruct, autoencoder)

    def on_start(self, state: State) -> Tensor:
        self.check_autoencoder(state.task.autoencoder)
        return super().on_start(state)

    def before_denoise(self, state: State) -> Tensor:
        if self.blend == "before" and not self.in_pixels(state):
            return torch.lerp(known_at(state, state.now), state.x, self.hole(state))
        return state.x

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        if self.in_pixels(state):
            task = state.task
            blended = torch.lerp(task.image, task.autoencoder.decode(denoised.x0), task.image_hole)
            return noise_to(state, task.autoencoder.encode(blended), state.next)
        if self.blend == "before":
            return x_next
        return torch.lerp(known_at(state, state.next if self.blend == "u" else state.now), x_next, self.hole(state))

    def in_pixels(self, state: State) -> bool:
        return state.step >= int(state.steps * (1 - self.pixel_fraction) + 1e-9)

    def hole(self, state: State) -> Tensor:
        """(B,1,H,W): `dilations` rings wider at first, then one ring less after equal numbers of steps."""
        hole = state.task.hole
        rings = self.dilations - state.step * (self.dilations + 1) // state.steps
        rings = min(max(0, rings), max(hole.shape[2:]))  # more rings cover the whole image too
        return F.max_pool2d(hole, 2 * rings + 1, stride=1, padding=rings)

    def decode(self, x: Tensor, task: Task) -> Tensor:
        if self.reconstruct == "none":
            return task.autoencoder.decode(x)
        _check(self.reconstruct, task.autoencoder)
        # In full precision: autocast would cache the decoder's first weights.
        full = torch.autocast(x.device.type, enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), full:
            rows = zip(x.detach().clone().split(1), task.image.split(1), task.image_hole.split(1), strict=True)
            return torch.cat([self._repaired(task.autoencoder, *row) for row in rows])

    def _repaired(self, autoencoder: Autoencoder, z: Tensor, image: Tensor, hole: Tensor) -> Tensor:
        """Image (1,3,H,W) decoded from z (1,C,h,w) after the fit to the known pixels of `image`."""
        decoded = autoencoder.decode(z).detach().to(image.dtype)
        if self.reconstruct == "weights":  # of a copy: other calls may use this decoder now
            autoencoder = copy.deepcopy(autoencoder)
        fitted = [z] if self.reconstruct == "latent" else list(_decoder(autoencoder).parameters())
        for parameter in fitted:
            parameter.requires_grad_()
        optimiser = torch.optim.Adam(fitted, lr=RATES[self.reconstruct])
        for _ in range(self.iterations):
            now = autoencoder.decode(z)
            known = ((1 - hole) * (image - now)).square().mean()
            loss = (hole * (decoded - now)).square().mean() + KNOWN_WEIGHT * known
            for parameter, gradient in zip(fitted, torch.autograd.grad(loss, fitted), strict=True):
                parameter.grad = gradient
            optimiser.step()
        return autoencoder.decode(z).detach().clamp(-1, 1)


def _decoder(autoencoder: Autoencoder) -> nn.Module:
    decoder = getattr(autoencoder, "decoder", None)
    assert isinstance(decoder, nn.Module)
    return decoder


def _check(reconstruct: Reconstruct, autoencoder: Autoencoder) -> None:
    if reconstruct != "none" and autoencoder.factor == 1:
        raise ValueError(
            f"reconstruct is {reconstruct!r}, and this model works on pixels, which need no repair: use 'none'"
        )
    if reconstruct == "weights" and getattr(autoencoder, "decoder", None) is None:
        raise ValueError("reconstruct is 'weights', and this model's decoder cannot be fitted: use 'latent' or 'none'")
