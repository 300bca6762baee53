"""Reference of the ADM U-Net (Dhariwal and Nichol 2021, arXiv 2105.05233), in plain torch over a state dict.

The tests compare converted networks with it. One attention head with d channels is softmax(q^T k / sqrt(d)), where
q, k, v are rows 0..d, d..2d, 2d..3d of the head's 3d rows of `qkv`.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Adm:
    """Architecture: level i has `width * multipliers[i]` channels and half the side of level i - 1."""

    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]  # levels
    head_channels: int
    in_channels: int = 3
    out_channels: int = 6
    classes: int | None = None
    resample_by_block: bool = True
    scale_shift: bool = True
    eps: float = 1e-5


class Layer(NamedTuple):
    name: str
    kind: str  # conv, block, attention, down, up
    inputs: int
    outputs: int


def layout(adm: Adm) -> tuple[list[list[Layer]], list[Layer], list[list[Layer]]]:
    """Layers of the encoder (each entry adds one skip), the middle and the decoder (each entry uses one)."""
    channels = adm.width
    encoder = [[Layer("input_blocks.0.0", "conv", adm.in_channels, channels)]]
    skips = [channels]
    for level, multiplier in enumerate(adm.multipliers):
        for _ in range(adm.blocks):
            name = f"input_blocks.{len(encoder)}"
            layers = [Layer(f"{name}.0", "block", channels, adm.width * multiplier)]
            channels = adm.width * multiplier
            if level in adm.attention:
                layers.append(Layer(f"{name}.1", "attention", channels, channels))
            encoder.append(layers)
            skips.append(channels)
        if level + 1 < len(adm.multipliers):
            encoder.append([Layer(f"input_blocks.{len(encoder)}.0", "down", channels, channels)])
            skips.append(channels)
    middle = [
        Layer("middle_block.0", "block", channels, channels),
        Layer("middle_block.1", "attention", channels, channels),
        Layer("middle_block.2", "block", channels, channels),
    ]
    decoder: list[list[Layer]] = []
    for level, multiplier in reversed(list(enumerate(adm.multipliers))):
        for index in range(adm.blocks + 1):
            name = f"output_blocks.{len(decoder)}"
            layers = [Layer(f"{name}.0", "block", channels + skips.pop(), adm.width * multiplier)]
            channels = adm.width * multiplier
            if level in adm.attention:
                layers.append(Layer(f"{name}.1", "attention", channels, channels))
            if level > 0 and index == adm.blocks:
                layers.append(Layer(f"{name}.{len(layers)}", "up", channels, channels))
            decoder.append(layers)
    return encoder, middle, decoder


def shapes(adm: Adm) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight, as guided-diffusion stores them."""
    weights: dict[str, tuple[int, ...]] = {
        "time_embed.0": (4 * adm.width, adm.width),
        "time_embed.2": (4 * adm.width, 4 * adm.width),
        "out.0": (adm.width * adm.multipliers[0],),
        "out.2": (adm.out_channels, adm.width * adm.multipliers[0], 3, 3),
    }
    encoder, middle, decoder = layout(adm)
    for name, kind, inputs, outputs in [*chain(*encoder), *middle, *chain(*decoder)]:
        if kind == "conv":
            weights[name] = (outputs, inputs, 3, 3)
        elif kind == "attention":
            weights[f"{name}.norm"] = (inputs,)
            weights[f"{name}.qkv"] = (3 * inputs, inputs, 1)
            weights[f"{name}.proj_out"] = (inputs, inputs, 1)
        elif kind != "block" and not adm.resample_by_block:
            weights[f"{name}.op" if kind == "down" else f"{name}.conv"] = (outputs, inputs, 3, 3)
        else:
            weights[f"{name}.in_layers.0"] = (inputs,)
            weights[f"{name}.in_layers.2"] = (outputs, inputs, 3, 3)
            weights[f"{name}.emb_layers.1"] = ((2 if adm.scale_shift else 1) * outputs, 4 * adm.width)
            weights[f"{name}.out_layers.0"] = (outputs,)
            weights[f"{name}.out_layers.3"] = (outputs, outputs, 3, 3)
            if inputs != outputs:
                weights[f"{name}.skip_connection"] = (outputs, inputs, 1, 1)
    every = {f"{name}.weight": shape for name, shape in weights.items()}
    every |= {f"{name}.bias": shape[:1] for name, shape in weights.items()}
    if adm.classes is not None:
        every["label_emb.weight"] = (adm.classes, 4 * adm.width)
    return every


def random_state(adm: Adm, seed: int) -> dict[str, Tensor]:
    """float32 weights that keep activations near one; norms and biases are random, so each affects the output."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(adm).items():
        value = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            state[name] = value / math.sqrt(math.prod(shape[1:]))
        else:
            state[name] = 0.2 * value + (1.0 if name.endswith("weight") else 0.0)
    return state


def forward(adm: Adm, state: dict[str, Tensor], x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """(B, out, H, W) for x (B, in, H, W), t (B,) training steps, whole or fractional, labels (B,) or None."""

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"].to(x.dtype), state[f"{name}.bias"].to(x.dtype)

    def norm(name: str, h: Tensor) -> Tensor:
        groups = h.unflatten(1, (32, -1)).flatten(2)
        centred = groups - groups.mean(2, keepdim=True)
        scaled = (centred / (centred.square().mean(2, keepdim=True) + adm.eps).sqrt()).reshape(h.shape)
        gain, bias = (value.view(-1, *[1] * (h.ndim - 2)) for value in pair(name))
        return scaled * gain + bias

    def conv(name: str, h: Tensor, stride: int = 1) -> Tensor:
        weight, bias = pair(name)
        return F.conv2d(h, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    def halve(h: Tensor) -> Tensor:
        return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4

    def double(h: Tensor) -> Tensor:
        return h.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)

    def block(layer: Layer, h: Tensor) -> Tensor:
        resample = {"block": lambda value: value, "down": halve, "up": double}[layer.kind]
        inside = conv(f"{layer.name}.in_layers.2", resample(F.silu(norm(f"{layer.name}.in_layers.0", h))))
        projected = F.linear(F.silu(embedding), *pair(f"{layer.name}.emb_layers.1"))[:, :, None, None]
        if adm.scale_shift:
            scale, shift = projected[:, : layer.outputs], projected[:, layer.outputs :]
            inside = norm(f"{layer.name}.out_layers.0", inside) * (1 + scale) + shift
        else:
            inside = norm(f"{layer.name}.out_layers.0", inside + projected)
        outside = resample(h)
        if layer.inputs != layer.outputs:
            outside = conv(f"{layer.name}.skip_connection", outside)
        return outside + conv(f"{layer.name}.out_layers.3", F.silu(inside))

    def attention(layer: Layer, h: Tensor) -> Tensor:
        d, flat = adm.head_channels, h.flatten(2)
        weight, bias = pair(f"{layer.name}.qkv")
        rows = weight[:, :, 0] @ norm(f"{layer.name}.norm", flat) + bias[:, None]
        heads = []
        for start in range(0, 3 * layer.inputs, 3 * d):
            q, k, v = (
                rows[:, start : start + d],
                rows[:, start + d : start + 2 * d],
                rows[:, start + 2 * d :][:, :d],
            )
            scores = q.transpose(1, 2) @ k / math.sqrt(d)  # (B, queries, keys)
            heads.append(v @ scores.softmax(-1).transpose(1, 2))
        weight, bias = pair(f"{layer.name}.proj_out")
        return h + (weight[:, :, 0] @ torch.cat(heads, 1) + bias[:, None]).reshape(h.shape)

    def apply(layers: list[Layer], h: Tensor) -> Tensor:
        for layer in layers:
            if layer.kind == "attention":
                h = attention(layer, h)
            elif layer.kind == "conv":
                h = conv(layer.name, h)
            elif layer.kind == "down" and not adm.resample_by_block:
                h = conv(f"{layer.name}.op", h, stride=2)
            elif layer.kind == "up" and not adm.resample_by_block:
                h = conv(f"{layer.name}.conv", double(h))
            else:
                h = block(layer, h)
        return h

    half = adm.width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies
    sinusoid = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
    embedding = F.linear(F.silu(F.linear(sinusoid, *pair("time_embed.0"))), *pair("time_embed.2"))
    if labels is not None:
        embedding = embedding + state["label_emb.weight"].to(x.dtype)[labels]

    encoder, middle, decoder = layout(adm)
    skips, h = [], x
    for layers in encoder:
        h = apply(layers, h)
        skips.append(h)
    h = apply(middle, h)
    for layers in decoder:
        h = apply(layers, torch.cat([h, skips.pop()], dim=1))
    return conv("out.2", F.silu(norm("out.0", h)))
