"""EDM's preconditioning: diffusers' constants, the closed form on Gaussian data in any units, and folders of such models."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, UNet2DModel

from rad.diffusion.denoiser import EDMDenoiser
from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import EDM, Flow, Uniform
from rad.diffusion.schedules import karras_sigmas, linear_betas
from rad.inpainting.inpainter import Inpainter
from rad.models.base import load_base
from rad.models.loaded_model import PLAIN
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from rad.training.diffusion import Diffusion
from tests.conftest import box_hole, random_image
from tests.gaussian import DOUBLE, make_world

WORLD = make_world()


def optimal(sigma_data):
    """The F for which D is the Gaussian posterior mean, by EDM's equations solved for F, from F's inputs alone."""

    def network(scaled, c_noise):
        sigma = (4 * c_noise).exp()[:, None]
        width = sigma.square() + sigma_data**2
        x = scaled * width.sqrt()[:, :, None, None]
        exact = WORLD.denoiser.denoise(x, NoiseLevel(torch.ones_like(sigma), sigma, c_noise[:, None])).x0
        skip, out = sigma_data**2 / width, sigma * sigma_data / width.sqrt()
        return (exact - skip[:, :, None, None] * x) / out[:, :, None, None]

    return network


@pytest.mark.parametrize(
    "process", [EDM(karras_sigmas(100)), Uniform(linear_betas(100)), Flow(torch.arange(1, 101) / 101)]
)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_closed_form_in_units_of_edm_of_vp_and_of_flows(process, sigma_data):
    noise = process.noise(torch.tensor([3, 40, 99]))
    x = (
        torch.randn(3, 1, 8, 8, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) * noise.sigma_map()
        + noise.alpha_map()
    )
    denoiser = EDMDenoiser(optimal(sigma_data), sigma_data=sigma_data, channels=1)
    torch.testing.assert_close(denoiser.denoise(x, noise).x0, WORLD.denoiser.denoise(x, noise).x0, rtol=1e-6, atol=1e-8)


def test_the_constants_are_those_of_diffusers():
    scheduler = EDMEulerScheduler(sigma_data=0.7)
    x, sigma = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), 2.5
    asked = []

    def network(scaled, c_noise):
        asked.append((scaled, c_noise))
        return scaled.square()

    x0 = EDMDenoiser(network, sigma_data=0.7).denoise(x, EDM(torch.tensor([0.1, sigma])).noise(torch.tensor([1]))).x0
    ((scaled, c_noise),) = asked
    torch.testing.assert_close(scaled, scheduler.precondition_inputs(x, sigma))
    torch.testing.assert_close(c_noise, scheduler.precondition_noise(sigma))
    torch.testing.assert_close(x0, scheduler.precondition_outputs(x, scaled.square(), sigma))


def test_levels_reach_a_bfloat16_network_in_float32():
    sigmas, asked = torch.tensor([0.1, 2.5, 2.51]), []

    def network(scaled, c_noise):
        asked.append(c_noise)
        return torch.zeros_like(scaled)

    x = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)
    x0 = EDMDenoiser(network).denoise(x, EDM(sigmas).noise(torch.tensor([1, 2]))).x0
    torch.testing.assert_close(asked[0], sigmas[1:].log() / 4)
    assert x0.dtype == torch.bfloat16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("edm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=16,
            norm_num_groups=8,
        )
    unet.save_pretrained(place / "unet")
    EDMEulerScheduler(sigma_data=0.6, sigma_max=40.0).save_pretrained(place / "scheduler")
    return place


def test_a_folder_with_edms_scheduler_is_sampled_as_diffusers_does_it(folder):
    """Everything hole, DDIM: Euler's method on the levels of the scheduler."""
    inpainter, steps = Inpainter.from_pretrained(folder), 4
    model = inpainter.model
    scheduler = EDMEulerScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(
        model.base_process.sigmas[[999, 666, 333, 0]].float(), scheduler.sigmas[:-1], rtol=1e-5, atol=0
    )
    start = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    class Start:
        def randn(self, number, shape):
            return start

    task = Task.encoded(torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16), model.autoencoder)
    ours = Sampler(model.base_process, steps=steps, eta=0)(
        model.denoiser([PLAIN], adapter=False), task, noise=Start()
    ).raw
    x = scheduler.sigmas[0] * start
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model.unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["replacement", "ddnm", "dps"])
def test_whole_runs(folder, method):
    original, hole = random_image(16, 16), box_hole(16, 16, 4, 5, 11, 12)
    image = np.asarray(Inpainter.from_pretrained(folder)(original, hole, method=method, steps=3).images[0])
    known = (hole[0] == 0).numpy()
    assert np.array_equal(image[known], np.asarray(original)[known])
    assert (image != np.asarray(original))[~known].mean() > 0.5


def test_it_is_not_trained_and_has_no_rad(folder):
    assert load_base(folder).prediction_type == "edm"
    with pytest.raises(ValueError, match="training is of networks that predict 'epsilon'"):
        Diffusion(base=str(folder)).configure_model()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "v_prediction"}, "only 'epsilon' is known"),
        ({"sigma_min": 0}, "do not rise from above 0"),
        ({"sigma_max": "x"}, "scheduler_config.json"),
        ({"sigma_data": -1}, "do not rise from above 0"),
    ],
)
def test_unusable_files_give_one_line(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "edm")
    path = tmp_path / "edm" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        Inpainter.from_pretrained(tmp_path / "edm")
    assert len(str(caught.value).splitlines()) == 1
