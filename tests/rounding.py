"""How far two computations of one number may lie apart, on any processor.

Another instruction set, number of threads, batch size or memory layout adds the same products in another order. The output of a
layer then moves by some eps of its largest value, and the layers of a network add up. Equality is therefore tested in float64
where a network can be put in it, and everywhere within `assert_same`, whose bound follows from the type.
"""

from typing import Any

import torch
from torch import Tensor, nn

NETWORK = {torch.float32: 1e3, torch.float64: 1e6}
"""eps of the largest value: some ten for each of a hundred layers, in float32 1e-4. In float64, 2e-10, there is room for networks
that enlarge what comes in."""


def assert_same(found: Tensor, wanted: Tensor, *, gain: float = 1.0) -> None:
    """Equal but for rounding; `gain`: by how much the error of a network is enlarged after it, as by guidance or s / a."""
    assert found.dtype == wanted.dtype
    bound = gain * NETWORK[wanted.dtype] * torch.finfo(wanted.dtype).eps * float(wanted.detach().abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=bound)


def doubled(network: nn.Module) -> nn.Module:
    """The network itself, in float64 from now on; inputs of another float type are converted."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.double() if value.is_floating_point() else value
        if isinstance(value, dict):
            return {key: convert(one) for key, one in value.items()}
        return type(value)(convert(one) for one in value) if isinstance(value, list | tuple) else value

    network.double().register_forward_pre_hook(
        lambda _, given, named: (convert(given), convert(named)), with_kwargs=True
    )
    return network
