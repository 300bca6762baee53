"""PILOT: on a linear denoiser with a text that is known, and on the smallest Stable Diffusion."""

from dataclasses import dataclass, replace

import pytest
import torch

from rad.diffusion.denoiser import Semantics
from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Uniform
from rad.diffusion.step import Denoised
from rad.methods.blended import Blended
from rad.methods.pilot import PILOT, background_loss, semantic_loss
from rad.models.load import load_model
from rad.models.loaded_model import Condition
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State, level
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, make_world
from tests.methods.test_methods import BETAS, Scaled
from tests.tiny_stable import write_stable

WORLD = make_world()
CAT = Condition("a cat")


@dataclass(eq=False)
class Linear:
    """A Gaussian's denoiser, affine in x, whose "words" are looked at where x is bright, on two grids."""

    denoiser: GaussianDenoiser
    channels: int
    text: bool = True

    def denoise(self, x, noise):
        return self.denoiser.denoise(x, noise)

    def bounded(self, hole):
        return self

    def semantic(self, x, noise, *, fine):
        a = noise.alpha_map() if noise.alpha_map().shape[1:] == (1, 1, 1) else None
        bright = torch.sigmoid((x / (noise.alpha_map().square() + noise.sigma_map().square()).sqrt()).mean(1)) * (
            1.0 if self.text else 0.0
        )
        assert a is not None
        coarse = torch.nn.functional.avg_pool2d(bright[:, None], 2)[:, 0]
        return Semantics(self.denoise(x, noise), [bright, coarse] if fine else [coarse])


def linear(**settings):
    return Linear(WORLD.denoiser, WORLD.denoiser.channels, **settings)


def task_of(hole=None, image=WORLD.y):
    return Task.from_image(image, WORLD.hole if hole is None else hole)


def state_of(task, x, *, t=500, step=0, process=None, denoiser=None):
    process = process or Uniform(BETAS)
    now = level(process, t, task)
    counted = CountedDenoiser(denoiser or linear())
    return State(task, process, counted, step, 10, t, t - 1, now, now, x, lambda: torch.zeros_like(x))


def run(method, *, denoiser=None, task=None, steps=20, seed=0, process=None, names=("a",)):
    task = task or task_of()
    sampler = Sampler(process or Uniform(BETAS), method, steps=steps, eta=0.0)
    with KeyedNoise(seed, list(names)) as noise:
        return sampler(denoiser or linear(), task, noise=noise), sampler.cost


# ---- the losses ------------------------------------------------------------------------------------


def test_the_gradient_of_the_background_loss_is_half_the_vjp_of_the_misfit():
    """D(x) = W x + c, so the gradient is 1/2 W^T known (D(x) - y): the quarter, and the two of the square."""
    task, x = task_of(), torch.randn(WORLD.y.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    state = state_of(task, x)

    def denoise(flat):
        return WORLD.denoiser.denoise(flat.view(x.shape), state.now).x0.flatten()

    matrix = torch.autograd.functional.jacobian(denoise, x.flatten())
    x.requires_grad_()
    said = state.denoiser.semantic(x, state.now, fine=False)
    gradient = state.denoiser.gradient(background_loss(task, said), x)
    missing = ((1 - task.hole) * (said.estimate.x0 - task.known)).flatten().detach()
    torch.testing.assert_close(gradient.flatten(), 0.5 * matrix.T @ missing, rtol=1e-4, atol=1e-5)
    assert float(gradient.abs().max()) > 1e-3


def shares_of(task, within, without):
    fine = without + (within - without) * task.hole[:, 0]
    return Semantics(Denoised(task.known), [fine])


def test_the_semantic_loss_runs_from_all_inside_to_all_outside():
    task = task_of()
    for within, without, want in ((1.0, 0.0, -1.0), (0.0, 1.0, 1.0), (0.3, 0.3, 0.0), (0.5, 0.25, -0.25)):
        torch.testing.assert_close(semantic_loss(task, shares_of(task, within, without)).item(), want)


def test_the_semantic_loss_averages_layers_and_is_zero_without_both_kinds_of_cells():
    task = task_of()
    one = shares_of(task, 1.0, 0.0)
    coarsest = torch.ones(1, 1, 1)  # a single cell, which is not all hole
    both = replace(one, shares=[*one.shares, coarsest])
    assert semantic_loss(task, one).item() == -1
    assert semantic_loss(task, both).item() == -0.5
    for hole in (torch.zeros_like(task.hole), torch.ones_like(task.hole)):
        assert semantic_loss(task_of(hole), one).item() == 0


def test_the_loss_is_the_sum_with_the_weight_of_the_level():
    """lambda: L0 at t = 999, a tenth of it below 300, linear between; L0 = 150 (part of known cells) 4096 / 1499."""
    task, x = task_of(), torch.randn_like(WORLD.y)
    full = 150 * float((1 - WORLD.hole).mean()) * 4096 / 1499
    for t, part in ((999, 1.0), (300, 0.1), (299, 0.1), (0, 0.1), (650, 0.1 + 0.9 * 350 / 699)):
        state = state_of(task, x, t=t)
        assert PILOT().weight_at(state).tolist() == pytest.approx([part * full])
        assert PILOT(decay="constant").weight_at(state).tolist() == pytest.approx([full])
        said = state.denoiser.semantic(x, state.now, fine=False)
        want = background_loss(task, said) + part * full * semantic_loss(task, said)
        torch.testing.assert_close(PILOT().loss(state, said), want)


def test_the_rate_grows_downwards_and_is_smaller_at_the_first_step():
    task = task_of()
    rates = {t: PILOT().rate_at(state_of(task, task.known, t=t, step=3)) for t in (999, 500, 0)}
    assert rates == pytest.approx({999: 0.025 * 1.002, 500: 0.025 * 1.002**500, 0: 0.025 * 1.002**1000})
    assert PILOT(growth=1.0).rate_at(state_of(task, task.known, t=0, step=3)) == 0.025
    assert PILOT().rate_at(state_of(task, task.known, t=999, step=0)) == 0.007


# ---- the descent -----------------------------------------------------------------------------------


def descend(method, state):
    x = method.before_denoise(state)
    with torch.no_grad():
        return x, method.loss(state, state.denoiser.semantic(x, state.now, fine=False))


def test_the_loss_falls_with_every_step_of_a_small_rate():
    x = torch.randn(WORLD.y.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for t in (900, 500, 100):
        state = state_of(task_of(), x, t=t, step=10)
        losses = [float(descend(PILOT(iterations=n, momentum=0.0, rate=1e-4, weight=5.0), state)[1]) for n in range(12)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0] - 1e-4


def test_heavy_ball_starts_anew_at_each_outer_step():
    """Two runs of one iteration are not one of two, but with no momentum they are."""
    x = torch.randn(WORLD.y.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    state = state_of(task_of(), x, t=500, step=10)
    for momentum, same in ((0.0, True), (0.7, False)):
        one = PILOT(iterations=1, momentum=momentum)
        twice = descend(one, replace(state, x=descend(one, state)[0]))[0]
        assert torch.allclose(twice, descend(replace(one, iterations=2), state)[0]) == same


def test_two_steps_of_heavy_ball_by_hand():
    method, x = (
        PILOT(iterations=2),
        torch.randn(WORLD.y.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)),
    )
    state = state_of(task_of(), x, t=500, step=10)
    rate, velocity = method.rate_at(state), torch.zeros_like(x)
    for _ in range(2):
        x = x.detach().requires_grad_()
        loss = method.loss(state, linear().semantic(x, state.now, fine=False))
        velocity = 0.7 * velocity - rate * torch.autograd.grad(loss.sum(), x)[0]
        x = (x + velocity).detach()
    torch.testing.assert_close(method.before_denoise(state), x)


def test_known_pixels_are_nearer_to_the_image_than_without():
    known = WORLD.hole.expand_as(WORLD.y) == 0
    with_it, _ = run(PILOT(interval=1))
    without, _ = run(PILOT(iterations=0))
    errors = [float((one.raw - WORLD.y)[known].square().mean()) for one in (with_it, without)]
    assert errors[0] < 0.5 * errors[1]


# ---- the order of things ---------------------------------------------------------------------------


def test_without_iterations_it_is_the_plain_sampler():
    plain, _ = run(SamplingMethod())
    assert torch.equal(run(PILOT(iterations=0))[0].raw, plain.raw)


def test_all_hole_is_the_plain_sampler_bit_for_bit():
    task = task_of(torch.ones_like(WORLD.hole))
    assert torch.equal(run(PILOT(), task=task)[0].raw, run(SamplingMethod(), task=task)[0].raw)


def test_all_known_comes_back():
    sample, _ = run(PILOT(interval=1), task=task_of(torch.zeros_like(WORLD.hole)))
    assert torch.equal(sample.image, WORLD.y)


class BlendFirst(SamplingMethod):
    """Blended Latent Diffusion in the order of its first code, from pure noise: known latents at level t, then the step."""

    def before_denoise(self, state):
        from rad.methods.guidance import replace_known

        return replace_known(state, state.x, state.now)


def test_no_coherence_is_blended_latent_diffusion():
    made, planned = run(PILOT(coherence=0.0))
    assert torch.equal(made.raw, run(BlendFirst())[0].raw)
    assert (made.nfe, made.vjp) == (20, 0) == (planned.nfe, planned.vjp)
    assert not torch.equal(made.raw, run(Blended(skip=0.0))[0].raw), "which blends after the step"


class CountingTape(KeyedNoise):
    drawn = 0

    def randn(self, number, shape):
        type(self).drawn = max(type(self).drawn, number + 1)
        return super().randn(number, shape)


@pytest.mark.parametrize(("coherence", "draws"), [(1.0, 1), (0.5, 11), (0.0, 21)])
def test_only_blending_draws_noise(coherence, draws):
    CountingTape.drawn = 0
    sampler = Sampler(Uniform(BETAS), PILOT(coherence=coherence, iterations=1), steps=20, eta=0.0)
    with CountingTape(0, ["a"]) as noise:
        sampler(linear(), task_of(), noise=noise)
    assert CountingTape.drawn == draws


@pytest.mark.parametrize(
    ("settings", "steps", "calls", "backward"),
    [
        ({}, 20, 40, 20),  # steps 0 and 10
        ({"interval": 1, "iterations": 2}, 20, 60, 40),
        ({"interval": 3, "iterations": 4}, 20, 48, 28),  # 0, 3, ..., 18
        ({"interval": 3, "iterations": 4, "coherence": 0.5}, 20, 36, 16),  # 0, 3, 6, 9: t = 999 to 526
        ({"coherence": 0.0}, 20, 20, 0),
        ({}, 1, 11, 10),
    ],
)
def test_actual_calls_equal_planned_calls(settings, steps, calls, backward):
    made, planned = run(PILOT(**settings), steps=steps)
    assert (made.nfe, made.vjp) == (calls, backward) == (planned.nfe, planned.vjp)


def test_the_preset_costs_as_much_as_the_papers_configuration():
    times = [round(999 * (1 - i / 99)) for i in range(100)] + [CLEAN]
    assert (PILOT().cost(times).nfe, PILOT().cost(times).vjp) == (200, 100)
    assert PILOT(coherence=0.8).cost(times).vjp == 80


def test_it_does_not_depend_on_the_units_of_the_noise_levels():
    own, _ = run(PILOT(coherence=0.8, interval=2))
    scaled, _ = run(PILOT(coherence=0.8, interval=2), process=Scaled(Uniform(BETAS)))
    torch.testing.assert_close(scaled.raw, own.raw, rtol=0, atol=1e-5)


def test_an_image_depends_neither_on_its_batch_nor_on_its_holes_content():
    image, hole = torch.cat([WORLD.y, WORLD.y.flip(-2)]), torch.cat([WORLD.hole, WORLD.hole.flip(-1)])
    both, _ = run(PILOT(interval=2), task=Task.from_image(image, hole), names=("a", "b"))
    alone, _ = run(PILOT(interval=2), task=Task.from_image(image[1:], hole[1:]), names=("b",))
    torch.testing.assert_close(both.raw[1:], alone.raw, rtol=0, atol=1e-6)
    other, _ = run(PILOT(interval=2), task=Task.from_image(torch.where(hole == 1, 3.0, image), hole), names=("a", "b"))
    assert torch.equal(other.raw, both.raw)


def test_without_text_only_known_pixels_are_minded():
    quiet = linear(text=False)
    made = [run(PILOT(interval=2, weight=weight), denoiser=quiet)[0].raw for weight in (0.0, 150.0)]
    assert torch.equal(made[0], made[1])
    spoken = [run(PILOT(interval=2, weight=weight))[0].raw for weight in (0.0, 150.0)]
    assert float((spoken[0] - spoken[1]).abs().max()) > 1e-3


def test_all_layers_are_more_than_the_coarse_ones():
    made = [run(PILOT(interval=2, layers=layers))[0].raw for layers in ("coarse", "all")]
    assert float((made[0] - made[1]).abs().max()) > 1e-4


def test_a_model_without_text_is_refused_in_one_line():
    with pytest.raises(ValueError, match="needs a text-to-image model with cross-attention") as caught:
        run(PILOT(), denoiser=WORLD.denoiser)
    assert "\n" not in str(caught.value)


# ---- with a network --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_stable(tmp_path_factory.mktemp("stable")))


def latents(*holes):
    random = torch.Generator().manual_seed(4)
    return Task.from_image(torch.randn(len(holes), 4, 16, 16, generator=random), torch.cat(holes))


def box():
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 4:12, 2:14] = 1
    return hole


def fill(model, method, task, *conditions, names=("a", "b"), steps=4):
    denoiser = model.denoiser(conditions, adapter=False)
    sampler = Sampler(model.base_process, method, steps=steps, eta=0.0)
    with KeyedNoise(0, list(names[: len(conditions)])) as noise:
        return sampler(denoiser, task, noise=noise)


def test_text_acts_in_the_hole_alone_in_the_steps_too(model):
    """Even with no step of the descent the prompt is bounded."""
    task, still = latents(box()), PILOT(iterations=0)
    bounded, plain = fill(model, still, task, CAT).raw, fill(model, SamplingMethod(), task, CAT).raw
    assert float((bounded - plain).abs().max()) > 1e-2
    empty = [fill(model, kind, task, Condition("")).raw for kind in (still, SamplingMethod())]
    assert torch.equal(*empty), "without a prompt it is not"


def test_all_hole_is_guided_ddim_bit_for_bit(model):
    task = latents(torch.ones(1, 1, 16, 16))
    made = fill(model, PILOT(interval=2, iterations=2), task, CAT)
    assert torch.equal(made.raw, fill(model, SamplingMethod(), task, CAT).raw)


def test_all_known_is_not_bounded_and_comes_back(model):
    task = latents(torch.zeros(1, 1, 16, 16))
    still = [fill(model, kind, task, CAT).raw for kind in (PILOT(iterations=0), SamplingMethod())]
    assert torch.equal(*still)
    assert torch.equal(fill(model, PILOT(iterations=1), task, CAT).image, task.known)


def test_the_words_are_drawn_into_the_hole(model):
    """A descent of the semantic loss alone, at one level: their share of attention inside grows against outside."""
    task = latents(box())
    denoiser = model.denoiser([CAT], adapter=False).bounded(task.hole)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    method = PILOT(iterations=8, momentum=0.0, rate=0.05, growth=1.0, weight=1e4)
    state = state_of(task, x, t=600, step=10, process=model.base_process, denoiser=denoiser)
    moved = method.before_denoise(state)
    with torch.no_grad():
        scores = [float(semantic_loss(task, state.denoiser.semantic(one, state.now, fine=False))) for one in (x, moved)]
    assert -1 <= scores[1] < scores[0] - 1e-4


@pytest.mark.slow
def test_images_of_a_batch_are_filled_as_if_alone(model):
    """With different holes, one of them everything, and different texts, one of them none."""
    random = torch.Generator().manual_seed(6)
    image = torch.randn(3, 4, 16, 16, generator=random)
    task = Task.from_image(image, torch.cat([box(), torch.ones_like(box()), box().roll(3, -2)]))
    method = PILOT(interval=1, iterations=2, coherence=0.6)
    conditions = (CAT, Condition("bird", guidance=1.0), Condition(""))
    made = fill(model, method, task, *conditions, names=("a", "b", "c"))
    assert (made.nfe, made.vjp) == (8, 4)
    for row, name in enumerate("abc"):
        own = slice(row, row + 1)
        alone = fill(model, method, Task.from_image(image[own], task.hole[own]), conditions[row], names=(name,))
        torch.testing.assert_close(made.raw[own], alone.raw, rtol=1e-3, atol=1e-3)
