"""Memory savers of flow models: offloading, quantised weights, and autoencoders that work in tiles."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from rad.cli.sample.options import SampleOptions
from rad.inpainting.inpainter import Inpainter
from rad.models.load import load_model
from rad.models.loaded_model import Condition
from rad.models.memory.choices import check_saving
from rad.models.memory.offload import offload_model
from tests.conftest import box_hole, random_image
from tests.newer_pipelines import tiny_newer
from tests.pipelines import SIDE, tiny_flux, tiny_ldm, tiny_sd3

HOLE = box_hole(SIDE, SIDE, 4, 5, 11, 12)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WRITERS = {"sd3": lambda folder: tiny_sd3(folder, t5=True), "flux": tiny_flux}
WRITERS |= {name: lambda folder, name=name: tiny_newer(folder, name) for name in ("qwen", "z", "klein")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("memory")
    return {name: write(root / name) for name, write in WRITERS.items()}


def fill(model, *, method="replacement", **options):
    results = []
    for prompt in ("a cat", "a dog"):  # the second text is encoded when the network has run
        inpainter = Inpainter(model, **options)
        result = inpainter(random_image(SIDE, SIDE), HOLE, method=method, steps=3, condition=Condition(prompt))
        results.append(np.asarray(result.raw[0]))
    return np.stack(results)


# ---- checks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offload", "quantize", "device", "options", "message"),
    [
        ("disk", None, CUDA, {}, "offload is 'disk'; allowed are 'model', 'sequential', or None"),
        (None, "2bit", CUDA, {}, "quantize is '2bit'; allowed are '8bit', '4bit', 'int8', or None"),
        ("model", None, CPU, {}, "the device is 'cpu': leave it out, or use an accelerator"),
        ("model", "4bit", CUDA, {}, "exclude each other"),
        ("model", None, CUDA, {"compiled": True}, "compile cannot be combined"),
        (None, "4bit", CUDA, {"bf16": False}, "set precision to 'bf16'"),
        (None, "8bit", CPU, {}, "quantize is '8bit', which needs a CUDA device; the device is 'cpu'"),
    ],
)
def test_unsuitable_choices_are_refused(offload, quantize, device, options, message):
    with pytest.raises(ValueError, match=message):
        check_saving(offload, quantize, device, **{"bf16": True, "compiled": False, **options})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for quantize, package, extra in (("4bit", "bitsandbytes", "adam8bit"), ("int8", "torchao", "quantize")):
        with pytest.raises(ValueError, match=rf"needs the package {package}, .*pip install .*\[{extra}\]"):
            check_saving(None, quantize, CUDA, bf16=True, compiled=False)


def test_other_models_take_no_savers(tmp_path):
    folder = tiny_ldm(tmp_path)
    for option in ({"offload": "model"}, {"quantize": "int8"}):
        with pytest.raises(ValueError, match=r"is not a flow model without an adapter, so .* has no effect"):
            load_model(folder, **option)
    with pytest.raises(ValueError, match="has a VQModel, which has no tiles"):
        load_model(folder, vae_tiling=True)


def test_a_model_is_not_loaded_with_unsuitable_choices(folders):
    for options, message in (
        ({"quantize": "2bit", "dtype": torch.bfloat16}, "quantize is '2bit'; allowed are"),
        ({"quantize": "4bit", "dtype": torch.bfloat16}, "needs a CUDA device"),
        ({"offload": "model"}, "the device is 'cpu': leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            load_model(folders["sd3"], **options)


def test_options_of_the_command_line():
    options = SampleOptions(checkpoint="m", image="i", mask=["box"], output="o", offload="model", vae_tiling=True)
    assert (options.offload, options.quantize, options.vae_tiling) == ("model", None, True)


# ---- offloading ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["model", "sequential"])
@pytest.mark.parametrize("name", list(WRITERS))
def test_offloading_changes_no_result(folders, name, mode):
    """With the CPU as the accelerator; a method with gradients after one without."""
    plain, offloaded = (load_model(folders[name], size=SIDE) for _ in range(2))
    offload_model(offloaded, mode, CPU)
    for method in ("replacement", "dps"):
        assert np.array_equal(fill(plain, method=method), fill(offloaded, method=method))
    assert offloaded.hash == plain.hash
    with pytest.raises(ValueError, match=f"cannot be moved to 'cpu', as its weights are offloaded by '{mode}'"):
        offloaded.to("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3", "flux", "qwen"])
def test_one_network_at_a_time_is_on_the_accelerator(folders, name, monkeypatch):
    """ "cpu:0" stands for the accelerator; moves of the networks are counted."""
    model, accelerator = load_model(folders[name], size=SIDE), torch.device("cpu:0")
    modules = {model.network, *model.text.encoders}
    sizes = {module: sum(weight.numel() for weight in module.parameters()) for module in modules}
    resident, peaks, move = set(), [], nn.Module.to

    def counted(self, *args, **options):
        if self in modules:
            device = args[0] if args else options.get("device")
            (resident.add if device == accelerator else resident.discard)(self)
            peaks.append(sum(sizes[module] for module in resident))
        return move(self, *args, **options)

    monkeypatch.setattr(nn.Module, "to", counted)
    offload_model(model, "model", accelerator)
    assert peaks[-1] == 0
    fill(model)
    assert max(peaks) == max(sizes.values()) < sum(sizes.values())
    assert resident == {model.network}


# ---- quantised weights and tiles -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WRITERS))
def test_integer_weights_are_near(folders, name):
    pytest.importorskip("torchao")
    plain, quantised = (
        Inpainter.from_pretrained(folders[name], size=SIDE, device="cpu", precision="bf16", quantize=quantize)
        for quantize in (None, "int8")
    )
    kinds = {type(weight.data).__name__ for weight in quantised.model.network.parameters()}
    assert any("Int8" in kind or "AffineQuantized" in kind for kind in kinds)
    condition, x = Condition("a cat"), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    level = plain.model.base_process.noise(torch.tensor([500]))
    with torch.no_grad():
        exact, near = (
            inpainter.model.denoiser([condition], adapter=False).denoise(x, level).x0
            for inpainter in (plain, quantised)
        )
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.1
    assert fill(quantised.model, precision="bf16").shape == (2, SIDE, SIDE, 3)
    assert len(quantised.model.hash) == 64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd3", "qwen", "klein"])
def test_tiles(folders, name):
    """Images within a tile are equal; larger images are near, but for the seams."""
    plain, tiled = (load_model(folders[name], size=SIDE, vae_tiling=tiling) for tiling in (False, True))
    assert np.array_equal(fill(plain), fill(tiled))
    network = tiled.autoencoder.network
    assert network.use_tiling
    assert network.use_slicing
