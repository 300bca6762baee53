"""Flux Fill, and Stable Diffusion 3 with an inpainting ControlNet: equal to diffusers' own pipelines."""

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

from rad.images.tensors import to_tensor
from rad.inpainting.inpainter import Inpainter
from rad.models.load import load_model
from rad.models.loaded_model import Condition
from rad.rng import KeyedNoise
from rad.sampling.task import Task
from tests.conftest import box_hole, random_image
from tests.pipelines import SIDE, tiny_flux, tiny_sd3, tiny_sd3_controlnet

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
    torch.testing.assert_close(latents, theirs, rtol=1e-3, atol=1e-3)
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
    torch.testing.assert_close(latents, theirs, rtol=1e-3, atol=1e-3)
    for other in (
        control_reference(folders, IMAGES, 1 - HOLES, prompts, **options, scale=scale),
        control_reference(folders, IMAGES, HOLES, prompts, **options, scale=scale / 2),
    ):
        assert float((latents - other).abs().max()) > 0.02, "polarity of the mask and scale matter"
