"""Flux Fill, and Stable Diffusion 3 with an inpainting ControlNet: equal to diffusers' own pipelines."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetInpaintingPipeline,
)
from einops import rearrange
from PIL import Image
from torch import nn

from rad.cli import main as cli
from rad.images.tensors import to_tensor
from rad.inpainting.inpainter import Inpainter
from rad.models.adapter import AdapterInfo
from rad.models.load import is_for_inpainting, load_model
from rad.models.loaded_model import Condition
from rad.models.text_to_image.flow import level_shift
from rad.pipelines import RADInpaintPipeline
from rad.rng import KeyedNoise
from rad.sampling.task import Task
from rad.studio.fillers.torch_filler import TorchFiller
from tests.conftest import box_hole, random_image
from tests.pipelines import SIDE, tiny_flux, tiny_sd3, tiny_sd3_controlnet
from tests.tiny_stable import write_stable

ADAPTER = AdapterInfo(base="base", base_hash="", time_origin="adm", steps=1000, size=(SIDE, SIDE), kind="stable3")

IMAGES = [random_image(SIDE, SIDE, seed=seed) for seed in range(2)]
HOLES = torch.stack([box_hole(SIDE, SIDE, 4, 5, 11, 12), box_hole(SIDE, SIDE, 1, 2, 9, 7)])
"""With edges inside latent cells of 2x2 pixels."""


def levels_of(model, steps):
    timesteps = Inpainter(model).sampler("inpainting_model", steps=steps).timesteps
    return [float(model.base_process.noise(torch.tensor([t])).sigma_map()) for t in timesteps[:-1]]


def mask_images(holes):
    return [Image.fromarray((255 * hole[0]).byte().numpy()) for hole in holes]


def make_deterministic(vae):
    """Make the autoencoder's posterior so narrow that diffusers' sample is its mean."""
    nn.init.zeros_(vae.quant_conv.weight[4:])
    nn.init.constant_(vae.quant_conv.bias[4:], -60)


def ours(model, images, holes, conditions, *, steps):
    """The final latents of method `inpainting_model`, and the noise that they start from."""
    pixels = torch.stack([to_tensor(image) for image in images]) * 2 - 1
    task = Task.encoded(pixels, holes, model.autoencoder)
    denoiser = model.denoiser(conditions, adapter=False)
    with KeyedNoise(3, range(len(images))) as noise:
        start = noise.randn(0, task.known.shape[1:])
        sample = Inpainter(model).sampler("inpainting_model", steps=steps)(denoiser, task, noise=noise)
    assert sample.nfe == steps
    return sample.raw, start


def fill_reference(folder, images, holes, prompts, *, start, levels, guidance):
    pipeline = FluxFillPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)  # which takes the levels as they are given
    make_deterministic(pipeline.vae)
    latents = pipeline._pack_latents(start, len(images), 4, SIDE // 2, SIDE // 2)
    result = pipeline(
        prompts,
        image=images,
        mask_image=mask_images(holes),
        height=SIDE,
        width=SIDE,
        sigmas=levels,
        latents=latents,
        guidance_scale=guidance,
        output_type="latent",
    ).images
    return pipeline._unpack_latents(result, SIDE, SIDE, 2)


def control_reference(folders, images, holes, prompts, *, start, levels, guidance, negative=None, scale=1.0):
    controlnet = SD3ControlNetModel.from_pretrained(folders["controlnet"])
    pipeline = StableDiffusion3ControlNetInpaintingPipeline.from_pretrained(folders["t5"], controlnet=controlnet)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    make_deterministic(pipeline.vae)
    return pipeline(
        prompts,
        negative_prompt=negative,
        control_image=[image.copy() for image in images],
        control_mask=mask_images(holes),
        height=SIDE,
        width=SIDE,
        sigmas=levels,
        latents=start,
        guidance_scale=guidance,
        controlnet_conditioning_scale=scale,
        output_type="latent",
    ).images


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("inpainting")
    return {
        "fill": tiny_flux(root / "fill", fill=True),
        "t5": tiny_sd3(root / "t5", t5=True),
        "controlnet": tiny_sd3_controlnet(root / "controlnet"),
    }


@pytest.fixture(scope="module")
def fill(folders):
    return load_model(folders["fill"], size=SIDE)


@pytest.fixture(scope="module")
def controlled(folders):
    return load_model(folders["t5"], controlnet=folders["controlnet"])


# ---- equality with diffusers -----------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, 4.0])
def test_flux_fill_equals_the_pipeline_of_diffusers(folders, fill, guidance):
    prompts = ["a cat", ""]
    conditions = [Condition(prompt, guidance=guidance) for prompt in prompts]
    latents, start = ours(fill, IMAGES, HOLES, conditions, steps=4)
    options = {"start": start, "levels": levels_of(fill, 4), "guidance": 30.0 if guidance is None else guidance}
    theirs = fill_reference(folders["fill"], IMAGES, HOLES, prompts, **options)
    assert float((theirs - start).std()) > 0.1
    torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-4)
    flipped = fill_reference(folders["fill"], IMAGES, 1 - HOLES, prompts, **options)
    assert float((latents - flipped).abs().max()) > 0.02, "the polarity of the mask matters"


@pytest.mark.parametrize(("guidance", "scale"), [(1.0, 1.0), (4.0, 0.6)])
def test_the_controlnet_equals_the_pipeline_of_diffusers(folders, controlled, guidance, scale):
    prompts, negative = ["a cat", "a boat"], None if guidance == 1 else ["a dog", "dark"]
    conditions = [
        Condition(prompt, "" if negative is None else negative[row], guidance, control_scale=scale)
        for row, prompt in enumerate(prompts)
    ]
    latents, start = ours(controlled, IMAGES, HOLES, conditions, steps=4)
    options = {"start": start, "levels": levels_of(controlled, 4), "guidance": guidance, "negative": negative}
    theirs = control_reference(folders, IMAGES, HOLES, prompts, **options, scale=scale)
    assert float((theirs - start).std()) > 0.1
    torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-4)
    for other in (
        control_reference(folders, IMAGES, 1 - HOLES, prompts, **options, scale=scale),
        control_reference(folders, IMAGES, HOLES, prompts, **options, scale=scale / 2),
    ):
        assert float((latents - other).abs().max()) > 0.02, "polarity of the mask and scale matter"


def test_the_levels_are_those_of_the_pipelines_of_diffusers(folders, fill, controlled):
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folders["fill"], subfolder="scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 50, 50), mu=level_shift(scheduler, 16))
    ours = torch.tensor(levels_of(fill, 50))
    torch.testing.assert_close(ours[1:], scheduler.sigmas[1:-1], rtol=1e-5, atol=1e-6)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(28)
    sampler = Inpainter(controlled).sampler("inpainting_model", steps=28, spacing="even")
    ours = [float(controlled.base_process.noise(torch.tensor([t])).sigma_map()) for t in sampler.timesteps[:-1]]
    torch.testing.assert_close(torch.tensor(ours)[1:], scheduler.sigmas[1:-1], rtol=1e-5, atol=1e-6)


# ---- inputs ----------------------------------------------------------------------------------------


def test_the_network_of_flux_fill_reads_latents_masked_latents_and_mask_in_this_order(fill, monkeypatch):
    """The mask has a channel for each pixel of a cell, row by row; 1 = fill."""
    seen = []
    call = type(fill.transformer).forward
    monkeypatch.setattr(
        type(fill.transformer),
        "forward",
        lambda self, hidden_states, **given: seen.append(hidden_states) or call(self, hidden_states, **given),
    )
    image, hole, x = to_tensor(IMAGES[0])[None] * 2 - 1, HOLES[:1], torch.randn(1, 4, 8, 8)
    known = image * (1 - hole)
    denoiser = fill.denoiser([Condition("a cat")], adapter=False).for_hole(known, hole)
    denoiser.denoise(x, fill.base_process.noise(torch.tensor([500])))
    parts = rearrange(seen[0], "b (h w) (c p q) -> b c (h p) (w q)", h=4, p=2, q=2).split([4, 4, 4], 1)
    torch.testing.assert_close(parts[0], x)
    torch.testing.assert_close(parts[1], fill.autoencoder.encode(known))
    for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(parts[2][:, number], hole[:, 0, row::2, column::2])


def test_the_controlnet_reads_black_in_the_hole_and_one_in_known_cells(controlled):
    image, hole = to_tensor(IMAGES[0])[None] * 2 - 1, HOLES[:1]
    context = controlled.context(image * (1 - hole), hole)
    black = torch.where(hole == 1, -1.0, image)
    torch.testing.assert_close(context[:, :4], controlled.autoencoder.encode(black))
    assert torch.equal(context[:, 4:], 1 - hole[:, :, ::2, ::2])


@pytest.mark.parametrize("kind", ["fill", "controlled"])
def test_the_content_of_the_hole_has_no_effect(kind, request):
    inpainter, image = Inpainter(request.getfixturevalue(kind)), np.array(IMAGES[0])
    other = np.where(HOLES[0, 0, :, :, None].bool().numpy(), 255 - image, image)
    options = {"method": "inpainting_model", "steps": 2, "condition": Condition("a cat")}
    results = [np.asarray(inpainter(each, HOLES[0], **options).images[0]) for each in (image, other)]
    assert np.array_equal(*results)


# ---- whole runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fill", "controlled"])
def test_known_pixels_stay_and_an_image_does_not_depend_on_its_batch(kind, request):
    inpainter = Inpainter(request.getfixturevalue(kind))
    conditions = [
        Condition("a cat"),
        Condition("a dog", guidance=1.0, control_scale=0.5 if kind == "controlled" else 1.0),
    ]
    options = {"method": "inpainting_model", "steps": 3}
    both = inpainter(IMAGES, list(HOLES), names=["a", "b"], condition=conditions, num_samples=2, **options)
    assert len(both.images) == 4
    assert not np.array_equal(both.raw[0], both.raw[1]), "samples differ"
    for row, name in enumerate("ab"):
        alone = inpainter(IMAGES[row], HOLES[row], names=[name], condition=conditions[row], **options)
        difference = np.asarray(both.raw[2 * row]).astype(int) - np.asarray(alone.raw[0])
        assert np.abs(difference).max() <= 1, "but for how kernels round"
        known = HOLES[row, 0].numpy() == 0
        assert np.array_equal(np.asarray(alone.images[0])[known], np.asarray(IMAGES[row])[known])
        assert (np.asarray(alone.images[0]) != np.asarray(IMAGES[row]))[~known].mean() > 0.5


@pytest.mark.parametrize("kind", ["fill", "controlled"])
@pytest.mark.parametrize("policy", ["crop", "zoom"])
def test_other_image_sizes(kind, policy, request):
    inpainter, image = Inpainter(request.getfixturevalue(kind)), random_image(26, 37)
    hole = box_hole(26, 37, 3, 4, 11, 12, 15, 20, 21, 33)
    result = inpainter(image, hole, method="inpainting_model", steps=2, size_policy=policy)
    assert result.images[0].size == (37, 26)
    known = hole[0].numpy() == 0
    assert np.array_equal(np.asarray(result.images[0])[known], np.asarray(image)[known])


def test_the_weight_of_the_controlnet_is_that_of_each_image(controlled):
    inpainter, options = Inpainter(controlled), {"method": "inpainting_model", "steps": 2}
    conditions = [Condition("a cat", control_scale=scale) for scale in (1.0, 0.0)]
    together = inpainter([IMAGES[0]] * 2, HOLES[0], condition=conditions, **options).raw
    assert not np.array_equal(*together)


def test_bfloat16_is_near(folders):
    for folder, options in ((folders["fill"], {"size": SIDE}), (folders["t5"], {"controlnet": folders["controlnet"]})):
        full, half = (
            Inpainter.from_pretrained(folder, precision=precision, device="cpu", **options)
            for precision in ("32", "bf16")
        )
        image, hole = to_tensor(IMAGES[0])[None] * 2 - 1, HOLES[:1]
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        exact, near = (
            each.model.denoiser([Condition("a cat", guidance=1.0)], adapter=False)
            .for_hole(image * (1 - hole), hole)
            .denoise(x, each.model.base_process.noise(torch.tensor([300])))
            .x0
            for each in (full, half)
        )
        assert near.dtype == torch.float32
        assert 0 < float((near - exact).abs().max()) < 0.1 * float(exact.abs().max())


# ---- refusals --------------------------------------------------------------------------------------


def test_other_methods_are_refused(fill, controlled):
    for model in (fill, controlled):
        for method in ("replacement", "flair", "rad"):
            with pytest.raises(ValueError, match="trained for inpainting: use inpainting_model"):
                Inpainter(model).sampler(method)
        assert Inpainter(model).sampler("mean").cost.nfe == 0


def test_stable_diffusion_3_without_a_controlnet_is_no_inpainting_model(folders):
    model = load_model(folders["t5"])
    assert not model.for_inpainting
    assert Inpainter(model).sampler("replacement", steps=3).cost.nfe == 3
    with pytest.raises(ValueError, match="needs a model trained for inpainting"):
        Inpainter(model).sampler("inpainting_model")


def test_a_controlnet_is_refused_where_it_does_not_fit(folders, tmp_path):
    given = {"controlnet": folders["controlnet"]}
    for folder in (folders["fill"], tiny_flux(tmp_path / "flux")):
        with pytest.raises(ValueError, match=r"is not Stable Diffusion, so controlnet=.* has no effect"):
            load_model(folder, size=SIDE, **given)
    with pytest.raises(ValueError, match="describes a SD3ControlNetModel; supported are ControlNetModel"):
        load_model(write_stable(tmp_path / "stable"), **given)
    with pytest.raises(ValueError, match="without a RAD adapter"):
        load_model(folders["t5"], adapter=tmp_path, info=ADAPTER, **given)
    for changes, message in (
        ({"extra_conditioning_channels": 0}, "has 0 extra channels; one for inpainting has 1"),
        ({"joint_attention_dim": 16}, "has joint_attention_dim 16, and .* has 32"),
    ):
        place = tiny_sd3_controlnet(tmp_path / message[:8], **changes)
        with pytest.raises(ValueError, match=message):
            load_model(folders["t5"], controlnet=place)
    with pytest.raises(FileNotFoundError, match="no SD3ControlNetModel at"):
        load_model(folders["t5"], controlnet=tmp_path / "missing")


def test_unsuitable_inputs_are_refused(folders, fill, controlled, tmp_path):
    with pytest.raises(ValueError, match="takes no negative prompt"):
        fill.check([Condition("a cat", "a dog")])
    with pytest.raises(ValueError, match="takes no images beside the image"):
        controlled.check([Condition("a cat", control_image=IMAGES[0])])
    with pytest.raises(ValueError, match=r"size is 18; allowed .* multiples of 4"):
        load_model(folders["fill"], size=18)
    folder = tiny_flux(tmp_path / "flux")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxFillPipeline"}))
    with pytest.raises(ValueError, match="takes 16 channels; Flux Fill takes 48"):
        load_model(folder, size=SIDE)
    with pytest.raises(ValueError, match="training is of latent diffusion"):
        load_model(folders["fill"], training=True)


def without_weights(folder):
    """With damaged weights, which nothing may read."""
    for file in folder.rglob("*.safetensors"):
        file.write_bytes(b"damaged")
    return folder


def test_settings_are_checked_before_weights_are_read(tmp_path):
    fill, sd3 = without_weights(tiny_flux(tmp_path / "fill", fill=True)), without_weights(tiny_sd3(tmp_path / "sd3"))
    for folder in (fill, sd3):
        with pytest.raises(ValueError, match=r"size is 18; allowed .* multiples of 4"):
            load_model(folder, size=18)
        with pytest.raises(ValueError, match=r"size is '16'; give a whole number"):
            load_model(folder, size="16")
    other = without_weights(tiny_sd3_controlnet(tmp_path / "control", joint_attention_dim=16))
    with pytest.raises(ValueError, match="has joint_attention_dim 16"):
        load_model(sd3, controlnet=other)
    with pytest.raises(ValueError, match="is a FluxFillPipeline, which has no RAD adapters"):
        load_model(fill, adapter=tmp_path, info=ADAPTER)
    index = json.loads((fill / "model_index.json").read_text())
    flux = without_weights(tiny_flux(tmp_path / "flux"))
    (flux / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxFillPipeline"}))
    with pytest.raises(ValueError, match="takes 16 channels; Flux Fill takes 48"):
        load_model(flux, size=SIDE)


def test_settings_of_a_hub_id_are_fetched_and_checked_first(tmp_path, monkeypatch):
    folder, asked = without_weights(tiny_flux(tmp_path / "fill", fill=True)), []

    def fetch(source, files, *, revision):
        asked.append(files)
        return folder

    monkeypatch.setattr("rad.models.text_to_image.folders.fetch", fetch)
    with pytest.raises(ValueError, match="size is 18; allowed"):
        load_model("organisation/fill", size=18)
    assert len(asked) == 2
    assert not [pattern for files in asked for pattern in files if "safetensors" in pattern]


def test_a_scale_without_effect_is_refused(folders, fill, controlled):
    for model in (fill, load_model(folders["t5"])):
        with pytest.raises(ValueError, match=r"takes no such image, so control_scale=0\.5 has no effect: leave it out"):
            model.check([Condition("a cat", control_scale=0.5)])
    controlled.check([Condition("a cat", control_scale=0.5)])


def test_a_hub_id_fetches_one_network(folders, monkeypatch):
    asked = []

    def fetch(source, files, *, revision):
        asked.append((source, revision))
        return folders["controlnet"]

    monkeypatch.setattr("rad.models.text_to_image.folders.fetch", fetch)
    model = load_model(folders["t5"], controlnet="alimama-creative/SD3-Controlnet-Inpainting@main")
    assert model.for_inpainting
    assert set(asked) == {("alimama-creative/SD3-Controlnet-Inpainting", "main")}
    assert len(asked) == 2, "its settings, then its weights"


def test_a_saved_pipeline_holds_its_controlnet(folders, controlled, tmp_path):
    controlnet = SD3ControlNetModel.from_pretrained(folders["controlnet"])
    pipeline = StableDiffusion3ControlNetInpaintingPipeline.from_pretrained(folders["t5"], controlnet=controlnet)
    pipeline.save_pretrained(tmp_path)
    assert [is_for_inpainting(folder) for folder in (tmp_path, folders["fill"], folders["t5"])] == [True, True, False]
    assert is_for_inpainting(folders["t5"], controlnet=folders["controlnet"])
    model = load_model(tmp_path)
    for ours, theirs in zip(model.controlnet.parameters(), controlled.controlnet.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="without a RAD adapter"):
        load_model(tmp_path, adapter=tmp_path, info=ADAPTER)


# ---- the command line, diffusers' form, the studio ---------------------------------------------------


@pytest.fixture
def sample(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name, image in zip("ab", IMAGES, strict=True):
        image.save(f"in/{name}.png")
    mask_images(HOLES)[0].save("mask.png")
    models = {
        "fill": ["--checkpoint", folders["fill"], "--size", SIDE],
        "controlled": ["--checkpoint", folders["t5"], "--controlnet", folders["controlnet"]],
    }

    def call(kind, *words):
        given = [*models[kind], "--image", "in", "--mask", "mask.png", "--output", "out", "--prompt", "a cat", *words]
        code = cli.sample([str(word) for word in given])
        return code, capsys.readouterr().err

    return call


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fill", "controlled"])
def test_rad_sample(sample, folders, kind, request):
    code, err = sample(kind, "--budget_nfe", 3, "--num_samples", 2)
    assert code == 0, err
    inpainter = Inpainter(request.getfixturevalue(kind))
    expected = inpainter(
        IMAGES,
        HOLES[0],
        method="inpainting_model",
        steps=3,
        num_samples=2,
        names=["a.png", "b.png"],
        condition=Condition("a cat"),
    )
    files = sorted(Path("out").rglob("*.png"))
    assert len(files) == 4
    stored = {np.asarray(Image.open(file)).tobytes() for file in files}
    assert stored == {np.asarray(image).tobytes() for image in expected.images}
    before = {file: file.stat().st_mtime_ns for file in files}
    code, err = sample(kind, "--budget_nfe", 3, "--num_samples", 2)
    assert code == 0, err
    assert {file: file.stat().st_mtime_ns for file in files} == before, "finished results stay"
    files[0].unlink()
    assert sample(kind, "--budget_nfe", 3, "--num_samples", 2)[0] == 0
    assert {np.asarray(Image.open(file)).tobytes() for file in files} == stored, "a resumed run"
    if kind == "controlled":
        code, err = sample(kind, "--budget_nfe", 3, "--num_samples", 2, "--control_scale", 0.5)
        assert code != 0
        assert "control_scale" in err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fill", "controlled"])
def test_a_report_and_a_refusal(sample, kind):
    code, err = sample(kind, "--steps", 2, "--report", "--method", "inpainting_model", "mean")
    assert code == 0, err
    assert "inpainting_model" in next(Path("out").rglob("*.html")).read_text()
    code, err = sample(kind, "--steps", 2, "--method", "replacement", "--output", "other")
    assert code != 0
    assert "trained for inpainting: use inpainting_model" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_diffusers_form(folders, controlled):
    pipeline = RADInpaintPipeline.from_pretrained(folders["t5"], controlnet=folders["controlnet"])
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 2, "method": "inpainting_model", "controlnet_conditioning_scale": 0.7}
    result = pipeline("a cat", image=IMAGES[0], mask_image=mask_images(HOLES)[0], **given).images
    condition = Condition("a cat", control_scale=0.7)
    expected = Inpainter(controlled)(IMAGES[0], HOLES[0], method="inpainting_model", steps=2, condition=condition)
    assert np.array_equal(result[0], expected.images[0])


@pytest.mark.filterwarnings("ignore:the mask given. it is full")
@pytest.mark.parametrize("kind", ["fill", "controlled"])
def test_the_studio_lists_the_methods_that_run(kind, request):
    filler = TorchFiller("model", "model", Inpainter(request.getfixturevalue(kind)))
    networked = [name for name, view in filler.methods.items() if view.nfe]
    assert networked == ["inpainting_model"]
    assert filler.view.text
    assert filler.probe().nfe > 0
