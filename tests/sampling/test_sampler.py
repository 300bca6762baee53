"""The reverse loop: its noise, the state that methods see, and its counts."""

import pytest
import torch

from rad.diffusion.denoiser import UNetDenoiser
from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import RegionAware, Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.step import Denoised
from rad.methods import METHODS
from rad.networks.unet import patch
from rad.rng import KeyedNoise, generator, key
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser
from rad.sampling.task import Task
from tests.tiny_networks import small_unet

BETAS = linear_betas()
PRIOR = UNetDenoiser(patch(small_unet(dtype=torch.float64)).requires_grad_(False))


def original(rows=2, seed=0):
    return 2 * torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def box(rows=2):
    hole = torch.zeros(rows, 1, 16, 16, dtype=torch.float64)
    hole[..., 4:12, 6:16] = 1
    return hole


def run(process, image, hole, *, method=None, steps=6, names=None, **options):
    with KeyedNoise(0, names or range(len(image))) as noise:
        return Sampler(process, method, steps=steps, **options)(PRIOR, Task.from_image(image, hole), noise=noise)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_everything_known_returns_the_image_bit_for_bit(eta):
    image = original()
    sample = run(RegionAware(BETAS), image, torch.zeros(2, 1, 16, 16), eta=eta)
    assert torch.equal(sample.raw, image)
    assert torch.equal(sample.image, image)


@pytest.mark.spread(2)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver", [{}, {"spacing": "logsnr"}, {"solver": "dpm++2m", "spacing": "logsnr"}])
def test_everything_hole_is_the_base_models_own_sampler(eta, solver):
    everything = torch.ones(2, 1, 16, 16)
    rad = run(RegionAware(BETAS, time_origin="adm"), original(), everything, eta=eta, **solver)
    plain = run(Uniform(BETAS), original(seed=1), everything, eta=eta, **solver)
    torch.testing.assert_close(rad.raw, plain.raw, rtol=0, atol=1e-7)  # times 1e-10 apart, in the float32 sinusoid
    assert plain.raw.std() > 0.01


@pytest.mark.parametrize("method", ["rad", "replacement"])
def test_the_holes_content_has_no_effect(method):
    image, other = original(), original(seed=1)
    hole = box()
    other = torch.where(hole == 1, other, image)
    method = METHODS[method]()
    process = method.process(Uniform(BETAS), "adm")
    one, two = (run(process, x, hole, method=method) for x in (image, other))
    assert torch.equal(one.raw, two.raw)
    assert torch.equal(one.image[hole.expand_as(image) == 0], image[hole.expand_as(image) == 0])
    changed = run(process, torch.where(hole == 1, image, image.flip(-1)), hole, method=method)
    assert not torch.equal(changed.raw, one.raw), "what is known does matter"


def test_an_untrained_variance_is_left_out():
    noise = Uniform(BETAS).noise(torch.tensor([500, 500]))
    with_variance = PRIOR.denoise(original(), noise)
    without = UNetDenoiser(PRIOR.network, learned_variance=False).denoise(original(), noise)
    assert with_variance.variance_fraction is not None
    assert without.variance_fraction is None
    assert torch.equal(with_variance.x0, without.x0)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_every_parameterisation_finds_x0_from_a_perfect_network(kind):
    noise = Uniform(BETAS).noise(torch.tensor([500, 700]))
    x0, eps = (
        0.9 * original(),
        torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
    )
    a, s = noise.alpha_map(), noise.sigma_map()
    answer = {"epsilon": eps, "sample": x0, "v_prediction": a * eps - s * x0}[kind]

    def network(x, times, index):
        return type("Output", (), {"sample": answer})

    estimate = UNetDenoiser(network, prediction_type=kind).denoise(a * x0 + s * eps, noise)
    torch.testing.assert_close(estimate.x0, x0, rtol=0, atol=1e-9)


def test_rad_does_not_touch_known_pixels_on_the_way():
    seen = []

    class Watch(SamplingMethod):
        def after_step(self, state, denoised, x_next):
            seen.append(x_next)
            return x_next

    image, hole = original(), box()
    run(RegionAware(BETAS), image, hole, method=Watch())
    known = hole.expand_as(image) == 0
    assert len(seen) == 6
    assert all(torch.equal(x[known], image[known]) for x in seen)


def test_order_in_the_batch_does_not_matter():
    image, hole = original(), box()
    hole[1] = hole[1].flip(-1)
    together = run(RegionAware(BETAS), image, hole, names=["a", "b"])
    swapped = run(RegionAware(BETAS), image.flip(0), hole.flip(0), names=["b", "a"])
    alone = run(RegionAware(BETAS), image[1:], hole[1:], names=["b"])
    torch.testing.assert_close(together.raw, swapped.raw.flip(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(together.raw[1:], alone.raw, rtol=0, atol=1e-12)


def test_flipping_image_hole_and_noise_flips_the_steps_of_a_flip_equivariant_prior():
    class Blur:
        channels = 3

        def denoise(self, x, noise):
            return Denoised(torch.nn.functional.avg_pool2d(x, 3, 1, 1))

    class FlippedNoise(KeyedNoise):
        def randn(self, number, shape):
            return super().randn(number, shape).flip(-1)

    image, hole = original(), box()
    results = []
    for noise_class, flip in ((KeyedNoise, False), (FlippedNoise, True)):
        task = Task.from_image(image.flip(-1), hole.flip(-1)) if flip else Task.from_image(image, hole)
        with noise_class(0, range(2)) as rng:
            results.append(Sampler(RegionAware(BETAS), steps=6)(Blur(), task, noise=rng).raw)
    torch.testing.assert_close(results[0], results[1].flip(-1), rtol=0, atol=1e-12)


def test_counts_and_plan():
    visited = []

    class Travel(SamplingMethod):
        needs_grad = True

        def plan(self, times):
            return [*times[:3], times[1], *times[2:]]

        def before_denoise(self, state):
            visited.append((state.timestep, state.next_timestep, state.step, state.steps))
            assert state.x.requires_grad
            return state.x

    sampler = Sampler(Uniform(BETAS), Travel(), steps=5)
    assert sampler.timesteps == [999, 749, 500, 749, 500, 250, 0, CLEAN]
    assert sampler.cost.nfe == 6
    with KeyedNoise(0, range(2)) as noise:
        sample = sampler(PRIOR, Task.from_image(original(), box()), noise=noise)
    assert (sample.nfe, sample.vjp) == (6, 0)
    assert [pair[:2] for pair in visited] == [
        (999, 749),
        (749, 500),
        (749, 500),
        (500, 250),
        (250, 0),
        (0, CLEAN),
    ]
    assert [pair[2:] for pair in visited] == [(i, 6) for i in range(6)]
    assert not sample.raw.requires_grad


def test_every_network_call_is_reported_with_its_estimate():
    estimates, calls = [], []

    class Recorded:
        channels = 3

        def denoise(self, x, noise):
            denoised = PRIOR.denoise(x, noise)
            estimates.append(denoised.x0)
            return denoised

    sampler = Sampler(Uniform(BETAS), METHODS["gradpaint"](), steps=3)
    with KeyedNoise(0, range(2)) as noise:
        task = Task.from_image(original(), box())
        sample = sampler(Recorded(), task, noise=noise, on_call=lambda *call: calls.append(call))
    assert [number for number, _ in calls] == list(range(1, sample.nfe + 1))
    assert all(torch.equal(x0, expected) for (_, x0), expected in zip(calls, estimates, strict=True))
    assert not any(x0.requires_grad for _, x0 in calls)


def test_denoisers_within_each_other_report_to_all_that_listen():
    seen = {"outer": [], "inner": []}
    outer = CountedDenoiser(PRIOR, on_call=lambda calls, x0: seen["outer"].append((calls, x0.shape[2])))
    inner = CountedDenoiser(outer, on_call=lambda calls, x0: seen["inner"].append((calls, x0.shape[2])))
    second = CountedDenoiser(PRIOR, within=inner)
    noise = Uniform(BETAS).noise(torch.tensor([500, 500]))
    for denoiser, size in ((outer, 16), (inner, 16), (second, 8)):
        denoiser.denoise(original()[..., :size, :size], noise)
    assert seen == {"outer": [(1, 16), (2, 16), (3, 8)], "inner": [(1, 16), (2, 8)]}


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="eta is 2"):
        Sampler(Uniform(BETAS), eta=2)
    with pytest.raises(ValueError, match="steps is 0"):
        Sampler(Uniform(BETAS), steps=0)
    with pytest.raises(ValueError, match=r"expected \(B,C,H,W\) and \(B,1,H,W\)"):
        Task.from_image(original(), box()[..., :8])


def test_the_tape_is_keyed_by_seed_image_sample_and_draw():
    with KeyedNoise(0, ["a", "b", "a", "a"], [0, 0, 0, 1]) as noise:
        first, second = noise.randn(0, (3, 5, 5)), noise.randn(1, (3, 5, 5))
        assert torch.equal(first[0], first[2])
        again = noise.randn(0, (3, 5, 5))
    assert torch.equal(first, again)
    different = [first[0], first[1], first[3], second[0], second[1], second[3]]
    assert all(not torch.equal(x, y) for i, x in enumerate(different) for y in different[:i])
    with KeyedNoise(1, ["a"]) as noise:
        assert not torch.equal(noise.randn(0, (3, 5, 5))[0], first[0])
    with pytest.raises(ValueError, match="2 images but 1 sample numbers"):
        KeyedNoise(0, ["a", "b"], [0])


def test_the_tape_leaves_the_global_generator_alone_and_is_normal():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with KeyedNoise(0, range(64)) as noise:
        drawn = noise.randn(0, (1, 32, 32))
    assert torch.equal(torch.rand(1), expected)
    assert float(drawn.mean()) == pytest.approx(0, abs=4 / 256)
    assert float(drawn.std()) == pytest.approx(1, abs=4 / 256)


def test_keys_do_not_confuse_their_parts():
    assert len({key(1, 23), key(12, 3), key("1", 23), key(123), key(1, 2, 3), key("a", "b"), key("ab")}) == 7
    assert torch.equal(torch.rand(3, generator=generator(1, "x")), torch.rand(3, generator=generator(1, "x")))
