"""torch.compile and torch.export of the patched networks: one graph, and any batch size."""

import pytest
import torch

from benchmarks.gpu_waits import count_graphs
from rad.networks import patch, patch_conditional, patch_transformer
from tests.tiny_networks import small_conditional, small_transformer, small_unet

NETWORKS = {
    "unet": (small_unet, patch),
    "conditional": (small_conditional, patch_conditional),
    "transformer": (small_transformer, patch_transformer),
}


def network_of(kind):
    build, patch_of_kind = NETWORKS[kind]
    return patch_of_kind(build())


def inputs(kind, batch, *, levels=2):
    """Keyword arguments of a call, with a level for every pixel."""
    source = torch.Generator().manual_seed(batch)
    channels, side = (3, 16) if kind == "unet" else (4, 8)
    values = {
        "hidden_states" if kind == "transformer" else "sample": torch.randn(
            batch, channels, side, side, generator=source
        ),
        "timestep": 1000 * torch.rand(batch, levels, generator=source),
        "index": torch.randint(0, levels, (batch, side, side), generator=source),
    }
    if kind != "unet":
        values["encoder_hidden_states"] = torch.randn(batch, 5, 16, generator=source)
    if kind == "transformer":
        values["pooled_projections"] = torch.randn(batch, 24, generator=source)
    return values


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_one_graph(kind, checkpointing):
    network = network_of(kind).train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    values = inputs(kind, 2)
    assert count_graphs(lambda: network(**values, return_dict=False)[0]) == (1, [])


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_export_keeps_the_batch_dynamic(kind):
    network = network_of(kind)
    batch = torch.export.Dim("batch", min=2, max=63)  # diffusers' upsampling has a branch at 64
    values = inputs(kind, 4)
    shapes = {**{name: {0: batch} for name in values}, "return_dict": None}
    with torch.no_grad():
        exported = torch.export.export(
            network, (), {**values, "return_dict": False}, dynamic_shapes=shapes, strict=False
        ).module()
        for size in (3, 7):
            values = {**inputs(kind, size), "return_dict": False}
            assert torch.equal(exported(**values)[0], network(**values)[0])
