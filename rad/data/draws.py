"""Random draws of a training sample, keyed by (seed, purpose, position): timestep, hole, noise.

The loader workers draw them on the CPU. Results therefore do not depend on the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rad.masks import MaskGenerator
from rad.rng import generator

Purpose = Literal["train", "val"]


@dataclass(frozen=True)
class Draws:
    """Draws of the samples of a run. `draws(position, size)` returns those of one sample of `size` (height, width) in pixels.

    "times" (2,) float64 and "unconditional" (), in [0,1), "noise" (C,h,w) standard normal, and "hole" (1,H,W) in {0,1}.

    Args:
        seed: seed of the model.
        purpose: training and validation have different draws.
        channels: C of a network input; factor: pixels for each of its cells, on both sides.
        masks: generator of the holes; None: the batch has its own, or needs none.
        unconditional: whether some holes become the whole image.
        noise_offset: c >= 0; the noise is "noise" + c n with a normal number n for each channel.
    """

    seed: int
    purpose: Purpose
    channels: int
    factor: int = 1
    masks: MaskGenerator | None = None
    unconditional: bool = False
    noise_offset: float = 0.0

    def __call__(self, position: int, size: tuple[int, int]) -> dict[str, Tensor]:
        rng = generator(self.seed, self.purpose, position)
        draws = {"times": draw_timesteps([rng])[0]}
        if self.masks is not None:
            draws["hole"] = draw_hole(self.masks, rng, size)
        shape = (self.channels, size[0] // self.factor, size[1] // self.factor)
        draws["noise"] = torch.randn(shape, generator=rng, device="cpu", dtype=torch.float32)
        if self.noise_offset:
            offsets = generator(self.seed, "noise offset", position)
            shift = torch.randn(self.channels, generator=offsets, device="cpu", dtype=torch.float32)
            draws["noise"] += self.noise_offset * shift[:, None, None]
        if self.unconditional:
            draws["unconditional"] = draw_uniform([position], self.seed, self.purpose, "unconditional")[0]
        return draws

    def batch(self, positions: Sequence[int], size: tuple[int, int]) -> dict[str, Tensor]:
        """The draws of several samples, stacked."""
        samples = [self(position, size) for position in positions]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def draw_hole(masks: MaskGenerator, rng: torch.Generator, size: tuple[int, int]) -> Tensor:
    """One hole (1,H,W). Raises ValueError for values other than 0 and 1, which training would round."""
    hole = masks([rng], *size)[0]
    if not bool(((hole == 0) | (hole == 1)).all()):
        raise ValueError(
            f"{type(masks).__name__} draws holes with values from {hole.min():g} to {hole.max():g}; training needs 0 (known) and "
            "1 (fill): round them in the generator"
        )
    return hole


def draw_timesteps(rngs: Sequence[torch.Generator]) -> Tensor:
    """(B,2) float64 in [0,1), the input of `TrainingProcess.timesteps`; a generator for each sample."""
    return torch.stack([torch.rand(2, generator=rng, device=rng.device, dtype=torch.float64) for rng in rngs])


def draw_uniform(positions: Sequence[int], *key: int | str) -> Tensor:
    """(B,) float32 in [0,1) on the CPU, keyed by `key` and each position."""
    rngs = [generator(*key, position) for position in positions]
    return torch.stack([torch.rand((), generator=rng, device="cpu", dtype=torch.float32) for rng in rngs])
