"""Processes, timesteps and steps without torch equal those of `rad.diffusion`."""

import numpy as np
import pytest
import torch

from rad import diffusion
from rad.diffusion import solvers, spacings
from rad.diffusion import step as torch_step
from rad.runtime.sampling import process, steps

BETAS = diffusion.linear_betas().numpy()
COSINE = np.clip(1 - np.cos(np.linspace(0.1, 1.4, 61)[1:]) ** 2 / np.cos(np.linspace(0.1, 1.4, 61)[:-1]) ** 2, 0, 0.99)
T = (-1, 0, 1, 0.25, 17.5, 57, 58.999, 59)


def soft_hole() -> np.ndarray:
    hole = np.random.default_rng(0).random((3, 1, 6, 5), np.float32).round(1)
    hole[0] = hole[0] > 0.5
    hole[1, 0, :3] = 1
    return hole


def assert_equal_levels(level: process.NoiseLevel, expected: diffusion.NoiseLevel) -> None:
    for name in ("alpha", "sigma", "timesteps"):
        np.testing.assert_allclose(getattr(level, name), getattr(expected, name).numpy(), rtol=1e-12, atol=1e-12)
    assert (level.index is None) == (expected.index is None)
    if level.index is not None:
        np.testing.assert_array_equal(level.index, expected.index.numpy())


def times(t: float) -> torch.Tensor:
    return torch.full((3,), t, dtype=torch.int64 if isinstance(t, int) else torch.float64)


def regions(hole: np.ndarray) -> tuple[process.Regions, diffusion.NoiseRegions]:
    return process.Regions.from_mask(hole), diffusion.NoiseRegions.from_mask(torch.from_numpy(hole))


def test_regions_equal():
    for hole in (soft_hole(), (soft_hole() > 0.5).astype(np.float32), np.ones((2, 1, 4, 4), np.float32)):
        one, other = regions(hole)
        np.testing.assert_array_equal(one.values, other.values.numpy())
        np.testing.assert_array_equal(one.index, other.index.numpy())


@pytest.mark.parametrize("origin", ["adm", "official", "image"])
@pytest.mark.parametrize("betas", [BETAS, COSINE], ids=["linear", "cosine"])
def test_levels_of_rad_equal_in_both_phases(origin, betas):
    one, other = regions(soft_hole())
    mine = process.RegionAware(betas, time_origin=origin)
    reference = diffusion.RegionAware(torch.from_numpy(betas), time_origin=origin)
    scale = (len(betas) - 1) / 59
    scaled = [t if t <= 0 else t * scale if isinstance(t, float) else round(t * scale) for t in T]
    for t in (*scaled, len(betas), 1.5 * len(betas), 2 * len(betas) - 1):
        assert_equal_levels(mine.noise(t, one), reference.noise(times(t), other))


def test_levels_of_the_uniform_process_equal():
    one, other = regions(soft_hole())
    mine, reference = process.Uniform(COSINE), diffusion.Uniform(torch.from_numpy(COSINE))
    for t in T:
        assert_equal_levels(mine.noise(t, one), reference.noise(times(t), other))


@pytest.mark.parametrize("spacing", ["even", "trailing", "quad", "logsnr", "official"])
@pytest.mark.parametrize("fractional", [False, True])
def test_timesteps_equal(spacing, fractional):
    mine, reference = process.RegionAware(BETAS), diffusion.RegionAware(torch.from_numpy(BETAS))
    for count in (1, 2, 3, 10, 20, 50, 250):
        expected = spacings.sampling_timesteps(reference, count, spacing=spacing, fractional=fractional)
        drawn = process.sampling_timesteps(mine, count, spacing=spacing, fractional=fractional)
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1001, 2.5])
def test_refuses_other_numbers_of_steps(count):
    with pytest.raises(ValueError, match="steps is"):
        process.sampling_timesteps(process.Uniform(BETAS), count)


def test_betas_are_checked():
    for betas in ([], [0.5, 1.0], [[0.1]], [0.1, float("nan")]):
        with pytest.raises(ValueError, match="betas"):
            process.Uniform(np.array(betas))


def levels_at(t: float, hole: np.ndarray) -> tuple[process.NoiseLevel, diffusion.NoiseLevel]:
    one, other = regions(hole)
    reference = diffusion.RegionAware(torch.from_numpy(BETAS))
    return process.RegionAware(BETAS).noise(t, one), reference.noise(times(t), other)


PAIRS = [(999, 800), (500.5, 320.25), (3, 0), (0, -1), (700, -1), (1500, 1200)]


@pytest.mark.parametrize(("t", "u"), PAIRS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_coefficients_of_the_multistep_solver_equal(t, u, eta):
    (now, now_), (nxt, nxt_) = levels_at(t, soft_hole()), levels_at(u, soft_hole())
    noisier = levels_at(min(t + 150, 1999), soft_hole())[0]
    h = steps.multistep_weights(noisier, now, None, eta=eta).h
    for before in (None, h):
        mine = steps.multistep_weights(now, nxt, before, eta=eta)
        expected = solvers.weights(now_, nxt_, None if before is None else torch.from_numpy(h), eta=eta)
        for name in ("x", "x0", "before", "noise", "h"):
            np.testing.assert_allclose(getattr(mine, name), getattr(expected, name).numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("t", "u"), PAIRS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("learned", [False, True])
def test_reverse_steps_equal_to_rounding_and_keep_unchanged_pixels(t, u, eta, learned):
    hole, random = soft_hole(), np.random.default_rng(1)
    (now, now_), (nxt, nxt_) = levels_at(t, hole), levels_at(u, hole)
    x, x0, noise, fraction = random.standard_normal((4, 3, 3, 6, 5)).astype(np.float32)
    fraction = np.abs(fraction) % 1 if learned else None
    mine = steps.reverse_step(x, steps.Denoised(x0, fraction), now, nxt, eta=eta, noise=noise)
    estimate = torch_step.Denoised(torch.from_numpy(x0), None if fraction is None else torch.from_numpy(fraction))
    expected = torch_step.reverse_step(
        torch.from_numpy(x), estimate, now_, nxt_, eta=eta, noise=torch.from_numpy(noise)
    ).numpy()
    assert mine.dtype == np.float32
    np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=2e-6)
    known = np.broadcast_to(hole == 0, x.shape)
    if t < 1000:
        np.testing.assert_array_equal(mine[known], x[known])


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_estimates_and_forward_steps_equal_to_rounding(prediction):
    hole, random = soft_hole(), np.random.default_rng(2)
    (now, now_), (nxt, nxt_) = levels_at(400, hole), levels_at(600, hole)
    x, output = random.standard_normal((2, 3, 3, 6, 5)).astype(np.float32)
    expected = torch_step.denoised(torch.from_numpy(x), torch.from_numpy(output), now_, prediction)
    np.testing.assert_allclose(steps.denoised(x, output, now, prediction), expected.numpy(), rtol=1e-6, atol=1e-6)
    expected = torch_step.renoise(torch.from_numpy(x), now_, nxt_, noise=torch.from_numpy(output))
    np.testing.assert_allclose(steps.renoise(x, now, nxt, noise=output), expected.numpy(), rtol=1e-6, atol=1e-6)
