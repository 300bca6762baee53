"""Stable Diffusion and its controls, with random weights: the effect of each on the estimate, alone and in a batch."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rad.inpainting.inpainter import Inpainter
from rad.methods.pilot import PILOT
from rad.models.load import load_model
from rad.models.loaded_model import Condition
from rad.models.text_to_image.stable_diffusion import StableDiffusionModel
from rad.models.weights import weights_hash
from rad.sampling.state import CountedDenoiser
from tests.conftest import box_hole, random_image
from tests.rounding import assert_same, doubled
from tests.tiny_stable import (
    CHANNELS,
    SIZE,
    TOKENS,
    make_unet,
    write_controlnet,
    write_ip_adapter,
    write_lora,
    write_stable,
    write_stable_xl,
    write_t2i_adapter,
)

CAT = Condition("a cat", "dog")
IMAGE = random_image(SIZE, SIZE, seed=5)
KINDS = {"control": "control_image", "adapter": "adapter_image", "style": "style_image"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that is loaded here, written once."""
    place = tmp_path_factory.mktemp("stable")
    write_stable(place / "sd")
    write_stable(place / "v", prediction_type="v_prediction")
    write_stable_xl(place / "xl")
    unet = make_unet()
    write_controlnet(place / "control", unet)
    write_t2i_adapter(place / "t2i")
    write_ip_adapter(place / "style", unet)
    write_lora(place / "lora.safetensors", unet)
    write_lora(place / "lora2.safetensors", make_unet(), seed=8)
    return place


def load(*arguments, **named):
    """The denoiser and all that it is given are in float64, so that equal means equal; the autoencoder stays in float32."""
    model = load_model(*arguments, **named)
    encoders = [getattr(model.pipeline, name, None) for name in ("text_encoder", "text_encoder_2", "image_encoder")]
    for network in (model.unet, model.controls.controlnet, model.controls.t2i_adapter, *encoders):
        if network is not None:
            doubled(network)
    return model


@pytest.fixture(scope="module")
def plain(folder):
    return load(folder / "sd")


@pytest.fixture(scope="module")
def large(folder):
    return load(folder / "xl")


@pytest.fixture(scope="module")
def guided(folder):
    return load(
        folder / "sd",
        controlnet=folder / "control",
        t2i_adapter=folder / "t2i",
        ip_adapter=folder / "style" / "ip-adapter.safetensors",
    )


X = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def denoise(model, *conditions, x=X, times=(700, 300)):
    """x0 (B,4,16,16) of x under these conditions, each at its own time."""
    count = len(conditions)
    noise = model.base_process.noise(torch.tensor(times[:count]))
    with torch.no_grad():
        return model.denoiser(conditions, adapter=False).denoise(x[:count], noise).x0


def bare(model, prompt, *, time=700):
    """The network's output for one prompt, by diffusers alone: (x, output, a, s)."""
    with torch.no_grad():
        text = model.pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
        output = model.unet(X[:1], time, encoder_hidden_states=text).sample
    abar = (1 - model.base_process.betas).cumprod(0)[time]
    return X[:1], output, float(abar.sqrt()), float((1 - abar).sqrt())


# ---- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 0.7, 1.0])
def test_without_guidance_it_is_the_network_on_the_prompt(plain, guidance):
    x, output, a, s = bare(plain, "a cat")
    made = denoise(plain, replace(CAT, guidance=guidance))
    assert_same(made, (x - s * output) / a)


@pytest.mark.parametrize("guidance", [1.5, 7.5])
def test_guidance_goes_from_the_negative_prompt_through_the_prompt(plain, guidance):
    x, wanted, a, s = bare(plain, "a cat")
    unwanted = bare(plain, "dog")[1]
    output = unwanted + guidance * (wanted - unwanted)
    assert float((wanted - unwanted).abs().max()) > 1e-2
    assert_same(denoise(plain, replace(CAT, guidance=guidance)), (x - s * output) / a, gain=guidance)


def test_the_models_own_guidance(plain, large):
    assert torch.equal(denoise(plain, CAT), denoise(plain, replace(CAT, guidance=7.5)))
    assert torch.equal(denoise(large, CAT), denoise(large, replace(CAT, guidance=5.0)))


def test_velocity_is_read_as_such(folder):
    model = load(folder / "v")
    x, output, a, s = bare(model, "a cat")
    assert_same(denoise(model, replace(CAT, guidance=1.0)), a * x - s * output)


def test_timesteps_are_not_rounded_to_half_precision(plain, monkeypatch):
    seen = []
    monkeypatch.setattr(plain.unet, "forward", lambda x, t, **_: seen.append(t) or SimpleNamespace(sample=x))
    denoise(plain, CAT, x=X.bfloat16(), times=(999,))
    assert seen[0].unique().tolist() == [999]


def test_two_branches_are_one_call_and_one_branch_is_half_the_work(plain, monkeypatch):
    rows, forward = [], plain.unet.forward
    monkeypatch.setattr(
        plain.unet, "forward", lambda x, *rest, **named: rows.append(len(x)) or forward(x, *rest, **named)
    )
    noise = plain.base_process.noise(torch.tensor([700, 300]))
    for guidances in ((7.5, 7.5), (1.0, 0.0), (1.0, 3.0)):
        conditions = [replace(CAT, guidance=guidance) for guidance in guidances]
        counted = CountedDenoiser(plain.denoiser(conditions, adapter=False))
        counted.denoise(X, noise)
        assert counted.nfe == 1
    assert rows == [4, 2, 4]


def test_equal_texts_are_encoded_once(folder, monkeypatch):
    model, texts = load_model(folder / "sd"), []
    encode = model.pipeline.encode_prompt
    monkeypatch.setattr(
        model.pipeline, "encode_prompt", lambda **named: texts.extend(named["prompt"]) or encode(**named)
    )
    model.denoiser([CAT, replace(CAT, guidance=2.0), Condition("b")], adapter=False)
    model.denoiser([CAT], adapter=False)
    assert texts == ["a cat", "b", "dog", ""]


def test_the_words_are_those_of_the_prompt(plain):
    words = plain.denoiser([Condition("a cat"), Condition(""), Condition("x" * 99)], adapter=False).words
    assert words[0].tolist() == [0, 1, 1, 1, 1] + [0] * (TOKENS - 5), "each letter is a word of this tokenizer"
    assert words[1].tolist() == [0] * TOKENS
    assert words[2].tolist() == [0] + [1] * (TOKENS - 2) + [0]


def test_xl_gets_the_pooled_text_and_the_size(large):
    x, noise = X[:1], large.base_process.noise(torch.tensor([700]))
    with torch.no_grad():
        text, unwanted, pooled, unwanted_pooled = large.pipeline.encode_prompt("a cat", negative_prompt="dog")
        outputs = [
            large.unet(
                x,
                700,
                encoder_hidden_states=tokens,
                added_cond_kwargs={"text_embeds": one, "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]])},
            ).sample
            for tokens, one in ((text, pooled), (unwanted, unwanted_pooled))
        ]
    output = outputs[1] + 5 * (outputs[0] - outputs[1])
    a, s = float(noise.alpha_map()), float(noise.sigma_map())
    assert_same(denoise(large, CAT), (x - s * output) / a, gain=5)


def test_xl_has_zeros_for_no_negative_prompt(large):
    denoiser = large.denoiser([Condition("a cat"), CAT], adapter=False)
    assert float(denoiser.negative.text.tokens[0].abs().max()) == 0
    assert float(denoiser.negative.text.tokens[1].abs().max()) > 0


@pytest.mark.parametrize("which", ["plain", "large"])
def test_an_image_does_not_depend_on_its_batch(which, request):
    model = request.getfixturevalue(which)
    one, other = CAT, Condition("bird", guidance=1.0)
    both = denoise(model, one, other)
    assert_same(both[:1], denoise(model, one), gain=7.5)
    alone = denoise(model, other, x=X[1:], times=(300,))
    assert_same(both[1:], alone, gain=7.5)


# ---- controls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_changes_the_estimate_and_at_scale_zero_nothing(guided, plain, kind):
    image, scale = KINDS[kind], f"{kind}_scale"
    without = denoise(plain, CAT)
    assert_same(denoise(guided, CAT), without, gain=7.5)  # loaded, but not asked for
    made = {value: denoise(guided, replace(CAT, **{image: IMAGE, scale: value})) for value in (0, 0.5, 1, 1.0)}
    assert_same(made[0], without, gain=7.5)
    assert torch.equal(made[1], made[1.0]), "a whole number is a number"
    assert float((made[1] - without).abs().max()) > 1e-2
    assert float((made[1] - made[0.5]).abs().max()) > 1e-2
    other = denoise(guided, replace(CAT, **{image: IMAGE.rotate(90)}))
    assert float((made[1] - other).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_of_a_batch_has_its_own_control(guided, kind):
    own = replace(CAT, **{KINDS[kind]: IMAGE, f"{kind}_scale": 0.7})
    both = denoise(guided, own, Condition("bird"))
    assert_same(both[:1], denoise(guided, own), gain=7.5)
    alone = denoise(guided, Condition("bird"), x=X[1:], times=(300,))
    assert_same(both[1:], alone, gain=7.5)


def test_controls_equal_those_of_diffusers(guided):
    """ControlNet, T2I-Adapter and IP-Adapter together, on the prompt alone, by diffusers' own processors."""
    condition = replace(CAT, guidance=1.0, control_image=IMAGE, adapter_image=IMAGE, style_image=IMAGE, style_scale=0.5)
    condition = replace(condition, control_scale=0.75, adapter_scale=0.875)
    pixels = torch.from_numpy(np.array(IMAGE)).permute(2, 0, 1)[None] / 255
    x, pipe = X[:1], guided.pipeline
    with torch.no_grad():
        text = pipe.encode_prompt("a cat", "cpu", 1, False)[0]
        down, middle = guided.controls.controlnet(
            x, 700, encoder_hidden_states=text, controlnet_cond=pixels, conditioning_scale=0.75, return_dict=False
        )
        pipe.set_ip_adapter_scale(0.5)
        output = guided.unet(
            x,
            700,
            encoder_hidden_states=text,
            added_cond_kwargs={"image_embeds": pipe.prepare_ip_adapter_image_embeds([IMAGE], None, "cpu", 1, False)},
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            down_intrablock_additional_residuals=[0.875 * one for one in guided.controls.t2i_adapter(pixels)],
        ).sample
    noise = guided.base_process.noise(torch.tensor([700]))
    want = (x - float(noise.sigma_map()) * output) / float(noise.alpha_map())
    assert_same(denoise(guided, condition), want)


def test_the_features_of_the_adapter_last_for_all_steps(guided):
    denoiser = guided.denoiser([replace(CAT, adapter_image=IMAGE)], adapter=False)
    noise = guided.base_process.noise(torch.tensor([700]))
    with torch.no_grad():
        assert torch.equal(denoiser.denoise(X[:1], noise).x0, denoiser.denoise(X[:1], noise).x0)


def test_the_view_of_the_prompt_alone_has_the_positive_controls(guided):
    """Of a doubled batch it takes the half that belongs to the prompt: it is the estimate without guidance."""
    condition = replace(CAT, control_image=IMAGE, adapter_image=IMAGE, style_image=IMAGE)
    noise = guided.base_process.noise(torch.tensor([700]))
    with torch.no_grad():
        said = guided.denoiser([condition], adapter=False).semantic(X[:1], noise, fine=True)
    want = denoise(guided, replace(condition, guidance=1.0))
    assert_same(said.estimate.x0, want)
    assert [tuple(share.shape[1:]) for share in said.shares[:3]] == [(16, 16), (8, 8), (4, 4)]
    assert all(float(share.min()) > 0 and float(share.max()) < 1 for share in said.shares)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_its_network_is_refused(plain, kind):
    with pytest.raises(ValueError, match="was loaded without one"):
        plain.denoiser([replace(CAT, **{KINDS[kind]: IMAGE})], adapter=False)
    with pytest.raises(ValueError, match=f"{kind}_scale=0.5 has no effect, as .* was loaded without a"):
        plain.check([replace(CAT, **{f"{kind}_scale": 0.5})])


@pytest.mark.slow
def test_loras_add_up_with_their_weights(folder, plain):
    one, two = folder / "lora.safetensors", folder / "lora2.safetensors"
    base = denoise(plain, CAT)

    def with_loras(*loras):
        return denoise(load(folder / "sd", loras=loras), CAT)

    assert_same(with_loras((one, 0)), base, gain=7.5)
    first, half, second = with_loras((one, 1)), with_loras((one, 0.5)), with_loras((two, 1))
    both = with_loras((one, 1), (two, 1))
    found = [base, first, half, second, both]
    for number, made in enumerate(found):
        assert all(float((made - other).abs().max()) > 1e-2 for other in found[:number])
    assert_same(with_loras((one, 1), (two, 0)), first, gain=7.5)


def test_a_lora_of_weight_0_changes_no_estimate(folder, plain):
    model = load(folder / "sd", loras=[(folder / "lora.safetensors", 0)])
    assert_same(denoise(model, CAT), denoise(plain, CAT), gain=7.5)


def test_a_lora_changes_the_hash(folder, plain):
    again = load_model(folder / "sd")
    assert again.hash == plain.hash
    assert load_model(folder / "sd", loras=[(folder / "lora.safetensors", 1)]).hash != plain.hash


# ---- images --------------------------------------------------------------------------------------


def test_the_autoencoder_goes_there_and_back(plain):
    """Encoding is the mean times the scale; decoding takes the same number out."""
    pixels = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    autoencoder, vae = plain.autoencoder, plain.pipeline.vae
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mean
        assert_same(autoencoder.encode(pixels), mean * vae.config["scaling_factor"])
        assert_same(autoencoder.decode(autoencoder.encode(pixels)), vae.decode(mean).sample)
    assert (autoencoder.factor, autoencoder.channels, plain.size) == (2, 4, (SIZE, SIZE))


@pytest.mark.spread(1)
@pytest.mark.parametrize("which", ["sd", "xl"])
@pytest.mark.parametrize("method", ["replacement", PILOT(interval=2, iterations=2), "ddnm", "latino"])
def test_images_are_filled_from_end_to_end(folder, which, method):
    inpainter = Inpainter.from_pretrained(folder / which, device="cpu")
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 8, 8, 24, 24)

    def fill(condition, batch_size=8):
        return inpainter(
            [image, image], hole, method=method, steps=4, condition=condition, names=["a", "b"], batch_size=batch_size
        )

    made = fill([CAT, Condition("bird")])
    known = (hole[0] == 0).numpy()
    assert (np.array(made.images[0])[known] == np.array(image)[known]).all()
    assert (np.array(made.images[0]) != np.array(image)).any()
    assert (made.nfe, made.vjp) == ((16, 8) if isinstance(method, PILOT) else (8, 0))
    alone = fill([CAT, Condition("bird")], batch_size=1)
    swapped = fill([Condition("bird"), CAT])
    for one, other in zip(made.raw, alone.raw, strict=True):
        assert np.abs(np.array(one, int) - np.array(other, int)).max() <= 2
    assert np.abs(np.array(made.raw[0], int) - np.array(swapped.raw[0], int)).max() > 2, "the text matters"


def test_control_images_are_cut_with_their_windows(folder):
    """A window of a larger image is guided by the same part of the control image, resized to the image."""
    seen = []

    class Spy(StableDiffusionModel):
        def denoiser(self, conditions, *, adapter):
            seen.extend(conditions)
            return super().denoiser(conditions, adapter=adapter)

    inpainter = Inpainter.from_pretrained(folder / "sd", controlnet=folder / "control", device="cpu")
    inpainter.model.__class__ = Spy
    control = random_image(48, 64, seed=2)
    given = Condition("a", control_image=control.resize((128, 96), Image.Resampling.NEAREST))
    hole = box_hole(48, 64, 30, 40, 36, 46)
    inpainter(
        random_image(48, 64),
        hole,
        method="replacement",
        steps=1,
        size_policy="crop",
        condition=given,
    )
    (condition,) = seen
    want = given.resized((64, 48)).control_image.crop((27, 16, 59, 48))
    assert np.array_equal(np.array(condition.control_image), np.array(want))


def test_gradients_through_a_large_model_are_the_same(guided, monkeypatch):
    """With activations computed again: text bounded, shares kept, all controls."""
    condition = replace(CAT, control_image=IMAGE, style_image=IMAGE)
    noise, hole = guided.base_process.noise(torch.tensor([700])), torch.zeros(1, 1, 16, 16)
    hole[..., :8] = 1

    def gradient():
        x = X[:1].clone().requires_grad_()
        semantics = guided.denoiser([condition], adapter=False).bounded(hole).semantic(x, noise, fine=False)
        loss = semantics.estimate.x0.square().sum() + 100 * sum(share.sum() for share in semantics.shares)
        return torch.autograd.grad(loss, x)[0]

    guided.checkpoint_gradients()
    assert not guided.unet.is_gradient_checkpointing, "a small model"
    expected = gradient()
    monkeypatch.setattr("rad.models.loaded_model.CHECKPOINTED_SIZE", 1)
    guided.checkpoint_gradients()
    try:
        assert guided.unet.is_gradient_checkpointing
        assert guided.controls.controlnet.is_gradient_checkpointing
        assert_same(gradient(), expected, gain=7.5)
    finally:
        guided.unet.disable_gradient_checkpointing()
        guided.controls.controlnet.disable_gradient_checkpointing()


# ---- what is refused -------------------------------------------------------------------------------


@pytest.fixture
def copied(folder, tmp_path):
    """A folder of links, in which single files can be changed."""
    for path in (folder / "sd").rglob("*"):
        if path.is_file():
            there = tmp_path / "sd" / path.relative_to(folder / "sd")
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(path)
    return tmp_path / "sd"


def rewrite(path, **settings):
    content = {**json.loads(path.read_text()), **settings}
    path.unlink()
    path.write_text(json.dumps(content))


def refused(source, **settings):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        Inpainter.from_pretrained(source, device="cpu", **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_code_of_a_model_is_never_run(copied, tmp_path):
    """diffusers' own pipeline loader would import it."""
    ran = tmp_path / "ran"
    (copied / "unet" / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass UNet2DConditionModel: pass\n")
    rewrite(copied / "model_index.json", unet=["evil", "UNet2DConditionModel"])
    rewrite(copied / "text_encoder" / "config.json", auto_map={"AutoModel": "evil.Model"})
    Inpainter.from_pretrained(copied, device="cpu")
    assert not ran.exists()


def test_weights_from_before_safetensors_are_read_as_tensors_alone(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    assert "no weights in" in refused(copied)
    expected = make_unet().state_dict()
    torch.save(expected, weights.with_suffix(".bin"))
    assert load_model(copied).hash == weights_hash(expected)
    torch.save({"weights": Path("pickled")}, weights.with_suffix(".bin"))
    assert str(weights.with_suffix(".bin")) in refused(copied)


def test_half_precision_alone_is_read(copied):
    """As many models are published: every part's weights under a name of their own."""
    parts = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for part, stem in parts.items():
        (copied / part / f"{stem}.safetensors").rename(copied / part / f"{stem}.fp16.safetensors")
    assert load_model(copied).hash == weights_hash(make_unet().state_dict())


def test_damage_gives_one_line(copied):
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.write_bytes(b"half a file")
    assert str(copied / "vae") in refused(copied)


def test_weights_of_another_shape_give_one_line(copied):
    rewrite(copied / "unet" / "config.json", cross_attention_dim=24)
    assert str(copied / "unet") in refused(copied)


def test_a_missing_part_is_named(copied):
    (copied / "vae" / "config.json").unlink()
    assert "no AutoencoderKL at" in refused(copied)


def test_a_model_with_other_inputs_is_refused(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    (copied / "unet" / "config.json").unlink()
    make_unet(in_channels=8).save_pretrained(copied / "unet")  # of an editing model
    assert "take a text-to-image or an inpainting model" in refused(copied)


def test_other_refusals(folder, base, tmp_path):
    lone = tmp_path / "model.safetensors"
    save_file({"model.diffusion_model.out.0.weight": torch.zeros(1)}, lone)
    with pytest.raises(ValueError, match="single file: make a folder of it"):
        load_model(lone)
    assert "no effect" in refused(folder / "sd", base=base)
    assert "is not Stable Diffusion, so controlnet=" in refused(base, controlnet=folder / "control")
    assert "no ControlNetModel at" in refused(folder / "sd", controlnet=tmp_path)
    assert "give its .safetensors file" in refused(folder / "sd", loras=[(tmp_path / "gone", 1)])
    (tmp_path / "lora.bin").write_bytes(b"")
    assert "read as .safetensors alone" in refused(folder / "sd", loras=[(tmp_path / "lora.bin", 1)])
    assert "holds 2 .safetensors" in refused(folder / "sd", loras=[(folder, 1)])
    write_t2i_adapter(tmp_path / "other", [8, *CHANNELS[1:]])
    assert refused(folder / "xl", loras=[(folder / "lora.safetensors", 1)])
