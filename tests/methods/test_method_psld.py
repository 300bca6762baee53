"""PSLD: its limits, its gradient against the matrices of a linear autoencoder, and how near it comes to the exact posterior."""

import pytest
import torch

from rad.diffusion.processes import Flow, Uniform
from rad.diffusion.schedules import linear_betas, shifted_sigmas
from rad.methods.dps import DPS
from rad.methods.psld import PSLD
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost, CountedDenoiser, State, level
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, make_world, moments, sampled
from tests.linear_autoencoder import LinearAutoencoder

WORLD = make_world()
CODEC = LinearAutoencoder(blur=0.5)
HOLE = WORLD.hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
PICTURE = CODEC.decode(WORLD.y) + 0.1 * torch.randn(
    1, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=DOUBLE
)


def run(method, task, *, steps=12, eta=None):
    sampler = Sampler(Uniform(linear_betas()), method, steps=steps, eta=method.preset_eta if eta is None else eta)
    with KeyedNoise(0, ["a"]) as noise:
        sample = sampler(WORLD.denoiser, task, noise=noise)
    assert (sample.nfe, sample.vjp) == (sampler.cost.nfe, sampler.cost.vjp)
    return sample.raw


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_without_weights_it_is_the_plain_chain(eta):
    task = Task.encoded(PICTURE, HOLE, CODEC)
    assert torch.equal(run(PSLD(omega=0, gamma=0), task, eta=eta), run(SamplingMethod(), task, eta=eta))
    assert not torch.equal(run(PSLD(), task, eta=eta), run(SamplingMethod(), task, eta=eta))


def test_without_known_pixels_a_lossless_autoencoder_gives_the_plain_chain():
    task = Task.encoded(PICTURE, torch.ones_like(HOLE), LinearAutoencoder())
    torch.testing.assert_close(run(PSLD(), task), run(SamplingMethod(), task, eta=0), rtol=0, atol=1e-9)


def test_on_latents_only_the_sum_of_the_weights_counts():
    task = Task.encoded(PICTURE, HOLE, CODEC)
    both = run(PSLD(omega=0.3, gamma=0.2, space="latent"), task)
    assert torch.equal(both, run(PSLD(omega=0.5, gamma=0, space="latent"), task))
    torch.testing.assert_close(both, run(DPS(zeta=0.5), task, eta=0), rtol=0, atol=1e-12)
    pixels = Task.from_image(WORLD.y, WORLD.hole)
    torch.testing.assert_close(run(PSLD(space="latent"), pixels), run(PSLD(), pixels), rtol=0, atol=1e-12)


def matrix(function, *shape):
    """Of a linear function of images (1,*shape), acting on flat ones."""
    size = torch.Size(shape).numel()
    return function(torch.eye(size, dtype=DOUBLE).view(size, *shape)).flatten(1).T


@pytest.mark.parametrize("length", ["l2", "l2sq"])
def test_the_shift_is_that_of_the_matrices(length):
    task, process = Task.encoded(PICTURE, HOLE, CODEC), Uniform(linear_betas())
    now, nxt = level(process, 500, task), level(process, 400, task)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=DOUBLE).requires_grad_()
    denoiser = CountedDenoiser(WORLD.denoiser)
    state = State(task, process, denoiser, 0, 1, 500, 400, now, nxt, x, lambda: x)
    with torch.enable_grad():
        denoised = denoiser.denoise(x, now)
    method = PSLD(omega=0.3, gamma=0.2, norm=length)  # pyright: ignore[reportArgumentType]
    moved = method.after_step(state, denoised, torch.zeros_like(x)).detach().flatten()

    a, s, S = now.alpha, now.sigma, WORLD.denoiser.covariance
    J = a * S @ torch.linalg.inv(a**2 * S + s**2 * torch.eye(64, dtype=DOUBLE))
    D, E = matrix(CODEC.decode, 1, 8, 8), matrix(CODEC.encode, 3, 16, 16)
    known = (1 - HOLE).expand(1, 3, 16, 16).flatten()
    x0 = WORLD.denoiser.denoise(x.detach(), now).x0.flatten()
    missing = known * (PICTURE.flatten() - D @ x0)
    apart = x0 - E @ (known * PICTURE.flatten() + (1 - known) * (D @ x0))
    glue = torch.eye(64, dtype=DOUBLE) - E @ torch.diag(1 - known) @ D
    ends = (missing.norm(), apart.norm()) if length == "l2" else (0.5, 0.5)
    gradient = J.T @ (0.3 * -D.T @ missing / ends[0] + 0.2 * glue.T @ apart / ends[1])
    assert float(gradient.norm()) > 0.01
    torch.testing.assert_close(moved, -gradient, rtol=1e-9, atol=1e-12)


def test_counts():
    assert PSLD().cost(list(range(49, -2, -1))) == Cost(50, 50)
    assert (PSLD.preset_steps, PSLD.preset_eta) == (1000, 0.0)


def test_more_steps_reduce_the_error_of_known_pixels_and_of_the_hole():
    few, many = (sampled(WORLD, PSLD(), steps=steps, rows=60) for steps in (20, 120))
    errors = [float(((raw - WORLD.y) * (1 - WORLD.hole)).square().mean().sqrt()) for raw in (few, many)]
    assert errors[1] < 0.2 * errors[0]
    found, exact = many.flatten(1).mean(0)[WORLD.inside], WORLD.posterior()[0]
    assert float(torch.corrcoef(torch.stack([found, exact]))[0, 1]) > 0.8
    assert distance(WORLD, *moments(many)).mean_error < 1


def test_a_flow_gives_nearly_the_result_of_variance_preserving_levels():
    """The same weights and steps, in other units of noise: the two grids differ, so the results are only close."""
    vp, flow = (
        distance(WORLD, *moments(sampled(WORLD, PSLD(), steps=200, rows=60, base_process=process)))
        for process in (None, Flow(shifted_sigmas()))
    )
    assert flow.mean_error == pytest.approx(vp.mean_error, abs=0.1)
    assert flow.variance_ratio == pytest.approx(vp.variance_ratio, abs=0.1)
    assert max(flow.mean_error, vp.mean_error) < 0.5
