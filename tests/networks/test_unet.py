"""The spatial noise embedding: stock outputs for one level, and factorised = dense for many, gradients included."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from rad.networks.unet import mix, modulate, patch, resize
from tests.rounding import assert_same
from tests.tiny_networks import small_unet

DOUBLE = torch.float64


def case(levels, *, height=16, width=24, seed=0):
    """x, K times an image, and the level of every pixel."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, height, width, generator=source, dtype=DOUBLE)
    times = 1000 * torch.rand(2, levels, generator=source, dtype=DOUBLE)
    return x, times, torch.randint(0, levels, (2, height, width), generator=source)


def gradients(network, x, times, index):
    network.zero_grad()
    x = x.clone().requires_grad_()
    network(x, times, index=index).sample.square().sum().backward()
    return [x.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize("norm", ["scale_shift", "default"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24), (6, 10)])
def test_one_level_is_the_stock_network(norm, height, width):
    stock, patched = small_unet(norm=norm, dtype=DOUBLE), patch(small_unet(norm=norm, dtype=DOUBLE))
    x, times, index = case(1, height=height, width=width)
    expected = stock(x, times[:, 0]).sample
    for embedding in ("factorised", "dense"):
        patched.embedding = embedding
        torch.testing.assert_close(patched(x, times[:, 0]).sample, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(patched(x, times, index=index).sample, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(patched(x, times.expand(2, 2), index=index).sample, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(patched(x, 17).sample, stock(x, 17).sample, rtol=0, atol=1e-12)
    assert patched.state_dict().keys() == stock.state_dict().keys()


@pytest.mark.parametrize("norm", ["scale_shift", "default"])
@pytest.mark.parametrize("levels", [2, 5])
def test_factorised_equals_dense(norm, levels):
    network = patch(small_unet(norm=norm, dtype=DOUBLE))
    x, times, index = case(levels)
    factorised = network(x, times, index=index).sample
    factorised_gradients = gradients(network, x, times, index)
    network.embedding = "dense"
    dense = network(x, times, index=index).sample
    torch.testing.assert_close(factorised, dense, rtol=0, atol=1e-12)
    for got, expected in zip(factorised_gradients, gradients(network, x, times, index), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-7)
    other = network(x, times.flip(1), index=index).sample
    assert (other - dense).abs().max() > 1e-3, "the times matter, or the comparison says nothing"


def test_more_levels_than_channels_go_the_dense_way_and_agree():
    network = patch(small_unet(dtype=DOUBLE))
    x, times, index = case(200)
    assert network.time_embedding.linear_2.out_features == 128
    many = network(x, times, index=index).sample
    network.time_embedding.linear_2.out_features = 1000  # raises the limit: the factorised way for 200 levels
    torch.testing.assert_close(network(x, times, index=index).sample, many, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("embedding", ["factorised", "dense"])
def test_a_map_of_timesteps_equals_its_levels_with_an_index(levels, embedding):
    network = patch(small_unet(dtype=DOUBLE), embedding=embedding)
    x, times, index = case(levels)
    times = times.round()
    expected = network(x, times, index=index).sample
    given = times.gather(1, index.flatten(1)).view(index.shape)
    for timesteps in (given, given.long()):
        torch.testing.assert_close(network(x, timesteps).sample, expected, rtol=0, atol=1e-12)
    for wrong in (given[:, :8], given[:, None], given[:1]):
        with pytest.raises(ValueError, match=r"a map \(B,H,W\), here \(2, 16, 24\)"):
            network(x, wrong)


def test_a_network_of_maps_alone_refuses_one_timestep_an_image():
    network = patch(small_unet(dtype=DOUBLE))
    x, times, index = case(2)
    expected, whole = network(x, times, index=index).sample, network(x, 5).sample
    network.register_to_config(region_aware=True)
    for scalar in (5, 5.0, torch.tensor(5), torch.tensor([5, 5])):
        with pytest.raises(ValueError, match="trained with a timestep per pixel"):
            network(x, scalar)
    assert torch.equal(network(x, times, index=index).sample, expected)
    full = torch.full((2, 16, 24), 5)
    torch.testing.assert_close(network(x, full).sample, whole, rtol=0, atol=1e-12)


def test_float32_is_close_to_float64():
    x, times, index = case(2)
    exact = patch(small_unet(dtype=DOUBLE))(x, times, index=index).sample.detach()
    single = patch(small_unet())(x.float(), times.float(), index=index).sample.detach()
    assert_same(single, exact.float())


def test_the_paper_resizes_after_silu():
    """Swapping the order of SiLU and resize gives another output, which the test would notice."""
    network = patch(small_unet(dtype=DOUBLE))
    vectors = torch.randn(1, 2, 128, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    index = (torch.arange(16) > 7).long().expand(1, 16, 16)
    image = vectors[0][index].movedim(-1, 1)
    layer = network.mid_block.resnets[0].time_emb_proj
    right = layer(resize(F.silu(image), (7, 7)).movedim(1, -1)).movedim(-1, 1)
    weights = resize((index == 1)[:, None].to(DOUBLE), (7, 7))
    torch.testing.assert_close(mix(layer(F.silu(vectors)), weights), right, rtol=0, atol=1e-12)
    wrong = layer(F.silu(resize(image, (7, 7))).movedim(1, -1)).movedim(-1, 1)
    assert (wrong - right).abs().max() > 1e-3


def test_mixing_is_exact_where_the_weight_is_0_or_1():
    levels = torch.randn(1, 2, 7, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[[[0.0, 1.0]]]])
    assert torch.equal(mix(levels, weights)[0, :, 0].T, levels[0])


def test_a_flipped_map_flips_the_weights():
    hole = (torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).to(DOUBLE)
    for size in (16, 8, 5):
        there = resize(hole, (size, size))
        back = resize(hole.flip(-1, -2), (size, size)).flip(-1, -2)
        torch.testing.assert_close(there, back, rtol=0, atol=1e-12)


def test_modulation_against_numerical_gradients():
    source = torch.Generator().manual_seed(0)
    for levels in (1, 2, 3):
        hidden = torch.randn(1, 4, 3, 2, generator=source, dtype=DOUBLE, requires_grad=True)
        scale, shift = (torch.randn(1, levels, 4, generator=source, dtype=DOUBLE, requires_grad=True) for _ in range(2))
        weights = (
            torch.rand(1, levels if levels > 2 else 1, 3, 2, generator=source, dtype=DOUBLE) if levels > 1 else None
        )
        assert torch.autograd.gradcheck(lambda h, a, b, w=weights: modulate(h, a, b, w), (hidden, scale, shift))


def test_gradient_checkpointing_gives_the_same_gradients():
    network = patch(small_unet(dtype=DOUBLE)).train()
    x, times, index = case(2)
    plain = gradients(network, x, times, index)
    network.enable_gradient_checkpointing()
    for got, expected in zip(gradients(network, x, times, index), plain, strict=True):
        assert torch.equal(got, expected)


def test_bf16_autocast():
    network = patch(small_unet())
    x, times, index = case(2)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x.float(), times.float(), index=index).sample
        half.float().square().mean().backward()
    full = network(x.float(), times.float(), index=index).sample
    assert float((half.float() - full).norm() / full.norm()) < 0.05
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())


def test_pickles():
    network = patch(small_unet(), embedding="dense")
    again = pickle.loads(pickle.dumps(network))
    x, times, index = case(2)
    assert torch.equal(
        again(x.float(), times.float(), index=index).sample,
        network(x.float(), times.float(), index=index).sample,
    )


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    """Traced whole, forward and backward; the code generator itself is left out, since it takes minutes."""
    network = patch(small_unet(dtype=DOUBLE))
    x, times, index = case(2)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    expected = network(x, times, index=index).sample
    got = compiled(x, times, index=index).sample
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    got.square().sum().backward()
    compiled_gradients = [p.grad.clone() for p in network.parameters()]
    for a, b in zip(compiled_gradients, gradients(network, x, times, index)[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-7)


def test_other_networks_are_refused():
    fourier = UNet2DModel(
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        time_embedding_type="fourier",
    )
    with pytest.raises(ValueError, match="RAD needs 'positional'"):
        patch(fourier)
    skip = UNet2DModel(
        block_out_channels=(32,), down_block_types=("SkipDownBlock2D",), up_block_types=("SkipUpBlock2D",)
    )
    with pytest.raises(ValueError, match="ADM and DDPM style"):
        patch(skip)
    with pytest.raises(ValueError, match="allowed are 'factorised' and 'dense'"):
        patch(small_unet(), embedding="sparse")
