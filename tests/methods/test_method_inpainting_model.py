"""Networks trained for inpainting: the results of diffusers' own pipelines, step by step, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from rad.cli import main as cli
from rad.inpainting.inpainter import Inpainter
from rad.methods.inpainting_model import InpaintingModel
from rad.models.load import is_for_inpainting, load_model
from rad.models.loaded_model import Condition
from rad.models.text_to_image.stable_denoiser import StableDiffusionDenoiser
from rad.models.text_to_image.stable_diffusion import StableDiffusionModel
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.conftest import box_hole, random_image
from tests.rounding import assert_same, doubled
from tests.tiny_stable import SIZE, make_unet, write_controlnet, write_stable, write_stable_xl

IMAGE, HOLE = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 7, 8, 25, 21)  # an odd edge splits a latent cell
CAT = Condition("a cat", "dog", guidance=4.0)
STEPS = 5
PIPELINES = {"sd": StableDiffusionInpaintPipeline, "xl": StableDiffusionXLInpaintPipeline}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("inpainting")
    write = {"sd": write_stable, "xl": write_stable_xl}
    return {name: write[name](root / name, for_inpainting=True) for name in write}


@pytest.fixture(scope="module", params=["sd", "xl"])
def pair(request, folders):
    """Our model, and diffusers' pipeline on the same networks; the UNet in float64."""
    model = load_model(folders[request.param])
    assert isinstance(model, StableDiffusionModel)
    doubled(model.unet)
    parts = {name: part for name, part in vars(model.pipeline).items() if name in model.pipeline.config}
    config = model.pipeline.scheduler.config
    parts["scheduler"] = DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True)
    if request.param == "xl":
        parts["add_watermarker"] = False
    pipeline = PIPELINES[request.param](**{name: getattr(model.pipeline, name, None) for name in parts} | parts)
    pipeline.set_progress_bar_config(disable=True)
    return model, pipeline


def ours(model, hole=HOLE, *, strength=1.0):
    """Our latents, before and after each step."""
    image = torch.from_numpy(np.array(IMAGE)).permute(2, 0, 1)[None] / 127.5 - 1
    task, path = Task.encoded(image, hole[None], model.autoencoder, start=strength < 1), []
    task = replace(task, known=task.known.double(), start=None if task.start is None else task.start.double())

    class Watched(InpaintingModel):
        def after_step(self, state, denoised, x_next):
            path.append(x_next)
            return x_next

    method = Watched()
    sampler = Sampler(model.base_process, method, **vars(method.choose(steps=STEPS)), strength=strength)
    with KeyedNoise(3, ["a"]) as noise, torch.no_grad():
        sampler(model.denoiser([CAT], adapter=False), task, noise=noise)
    return path


def theirs(pipeline, monkeypatch, hole=HOLE, *, strength=1.0):
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    with KeyedNoise(3, ["a"]) as noise:
        first = noise.randn(0, (4, SIZE // 2, SIZE // 2)).double()
    if strength < 1:  # diffusers adds noise only to latents that it draws itself
        name = f"{type(pipeline).__module__}.randn_tensor"
        monkeypatch.setattr(name, lambda *_, **__: first)
    path = []
    pipeline(
        prompt=CAT.prompt,
        negative_prompt=CAT.negative,
        image=IMAGE,
        mask_image=Image.fromarray(np.uint8(255 * hole[0].numpy())),
        height=SIZE,
        width=SIZE,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=CAT.guidance,
        latents=first if strength == 1 else None,
        output_type="latent",
        callback_on_step_end=lambda _, number, t, given: path.append(given["latents"]) or {},
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_every_step_equals_that_of_diffusers(pair, monkeypatch, strength):
    model, pipeline = pair
    expected, found = theirs(pipeline, monkeypatch, strength=strength), ours(model, strength=strength)
    assert len(found) == len(expected) == (STEPS if strength == 1 else 3)
    for one, other in zip(found, expected, strict=True):
        # DDIMScheduler has its levels in float32, as both have the known latents and the texts.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * float(other.abs().max()))
    flipped = ours(model, 1 - HOLE, strength=strength)
    assert float((flipped[-1] - expected[-1]).abs().max()) > 0.01


def test_the_network_reads_the_hole_and_the_known_pixels(folders):
    model = load_model(folders["sd"])
    denoiser = model.denoiser([Condition()], adapter=False)
    image = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    hole = torch.zeros(1, 1, SIZE, SIZE)
    hole[..., 6:12, 7:12] = 1  # the first pixel of a cell of 2x2 decides
    assert isinstance(denoiser, StableDiffusionDenoiser)
    masked = denoiser.for_hole(image, hole).masked
    assert masked is not None
    cells = torch.zeros(1, 1, SIZE // 2, SIZE // 2)
    cells[..., 3:6, 4:6] = 1
    assert torch.equal(masked[:, :1], cells)
    assert_same(masked[:, 1:], model.autoencoder.encode(image))


def test_grey_pixels_belong_to_the_hole_and_content_is_hidden(folders):
    model = load_model(folders["sd"])
    denoiser = model.denoiser([Condition()], adapter=False)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    task = Task.encoded(image, HOLE[None], model.autoencoder)
    given = [task, replace(task, image_hole=0.5 * HOLE[None]), replace(task, image=image + HOLE)]
    binary, grey, other = (InpaintingModel().view(denoiser, one) for one in given)
    assert isinstance(binary, StableDiffusionDenoiser)
    for view in (grey, other):
        assert isinstance(view, StableDiffusionDenoiser)
        assert torch.equal(view.masked, binary.masked)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "xl"])
def test_a_run_fills_the_hole_and_never_sees_its_content(folders, name):
    inpainter = Inpainter.from_pretrained(folders[name], device="cpu")
    content = np.array(IMAGE)
    content[HOLE[0].numpy() == 1] = 255

    def fill(image, **options):
        return inpainter(image, HOLE, method="inpainting_model", steps=4, condition=CAT, **options)

    result, other = fill(IMAGE), fill(Image.fromarray(content))
    assert result.nfe == 4
    known, filled = HOLE[0].numpy() == 0, np.array(result.images[0])
    assert (filled[known] == np.array(IMAGE)[known]).all()
    assert (np.array(other.images[0])[~known] == filled[~known]).all()
    assert (filled[~known] != np.array(IMAGE)[~known]).any()
    assert (np.array(fill(IMAGE, solver="dpm++2m").images[0]) != filled).any()


@pytest.mark.slow
def test_a_controlnet_reads_the_latents_alone(folders, tmp_path):
    """Its input has four channels, as in diffusers."""
    control = write_controlnet(tmp_path / "control", make_unet())
    inpainter = Inpainter.from_pretrained(folders["sd"], controlnet=control, device="cpu")

    def fill(**changes):
        condition = replace(CAT, control_image=IMAGE, **changes)
        return np.array(inpainter(IMAGE, HOLE, method="inpainting_model", steps=2, condition=condition).images[0])

    assert (fill() != fill(control_scale=0.0)).any()


@pytest.mark.slow
def test_rad_sample_takes_the_method_by_default(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    IMAGE.save("in.png")
    Image.fromarray(np.uint8(255 * HOLE[0].numpy())).save("mask.png")
    words = f"--checkpoint {folders['sd']} --image in.png --mask mask.png --steps 2 --prompt cat --device cpu".split()
    assert cli.sample([*words, "--output", "out.png"]) == 0
    with Image.open("out.png") as image:
        assert '"method": "inpainting_model"' in image.info["rad"]
    capsys.readouterr()
    for method in ("rad", "repaint"):
        assert cli.sample([*words, "--output", "other.png", "--method", method]) == 2
        assert (
            f"method '{method}' cannot use {folders['sd']}, a model trained for inpainting" in capsys.readouterr().err
        )
    assert cli.sample([*words[:-4], "--device", "cpu", "--output", "mean.png", "--method", "mean"]) == 0


def test_the_kind_is_read_from_the_index(folders, base, tmp_path):
    assert is_for_inpainting(folders["sd"])
    assert is_for_inpainting(folders["xl"])
    assert not is_for_inpainting(base)
    assert not is_for_inpainting(tmp_path)
    plain = load_model(base)
    assert not plain.for_inpainting
    assert not load_model(folders["sd"]).has_base


def test_refusals(folders, base):
    image, hole = random_image(16, 16), box_hole(16, 16, 4, 4, 8, 8)
    with pytest.raises(ValueError, match="needs a model trained for inpainting, such as Stable Diffusion's"):
        Inpainter.from_pretrained(base, device="cpu")(image, hole, method="inpainting_model")
    with pytest.raises(ValueError, match="training is of latent diffusion"):
        load_model(Path(folders["sd"]), training=True)
