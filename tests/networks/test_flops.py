"""The factorised embedding costs next to nothing: arithmetic and memory, counted and therefore free of noise."""

import pytest
import torch

from benchmarks.embedding import flops
from benchmarks.memory import saved_bytes
from benchmarks.networks import Variant, build, forward, image, parameters_in_millions, variant_of


def test_the_network_measured_is_the_one_of_ffhq_256() -> None:
    assert parameters_in_millions(build("ffhq", device="meta")) == pytest.approx(93.56, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_factorised_embedding_adds_at_most_two_thousandths_of_the_arithmetic(train: bool) -> None:
    assert flops("ffhq", "factorised", train=train) <= 1.002 * flops("ffhq", "unpatched", train=train)


@pytest.mark.slow
def test_dense_embedding_adds_the_third_or_more_that_the_factorised_one_saves() -> None:
    assert flops("ffhq", "dense") >= 1.3 * flops("ffhq", "unpatched")


def kept(variant: Variant) -> int:
    """Bytes kept for the backward pass of the 32x32 network, two images."""
    with torch.random.fork_rng():
        network = variant_of(build("nature32"), variant)
    return saved_bytes(network, forward(network, variant, image("nature32", batch=2)))


def test_factorised_embedding_keeps_no_more_for_the_backward_pass_than_the_stock_network() -> None:
    stock = kept("unpatched")
    assert kept("factorised") <= 1.03 * stock
    assert kept("dense") >= 1.3 * stock


def test_saved_bytes_counts_a_storage_once_and_parameters_never() -> None:
    layer = torch.nn.Linear(5, 7, bias=False)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    # The layer keeps x and its own weight, sin keeps y, and the product keeps y twice.
    assert saved_bytes(layer, lambda: torch.stack([(y := layer(x)).sin(), y * y])) == 4 * (3 * 5 + 3 * 7)
