"""What every method must do, on Gaussian data where the exact denoiser is known; a new method is tested by its registration."""

from dataclasses import fields, replace

import pytest
import torch

from rad.cli.sample.plan import parse_settings
from rad.diffusion import choices
from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods import METHODS
from rad.methods.m2s import M2S
from rad.methods.registry import RECONSTRUCTED, cost, create, hooks, most_steps, steps_within, table
from rad.rng import KeyedNoise
from rad.sampling.method import CustomSampler, SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import DOUBLE, make_world, with_needs

WORLD = make_world()
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=DOUBLE)
STEPS = 24
BOTH = WORLD.hole.repeat(2, 1, 1, 1)
BOTH[1] = BOTH[1].flip(-1)
PICTURES = torch.cat([WORLD.y, 0.7 * WORLD.y.flip(-2)])


SHORT = {"mcgdiff": {"particles": "8"}, "vipaint": {"iterations": "10"}, "m2s": {"trips": "1"}}


class Scaled:
    """Another process in units x / a: the signal has amplitude 1, as in EDM."""

    def __init__(self, process):
        self.process, self.steps, self.sampled_steps = process, process.steps, process.sampled_steps

    def noise(self, t, regions):
        noise = self.process.noise(t, regions)
        return replace(noise, alpha=torch.ones_like(noise.alpha), sigma=noise.sigma / noise.alpha)

    def time_of(self, log_snr):
        return self.process.time_of(log_snr)


def method_of(name):
    return with_needs(create(name, SHORT.get(name)))


def run(name, image, hole, *, names=("a", "b"), scaled=False, seed=0, steps=STEPS):
    method = method_of(name)
    process = method.process(Uniform(BETAS), "adm")
    if scaled and isinstance(method, M2S):
        method = replace(method, coarse=replace(method.coarse, process=Scaled(method.coarse.process)))
    sampler = Sampler(
        Scaled(process) if scaled else process,
        method,
        **vars(method.choose(steps=steps)),
    )
    with KeyedNoise(seed, list(names[: len(image)])) as noise:
        return sampler(WORLD.denoiser, Task.from_image(image, hole), noise=noise), sampler.cost


ORACLE = [
    name for name, kind in METHODS.items() if not kind.needs_text and name not in ("inpainting_model", "lama")
]  # the Gaussian world has no text, and is no network for inpainting


@pytest.fixture(scope="module", params=ORACLE)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def both(name):
    return run(name, PICTURES, BOTH)


def test_known_pixels_are_kept_and_the_hole_is_finite(name, both):
    sample, _ = both
    assert sample.image.dtype == DOUBLE
    assert bool(sample.raw.isfinite().all())
    known = BOTH == 0
    assert torch.equal(sample.image[known], PICTURES[known])
    # The hole lies within five standard deviations (0.51) of the mean, which noise left in x would not.
    assert float((sample.image - WORLD.denoiser.mean).abs().max()) < 2.6


def test_actual_calls_equal_the_plan(name, both):
    sample, planned = both
    method = method_of(name)
    assert (sample.vjp > 0) == (planned.vjp > 0)
    assert (planned.vjp > 0) <= method.needs_grad
    if name in LINE_SEARCH:
        assert sample.nfe >= planned.nfe
        assert sample.vjp == planned.vjp
    else:
        assert (sample.nfe, sample.vjp) == (planned.nfe, planned.vjp)
    assert (planned.nfe == 0) == (method.weights == "none")


LINE_SEARCH = ("copaint",)
# Known pixels are pulled, or denoised once more after they were met (ding), or left to a weight that fades (flowdps), or clipped
# to [-1,1] (latino).
PULL = ("copaint", "ding", "dps", "flair", "flowdps", "latino", "psld", "reddiff", "resample", "vipaint")


@pytest.mark.spread(8)
def test_the_holes_content_has_no_effect(name, both):
    other = torch.where(BOTH == 1, 5.0, PICTURES)
    assert torch.equal(run(name, other, BOTH)[0].raw, both[0].raw)
    moved = run(name, torch.where(BOTH == 1, PICTURES, PICTURES + 0.3), BOTH)[0].raw
    assert float((moved - both[0].raw)[BOTH == 1].abs().max()) > 0.02, "what is known does matter"


@pytest.mark.spread(8)
def test_an_image_does_not_depend_on_its_neighbours(name, both):
    swapped = run(name, PICTURES.flip(0), BOTH.flip(0), names=("b", "a"))[0]
    torch.testing.assert_close(swapped.raw.flip(0), both[0].raw, rtol=0, atol=1e-7)
    alone = run(name, PICTURES[1:], BOTH[1:], names=("b",))[0]
    torch.testing.assert_close(alone.raw, both[0].raw[1:], rtol=0, atol=1e-7)


@pytest.mark.spread(8)
def test_samples_are_deterministic_and_differ_by_seed(name, both):
    assert torch.equal(run(name, PICTURES, BOTH)[0].raw, both[0].raw)
    same = torch.equal(run(name, PICTURES, BOTH, seed=1)[0].raw, both[0].raw)
    assert same == (method_of(name).weights == "none")


@pytest.mark.spread(8)
def test_everything_known_is_the_image(name):
    sample, _ = run(name, PICTURES, torch.zeros_like(BOTH))
    assert torch.equal(sample.image, PICTURES)
    # Before known pixels are put back x has seen them at the least noise, 0.01, at least; a pull only comes nearer.
    error = (sample.raw - PICTURES).square().mean().sqrt()
    if name in PULL:
        nothing = run(name, PICTURES, torch.ones_like(BOTH))[0].raw
        assert error < 0.8 * (nothing - PICTURES).square().mean().sqrt()
    else:
        assert error < 0.03


@pytest.mark.spread(8)
def test_everything_hole_is_a_sample_of_the_data_and_needs_no_image(name):
    sample, _ = run(name, PICTURES, torch.ones_like(BOTH))
    assert torch.equal(sample.raw, run(name, PICTURES + 1, torch.ones_like(BOTH))[0].raw)
    assert bool(sample.raw.isfinite().all())
    assert float((sample.raw - WORLD.denoiser.mean).abs().max()) < 2.6


@pytest.mark.spread(8)
def test_soft_masks_are_accepted(name):
    soft = (0.5 * BOTH).roll(1, -1).maximum(BOTH)
    sample, _ = run(name, PICTURES, soft)
    assert bool(sample.raw.isfinite().all())
    assert torch.equal(sample.image[soft == 0], PICTURES[soft == 0])


@pytest.mark.spread(8)
def test_higher_soft_mask_values_change_more(name):
    """Methods that know no degrees fill every pixel above 0, and change both alike."""
    changes = [
        float((run(name, PICTURES, torch.where(BOTH == 1, value, 0.0))[0].raw - PICTURES)[BOTH == 1].square().mean())
        for value in (0.02, 0.98)
    ]
    if name in ("tdpaint", "growrad"):
        assert changes[0] == pytest.approx(changes[1], rel=1e-6)
    else:
        assert changes[0] < 0.7 * changes[1]


@pytest.mark.spread(8)
def test_it_does_not_depend_on_the_units_of_the_noise_levels(name, both):
    """Variance-preserving levels, and the same chain with signal amplitude 1."""
    scaled = run(name, PICTURES, BOTH, scaled=True)[0]
    torch.testing.assert_close(scaled.raw, both[0].raw, rtol=0, atol=1e-5)


class Flipped(KeyedNoise):
    def randn(self, number, shape):
        return super().randn(number, shape).flip(-1)


# They break ties from top left, take a uniform number from the first pixel, or draw for every second pixel.
NOT_EQUIVARIANT = ("grow", "growrad", "mcgdiff", "m2s", "navier_stokes", "telea")


@pytest.mark.spread(8)
@pytest.mark.parametrize("name", [name for name in ORACLE if name not in NOT_EQUIVARIANT])
def test_flipping_image_hole_and_noise_flips_the_result(name):
    """With a denoiser that does not know left from right: the law of the world with mean zero."""
    denoiser = GaussianDenoiser(torch.zeros_like(WORLD.denoiser.mean), WORLD.denoiser.covariance)
    method, results = method_of(name), []
    for tape_class, flip in ((KeyedNoise, False), (Flipped, True)):
        image, hole = (PICTURES.flip(-1), BOTH.flip(-1)) if flip else (PICTURES, BOTH)
        sampler = Sampler(method.process(Uniform(BETAS), "adm"), method, **vars(method.choose(steps=STEPS)))
        with tape_class(0, ["a", "b"]) as noise:
            results.append(sampler(denoiser, Task.from_image(image, hole), noise=noise).raw)
    torch.testing.assert_close(results[0], results[1].flip(-1), rtol=0, atol=1e-6)


def test_one_step_is_enough_to_run(name):
    assert bool(run(name, PICTURES, BOTH, steps=1)[0].raw.isfinite().all())


def test_a_method_describes_itself(name):
    kind = METHODS[name]
    assert kind.paper
    assert kind.__module__ == f"rad.methods.{name}"
    assert kind().name == name
    assert 1 <= kind.preset_steps <= 1000
    assert issubclass(kind, CustomSampler | SamplingMethod)
    for one in fields(kind):
        assert one.metadata["help"], f"{one.name} says nothing of itself"


def test_settings_outside_their_range_are_refused(name):
    for one in fields(METHODS[name]):
        low, high = one.metadata.get("low", float("-inf")), one.metadata.get("high", float("inf"))
        for bound, beyond in ((low, low - 1), (high, high + 1)):
            if abs(bound) != float("inf"):
                with pytest.raises(ValueError, match=rf"{one.name} is .*; allowed are"):
                    replace(METHODS[name](), **{one.name: beyond})


# ---- by name and as text ---------------------------------------------------------------------------


def test_settings_as_text():
    method = create("replacement", {"corrections": "2", "ratio": "0.1"})
    assert method == METHODS["replacement"](corrections=2, ratio=0.1)
    assert parse_settings(["grow.bands=2", "grow.budget=full"], ["rad", "grow"]) == {
        "rad": {},
        "grow": {"bands": "2", "budget": "full"},
    }


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("magic", {}, "'magic' is not known; allowed are rad, "),
        ("replacement", {"jumps": "1"}, "no setting 'jumps'; it has corrections, ratio"),
        ("replacement", {"corrections": "one"}, "corrections is 'one'; expected a whole number"),
        ("replacement", {"corrections": "-1"}, "corrections is -1; allowed are 0 or more"),
        ("growrad", {"overlap": "2"}, "overlap is 2.0; allowed are 0 to 1"),
        ("grow", {"budget": "large"}, "budget is 'large'; allowed are fixed, full"),
        ("grow", {"method": "mean"}, "method is 'mean'; allowed are rad, "),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        create(name, settings)


@pytest.mark.parametrize("word", ["repaint", "repaint=2", "replacement.ratio", "rad.x=1"])
def test_bad_set_words_are_named(word):
    with pytest.raises(ValueError, match=rf"--set {word}"):
        parse_settings([word], ["replacement"])


def test_a_budget_allows_the_most_steps_that_fit(name):
    method = method_of(name)
    least = cost(method, 1).units
    assert cost(method, steps_within(method, least + 60)).units <= least + 60
    if least:
        with pytest.raises(ValueError, match=f"method {name} costs at least"):
            steps_within(method, 0)


@pytest.mark.spread(8)
def test_a_budget_finds_the_steps_of_a_search_through_all(name):
    method, process = method_of(name), Uniform(linear_betas(200))
    for spacing in ("even", "quad", method.preset_spacing) if method.uses_spacing else (method.preset_spacing,):
        most = most_steps(method, process)
        costs = [cost(method, steps, base_process=process, spacing=spacing).units for steps in range(1, most + 1)]
        for budget in {*range(min(costs), max(costs) + 2, max(1, max(costs) // 40)), *costs[:30], *costs[-5:]}:
            expected = max(steps for steps, units in enumerate(costs, 1) if units <= budget)
            assert steps_within(method, budget, base_process=process, spacing=spacing) == expected


def test_the_steps_for_a_budget_need_few_evaluations_and_may_dip():
    calls = []

    def dipping(steps):
        calls.append(steps)
        return 3 * steps - (20 if steps % 50 == 0 else 0)

    for budget in (*range(3, 3000, 7), 10**6):
        calls.clear()
        expected = max(steps for steps in range(1, 1001) if dipping(steps) <= budget)
        calls.clear()
        assert choices.steps_within(dipping, budget, most=1000, name="x") == expected
        assert len(calls) <= 2 * 10 + 2 + choices.DIPS
        assert max(calls) <= max(32, 3 * budget)
    with pytest.raises(
        ValueError, match=r"method x costs at least 3 network calls \(1 step\), more than the budget of 2"
    ):
        choices.steps_within(dipping, 2, most=1000, name="x")
    assert choices.steps_within(lambda steps: steps // 100, 5, most=1000, name="x") == 599, "equal costs are no dip"


def test_a_budget_with_the_official_spacing_keeps_its_most_steps():
    assert steps_within(create("rad"), 5000, spacing="official") == 991


@pytest.mark.parametrize(
    ("name", "settings", "budget", "steps"),
    [
        ("rad", {}, 60, 60),
        ("dps", {}, 60, 20),  # a call and a backward pass that counts two
        ("lanpaint", {}, 60, 10),  # six calls a level
        ("blended", {}, 60, 80),  # a quarter of the steps is left out
        ("repaint", {"jump_length": "5", "resamplings": "3"}, 100, 35),  # 35 and 6 jumps of 5, twice: 95; 36 has 7
        ("rad", {}, 5000, 1000),
        ("mean", {}, 0, 1000),
    ],
)
def test_steps_for_a_budget(name, settings, budget, steps):
    assert steps_within(create(name, settings), budget) == steps


def test_the_table_shows_every_method_with_its_cost():
    lines = table().splitlines()
    end = lines.index(next(line for line in lines if line.startswith("NFE:")))
    rows = {line.split()[0]: line for line in lines[1:end] if line.partition(" ")[0] in METHODS}
    assert sorted(rows) == sorted(METHODS)
    group = lines[lines.index(RECONSTRUCTED) + 1 : end - 1]
    assert [line.split()[0] for line in group] == ["growrad", "gradpaint", "grow"]
    assert rows["rad"].split()[-4:] == ["20", "20", "0", "no"]
    assert rows["rad"].split()[-6:-4] == ["dpm++2m", "logsnr"]
    assert rows["grow"].split()[-6:-4] == ["ddpm", "-"]
    assert rows["mean"].split()[-6:-4] == ["-", "-"]
    assert hooks(METHODS["rad"]) == "none"
    assert hooks(METHODS["mean"]) == "own loop"
    assert hooks(METHODS["replacement"]) == "before_denoise after_step"
    assert all(f"  {name}.{one.name}=" in table() for name, kind in METHODS.items() for one in fields(kind))


def test_noise_levels_cover_the_requested_pixels():
    noise: NoiseLevel = (
        METHODS["tdpaint"]()
        .process(Uniform(BETAS), "adm")
        .noise(torch.tensor([5]), Task.from_image(WORLD.y, WORLD.hole).regions)
    )
    assert noise.timesteps.tolist() == [[0, 5]]
    assert float(noise.sigma_map()[WORLD.hole == 0].max()) == 0
