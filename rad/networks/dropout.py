"""Dropout of low-rank adapters whose masks are keyed by the seed, the sample's position in the run, and the layer.

A mask is a pure function of these. Results do not depend on how a batch is split, and a resumed run equals an uninterrupted one.
Gradient checkpointing recomputes the same mask, and torch.compile keeps one graph. The numbers are those of SplitMix64 (Steele et
al. 2014, "Fast splittable pseudorandom number generators"), with 16 bits for each element.
"""

from collections.abc import Iterable

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rad.rng import key

LANES = 4
"""Elements for each 64-bit number."""


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


GAMMA, FIRST, SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Increment and multipliers of SplitMix64; int64 arithmetic wraps, as its unsigned arithmetic does."""


def mix(z: Tensor) -> Tensor:
    """The output function of SplitMix64, int64 -> int64."""
    z = (z ^ _shifted(z, 30)) * FIRST
    z = (z ^ _shifted(z, 27)) * SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A logical right shift; torch's is arithmetic."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def split_mix(seeds: Tensor, count: int) -> Tensor:
    """The first `count` numbers of SplitMix64 from each of `seeds` (B,) int64: (B,count) int64."""
    number = torch.arange(1, count + 1, device=seeds.device)
    return mix(seeds[:, None] + number * GAMMA)


class DropoutKeys:
    """The keys of the present batch, shared by the layers of a network."""

    def __init__(self) -> None:
        self.seeds: Tensor | None = None

    def set(self, seed: int, positions: Iterable[int], *, device: torch.device) -> None:
        """Call before each forward pass in training mode; `positions` (B,): of the samples in the run."""
        seeds = torch.tensor([key(seed, "dropout", position) for position in positions], dtype=torch.int64)
        if device.type == "cuda":
            seeds = seeds.pin_memory()
        self.seeds = seeds.to(device, non_blocking=True)


class KeyedDropout(nn.Module):
    """Zeroes elements with a probability, and divides the others by the fraction that is kept. No change in eval mode.

    Args:
        probability: in [0,1), rounded to a multiple of 2^-16.
        keys: of the batch.
        layer: name of the layer.
        shared: one mask (B,D) for all noise levels of a sample, for layers of the time embedding, whose number of levels depends
            on the batch.
    """

    def __init__(self, probability: float, keys: DropoutKeys, layer: str, *, shared: bool = False) -> None:
        super().__init__()
        self.dropped = min(round(probability * 2**16), 2**16 - 1)
        self.keys, self.shared, self.salt = keys, shared, key("dropout", layer)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,...), or (B*n,...,D) if `shared`, samples first."""
        if not self.training:
            return x
        seeds = self.keys.seeds
        if seeds is None or len(x) % len(seeds) or not (self.shared or len(x) == len(seeds)):
            raise ValueError(
                f"dropout of {len(x)} rows has the keys of {0 if seeds is None else len(seeds)} samples: call "
                "DropoutKeys.set with the positions of the batch before the network, or network.eval()"
            )
        shape = x.shape[-1:] if self.shared else x.shape[1:]
        count = shape.numel()
        numbers = split_mix(mix(seeds + self.salt), -(-count // LANES))
        # A view as int16 would be shorter; code compiled for a CPU crashes with it (torch 2.15).
        lanes = [(numbers >> 16 * lane) & 0xFFFF for lane in range(LANES)]
        kept = torch.stack([lane >= self.dropped for lane in lanes], -1).flatten(1)[:, :count]
        keep = kept.to(x.dtype) / (1 - self.dropped / 2**16)
        if self.shared:
            keep = keep.repeat_interleave(len(x) // len(seeds), 0)
            return x * keep.view(len(x), *(1,) * (x.ndim - 2), count)
        return x * keep.view(x.shape)

    def extra_repr(self) -> str:
        return f"p={self.dropped / 2**16:g}"


def key_dropout(model: nn.Module, *, shared: tuple[str, ...] = ()) -> None:
    """Replace the dropout of LoRA layers by `KeyedDropout`, in place; `shared`: ends of the names of time layers."""
    keys = DropoutKeys()
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for adapter, dropout in layer.lora_dropout.items():
            if isinstance(dropout, nn.Dropout):
                layer.lora_dropout[adapter] = KeyedDropout(
                    dropout.p, keys, name, shared=name.endswith(shared) if shared else False
                ).train(dropout.training)


def find_keys(model: nn.Module) -> DropoutKeys | None:
    """The keys that the layers of `model` share; None without dropout."""
    return next((module.keys for module in model.modules() if isinstance(module, KeyedDropout)), None)
