"""Growing with any method: one band equals the method, stages see earlier bands, the exact method stays unbiased."""

import torch

from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods import METHODS
from rad.methods.grow import Grow
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import distance, make_world, moments, sampled

WORLD = make_world()


def test_one_band_is_the_method_itself_bit_for_bit():
    task, process = (
        Task.from_image(WORLD.y, WORLD.hole),
        Grow(method="replacement", bands=1).process(Uniform(linear_betas()), "adm"),
    )
    results = []
    for method in (Grow(method="replacement", bands=1), METHODS["replacement"]()):
        with KeyedNoise(0, ["a"]) as noise:
            results.append(Sampler(process, method, steps=20)(WORLD.denoiser, task, noise=noise))
    assert torch.equal(results[0].image, results[1].image)
    assert results[0].nfe == results[1].nfe == 20


def test_stages_share_the_steps_or_have_all_of_them():
    times = [*range(99, -1, -1), -1]
    assert Grow(bands=4).cost(times).nfe == 100
    assert Grow(bands=4, budget="full").cost(times).nfe == 400


def test_a_stage_treats_earlier_bands_as_known(monkeypatch):
    seen = []

    class Watch(SamplingMethod):
        def on_start(self, state):
            seen.append((state.task.hole.clone(), state.task.known.clone()))
            return state.x

    monkeypatch.setitem(METHODS, "watch", Watch)
    with KeyedNoise(0, ["a"]) as noise:
        method = Grow(method="watch", bands=4)
        sampler = Sampler(method.process(Uniform(linear_betas()), "adm"), method, steps=8)
        result = sampler(WORLD.denoiser, Task.from_image(WORLD.y, WORLD.hole), noise=noise)
    assert [int(hole.sum()) for hole, _ in seen] == [16, 12, 8, 4]
    for hole, known in seen:
        assert torch.equal(known[hole == 0], result.image[hole == 0])
        assert (known[hole == 1] == 0).all()


def test_with_the_exact_method_the_order_leaves_no_bias():
    """RAD's denoiser is the exact conditional; Monte Carlo of 400 has a mean error of 1 / sqrt(400) = 0.05."""
    samples = sampled(WORLD, Grow(method="rad", bands=4), steps=100, rows=400)
    assert distance(WORLD, *moments(samples)).mean_error < 0.12
