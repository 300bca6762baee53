"""Compiled networks, memory format and the device of the noise: equal results, a network that stays as it is, clear errors."""

import functools
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from rad.diffusion.schedules import linear_betas
from rad.errors import NotFiniteError
from rad.inpainting.filling import WindowFiller
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.prepare import check_running
from rad.models.base import Base
from rad.models.unet_model import UNetModel
from rad.rng import KeyedNoise
from tests.tiny_networks import small_unet

SIZE = 16


def tiny_model() -> Any:
    return UNetModel(Base(small_unet(), linear_betas(), "epsilon", "tiny", None, "tiny"))


def images(count):
    source = np.random.default_rng(0)
    return [source.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(count)]


HOLE = np.zeros((SIZE, SIZE), bool)
HOLE[4:12, 4:12] = True


def fill(inpainter, count, **options):
    result = inpainter(images(count), HOLE, method="ddnm", steps=3, names=list(range(count)), **options)
    return np.stack([np.asarray(image).astype(int) for image in result.images])


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without a code generator; the value lists the batch sizes of its graphs."""
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append([tensor.shape[0] for tensor in inputs if tuple(tensor.shape[1:]) == (3, SIZE, SIZE)])
        return graph.forward

    monkeypatch.setattr("rad.networks.compiled.torch.compile", functools.partial(torch.compile, backend=backend))
    yield graphs
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_results_agree_and_smaller_batches_share_the_graph(traced):
    model = tiny_model()
    plain, compiled = Inpainter(model), Inpainter(model, compile="default")
    expected = fill(plain, 5, batch_size=3)
    assert not traced, "the plain network is not compiled"
    assert np.abs(fill(compiled, 5, batch_size=3) - expected).max() <= 1
    assert traced == [[3]], "the batch of 2 was padded"
    first = fill(compiled, 1, batch_size=3)
    assert traced == [[3]]
    assert np.abs(first - expected[:1]).max() <= 1
    assert np.array_equal(fill(plain, 5, batch_size=3), expected), "the plain network stays as it is"
    assert compiled.model is model


@pytest.mark.slow
def test_padding_counts_no_network_calls_and_names_no_copies(traced):
    inpainter = Inpainter(tiny_model(), compile="default")
    result = inpainter(images(3), HOLE, method="ddnm", steps=2, batch_size=2)
    assert result.nfe == 3 * 2
    with torch.no_grad():
        inpainter.model.network.conv_out.bias.fill_(torch.nan)
    with pytest.raises(NotFiniteError) as caught:
        inpainter(images(1), HOLE, method="ddnm", steps=2, batch_size=2, names="a")
    assert caught.value.rows == [0]


@pytest.mark.parametrize(
    ("compiled", "count", "most", "rows"),
    [(None, 3, 8, 3), (set(), 3, 8, 3), ({8}, 3, 8, 8), ({4, 8}, 3, 8, 4), ({2, 8}, 3, 4, 3), ({8}, 8, 8, 8)],
)
def test_a_batch_is_padded_to_the_smallest_compiled_size(compiled, count, most, rows):
    """Above `most`, as after memory ran out, no size is used."""
    filler = WindowFiller.__new__(WindowFiller)
    filler.compiled_batches = compiled
    assert filler._rows(count, most) == rows


@pytest.mark.slow
def test_generated_code_agrees_with_the_plain_network():
    torch.compiler.reset()
    model = tiny_model()
    plain, compiled = fill(Inpainter(model), 2), fill(Inpainter(model, compile="default"), 2)
    assert np.abs(plain - compiled).max() <= 1
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_network_is_copied_as_its_network():
    model = tiny_model().compiled("default")
    copy = pickle.loads(pickle.dumps(model.sampled_network(adapter=False)))
    assert copy.mode == "default"
    assert copy.config == model.network.config


def test_channels_last_agrees_and_is_refused_without_convolutions():
    expected = fill(Inpainter(tiny_model()), 2)
    model = tiny_model()
    model.convert_to_channels_last()
    weight = model.network.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert np.abs(fill(Inpainter(model), 2) - expected).max() <= 1
    model.network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="channels_last has no effect: the network of tiny has no convolutions"):
        model.convert_to_channels_last()


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        ("cpu", {"compile": "reduce-overhead"}, "CUDA graphs; the device is 'cpu': use 'default', or a CUDA device"),
        ("cpu", {"noise_device": "device"}, "no effect on the CPU: leave it out, or use an accelerator"),
        ("cuda", {"compile": "fast"}, "compile is 'fast'.*'off', 'default', 'reduce-overhead'"),
        ("cuda", {"noise_device": "gpu"}, "noise_device is 'gpu'.*'cpu', 'device'"),
    ],
)
def test_choices_that_cannot_work_are_errors(device, options, message):
    with pytest.raises(ValueError, match=message):
        check_running(torch.device(device), **options)
    if device == "cpu":
        with pytest.raises(ValueError, match=message):
            Inpainter(tiny_model(), **options)


def test_an_accelerator_may_draw_and_record_graphs():
    check_running(torch.device("cuda"), compile="reduce-overhead", noise_device="device")
    check_running(torch.device("mps"), compile="default", noise_device="device")


def test_noise_is_drawn_on_the_chosen_device(monkeypatch):
    devices = []

    def recorded(*args, device, **options):
        devices.append(device)
        return KeyedNoise(*args, device="cpu", **options)

    monkeypatch.setattr("rad.inpainting.filling.KeyedNoise", recorded)
    inpainter = Inpainter(tiny_model())
    fill(inpainter, 1)
    inpainter.noise_device = "device"
    fill(inpainter, 1)
    assert devices == ["cpu", inpainter.device]
