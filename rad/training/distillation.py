"""Adversarial distillation: a sampler of few calls whose last call paints texture.

With few calls, the reverse process ends near the mean of the possible fills, which is smooth. In adversarial diffusion
distillation (Sauer et al. 2023, arXiv 2311.17042; on features of a diffusion model: Sauer et al. 2024, arXiv 2403.12015), a
critic tells photographs from the results of the sampler. Here both are per pixel:

- The n levels are those of DDIM with spacing "trailing". All calls but the last one stay denoisers. The gradient goes through the
  last call, whose estimate y is the result.
- The critic reads features f of the encoder of the network as it was before, which is frozen. Its input is y or the photograph x0
  with noise in the hole alone, so it sees the known pixels around. Small convolutional heads D give a logit for each cell.

    critic:     max(0, 1 - D(f(x0))) + max(0, 1 + D(f(y)))
    network:    adversarial * -D(f(y)) + features * |f(y) - f(x0)|^2 / var f(x0) + denoising * L(x_t)

L is the loss of `model.loss` at the levels of the calls before the last one. Means are over the cells of the hole, each cell
weighted by the share of its pixels that the hole covers. Both are minimised in the same optimiser step. The two papers also pull
the network towards its teacher's estimate; here the photograph itself is the target, in features.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rad.diffusion.denoiser import Denoiser
from rad.diffusion.levels import NoiseLevel, NoiseRegions, time_input
from rad.diffusion.losses import Losses
from rad.diffusion.processes import Process
from rad.diffusion.spacings import sampling_timesteps
from rad.diffusion.step import noised, reverse_step
from rad.models.settings.preferred import Preferred
from rad.networks.unet import RegionAwareUNet, embed_timesteps
from rad.rng import generator
from rad.training.module import Frozen

WIDTH = 32
"""Channels of the critic's heads."""


@dataclass(frozen=True)
class Distillation:
    """Settings of adversarial distillation, see `rad.training.distillation`.

    Args:
        steps: n >= 2, network calls of the sampler.
        adversarial: weight of the critic's judgement, at least 0. More gives more texture.
        features: weight of the distance from the photograph in features, at least 0. More keeps fills nearer to the original.
        denoising: weight of the loss of the other calls, at least 0.
        denoising_share: fraction of the samples that take this loss, in (0,1]; its expectation does not depend on it.
        view_noise: in (0,1]. The critic sees noise of the first `view_noise` of the levels; less shows finer texture.
        critic_rate: learning rate of the critic over that of the network, above 0.
    """

    steps: int = 4
    adversarial: float = 1.0
    features: float = 1.0
    denoising: float = 1.0
    denoising_share: float = 0.25
    view_noise: float = 0.12
    critic_rate: float = 5.0

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(
                f"distillation.steps is {self.steps}; allowed are 2 or more: the last call paints, others denoise"
            )
        for name in ("adversarial", "features", "denoising"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"distillation.{name} is {getattr(self, name)}; allowed are weights of at least 0")
        for name in ("denoising_share", "view_noise"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"distillation.{name} is {getattr(self, name)}; allowed are fractions above 0, up to 1"
                )
        if not 0 < self.critic_rate < math.inf:
            raise ValueError(f"distillation.critic_rate is {self.critic_rate}; allowed are values above 0")

    def levels(self, process: Process) -> list[int]:
        """The timesteps of the sampler, the noisiest first, and the clean level."""
        return [int(t) for t in sampling_timesteps(process, self.steps, spacing="trailing", fractional=False)]

    def result(self, x0: Tensor, eps: Tensor, regions: NoiseRegions, *, process: Process, denoiser: Denoiser) -> Tensor:
        """The sampler's result (B,C,H,W) from noise `eps` (B,C,H,W), with the gradient of its last call.

        As in sampling, pixels of x0 that are wholly in the hole have no effect. The first level has a little signal, which would
        show their mean colour.
        """
        levels = [process.noise(torch.full((len(x0),), t, device=x0.device), regions) for t in self.levels(process)]
        hidden = torch.where(levels[0].spread(regions.values) == 1, 0.0, x0)
        x, kind = noised(hidden, levels[0], noise=eps), x0.device.type
        # In older versions of PyTorch, autocast keeps casts of weights made without gradient for the last call too.
        autocast = torch.autocast(
            kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False
        )
        *before, (last, _) = pairwise(levels)
        with torch.no_grad(), autocast:
            for now, nxt in before:
                x = reverse_step(x, denoiser.denoise(x, now), now, nxt, eta=0.0)
        return denoiser.denoise(x, last).x0

    def losses(
        self,
        critic: "Critic",
        x0: Tensor,
        eps: Tensor,
        t: Tensor,
        regions: NoiseRegions,
        views: "Views",
        *,
        process: Process,
        denoiser: Denoiser,
        denoising: Callable[[Tensor, Tensor, Tensor, NoiseRegions], Tensor],
    ) -> "DistillationLosses":
        """Losses of each image; "simple" is the distance in features.

        Args:
            x0: (B,C,H,W) photographs; eps: (B,C,H,W) noise of the first level.
            t: (B,) uniform timesteps of `process`, which choose the level of the denoising.
            denoising: loss (B,) of x0, noise, t and regions.
        """
        from rad.evaluation.metrics import gradient_energy

        place = (views.place * self.view_noise * process.sampled_steps).long()
        level = process.noise(place, regions)
        hole = (level.spread(regions.values) > 0).to(x0)
        result = torch.lerp(x0, self.result(x0, eps, regions, process=process, denoiser=denoiser), hole)
        real = critic.features(noised(x0, level, noise=views.noise), level)
        fake = critic.features(noised(result, level, noise=views.noise), level)
        terms = {
            "adversarial": critic.adversarial_loss(fake, hole),
            "features": feature_loss(real, fake, hole),
            "denoising": self._denoising(x0, t, regions, views, process, denoising),
        }
        of_critic = critic.critic_loss(real, fake, hole)
        total = of_critic + sum(getattr(self, name) * values for name, values in terms.items())
        simple, one = terms["features"], torch.ones_like(total)
        curves = {name: (values, one) for name, values in {"loss": total, "critic": of_critic, **terms}.items()}
        curves["texture"] = gradient_energy(result.detach(), hole), gradient_energy(x0, hole)
        return DistillationLosses(simple, torch.zeros_like(simple), total, curves)

    def _denoising(
        self,
        x0: Tensor,
        t: Tensor,
        regions: NoiseRegions,
        views: "Views",
        process: Process,
        denoising: Callable[[Tensor, Tensor, Tensor, NoiseRegions], Tensor],
    ) -> Tensor:
        """(B,) loss of the sampler's other calls on a share of the samples, and 0 on the rest."""
        losses = x0.new_zeros(len(x0), dtype=torch.float32)
        (rows,) = (views.share < self.denoising_share).nonzero(as_tuple=True)
        if len(rows) == 0:
            return losses
        calls = torch.tensor(self.levels(process)[:-2], device=t.device)
        at = calls[t[rows] * len(calls) // process.sampled_steps]
        chosen = NoiseRegions(regions.values[rows], regions.index[rows])
        values = denoising(x0[rows], views.other[rows], at, chosen)
        return losses.index_copy(0, rows, values.float() / self.denoising_share)

    def sampling(self, before: Preferred) -> Preferred:
        """Preferred settings of the distilled model; those that do not concern the sampler are of the model `before`.

        Finer scales of a pyramid take the second half of the calls, from the level where it begins.
        """
        given = {"steps": self.steps, "solver": "ddim", "spacing": "trailing"}
        kept = {name: value for name, value in before.content().items() if name not in ("eta", "average")}
        if before.size_policy == "pyramid":
            finer = self.steps // 2
            given |= {"pyramid_strength": finer / self.steps, "pyramid_steps": finer}
        return Preferred.read({**kept, **given})


@dataclass(frozen=True)
class DistillationLosses(Losses):
    """Losses with `curves`: by name of a training curve, two (B,) tensors; the curve is the ratio of their sums."""

    curves: Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Views:
    """Random draws of the samples of a batch, beside those of `Draws`.

    `share`, `place`: (B,) in [0,1); `noise`, `other`: (B,C,H,W) standard normal, of the critic's view and of the denoising.
    """

    share: Tensor
    place: Tensor
    noise: Tensor
    other: Tensor

    @classmethod
    def draw(cls, positions: Sequence[int], seed: int, like: Tensor) -> "Views":
        """Keyed by seed and position, drawn on the CPU. `like`: (B,C,H,W), which gives shape, device and dtype."""
        rngs = [generator(seed, "distillation", position) for position in positions]
        shape = (2, *like.shape[1:])
        numbers = torch.stack([torch.rand(2, generator=rng, device="cpu", dtype=torch.float64) for rng in rngs])
        noise = torch.stack([torch.randn(shape, generator=rng, device="cpu", dtype=torch.float32) for rng in rngs])
        noise, numbers = noise.to(like), numbers.to(like.device)
        return cls(numbers[:, 0], numbers[:, 1], noise[:, 0], noise[:, 1])


class Critic(nn.Module):
    """Heads on the features of a frozen encoder; see the top of this file.

    Args:
        network: a patched UNet2DModel, which is copied. Raises ValueError for another network.
        seed: seed of the heads' weights.
    """

    def __init__(self, network: nn.Module, *, seed: int) -> None:
        super().__init__()
        if not isinstance(network, RegionAwareUNet):
            raise ValueError(
                f"model.distillation is for models of type UNet2DModel, and this one is a {type(network).__name__}: remove it"
            )
        encoder = copy.deepcopy(network)
        encoder.mid_block, encoder.up_blocks = None, nn.ModuleList()
        self.frozen = Frozen([encoder])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            widths = enumerate(cast("list[int]", list(network.config["block_out_channels"])))
            self.heads = nn.ModuleList(_head(width, stride=2 if depth == 0 else 1) for depth, width in widths)

    def features(self, x: Tensor, level: NoiseLevel) -> list[Tensor]:
        """Output of the last residual block of each depth, (B,C,h,w), the finest first, for x (B,C,H,W) at `level`."""
        encoder = cast(RegionAwareUNet, self.frozen[0])
        embedding = embed_timesteps(encoder, x, time_input(level.timesteps, x), level.index, dtype=encoder.dtype)
        hidden, result = encoder.conv_in(x), []
        for block in encoder.down_blocks:
            hidden, outputs = block(hidden_states=hidden, temb=embedding)
            result.append(outputs[len(cast(nn.ModuleList, block.resnets)) - 1])
        return result

    def logits(self, features: Sequence[Tensor], *, trained: bool) -> list[Tensor]:
        """(B,1,h,w) of each depth, above 0 for photographs. Without `trained`, the heads get no gradient."""
        pairs = zip(self.heads, features, strict=True)
        if trained:
            return [head(values) for head, values in pairs]
        return [
            functional_call(head, {name: weight.detach() for name, weight in head.named_parameters()}, (values,))
            for head, values in pairs
        ]

    def critic_loss(self, real: Sequence[Tensor], fake: Sequence[Tensor], hole: Tensor) -> Tensor:
        """(B,) hinge loss of the heads, for features of the photographs and of the results."""
        losses = [F.relu(1 - logit) for logit in self.logits([values.detach() for values in real], trained=True)]
        others = [F.relu(1 + logit) for logit in self.logits([values.detach() for values in fake], trained=True)]
        return _mean_of(losses, hole) + _mean_of(others, hole)

    def adversarial_loss(self, fake: Sequence[Tensor], hole: Tensor) -> Tensor:
        """(B,) -D of the results, with a gradient for `fake` alone."""
        return _mean_of([-logit for logit in self.logits(fake, trained=False)], hole)


def feature_loss(real: Sequence[Tensor], fake: Sequence[Tensor], hole: Tensor) -> Tensor:
    """(B,) squared distance of features in the hole, over the variance of those of the photograph."""
    terms = []
    for target, values in zip(real, fake, strict=True):
        target, values = target.detach().float(), values.float()
        scale = target.var((2, 3), keepdim=True).mean(1, keepdim=True) + 1e-2
        terms.append((values - target).square() / scale)
    return _mean_of(terms, hole)


def _head(width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.GroupNorm(math.gcd(8, width), width, affine=False),
        nn.Conv2d(width, WIDTH, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=stride),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, 1, 1),
    )


def _mean_of(maps: Sequence[Tensor], hole: Tensor) -> Tensor:
    """(B,) mean over the hole (B,1,H,W) and over maps (B,C,h,w) of any sizes; 0 for an image without a hole."""
    means = []
    for values in maps:
        cells = F.interpolate(hole.float(), size=values.shape[2:], mode="area")
        total = cells.sum((1, 2, 3)).clamp(min=1e-6) * values.shape[1]
        means.append((values.float() * cells).sum((1, 2, 3)) / total)
    return torch.stack(means).mean(0)
