"""Text-to-image UNets with a time for every cell: the stock network for one level, factorised = dense, with all it takes."""

import pytest
import torch

from rad.networks.unet_condition import patch_conditional
from tests.tiny_networks import small_conditional

DOUBLE = torch.float64
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 12,
}


def case(levels, *, height=8, width=12):
    """x, K times an image, the level of every cell, and text."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, height, width, generator=source, dtype=DOUBLE)
    times = 1000 * torch.rand(2, levels, generator=source, dtype=DOUBLE)
    text = torch.randn(2, 5, 16, generator=source, dtype=DOUBLE)
    return x, times, torch.randint(0, levels, (2, height, width), generator=source), text


def extras(x, kind):
    """What a ControlNet, a T2I-Adapter or SDXL hand to the network."""
    source = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=source, dtype=DOUBLE)

    _, _, h, w = x.shape
    if kind == "controlnet":
        down = [(32, h, w), (32, h, w), (32, h // 2, w // 2), (64, h // 2, w // 2)]
        return {
            "down_block_additional_residuals": tuple(noise(2, *shape) for shape in down),
            "mid_block_additional_residual": noise(2, 64, h // 2, w // 2),
        }
    if kind == "t2i":
        return {"down_intrablock_additional_residuals": [noise(2, 32, h, w), noise(2, 64, h // 2, w // 2)]}
    if kind == "sdxl":
        return {"added_cond_kwargs": {"text_embeds": noise(2, 12), "time_ids": 100 * noise(2, 6).abs()}}
    if kind == "classes":
        return {"class_labels": torch.tensor([1, 2])}
    if kind == "lcm":
        return {"timestep_cond": noise(2, 7)}
    return {}


KINDS = {
    "plain": {},
    "controlnet": {},
    "t2i": {},
    "sdxl": SDXL,
    "classes": {"num_class_embeds": 4},
    "lcm": {"time_cond_proj_dim": 7},
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_level_is_the_stock_network(kind):
    stock, patched = (small_conditional(dtype=DOUBLE, **KINDS[kind]) for _ in range(2))
    patched = patch_conditional(patched)
    x, times, index, text = case(1)
    expected = stock(x, times[:, 0], text, **extras(x, kind)).sample
    if kind != "plain":
        without = stock(x, times[:, 0], text, **(extras(x, kind) if kind in ("sdxl", "classes") else {})).sample
        assert kind in ("sdxl", "classes") or (without - expected).abs().max() > 1e-3, "it has an effect"
    for embedding in ("factorised", "dense"):
        patched.embedding = embedding
        for given in ({}, {"index": index}):
            t = times if given else times[:, 0]
            got = patched(x, t, text, **extras(x, kind), **given).sample
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        got = patched(x, times.expand(2, 2), text, index=index, **extras(x, kind)).sample
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert patched.state_dict().keys() == stock.state_dict().keys()


def test_one_level_is_the_stock_network_bit_for_bit_in_single_precision():
    stock, patched = small_conditional(), patch_conditional(small_conditional())
    x, _, _, text = case(1)
    expected = stock(x.float(), 17, text.float(), return_dict=False)[0]
    assert torch.equal(patched(x.float(), 17, text.float(), return_dict=False)[0], expected)


@pytest.mark.parametrize("levels", [2, 5])
@pytest.mark.parametrize("kind", ["plain", "sdxl", "lcm"])
def test_factorised_equals_dense(levels, kind):
    network = patch_conditional(small_conditional(dtype=DOUBLE, **KINDS[kind]))
    x, times, index, text = case(levels)
    outputs = []
    for embedding in ("factorised", "dense"):
        network.embedding = embedding
        network.zero_grad()
        output = network(x, times, text, index=index, **extras(x, kind)).sample
        output.square().sum().backward()
        layer = network.time_embedding.linear_1.weight
        outputs.append((output.detach(), layer.grad.clone()))
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    flipped = network(x, times.flip(1), text, index=index, **extras(x, kind)).sample
    assert (flipped - outputs[0][0]).abs().max() > 1e-3, "the times matter, or the comparison says nothing"


def test_gradient_checkpointing_gives_the_same_gradients():
    network = patch_conditional(small_conditional(dtype=DOUBLE)).train()
    x, times, index, text = case(2)
    results = []
    for checkpointed in (False, True):
        if checkpointed:
            network.enable_gradient_checkpointing()
        network.zero_grad()
        network(x, times, text, index=index).sample.square().sum().backward()
        results.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_networks_that_change_the_embedding_further_are_refused():
    with pytest.raises(ValueError, match="time_embedding_act_fn"):
        patch_conditional(small_conditional(time_embedding_act_fn="silu"))
    with pytest.raises(ValueError, match="allowed are 'factorised' and 'dense'"):
        patch_conditional(small_conditional(), embedding="sparse")
