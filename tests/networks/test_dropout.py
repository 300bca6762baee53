"""Keyed dropout: the published random numbers, masks that depend on sample and layer alone, one compiled graph."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from rad.networks.dropout import DropoutKeys, KeyedDropout, split_mix


def test_random_numbers_are_those_of_split_mix():
    """The first outputs of the published SplitMix64 for seed 1234567."""
    numbers = split_mix(torch.tensor([0, 1234567]), 5)[1].tolist()
    assert [number % 2**64 for number in numbers] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


def masks(probability, positions, shape, *, layer="layer", shared=False, seed=0):
    keys = DropoutKeys()
    keys.set(seed, positions, device=torch.device("cpu"))
    return KeyedDropout(probability, keys, layer, shared=shared)(torch.ones(shape))


def test_masks_keep_the_mean_and_are_independent():
    ones = masks(0.1, range(8), (8, 50_001))
    assert set(ones.unique().tolist()) == {0.0, ones.max().item()}
    assert float((ones == 0).float().mean()) == pytest.approx(0.1, abs=0.003)  # 6 standard deviations
    assert float(ones.mean()) == pytest.approx(1, abs=0.003)
    others = (masks(0.1, range(8, 16), (8, 50_001)), masks(0.1, range(8), (8, 50_001), layer="other"))
    for other in (*others, masks(0.1, range(8), (8, 50_001), seed=1), ones.roll(1, 1), ones.roll(1, 0)):
        both = ((ones == 0) & (other == 0)).float().mean()
        assert float(both) == pytest.approx(0.01, abs=0.001)
    assert torch.equal(masks(0, [3], (1, 9)), torch.ones(1, 9))


def test_masks_depend_on_the_sample_and_not_on_its_batch():
    whole = masks(0.5, [7, 8, 9], (3, 4, 5))
    assert torch.equal(whole[1:], torch.cat([masks(0.5, [n], (1, 4, 5)) for n in (8, 9)]))
    levels = masks(0.5, [7, 8], (2, 3, 5), shared=True)
    assert torch.equal(levels, levels[:, :1].expand(2, 3, 5)), "one mask for all noise levels"
    assert torch.equal(masks(0.5, [7, 8], (6, 5), shared=True), levels.reshape(6, 5))
    with pytest.raises(ValueError, match=r"dropout of 3 rows has the keys of 2 samples"):
        masks(0.5, [7, 8], (3, 4))


def test_dropout_compiles_to_one_graph_for_all_batches():
    keys = DropoutKeys()
    layer = KeyedDropout(0.3, keys, "layer")
    counter = CompileCounter()
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    for first in (0, 3, 6):
        keys.set(0, range(first, first + 3), device=torch.device("cpu"))
        x = torch.full((3, 5, 7), first + 1.0)
        assert torch.equal(compiled(x), layer(x))
    assert counter.frame_count == 1
