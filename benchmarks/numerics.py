"""Errors of a small network's output and gradients in each precision, against float64 on the same device; used by gpu.py."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.accelerator import PRECISIONS, computing
from benchmarks.gpu_work import Setting
from benchmarks.networks import Variant, forward, variant_of

Outcome = tuple[Tensor, Tensor]
"""The output, and the gradients of all weights as one vector; both float64."""


def errors(setting: Setting) -> list[dict[str, str | float]]:
    """Rows of relative errors: each precision against float64, and in float64 what holds exactly in exact arithmetic."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = setting.network()
    inputs = setting.inputs()
    exact = copy.deepcopy(unet).double()
    wide = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    reference = outcome(variant_of(exact, "factorised"), "factorised", wide)
    rows = []
    for precision in PRECISIONS:
        with computing(precision, setting.device):
            result = outcome(variant_of(unet, "factorised"), "factorised", inputs)
        rows.append(_row(f"{precision} and float64", result, reference))
    dense = outcome(variant_of(exact, "dense"), "dense", wide)
    rows.append(_row("float64: factorised and dense", reference, dense))
    level = {**wide, "times": wide["times"][:, 1:].expand(-1, 2)}
    stock = outcome(variant_of(exact, "unpatched"), "unpatched", level)
    equal = outcome(variant_of(exact, "factorised"), "factorised", level)
    rows.append(_row("float64: two equal levels and the unpatched network", equal, stock))
    return rows


def outcome(network: nn.Module, variant: Variant, inputs: Mapping[str, Tensor]) -> Outcome:
    """Output and gradients of the mean square of the output."""
    weights = list(network.parameters())
    output = forward(network, variant, dict(inputs))()
    gradients = torch.autograd.grad(output.square().mean(), weights)
    return output.detach().double(), torch.cat([gradient.flatten().double() for gradient in gradients])


def relative_rms(result: Tensor, reference: Tensor) -> float:
    """|result - reference| / |reference|, root mean square."""
    return float((result - reference).norm() / reference.norm())


def relative_max(result: Tensor, reference: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((result - reference).abs().max() / reference.abs().max())


def _row(name: str, result: Outcome, reference: Outcome) -> dict[str, str | float]:
    row: dict[str, str | float] = {"compared": name}
    for part, mine, theirs in zip(("output", "gradient"), result, reference, strict=True):
        row |= {f"{part}, rms error": relative_rms(mine, theirs), f"{part}, max error": relative_max(mine, theirs)}
    return row
