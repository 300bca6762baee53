"""VIPaint: its levels, each term of its bound against closed forms, and how near it comes to the exact posterior."""

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from rad.diffusion.processes import EDM, Flow, Uniform
from rad.diffusion.schedules import karras_sigmas, linear_betas, shifted_sigmas
from rad.diffusion.spacings import spaced_timesteps
from rad.diffusion.step import reverse_step, step_levels
from rad.methods.guidance import residual, squared_norm
from rad.methods.replacement import Replacement
from rad.methods.vipaint import VIPaint, kl
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import Cost, CountedDenoiser, State, level
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, distance, law, make_world, moments
from tests.gaussian import kl as gaussian_kl
from tests.linear_autoencoder import LinearAutoencoder

WORLD = make_world()
BETAS = linear_betas()
TIMES = [565, 395]


class Tape:
    """Normal images for a whole batch, quicker than a generator for every image."""

    def __init__(self, rows, seed=0):
        self.rows, self.numbers = rows, torch.Generator().manual_seed(seed)

    def randn(self, number, shape):
        return torch.randn(self.rows, *shape, generator=self.numbers, dtype=DOUBLE)


def state_of(method, rows) -> State:
    process = method.process(Uniform(BETAS), "adm")
    task = Task.from_image(WORLD.y.expand(rows, 1, 8, 8), WORLD.hole.expand(rows, 1, 8, 8))
    now, nxt = level(process, 395, task), level(process, 300, task)
    noise = Tape(rows)
    denoiser = CountedDenoiser(WORLD.denoiser)
    return State(
        task,
        process,
        denoiser,
        0,
        1,
        395,
        300,
        now,
        nxt,
        torch.zeros_like(task.known),
        lambda: noise.randn(0, (1, 8, 8)),
    )


def run(method, *, steps=50, rows=2, seed=0):
    task = Task.from_image(WORLD.y.expand(rows, 1, 8, 8), WORLD.hole.expand(rows, 1, 8, 8))
    sampler = Sampler(method.process(Uniform(BETAS), "adm"), method, steps=steps)
    noise: Any = Tape(rows, seed)
    sample = sampler(WORLD.denoiser, task, noise=noise)
    assert (sample.nfe, sample.vjp) == (sampler.cost.nfe, sampler.cost.vjp)
    return sample.raw


def test_levels_are_those_of_the_papers_window():
    method = VIPaint()
    process = method.process(Uniform(BETAS), "adm")
    assert process.sampled_steps == TIMES[1] + 1
    noise = process.noise(torch.tensor([565, 566, 395, 396]), None)
    ratio = (noise.alpha / noise.sigma).flatten()
    assert ratio[0] >= 0.2 > ratio[1]
    assert ratio[2] >= 0.5 > ratio[3]
    seen = []

    class Spy(VIPaint):
        def fit(self, state, times):
            seen.append(times)
            return super().fit(state, times)

    for levels in (1, 2, 4):
        run(Spy(levels=levels, iterations=1), steps=1)
    assert seen == [[395], TIMES, [565, 508, 452, 395]]


def test_cost():
    times = spaced_timesteps(396, 250)
    assert VIPaint().cost(times) == Cost(401, 400)
    assert VIPaint(levels=4).cost(times) == Cost(503, 500)
    for levels in (1, 2, 3):
        run(VIPaint(levels=levels, iterations=3), steps=4)  # counted


def test_the_rates_fall_to_zero(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: seen.append([g["lr"] for g in self.param_groups]))
    run(VIPaint(iterations=4, rate=0.2, rate_shape=0.04), steps=1)
    assert seen == [pytest.approx([0.2 * left, 0.04 * left, 0.04 * left]) for left in (1, 0.75, 0.5, 0.25)]


class Dead:
    channels = 1

    def denoise(self, x, noise):
        raise AssertionError("a network was called")


@pytest.mark.parametrize(
    ("process", "method"),
    [
        (Uniform(BETAS), VIPaint()),  # begins with pure noise
        (VIPaint().process(Uniform(BETAS), "adm"), VIPaint(levels=700)),
        (VIPaint().process(Uniform(BETAS), "adm"), VIPaint(lowest=0.6)),
    ],
)
def test_another_process_is_refused_before_any_call(process, method):
    with (
        KeyedNoise(0, ["a"]) as noise,
        pytest.raises(ValueError, match=r"must end at a / s = 0\.[56]: use the method's process"),
    ):
        Sampler(process, method, steps=5)(Dead(), Task.from_image(WORLD.y, WORLD.hole), noise=noise)


def test_a_reversed_window_is_refused():
    with pytest.raises(ValueError, match=r"highest is 0\.6; allowed are values below lowest, 0\.5"):
        VIPaint(highest=0.6)


def test_kl_is_that_of_torch():
    numbers = torch.Generator().manual_seed(0)
    mean, other = torch.randn(2, 3, 1, 2, 2, generator=numbers, dtype=DOUBLE)
    v, w = torch.rand(2, 3, 1, 2, 2, generator=numbers, dtype=DOUBLE) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, v.sqrt()), normal(other, w.sqrt()))
    torch.testing.assert_close(kl(mean, v, other, w), expected.flatten(1).sum(1))


def parameters(rows, *, mu, log_variances, gamma):
    mu = mu.expand(rows, len(log_variances), 1, 8, 8)
    spread = torch.tensor(log_variances, dtype=DOUBLE).log()[None, :, None, None, None].expand_as(mu)
    return torch.stack([mu, spread, torch.full_like(mu, gamma)], 1)


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_with_the_priors_weight_and_variance_a_level_is_a_reverse_step_and_has_no_divergence(eta):
    method = VIPaint(step_eta=eta)
    state = state_of(method, 3)
    now, nxt = state.level(TIMES[0]), state.level(TIMES[1])
    ab = [float(noise.alpha[0, 0]) ** 2 for noise in (now, nxt)]
    posterior = (1 - ab[0] / ab[1]) * (1 - ab[1]) / (1 - ab[0])
    q = parameters(3, mu=0.3 * WORLD.y, log_variances=[0.8, eta**2 * posterior], gamma=60)
    z, divergence = method.sample(state, TIMES, q)
    fresh = Tape(3)
    first, second = (fresh.randn(0, (1, 8, 8)) for _ in range(2))
    x = ab[0] ** 0.5 * 0.3 * WORLD.y + 0.8**0.5 * first
    expected = reverse_step(x, WORLD.denoiser.denoise(x, now), now, nxt, eta=eta, noise=second)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(divergence, torch.zeros(3, dtype=DOUBLE), rtol=0, atol=1e-10)
    # With no weight on the prior it is the level's own Gaussian.
    z, divergence = method.sample(state_of(method, 3), TIMES, q - 120 * torch.tensor([0, 0, 1.0]).view(3, 1, 1, 1, 1))
    torch.testing.assert_close(z, ab[1] ** 0.5 * 0.3 * WORLD.y + eta * posterior**0.5 * second)
    assert bool((divergence > 1).all())


def above(method, state, q, stride):
    """The sum over all levels above h_1, estimated from every `stride`-th level."""
    times = range(TIMES[0] + 1, 1000, stride)
    return sum(method.divergence_above(state, TIMES[0], t, q).mean() for t in times) * (434 / len(times))


def marginal(state):
    """p at h_1."""
    a, s = (float(one) for one in (state.level(TIMES[0]).alpha[0, 0], state.level(TIMES[0]).sigma[0, 0]))
    return (
        a * WORLD.denoiser.mean.flatten(),
        a * a * WORLD.denoiser.covariance + s * s * torch.eye(64, dtype=DOUBLE),
        a,
        s,
    )


def test_the_levels_above_add_up_to_the_divergence_from_the_prior_at_the_first():
    """Closed form: 0.0130 and 0.2960 nats. The sum bounds it from above, by 5 and 6 percent at 434 levels (measured)."""
    method, rows = VIPaint(), 200
    mean, covariance, a, s = marginal(state_of(method, rows))
    for shift, variance in ((0.0, s * s), (0.5, 0.9 * s * s)):
        mu = WORLD.denoiser.mean[None] + shift * WORLD.y
        exact = gaussian_kl(a * mu.flatten(), variance * torch.eye(64, dtype=DOUBLE), mean, covariance)
        q = parameters(rows, mu=mu, log_variances=[variance, 1.0], gamma=5)
        found = float(above(method, state_of(method, rows), q, 7))
        assert 1 < found / exact < 1.12


def evidence(method, state):
    """log p(known y) of the model that is fitted: z_1 of the prior, one step, x0 of the prior with variance sigma_y^2."""
    mean, covariance, _, _ = marginal(state)
    basis = torch.cat([torch.zeros(1, 64, dtype=DOUBLE), torch.eye(64, dtype=DOUBLE)]).view(65, 1, 8, 8)
    now, nxt = state.level(TIMES[0]), state.level(TIMES[1])
    now, nxt = (replace(n, alpha=n.alpha[:1], sigma=n.sigma[:1], timesteps=n.timesteps[:1]) for n in (now, nxt))

    def affine(images):
        return (images[1:] - images[0]).flatten(1).T, images[0].flatten()

    step, offset = affine(
        reverse_step(basis, WORLD.denoiser.denoise(basis, now), now, nxt, noise=torch.zeros_like(basis))
    )
    variance = float(step_levels(now, nxt).posterior)
    mean, covariance = step @ mean + offset, step @ covariance @ step.T + variance * torch.eye(64, dtype=DOUBLE)
    look, offset = affine(WORLD.denoiser.denoise(basis, nxt).x0)
    mean, covariance = look @ mean + offset, look @ covariance @ look.T
    known = ~WORLD.inside
    noise = method.sigma_y**2 * torch.eye(int(known.sum()), dtype=DOUBLE)
    law_of_y = torch.distributions.MultivariateNormal(mean[known], covariance[known][:, known] + noise)
    return float(law_of_y.log_prob(WORLD.y.flatten()[known]))


def test_the_loss_bounds_the_evidence_and_the_fit_tightens_it():
    rows, known = 100, 48
    method = VIPaint(iterations=200)

    def bound(q):
        state = state_of(method, rows)
        z, divergence = method.sample(state, TIMES, q)
        misfit = residual(state.task, state.denoiser.denoise(z, state.level(TIMES[1])).x0)
        loss = divergence + squared_norm(misfit) / (2 * method.sigma_y**2)
        return float(loss.mean() + above(method, state, q, 14)) + known / 2 * math.log(2 * math.pi * method.sigma_y**2)

    exact = -evidence(method, state_of(method, rows))
    first = bound(VIPaint(iterations=0).fit(state_of(method, rows), TIMES))
    fitted = bound(method.fit(state_of(method, rows), TIMES))
    # Measured: 31.0, 33.3 and 50.7 nats; the standard error of either bound is about 0.5.
    assert exact < fitted < exact + 6 < first


def test_each_image_is_fitted_alone_unless_shared():
    task = Task.from_image(torch.cat([WORLD.y, WORLD.y, 0.5 * WORLD.y]), WORLD.hole.expand(3, 1, 8, 8))
    fitted = []

    class Spy(VIPaint):
        def fit(self, state, times):
            fitted.append(super().fit(state, times))
            return fitted[-1]

    def spied(names, task, share):
        with KeyedNoise(0, list(names)) as noise:
            method = Spy(iterations=5, share=share)
            raw = Sampler(method.process(Uniform(BETAS), "adm"), method, steps=5)(WORLD.denoiser, task, noise=noise).raw
        return raw, fitted.pop()

    raw, own = spied("abc", task, False)
    shared_raw, shared = spied("abc", task, True)
    torch.testing.assert_close(shared, own[[0, 2]], rtol=0, atol=1e-9)
    torch.testing.assert_close(shared_raw[[0, 2]], raw[[0, 2]], rtol=0, atol=1e-9)
    assert float((own[0] - own[1]).abs().max()) > 1e-3
    assert float((shared_raw[0] - shared_raw[1]).abs().max()) > 1e-3
    alone, _ = spied("b", Task.from_image(WORLD.y, WORLD.hole), False)
    torch.testing.assert_close(alone, raw[1:2], rtol=0, atol=1e-9)
    other = Task.from_image(WORLD.y.repeat(2, 1, 1, 1), torch.cat([WORLD.hole, WORLD.hole.flip(-1)]))
    assert len(spied("ab", other, True)[1]) == 2


@pytest.mark.spread(1)
@pytest.mark.parametrize("levels", [2, 4])
def test_distance_from_the_exact_posterior(levels):
    found = distance(WORLD, *moments(run(VIPaint(levels=levels), steps=100, rows=300)))
    replacement = distance(WORLD, *law(WORLD, Replacement(), steps=100))
    # Measured 0.21, 0.74 and 0.73 (400 rows). Four standard errors of 300: about 0.15, 0.1, 0.3. Replacement: 1.12, 2.2, 5.7.
    assert found.mean_error < replacement.mean_error / 3
    assert found.variance_ratio == pytest.approx(0.74, abs=0.1)
    assert found.kl < 1.2


def test_without_its_gradient_it_is_the_plain_chain_below_the_last_level():
    process = VIPaint().process(Uniform(BETAS), "adm")
    task = Task.from_image(WORLD.y, torch.ones_like(WORLD.hole))
    starts = []

    class Spy(VIPaint):
        def on_start(self, state):
            starts.append(super().on_start(state))
            return starts[-1]

    class From(SamplingMethod):
        def on_start(self, state):
            for _ in range(4):
                state.randn()  # two of the fit's start, two levels
            return starts[0]

    raws = []
    for callback in (Spy(iterations=0, zeta=0.0), From()):
        with KeyedNoise(0, ["a"]) as noise:
            raws.append(Sampler(process, callback, steps=6)(WORLD.denoiser, task, noise=noise).raw)
    assert torch.equal(*raws)


@pytest.mark.parametrize(
    ("own", "top", "low"),
    [
        (Flow(shifted_sigmas()), 1 / 1.2, 1 / 1.5),
        (EDM(karras_sigmas()), 5.0, 2.0),
        (Uniform(BETAS), 1.04**-0.5, 1.25**-0.5),
    ],
    ids=["flow", "edm", "vp"],
)
def test_the_window_exists_on_any_process_and_keeps_the_models_process(own, top, low):
    """s where a / s is 0.2 and 0.5: sigma = 1 / 1.2 and 1 / 1.5 of a flow, 5 and 2 of EDM. From below."""
    seen, steps = [], own.sampled_steps

    class Spy(VIPaint):
        def fit(self, state, times):
            seen.extend(float(state.level(t).sigma[0, 0]) for t in times)
            return super().fit(state, times)

    method = Spy(iterations=1, levels=2)
    process = method.process(own, "adm")
    assert own.sampled_steps == steps > process.sampled_steps
    with KeyedNoise(0, ["a"]) as noise:
        sample = Sampler(process, method, steps=3)(WORLD.denoiser, Task.from_image(WORLD.y, WORLD.hole), noise=noise)
    assert bool(sample.raw.isfinite().all())
    assert seen == pytest.approx([top, low], rel=0.01)
    assert seen[0] <= top * (1 + 1e-9)


def spied_fit(task, names, method):
    fitted = []

    class Spy(VIPaint):
        def fit(self, state, times):
            fitted.append((state.task, super().fit(state, times)))
            return fitted[-1][1]

    spy = Spy(**{one.name: getattr(method, one.name) for one in fields(method)})
    with KeyedNoise(0, list(names)) as noise:
        raw = Sampler(spy.process(Uniform(BETAS), "adm"), spy, steps=4)(WORLD.denoiser, task, noise=noise).raw
    return raw, *fitted[0]


def test_for_pixels_both_spaces_are_equal_bit_for_bit():
    task = Task.from_image(WORLD.y, WORLD.hole)
    latent, pixels = (spied_fit(task, "a", VIPaint(iterations=4, space=space)) for space in ("latent", "pixels"))
    assert torch.equal(latent[0], pixels[0])
    assert torch.equal(latent[2], pixels[2])


def test_a_fit_on_latents_keeps_the_image_of_each_image():
    autoencoder, hole = LinearAutoencoder(blur=0.5), WORLD.hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = torch.cat([autoencoder.decode(WORLD.y), autoencoder.decode(0.5 * WORLD.y)])[[0, 1, 0]]
    task = Task.encoded(images, hole.expand(3, 1, 16, 16), autoencoder)
    method = VIPaint(iterations=4, space="pixels")
    raw, seen, _ = spied_fit(task, "abc", method)
    assert torch.equal(seen.image, task.image)
    assert seen.autoencoder is autoencoder
    alone = spied_fit(Task.encoded(images[1:2], hole, autoencoder), "b", method)[0]
    torch.testing.assert_close(alone, raw[1:2], rtol=0, atol=1e-9)
    shared = spied_fit(task, "abc", replace(method, share=True))
    assert torch.equal(shared[1].image, task.image[:2])
    torch.testing.assert_close(shared[0][:2], raw[:2], rtol=0, atol=1e-9)


def test_the_likelihood_has_the_weight_of_the_number_of_values_of_x():
    """A decoder that repeats and halves also halves the misfit of a pixel; sigma_y is halved to match."""
    autoencoder, hole = LinearAutoencoder(), WORLD.hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    task = Task.encoded(autoencoder.decode(WORLD.y), hole, autoencoder)
    latent, pixels = (
        spied_fit(task, "a", VIPaint(iterations=4, space=space, sigma_y=sigma))[2]
        for space, sigma in (("latent", 0.6), ("pixels", 0.3))
    )
    torch.testing.assert_close(pixels, latent, rtol=1e-9, atol=1e-9)
