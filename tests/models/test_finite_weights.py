"""Weights that are NaN or infinite are refused when a file is read, with the tensor's name; so are numbers beside them."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rad.inpainting.inpainter import Inpainter
from rad.models.load import load_model
from rad.models.loaded_model import Condition
from rad.models.lora import LoRA
from rad.models.weights import read_weights, require_finite_weights
from tests.conftest import SIZE, box_hole, random_image
from tests.tiny_pipelines import write_pipeline


def spoil(path, name, value):
    """Write `value` into the last entry of the first tensor whose name contains `name`; returns its full name."""
    state = load_file(path)
    full = next(key for key in sorted(state) if name in key)
    state[full].view(-1)[-1] = value
    path.unlink()
    save_file(state, path)
    return full


@pytest.mark.spread(3)
@pytest.mark.parametrize("name", ["lora_A", "lora_B", "time_embedding", "time_emb_proj"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_adapter(models, tmp_path, name, value):
    shutil.copytree(models / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    full = spoil(path, name, value)
    with pytest.raises(ValueError, match="are NaN or infinite") as caught:
        Inpainter.from_pretrained(tmp_path / "adapter")
    assert str(path) in str(caught.value)
    assert full in str(caught.value)


def test_an_adapter_whose_product_overflows(models, tmp_path):
    shutil.copytree(models / "adapter", tmp_path / "adapter")
    for name in ("lora_A", "lora_B"):
        spoil(tmp_path / "adapter" / "adapter_model.safetensors", name, 3e38)
    with pytest.raises(ValueError, match="adapter: NaNs detected in the merged weights"):
        Inpainter.from_pretrained(tmp_path / "adapter")


def test_a_base_model(models, tmp_path):
    shutil.copytree(models / "base", tmp_path / "base")
    spoil(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors", "conv_out.bias", math.nan)
    with pytest.raises(ValueError, match=r"1 of 6 values of conv_out\.bias are NaN or infinite"):
        load_model(tmp_path / "base")


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("stable") / "sd", "stable")


@pytest.mark.parametrize(("part", "name"), [("unet", "time_emb"), ("vae", "decoder"), ("text_encoder", "layer_norm")])
def test_a_part_of_a_text_to_image_model(stable, tmp_path, part, name):
    shutil.copytree(stable, tmp_path / "sd")
    (path,) = (tmp_path / "sd" / part).glob("*.safetensors")
    spoil(path, name, math.nan)
    with pytest.raises(ValueError, match="are NaN or infinite") as caught:
        load_model(tmp_path / "sd")
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize("setting", ["scaling_factor", "shift_factor"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_scale_of_the_autoencoder(stable, tmp_path, setting, value):
    shutil.copytree(stable, tmp_path / "sd")
    path = tmp_path / "sd" / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), setting: value}))
    with pytest.raises(ValueError, match=f"{setting} {value}"):
        load_model(tmp_path / "sd")


def test_a_lora_and_its_weight(stable, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"unet.x.lora_A.weight": torch.tensor([[1.0, math.nan]])}, path)
    with pytest.raises(ValueError, match=r"1 of 2 values of unet\.x\.lora_A\.weight are NaN or infinite"):
        load_model(stable, loras=[(path, 1.0)])
    with pytest.raises(ValueError, match=r"the weight of LoRA .* is nan; give a finite number"):
        load_model(stable, loras=[(path, math.nan)])


def test_torch_files_and_every_type(tmp_path):
    torch.save({"a": torch.zeros(3), "b": torch.tensor([math.inf])}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="1 of 1 values of b are NaN"):
        read_weights(tmp_path / "a.pt")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        require_finite_weights(
            {"full": torch.full((2,), 6e4, dtype=dtype), "none": torch.empty(0, dtype=dtype)}, tmp_path
        )
        with pytest.raises(ValueError, match="is damaged: 1 of 2 values of last"):
            require_finite_weights({"last": torch.tensor([0, math.nan], dtype=dtype)}, tmp_path)
    require_finite_weights({"count": torch.tensor([2**62])}, tmp_path)


@pytest.mark.parametrize("name", ["guidance", "control_scale", "adapter_scale", "style_scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_of_a_condition(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}; give a finite number"):
        Condition(**{name: value})


def test_other_numbers(base):
    with pytest.raises(ValueError, match=r"lora\.alpha is nan"):
        LoRA(alpha=math.nan)
    inpainter, image, hole = Inpainter.from_pretrained(base), random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 2, 2, 9, 9)
    for method in ("ddnm", "replacement", "mean"):
        for option in ("feather", "eta", "margin"):
            options = {option: math.nan, "size_policy": "crop" if option == "margin" else "error"}
            with pytest.raises(ValueError, match=f"{option} .*nan"):
                inpainter(image, hole, method=method, steps=2, **options)


def test_a_decoder_that_overflows_writes_no_black_image(stable, monkeypatch):
    inpainter = Inpainter.from_pretrained(stable)
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 2, 2, 9, 9)
    decode, encode = inpainter.model.autoencoder.decode, inpainter.model.autoencoder.encode
    monkeypatch.setattr(inpainter.model.autoencoder, "decode", lambda z: decode(z) * math.inf)
    with pytest.raises(ValueError, match=r"^b\.png: the decoded image is not finite: check the weights of the auto"):
        inpainter(image, hole, method="replacement", steps=1, names=["b.png"])
    monkeypatch.setattr(inpainter.model.autoencoder, "encode", lambda pixels: encode(pixels) * math.nan)
    with pytest.raises(ValueError, match=r"^b\.png: the encoder's output is not finite"):
        inpainter(image, hole, method="replacement", steps=1, names=["b.png"])
