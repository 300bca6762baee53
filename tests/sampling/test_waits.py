"""The reverse loop never waits for the device: it reads once at its end, and noise goes up from page-locked memory."""

from typing import Any

import pytest
import torch

from benchmarks.gpu_waits import count_synchronisations, mark_all
from rad.diffusion.denoiser import UNetDenoiser
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods import METHODS
from rad.networks import patch
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.tiny_networks import small_unet

TABLES = "rad/diffusion/processes.py"
"""Level tables go to the device in this file, whose uploads do not belong to the loop."""


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rad", {}),
        ("rad", {"solver": "ddpm", "spacing": "even", "eta": 1.0}),
        ("ddnm", {}),
        ("repaint", {}),
        ("blended", {}),
        ("daps", {}),
        ("dps", {}),
    ],
)
def test_a_run_reads_the_device_once(method, options):
    network = patch(small_unet())
    source = torch.Generator().manual_seed(0)
    image, hole = torch.rand(2, 3, 16, 16, generator=source) * 2 - 1, torch.zeros(2, 1, 16, 16)
    hole[:, :, 4:12, 4:12] = 1
    task, denoiser = Task.from_image(image, hole), UNetDenoiser(network)
    settings = {"jump_length": 1, "resamplings": 2} if method == "repaint" else {}
    chosen: Any = METHODS[method](**settings)
    sampler = Sampler(chosen.process(Uniform(linear_betas()), "adm"), chosen, **vars(chosen.choose(steps=3, **options)))
    with KeyedNoise(0, range(2)) as noise:
        expected = sampler(denoiser, task, noise=noise).image
    mark_all(task, network)
    results = []
    with KeyedNoise(0, range(2)) as noise:
        counts = count_synchronisations(lambda: results.append(sampler(denoiser, task, noise=noise).image.cpu()), "cpu")
    reads = {place: count for (kind, place), count in counts.items() if kind == "read"}
    uploads = [place for (kind, place), count in counts.items() if kind == "upload" and count]
    assert {place.split(":")[0]: count for place, count in reads.items() if "test_waits" not in place} == {
        "rad/sampling/finite.py": 1
    }
    assert all(place.startswith(TABLES) for place in uploads)
    assert torch.equal(results[0], expected)
