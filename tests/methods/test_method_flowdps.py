"""FlowDPS: its step, the plain chain with its noise where nothing is known, its law on two pixels."""

import pytest
import torch

from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Flow, Uniform
from rad.diffusion.schedules import linear_betas, shifted_sigmas
from rad.diffusion.step import Denoised
from rad.methods.flowdps import FlowDPS
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, law, make_pair, make_world

WORLD, PAIR = make_world(), make_pair()
FLOW = Flow(shifted_sigmas())


class Plain(SamplingMethod):
    """DDIM with the variance v = s_u^2 (1 - kappa_u): the noise of FlowDPS, and nothing else of it."""

    preset_eta = 0.0

    def after_step(self, state, denoised, x_next):
        if state.next_timestep == CLEAN:
            return denoised.x0
        now, nxt, x0 = state.now, state.next, denoised.x0
        v = nxt.sigma_map().square() * (1 - nxt.sigma_map() / (nxt.alpha_map() + nxt.sigma_map()))
        e = (state.x - now.alpha_map() * x0) / now.sigma_map()
        return nxt.alpha_map() * x0 + (nxt.sigma_map().square() - v).sqrt() * e + v.sqrt() * state.randn()


def run(method, *, hole=WORLD.hole, process=FLOW, steps=12):
    task = Task.from_image(WORLD.y.expand(2, -1, -1, -1), hole.expand(2, -1, -1, -1))
    with KeyedNoise(0, range(2)) as noise:
        return Sampler(process, method, steps=steps, eta=0)(WORLD.denoiser, task, noise=noise)


@pytest.mark.parametrize("process", [FLOW, Uniform(linear_betas())])
def test_all_hole_is_the_plain_chain_of_that_variance(process):
    everything = torch.ones_like(WORLD.hole)
    plain = run(Plain(), hole=everything, process=process).raw
    found = run(FlowDPS(), hole=everything, process=process).raw
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-9)
    assert torch.equal(run(FlowDPS(dc="project"), hole=everything, process=process).raw, found)
    torch.testing.assert_close(
        run(FlowDPS(descents=0), process=process).raw, run(Plain(), process=process).raw, rtol=0, atol=1e-9
    )


def test_a_step():
    """As the official code has it for a flow: (1 - s_u) ((1 - s_t) x0 + s_t z) + s_u (sqrt(s_u) e + sqrt(1 - s_u) n)."""
    generator = torch.Generator().manual_seed(3)
    x, x0, fresh = (torch.randn(1, 1, 8, 8, generator=generator, dtype=DOUBLE) for _ in range(3))
    now, nxt = (FLOW.noise(torch.tensor([t])) for t in (600, 400))
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
        lambda: fresh,
    )
    z = torch.where(WORLD.hole == 1, x0, WORLD.y)
    blend = (1 - now.sigma_map()) * x0 + now.sigma_map() * z
    e = (x - now.alpha_map() * x0) / now.sigma_map()
    expected = (1 - nxt.sigma_map()) * blend + nxt.sigma_map() * (
        nxt.sigma_map().sqrt() * e + (1 - nxt.sigma_map()).sqrt() * fresh
    )
    for method in (FlowDPS(dc="project"), FlowDPS(rate=100.0, descents=1)):
        torch.testing.assert_close(method.after_step(state, Denoised(x0), x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("steps", "known", "deviation", "mean", "variance"),
    [(50, 0.8819, 0.2566, 0.6068, 0.3643), (200, 0.9127, 0.2046, 0.6577, 0.3195)],
)
def test_two_pixels(steps, known, deviation, mean, variance):
    """Known pixels are not enforced at the end, and the mean stays short of 0.8. An independent simulation: within 0.005."""
    found, covariance = law(PAIR, FlowDPS(dc="project"), steps=steps, base_process=FLOW)
    reached = [*found.tolist(), float(covariance[0, 0].sqrt()), float(covariance[1, 1])]
    assert reached == pytest.approx([known, mean, deviation, variance], abs=2e-4)


def test_pixels_of_a_pixel_model_are_its_latents():
    torch.testing.assert_close(run(FlowDPS(space="pixels")).raw, run(FlowDPS()).raw, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="dc is 'project', which is done in latents"):
        FlowDPS(dc="project", space="pixels")
