"""The networks of the benchmarks, with random weights: stock, and patched with the factorised or the dense embedding.

The three variants share their parameters in memory and get the same images with a binary hole.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from rad.models.lora import LoRA, inject
from rad.networks.unet import patch

ConfigName = Literal["ffhq", "imagenet", "nature32"]
Variant = Literal["unpatched", "factorised", "dense"]
VARIANTS: tuple[Variant, ...] = ("unpatched", "factorised", "dense")

ADM = {
    "in_channels": 3,
    "out_channels": 6,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "attn_norm_num_groups": 32,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}


def _levels(attention: str) -> dict[str, list[str]]:
    """Block types from one letter a level, finest first: "a" has attention, "-" has none."""
    down = {"a": "AttnDownBlock2D", "-": "ResnetDownsampleBlock2D"}
    up = {"a": "AttnUpBlock2D", "-": "ResnetUpsampleBlock2D"}
    return {
        "down_block_types": [down[level] for level in attention],
        "up_block_types": [up[level] for level in reversed(attention)],
    }


CONFIGS: dict[ConfigName, dict[str, Any]] = {
    # 93.56 M parameters: ADM for FFHQ.
    "ffhq": ADM
    | _levels("----a-")
    | {
        "sample_size": 256,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "layers_per_block": 1,
        "attention_head_dim": 64,
    },
    # 552.81 M parameters: ADM for ImageNet, unconditional.
    "imagenet": ADM
    | _levels("---aaa")
    | {
        "sample_size": 256,
        "block_out_channels": [256, 256, 512, 512, 1024, 1024],
        "layers_per_block": 2,
        "attention_head_dim": 64,
    },
    # checkpoints/base-nature32.
    "nature32": ADM
    | _levels("--a")
    | {
        "sample_size": 32,
        "block_out_channels": [32, 64, 128],
        "layers_per_block": 1,
        "attention_head_dim": 32,
    },
}
BATCH: dict[ConfigName, int] = {"ffhq": 1, "imagenet": 1, "nature32": 8}
"""Default batch size."""


def build(config: ConfigName, *, device: str = "cpu") -> UNet2DModel:
    """The stock network with diffusers' initial weights; without weights on the device "meta"."""
    with torch.device(device):
        return UNet2DModel(**CONFIGS[config])


def variant_of(unet: UNet2DModel, variant: Variant, *, lora: bool = False) -> nn.Module:
    """A network that shares the parameters of `unet`; with `lora`, RAD's adapter is added and the rest is frozen."""
    with torch.device("meta"):
        network = UNet2DModel(**{k: v for k, v in unet.config.items() if not k.startswith("_")})
    network.load_state_dict(unet.state_dict(keep_vars=True), assign=True)
    if variant != "unpatched":
        network = patch(network, embedding=variant)
    return inject(network, LoRA()) if lora else network


def image(config: ConfigName, *, batch: int, device: str = "cpu", size: int | None = None) -> dict[str, Tensor]:
    """x (B,3,H,W), the timesteps of known pixels and of the hole (B,2), and the hole (B,H,W) int64: a box, half the image."""
    size = size or CONFIGS[config]["sample_size"]
    hole = torch.zeros(batch, size, size, dtype=torch.int64, device=device)
    hole[:, size // 8 : size // 8 * 7, size // 6 : size // 6 * 5] = 1
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    return {"x": x, "times": torch.tensor([[0.0, 500.0]], device=device).expand(batch, 2), "hole": hole}


def forward(network: nn.Module, variant: Variant, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """A network call, with the timestep of the hole for the stock network, and both timesteps and the hole for the others."""
    if variant == "unpatched":
        return lambda: network(inputs["x"], inputs["times"][:, 1]).sample
    return lambda: network(inputs["x"], inputs["times"], index=inputs["hole"]).sample


def training_step(network: nn.Module, call: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, mean square as the loss, and backward; no optimiser."""

    def step() -> None:
        network.zero_grad(set_to_none=True)
        call().square().mean().backward()

    return step


def parameters_in_millions(unet: nn.Module) -> float:
    return sum(parameter.numel() for parameter in unet.parameters()) / 1e6
