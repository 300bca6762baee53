"""SD3's transformer with a time for every token: the stock network for one level, factorised = dense, timesteps of tokens."""

import pytest
import torch

from rad.networks.sd3_transformer import patch_transformer, token_timesteps
from tests.tiny_networks import small_transformer

DOUBLE = torch.float64


def case(levels, *, height=8, width=12):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, height, width, generator=source, dtype=DOUBLE)
    times = 1000 * torch.rand(2, levels, generator=source, dtype=DOUBLE)
    text = {
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=source, dtype=DOUBLE),
        "pooled_projections": torch.randn(2, 24, generator=source, dtype=DOUBLE),
    }
    return x, times, torch.randint(0, levels, (2, height, width), generator=source), text


@pytest.mark.parametrize("controlled", [False, True])
def test_one_level_is_the_stock_network(controlled):
    stock, patched = small_transformer(dtype=DOUBLE), patch_transformer(small_transformer(dtype=DOUBLE))
    x, times, index, text = case(1)
    extra = {"block_controlnet_hidden_states": [torch.ones(2, 24, 16, dtype=DOUBLE)]} if controlled else {}
    expected = stock(x, timestep=times[:, 0], **text, **extra).sample
    for embedding in ("factorised", "dense"):
        patched.embedding = embedding
        for t, given in ((times[:, 0], {}), (times, {"index": index}), (times.expand(2, 2), {"index": 0 * index})):
            got = patched(x, timestep=t, **text, **extra, **given).sample
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        # one level alone is used: the other may be any
        other = torch.cat([times, times + 50], 1)
        got = patched(x, timestep=other, **text, **extra, index=0 * index).sample
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert patched.state_dict().keys() == stock.state_dict().keys()


def test_one_level_is_the_stock_network_bit_for_bit_in_single_precision():
    x, times, _, text = case(1)
    given = {"timestep": times[:, 0].float(), **{name: value.float() for name, value in text.items()}}
    expected = small_transformer()(x.float(), **given).sample
    assert torch.equal(patch_transformer(small_transformer())(x.float(), **given).sample, expected)


@pytest.mark.parametrize("levels", [2, 5, 40])
def test_factorised_equals_dense(levels):
    network = patch_transformer(small_transformer(dtype=DOUBLE))
    x, times, index, text = case(levels)
    results = []
    for embedding in ("factorised", "dense"):
        network.embedding = embedding
        network.zero_grad()
        output = network(x, timestep=times, index=index, **text).sample
        output.square().sum().backward()
        layer = network.time_text_embed.timestep_embedder.linear_1
        results.append((output.detach(), layer.weight.grad.clone()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    flipped = network(x, timestep=times.flip(1), index=index, **text).sample
    assert (flipped - results[0][0]).abs().max() > 1e-4, "the times matter, or the comparison says nothing"


def test_tokens_and_text_get_the_timestep_of_their_noisiest_cell():
    index = torch.zeros(2, 4, 4, dtype=torch.long)
    index[0, 1, 2] = 1  # in the token above right
    told = token_timesteps(torch.tensor([[5.0, 700.0], [5.0, 700.0]]), index, patch=2, dense=True)
    assert told.image.tolist() == [[5, 700, 5, 5], [5, 5, 5, 5]]
    assert told.text.tolist() == [700, 5]
    factorised = token_timesteps(torch.tensor([[5.0, 700.0], [700.0, 5.0]]), index, patch=2, dense=False)
    assert factorised.index.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    reversed_levels = token_timesteps(torch.tensor([[700.0, 5.0]]), index[:1], patch=2, dense=False)
    assert reversed_levels.index.tolist() == [[0, 0, 0, 0]], "the noisiest, whatever its number"


def test_only_the_tokens_of_the_hole_and_the_text_change_with_its_time():
    """With attention cut off, a token's output depends on its own time alone."""
    network = patch_transformer(small_transformer(dtype=DOUBLE))
    with torch.no_grad():
        for block in network.transformer_blocks:
            for attention in (block.attn, block.attn2):
                if attention is not None:
                    attention.to_out[0].weight.zero_()
    x, _, index, text = case(2)
    index = (torch.arange(12) >= 6).long().expand(2, 8, 12)
    one, other = (
        network(x, timestep=torch.tensor([[3.0, hole]] * 2, dtype=DOUBLE), index=index, **text).sample
        for hole in (400.0, 900.0)
    )
    changed = (one - other).abs().amax((0, 1))
    assert (changed[:, :6] == 0).all()
    assert (changed[:, 6:] > 0).all()


def test_gradient_checkpointing_gives_the_same_gradients():
    network = patch_transformer(small_transformer(dtype=DOUBLE)).train()
    x, times, index, text = case(2)
    results = []
    for checkpointed in (False, True):
        if checkpointed:
            network.enable_gradient_checkpointing()
        network.zero_grad()
        network(x, timestep=times, index=index, **text).sample.square().sum().backward()
        results.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_other_embeddings_are_refused():
    with pytest.raises(ValueError, match="allowed are 'factorised' and 'dense'"):
        patch_transformer(small_transformer(), embedding="sparse")
