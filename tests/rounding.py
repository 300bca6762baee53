"""The tolerance between two computations of the same number, on any processor.

Another instruction set, number of threads, batch size or memory layout changes the order of additions. The output of a layer then
changes by a few eps of its largest value, and the changes of all layers add up. Tests therefore compare in float64 if the network
allows it, and always with `assert_same`, whose bound depends on the type.
"""

from typing import Any

import torch
from torch import Tensor, nn

NETWORK = {torch.float32: 1e3, torch.float64: 1e6}
"""Tolerance in eps of the largest value: about ten for each of a hundred layers, 1e-4 in float32. In float64, 2e-10, it also
covers networks that amplify their input."""


def assert_same(actual: Tensor, expected: Tensor, *, gain: float = 1.0) -> None:
    """Assert equality up to rounding; gain: amplification of the network's error after it, as by guidance or s / a."""
    assert actual.dtype == expected.dtype
    bound = gain * NETWORK[expected.dtype] * torch.finfo(expected.dtype).eps * float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)


def doubled(network: nn.Module) -> nn.Module:
    """Convert the network to float64, in place; its inputs are converted too."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        return type(value)(convert(item) for item in value) if isinstance(value, list | tuple) else value

    network.double().register_forward_pre_hook(
        lambda _, given, named: (convert(given), convert(named)), with_kwargs=True
    )
    return network
