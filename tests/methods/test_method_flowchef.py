"""FlowChef: the plain flow where nothing is known, projection as the limit of its steps, its law on two pixels."""

import pytest
import torch

from rad.diffusion.processes import Flow, Uniform
from rad.diffusion.schedules import linear_betas, shifted_sigmas
from rad.diffusion.step import Denoised
from rad.methods.ddnm import DDNM
from rad.methods.flowchef import FlowChef
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, law, make_pair, make_world

WORLD, PAIR = make_world(), make_pair()
FLOW = Flow(shifted_sigmas())


def run(method, *, hole=WORLD.hole, process=FLOW, steps=12):
    task = Task.from_image(WORLD.y.expand(2, -1, -1, -1), hole.expand(2, -1, -1, -1))
    with KeyedNoise(0, range(2)) as noise:
        return Sampler(process, method, steps=steps, eta=0)(WORLD.denoiser, task, noise=noise)


@pytest.mark.parametrize("method", [FlowChef(), FlowChef(dc="project"), FlowChef(space="pixels")])
def test_all_hole_is_the_plain_flow(method):
    everything = torch.ones_like(WORLD.hole)
    assert torch.equal(run(method, hole=everything).raw, run(None, hole=everything).raw)
    assert torch.equal(run(FlowChef(descents=0)).raw, run(None).raw)


def test_a_step_is_eulers_and_a_shift():
    """On a flow: z + s_u (e - x0), with the velocity e - x0."""
    generator = torch.Generator().manual_seed(3)
    x, x0 = (torch.randn(1, 1, 8, 8, generator=generator, dtype=DOUBLE) for _ in range(2))
    now, nxt = (FLOW.noise(torch.tensor([t])) for t in (600, 400))
    e = (x - now.alpha_map() * x0) / now.sigma_map()
    euler = x + (nxt.sigma_map() - now.sigma_map()) * (e - x0)
    state = State(
        Task.from_image(WORLD.y, WORLD.hole),
        FLOW,
        CountedDenoiser(WORLD.denoiser),
        0,
        1,
        600,
        400,
        now,
        nxt,
        x,
        lambda: x,
    )
    known = WORLD.hole == 0
    stepped = FlowChef(dc="project").after_step(state, Denoised(x0), euler)
    assert torch.equal(stepped[~known], euler[~known])
    torch.testing.assert_close(stepped[known], (WORLD.y + nxt.sigma_map() * (e - x0))[known], rtol=0, atol=1e-12)
    short = FlowChef(rate=0.1, descents=4).after_step(state, Denoised(x0), euler) - euler
    assert float(short.norm()) == pytest.approx(0.4)
    torch.testing.assert_close(short / 0.4, (stepped - euler) / (stepped - euler).norm(), rtol=0, atol=1e-9)


def test_the_shift_at_other_levels_has_the_signal_and_noise_of_the_steps_end():
    generator, process = torch.Generator().manual_seed(3), Uniform(linear_betas())
    x, x0 = (torch.randn(1, 1, 8, 8, generator=generator, dtype=DOUBLE) for _ in range(2))
    now, nxt = (process.noise(torch.tensor([t])) for t in (600, 300))
    task = Task.from_image(WORLD.y, WORLD.hole)
    state = State(task, process, CountedDenoiser(WORLD.denoiser), 0, 1, 600, 300, now, nxt, x, lambda: x)
    stepped = FlowChef(dc="project").after_step(state, Denoised(x0), x)
    expected = x + (nxt.alpha_map() + nxt.sigma_map()) * (1 - WORLD.hole) * (WORLD.y - x0)
    torch.testing.assert_close(stepped, expected, rtol=0, atol=1e-12)


def test_long_steps_are_projection_and_known_pixels_are_the_image():
    projected = run(FlowChef(dc="project")).raw
    torch.testing.assert_close(run(FlowChef(rate=100.0)).raw, projected, rtol=0, atol=1e-9)
    known = (WORLD.hole == 0).expand_as(projected)
    torch.testing.assert_close(projected[known], WORLD.y.expand_as(projected)[known], rtol=0, atol=1e-12)
    slow = run(FlowChef(rate=1e-3)).raw
    assert float((slow - projected)[known].abs().max()) > 0.1


@pytest.mark.parametrize(("steps", "mean", "variance"), [(50, 0.8485, 0.3218), (200, 0.8144, 0.3499)])
def test_two_pixels(steps, mean, variance):
    """Exact: 0.8 and 0.36. An independent simulation of the official algorithm, on other levels, is within 0.008 of these."""
    found, covariance = law(PAIR, FlowChef(dc="project"), steps=steps, base_process=FLOW)
    assert [*found.tolist(), float(covariance[1, 1])] == pytest.approx([1, mean, variance], abs=2e-4)


def test_the_shift_has_more_weight_than_ddnms():
    """With a_u for a_u + s_u it would be DDNM without fresh noise, which gets to less of the mean on two pixels."""
    errors = [
        abs(float(law(PAIR, method, steps=100, eta=0.0, base_process=FLOW)[0][1]) - 0.8)
        for method in (FlowChef(dc="project"), DDNM())
    ]
    assert errors[0] < 0.5 * errors[1]


def test_variance_preserving_levels_too():
    found, _ = law(PAIR, FlowChef(dc="project"), steps=200, base_process=Uniform(linear_betas()))
    assert found.tolist() == pytest.approx([1, 0.8], abs=0.05)


def test_projection_is_in_latents():
    with pytest.raises(ValueError, match="dc is 'project', which is done in latents"):
        FlowChef(dc="project", space="pixels")
