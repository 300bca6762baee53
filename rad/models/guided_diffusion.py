"""guided-diffusion's layout of a U-Net, and the names and shapes that diffusers' UNet2DModel has for the same weights.

ADM (Dhariwal and Nichol 2021, arXiv 2105.05233) fuses q, k and v of an attention layer into one matrix of 3C rows, head by
head: [q k v] of the first head, then of the second. diffusers keeps three matrices; plain thirds would mix the heads.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from rad.models.weights import Config

QkvOrder = Literal["legacy", "naive"]


ADM_TIME = {"time_embedding_type": "positional", "flip_sin_to_cos": True, "freq_shift": 0}


ADM_NAME = re.compile(
    r"((?:in|out)put_blocks\.\d+\.\d+|middle_block\.\d+|time_embed\.\d+|out\.\d+|label_emb)"  # module
    r"(?:\.(.+))?\.(weight|bias)"  # layer inside it, if any; kind
)


ADM_LAYERS = {
    "": "",
    "in_layers.0": ".norm1",
    "in_layers.2": ".conv1",
    "emb_layers.1": ".time_emb_proj",
    "out_layers.0": ".norm2",
    "out_layers.3": ".conv2",
    "skip_connection": ".conv_shortcut",
    "norm": ".group_norm",
    "proj_out": ".to_out.0",
    "op": ".conv",
    "conv": ".conv",
}


def rename_adm(state: Mapping[str, Tensor], config: Config, *, qkv_order: QkvOrder) -> dict[str, Tensor]:
    """The weights of `state` under diffusers' names; others keep their names. `config` as of `adm_config`."""
    head_channels = config["attention_head_dim"]
    modules = adm_modules(config)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = ADM_NAME.fullmatch(name)
        module, layer, kind = match.groups(default="") if match else ("", "", "")
        if module in modules and layer == "qkv":
            for part, rows in split_qkv(_drop_kernel(tensor), head_channels, qkv_order).items():
                renamed[f"{modules[module]}.to_{part}.{kind}"] = rows
        elif module in modules and layer in ADM_LAYERS:
            target = f"{modules[module]}{ADM_LAYERS[layer]}.{kind}"
            renamed[target] = _drop_kernel(tensor) if layer == "proj_out" else tensor
        else:
            renamed[name] = tensor  # reported as left over
    return renamed


def split_qkv(fused: Tensor, head_channels: int, order: QkvOrder) -> dict[str, Tensor]:
    """Rows (3C, ...) of ADM's fused projection as {"q": (C, ...), "k": (C, ...), "v": (C, ...)}."""
    if head_channels < 1 or len(fused) % (3 * head_channels):
        channels = len(fused) // 3
        raise ValueError(f"{channels} channels of attention are no heads of {head_channels}: give head_channels")
    if order == "legacy":
        parts = rearrange(fused, "(head part row) ... -> part (head row) ...", part=3, row=head_channels)
    else:
        parts = rearrange(fused, "(part row) ... -> part row ...", part=3)
    return dict(zip("qkv", parts, strict=True))


def _drop_kernel(tensor: Tensor) -> Tensor:
    """(out, in, 1) of a pointwise convolution -> (out, in) of a linear layer; a bias stays as it is."""
    return tensor.reshape(tensor.shape[:2])


def adm_config(state: Mapping[str, Tensor], *, image_size: int, head_channels: int, norm_eps: float) -> Config:
    """UNet2DModel arguments from the names and shapes of a guided-diffusion state dict."""

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise ValueError(f"no {name} among {len(state)} weights: give a guided-diffusion U-Net's state dict")
        return state[name].shape

    width, in_channels = shape("input_blocks.0.0.weight")[:2]
    # A level has n blocks and a resampler on the way down, n + 1 blocks on the way up. Downsamplers look like
    # blocks, so levels are counted by upsamplers: a second block, or a convolution, inside an output block.
    blocks = len({name.split(".")[1] for name in state if name.startswith("output_blocks.")})
    upsampler = re.compile(r"output_blocks\.\d+\.[12]\.(in_layers\.0|conv)\.weight")
    upsamplers = [name for name in state if upsampler.fullmatch(name)]
    levels = len(upsamplers) + 1
    layers = blocks // levels - 1
    if layers < 1 or blocks % levels:
        raise ValueError(f"{blocks} output blocks on {levels} levels: give a guided-diffusion U-Net's state dict")
    first_blocks = [1 + level * (layers + 1) for level in range(levels)]
    widths = [shape(f"input_blocks.{block}.0.out_layers.3.weight")[0] for block in first_blocks]
    attention = [f"input_blocks.{block}.1.qkv.weight" in state for block in first_blocks]
    by_block = not any(".conv." in name for name in upsamplers)
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if by_block else ("DownBlock2D", "UpBlock2D")
    scale_shift = shape("middle_block.0.emb_layers.1.weight")[0] == 2 * widths[-1]
    time_width = shape("time_embed.0.weight")[1]
    if time_width != width:
        raise ValueError(
            f"the first level is {width} wide and the sinusoid {time_width}: UNet2DModel has one width for"
            " both; use a model whose first channel multiplier is 1"
        )
    if image_size < 1 or image_size % 2 ** (levels - 1):
        raise ValueError(f"image_size={image_size} cannot be halved {levels - 1} times: give the size of training")
    return {
        "sample_size": image_size,
        "in_channels": in_channels,
        "out_channels": shape("out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["AttnDownBlock2D" if attends else plain[0] for attends in attention],
        "up_block_types": ["AttnUpBlock2D" if attends else plain[1] for attends in reversed(attention)],
        "downsample_type": "resnet" if by_block else "conv",
        "upsample_type": "resnet" if by_block else "conv",
        "attention_head_dim": head_channels,
        "attn_norm_num_groups": 32,
        "norm_num_groups": 32,
        "norm_eps": norm_eps,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "num_class_embeds": shape("label_emb.weight")[0] if "label_emb.weight" in state else None,
        **ADM_TIME,
    }


def adm_modules(config: Config) -> dict[str, str]:
    """guided-diffusion module -> UNet2DModel module, for the network of `config`."""
    modules = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        first = level * (layers + 1)
        for layer in range(layers):
            modules[f"input_blocks.{1 + first + layer}.0"] = f"{down}.resnets.{layer}"
            modules[f"input_blocks.{1 + first + layer}.1"] = f"{down}.attentions.{layer}"
        for layer in range(layers + 1):
            modules[f"output_blocks.{first + layer}.0"] = f"{up}.resnets.{layer}"
            modules[f"output_blocks.{first + layer}.1"] = f"{up}.attentions.{layer}"
        if level < levels - 1:
            position = 2 if config["up_block_types"][level] == "AttnUpBlock2D" else 1
            modules[f"input_blocks.{1 + first + layers}.0"] = f"{down}.downsamplers.0"
            modules[f"output_blocks.{first + layers}.{position}"] = f"{up}.upsamplers.0"
    return modules
