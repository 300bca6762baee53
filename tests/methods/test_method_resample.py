"""ReSample: its limits, its events, the draw against the product of two Gaussians, and the two ways of consistency."""

from dataclasses import replace

import pytest
import torch

from rad.diffusion.processes import EDM, Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods.resample import ReSample
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost, CountedDenoiser, State, level
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, make_world
from tests.linear_autoencoder import LinearAutoencoder

WORLD = make_world()
CODEC = LinearAutoencoder(blur=0.5)
HOLE = WORLD.hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
PICTURE = CODEC.decode(WORLD.y)
PROCESS = Uniform(linear_betas())


def image(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def run(method, task, *, steps=12):
    sampler = Sampler(PROCESS, method, steps=steps, eta=0)
    with KeyedNoise(0, ["a"]) as noise:
        sample = sampler(WORLD.denoiser, task, noise=noise)
    assert (sample.nfe, sample.vjp) == (sampler.cost.nfe, sampler.cost.vjp)
    return sample.raw


def state(task, process=PROCESS, *, times=(500, 400), noise=0.0):
    now, nxt = (level(process, time, task) for time in times)
    x = torch.zeros_like(task.known)
    return State(
        task, process, CountedDenoiser(WORLD.denoiser), 0, 50, *times, now, nxt, x, lambda: torch.full_like(x, noise)
    )


def encoded(image=PICTURE, hole=HOLE, autoencoder=CODEC):
    return Task.encoded(image, hole, autoencoder)


def test_without_events_and_pull_it_is_ddim_bit_for_bit():
    plain = run(SamplingMethod(), encoded())
    assert torch.equal(run(ReSample(frequency=20, dps=0), encoded()), plain)
    nothing = encoded(hole=torch.ones_like(HOLE))
    assert torch.equal(run(ReSample(frequency=20), nothing), run(SamplingMethod(), nothing))
    assert torch.equal(run(ReSample(sigma_scale=0, dps=0, iterations=1), encoded()), plain)
    assert not torch.equal(run(ReSample(dps=0, iterations=1), encoded()), plain)


def test_costs():
    times = list(range(49, -2, -1))
    assert (ReSample().cost(times), ReSample(dps=0).cost(times)) == (Cost(50, 50), Cost(50, 0))


@pytest.mark.parametrize(("frequency", "events"), [(5, [21, 26, 31, 36, 41, 46]), (10, [21, 31, 41])])
def test_events_are_after_a_third_of_the_steps_and_the_last_third_descends(frequency, events):
    seen = []

    class Spy(ReSample):
        def after_step(self, state, denoised, x_next):
            self.numbers.append(state.step)
            return super().after_step(state, denoised, x_next)

        def consistent(self, task, x0, *, by_latents):
            seen.append((self.numbers[-1], by_latents))
            return x0

    Spy.numbers = []  # pyright: ignore[reportAttributeAccessIssue]
    run(Spy(frequency=frequency, dps=0), encoded(), steps=50)
    assert seen == [(step, step >= 34) for step in events]


@pytest.mark.parametrize("legacy", ["u", "t"])
def test_the_draw_is_the_product_of_two_gaussians(legacy):
    task, method = encoded(), ReSample(sigma_scale=3.0, legacy_level=legacy)
    still, noisy = state(task), state(task, noise=1.0)
    ab, ab_next = (float(noise.alpha) ** 2 for noise in (still.now, still.next))
    g = 3 * (1 - ab_next) / (1 - ab) * (1 - ab / ab_next)
    of = ab if legacy == "t" else ab_next
    x, z = image(1, 1, 1, 8, 8), image(2, 1, 1, 8, 8)
    variance = 1 / (1 / g + 1 / (1 - of))
    mean = variance * (x / g + of**0.5 * z / (1 - of))
    torch.testing.assert_close(method.resampled(still, x, z), mean, rtol=1e-9, atol=1e-12)
    drawn = method.resampled(noisy, x, z) - mean
    torch.testing.assert_close(drawn, torch.full_like(x, variance**0.5), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("legacy", ["u", "t"])
def test_the_draw_does_not_depend_on_the_units_of_the_levels(legacy):
    """EDM's levels of the same s / a: x is larger by 1 / a."""
    method, task = ReSample(legacy_level=legacy), encoded()
    vp = state(task, noise=0.7)
    sigmas = torch.stack([(one.sigma / one.alpha).flatten()[0] for one in (vp.next, vp.now)])
    edm = state(task, EDM(torch.cat([sigmas, 2 * sigmas[-1:]])), times=(1, 0), noise=0.7)
    x, z, a = image(1, 1, 1, 8, 8), image(2, 1, 1, 8, 8), float(vp.next.alpha)
    torch.testing.assert_close(method.resampled(edm, x / a, z), method.resampled(vp, x, z) / a)


def test_the_closed_form_of_pixels_is_where_adam_ends():
    task, x0 = encoded(), image(3, 1, 1, 8, 8)
    exact = ReSample().consistent(task, x0, by_latents=False)
    method = ReSample(exact=False, iterations=600, pixel_rate=0.05, tolerance=1e-5)
    torch.testing.assert_close(method.consistent(task, x0, by_latents=False), exact, rtol=0, atol=1e-3)
    latent = ReSample(space="latent").consistent(task, x0, by_latents=False)
    torch.testing.assert_close(latent, torch.lerp(task.known, x0, task.hole))
    decoded = CODEC.decode(x0)
    torch.testing.assert_close(exact, CODEC.encode(PICTURE * (1 - HOLE) + HOLE * decoded))


def test_descent_on_latents_fits_known_pixels_and_keeps_unobserved_directions():
    task, x0 = encoded(), image(3, 1, 1, 8, 8)
    found = ReSample(iterations=2000, rate=0.02, tolerance=1e-3).consistent(task, x0, by_latents=True)
    missing = (1 - HOLE) * (PICTURE - CODEC.decode(found))
    assert float(missing.square().sum() / (3 * (1 - HOLE).sum())) <= 1e-6
    far = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    far[..., 3:5, 4:6] = True  # cells of the hole that touch no known pixel
    torch.testing.assert_close(found[far], x0[far], rtol=0, atol=1e-12)


def test_each_image_stops_on_its_own():
    images, x0 = torch.cat([PICTURE, PICTURE]), torch.cat([WORLD.y + 0.05, image(3, 1, 1, 8, 8)])
    method = ReSample(rate=0.01, tolerance=0.02)
    both = method.consistent(encoded(images, HOLE.repeat(2, 1, 1, 1)), x0, by_latents=True)
    for row in range(2):
        alone = method.consistent(encoded(), x0[row : row + 1], by_latents=True)
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=1e-12)
    enough = ReSample(tolerance=10.0).consistent(encoded(), x0[1:], by_latents=True)
    assert torch.equal(enough, x0[1:])


def test_the_pull_is_that_of_the_matrices():
    task = encoded()
    at = state(task)
    x = image(1, 1, 1, 8, 8).requires_grad_()
    with torch.enable_grad():
        at, denoised = replace(at, x=x), at.denoiser.denoise(x, at.now)
    moved = ReSample(dps=0.2).after_step(at, denoised, torch.zeros_like(x))
    eye = torch.eye(64, dtype=DOUBLE)
    a, s, S = at.now.alpha, at.now.sigma, WORLD.denoiser.covariance
    J = a * S @ torch.linalg.inv(a**2 * S + s**2 * eye)
    D = CODEC.decode(eye.view(64, 1, 8, 8)).flatten(1).T
    x0 = WORLD.denoiser.denoise(x.detach(), at.now).x0
    missing = ((1 - HOLE) * (PICTURE - CODEC.decode(x0))).flatten()
    expected = float(0.2 * a**2) * 64 / missing.numel() * J.T @ D.T @ missing
    torch.testing.assert_close(moved.flatten(), expected, rtol=1e-9, atol=1e-12)


def test_events_reduce_the_error_of_known_pixels():
    task = encoded()
    methods = (
        SamplingMethod(),
        ReSample(dps=0, iterations=100),
        ReSample(sigma_scale=0, iterations=0),  # the pull alone
        ReSample(iterations=100),
    )
    runs = [run(method, task, steps=24) for method in methods]
    plain, events, pulled, both = (float(((raw - WORLD.y) * (1 - WORLD.hole)).square().mean().sqrt()) for raw in runs)
    assert events < 0.6 * plain
    assert pulled < 0.9 * plain
    assert both < min(events, pulled)
