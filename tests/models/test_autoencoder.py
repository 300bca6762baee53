"""Autoencoders as codecs: diffusers' own means, the signs of scale and shift, and the way back."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel

from rad.models.vae import PretrainedAutoencoder
from tests.pipelines import BLOCKS, SIDE, tiny_ldm, tiny_vae
from tests.rounding import assert_same


@pytest.fixture(scope="module")
def pixels():
    return 2 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) - 1


def mirror(scaling: float, shift: float) -> AutoencoderKL:
    """One level, whose mean is the image and whose decoder gives its latents back."""
    network = AutoencoderKL(
        **{**BLOCKS, "block_out_channels": (8,), "down_block_types": ("DownEncoderBlock2D",)}
        | {"up_block_types": ("UpDecoderBlock2D",)},
        latent_channels=3,
        scaling_factor=scaling,
        shift_factor=shift,
    )

    class Same(torch.nn.Module):
        def __init__(self, pad: int) -> None:
            super().__init__()
            self.pad = pad

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, torch.full_like(x, -30.0)][: 1 + self.pad], 1)

    network.encoder, network.decoder = Same(1), Same(0)
    network.quant_conv = network.post_quant_conv = None
    return network


def test_the_way_there_and_back_is_the_identity_and_latents_are_shifted_then_scaled(pixels):
    autoencoder = PretrainedAutoencoder(mirror(1.5, 0.2))
    assert (autoencoder.factor, autoencoder.channels) == (1, 3)
    assert_same(autoencoder.encode(pixels), (pixels - 0.2) * 1.5)
    assert_same(autoencoder.decode(autoencoder.encode(pixels)), pixels)


def test_a_kl_autoencoder_encodes_to_the_mean_of_the_posterior(pixels):
    network = tiny_vae(scaling_factor=1.3, shift_factor=-0.4).eval()
    autoencoder = PretrainedAutoencoder(network)
    assert (autoencoder.factor, autoencoder.channels) == (2, 4)
    with torch.no_grad():
        mean, made = network.encode(pixels).latent_dist.mean, autoencoder.encode(pixels)
        assert_same(made, (mean + 0.4) * 1.3)
        assert_same(autoencoder.decode(made), network.decode(mean).sample)
    assert torch.equal(autoencoder.encode(pixels), autoencoder.encode(pixels)), "nothing is drawn"


def test_a_vq_autoencoder_is_quantised_in_decoding_alone(pixels):
    network = VQModel(**BLOCKS, latent_channels=3, num_vq_embeddings=16, scaling_factor=0.7).eval()
    autoencoder = PretrainedAutoencoder(network)
    plain = network.quant_conv(network.encoder(pixels))
    assert_same(autoencoder.encode(pixels), 0.7 * plain)
    entries = network.quantize.embedding.weight
    nearest = (
        entries[torch.cdist(plain.movedim(1, -1).flatten(0, 2), entries).argmin(1)].view(2, 8, 8, 3).movedim(-1, 1)
    )
    expected = network.decoder(network.post_quant_conv(nearest))
    assert_same(autoencoder.decode(autoencoder.encode(pixels)), expected)


def test_a_tiny_autoencoder(pixels):
    levels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    network = AutoencoderTiny(**levels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.5)
    autoencoder = PretrainedAutoencoder(network)
    assert (autoencoder.factor, autoencoder.channels) == (2, 4)
    with torch.no_grad():
        assert_same(autoencoder.encode(pixels), 0.5 * network.encode(pixels).latents)
        assert_same(
            autoencoder.decode(autoencoder.encode(pixels)), network.decode(network.encode(pixels).latents).sample
        )


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_decoding_is_differentiable_and_in_float32_under_autocast(tmp_path, kind, pixels):
    folder = tiny_ldm(tmp_path, kind)
    autoencoder = PretrainedAutoencoder.load(folder / ("vqvae" if kind == "vq" else "vae"))
    latents = autoencoder.encode(pixels).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        made = autoencoder.decode(latents)
    assert torch.equal(made, autoencoder.decode(latents))
    (slope,) = torch.autograd.grad(made.square().sum(), latents)
    assert bool((slope.flatten(1).norm(dim=1) > 0).all())


def test_a_copy_has_a_decoder_of_its_own(pixels):
    autoencoder = PretrainedAutoencoder(tiny_vae())
    other, latents = copy.deepcopy(autoencoder), autoencoder.encode(pixels)
    with torch.no_grad():
        for parameter in other.decoder.parameters():
            parameter.mul_(0.5)
    assert not torch.allclose(other.decode(latents), autoencoder.decode(latents))
    assert torch.equal(other.encode(pixels), latents)


def test_a_vq_folder_without_a_scale_is_older_than_it_and_has_none(tmp_path, pixels):
    folder = tiny_ldm(tmp_path) / "vqvae"
    config = json.loads((folder / "config.json").read_text())
    assert PretrainedAutoencoder.load(folder).scale == 0.7
    del config["scaling_factor"]
    (folder / "config.json").write_text(json.dumps(config))
    assert PretrainedAutoencoder.load(folder).scale == 1


def test_names_of_old_attention_layers(tmp_path, pixels):
    """CompVis/ldm-celebahq-256 was stored with them, and with pickled tensors."""
    from safetensors.torch import load_file

    folder = tiny_ldm(tmp_path) / "vqvae"
    autoencoder, weights = PretrainedAutoencoder.load(folder), folder / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(weights)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert any(".proj_attn." in name for name in state)
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    weights.unlink()
    assert torch.equal(PretrainedAutoencoder.load(folder).encode(pixels), autoencoder.encode(pixels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "describes a AutoencoderKLWan; supported are AutoencoderKL, VQModel"),
        ({"latents_mean": [0.1, 0.2, 0.3, 0.4]}, "a scale for each channel"),
        ({"out_channels": 1}, "of another shape"),
        ({"quantization_config": {"load_in_4bit": True}}, "settings unknown to AutoencoderKL .*quantization_config"),
        ({"block_out_channels": [8, "x"]}, "cannot be used"),
    ],
)
def test_unusable_files_give_one_line(tmp_path, change, message):
    shutil.copytree(tiny_ldm(tmp_path / "ldm", "kl") / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        PretrainedAutoencoder.load(tmp_path / "vae")
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_are_missing_are_named(tmp_path):
    folder = tiny_ldm(tmp_path, "kl") / "vae"
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights in .*vae"):
        PretrainedAutoencoder.load(folder)
