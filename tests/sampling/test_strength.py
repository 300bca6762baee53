"""Strength below 1: the first level and x, the mean of the result in closed form, the cost, and what is refused."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from rad.cli import main as cli
from rad.diffusion.choices import last_part
from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import Flow, RegionAware, Uniform, region_aware
from rad.diffusion.schedules import linear_betas
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.inputs import find_extension
from rad.methods import METHODS
from rad.methods.registry import cost, steps_within
from rad.rng import KeyedNoise
from rad.sampling.method import SamplingMethod
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.conftest import box_hole, random_image
from tests.gaussian import _UnitTape, make_world, propagate
from tests.linear_autoencoder import LinearAutoencoder

WORLD = make_world()
CONTENT = torch.where(WORLD.hole == 1, WORLD.y.flip(-1), WORLD.y)
FLOW = Flow(torch.linspace(0.001, 1, 1000, dtype=torch.float64))


class Zeros:
    """Noise of zeros, for the mean of results that are affine in it."""

    def randn(self, number, shape):
        return torch.zeros(1, *shape)


def task(image=CONTENT, *, start=True, hole=WORLD.hole):
    made = Task.from_image(image, hole)
    return replace(made, start=image) if start else made


@pytest.mark.parametrize(
    ("steps", "strength", "kept"), [(20, 0.5, 10), (20, 0.55, 11), (10, 0.29, 2), (4, 0.1, 1), (7, 1, 7)]
)
def test_the_last_levels_are_kept(steps, strength, kept):
    """As diffusers: min(int(steps * strength), steps), but one level at least."""
    levels = [*range(steps)][::-1]
    assert last_part([*levels, CLEAN], strength) == [*levels[steps - kept :], CLEAN]
    sampler = Sampler(RegionAware(linear_betas()), steps=steps, strength=strength)
    assert len(sampler.timesteps) == kept + 1
    assert sampler.cost.nfe == kept


@pytest.mark.parametrize("process", [RegionAware(linear_betas()), region_aware(FLOW)], ids=["vp", "flow"])
@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_the_mean_is_the_estimate_at_the_first_level(process, strength):
    """Each DDPM step has the mean E[x_u | x_t], so the mean of the result is E[x0 | x_t = a content, known], for any steps."""
    sampler = Sampler(process, steps=10, strength=strength)
    result = sampler(WORLD.denoiser, task(), noise=Zeros())
    level = process.noise(torch.tensor([sampler.timesteps[0]]), task().regions)
    expected = WORLD.denoiser.denoise(level.alpha_map(CONTENT) * CONTENT, level).x0
    torch.testing.assert_close(result.image, torch.where(WORLD.hole == 1, expected, WORLD.y), rtol=0, atol=1e-9)
    assert result.nfe == round(10 * strength)
    pure = Sampler(process, steps=10)(WORLD.denoiser, task(), noise=Zeros()).image
    assert float((pure - result.image).abs().max()) > 1e-4


@pytest.mark.parametrize("process", [RegionAware(linear_betas()), region_aware(FLOW)], ids=["vp", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_distribution_is_that_of_the_steps_from_the_noised_content(process, eta):
    """Mean and covariance of the result, in closed form, from N(a content, s^2 I) at the first level."""
    sampler, given = Sampler(process, steps=8, strength=0.5, eta=eta), task()
    chain = [process.noise(torch.tensor([t]), given.regions) for t in sampler.timesteps]
    a, s = chain[0].alpha_map(CONTENT), chain[0].sigma_map(CONTENT).expand_as(CONTENT)
    start = {"mean": (a * CONTENT).flatten(), "covariance": torch.diag(s.flatten().square())}
    mean, covariance = propagate(WORLD, chain, **start, eta=eta)
    tape = _UnitTape(1 + 5 * 64)
    many = {name: getattr(given, name).expand(tape.rows, 1, 8, 8) for name in ("known", "hole", "start")}
    rows = replace(Task.from_image(many["known"], many["hole"]), start=many["start"])
    made = sampler(WORLD.denoiser, rows, noise=tape).raw.flatten(1)
    on_draws = made[1:] - made[0]
    torch.testing.assert_close(made[0], mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(on_draws.T @ on_draws, covariance, rtol=0, atol=1e-9)


@pytest.mark.parametrize("keeps", [True, False])
def test_the_first_x_has_the_content_in_all_of_the_hole_and_the_known_pixels_elsewhere(keeps):
    """Grey pixels too. A network that keeps known pixels itself starts from the whole image."""
    seen = []

    @dataclass(frozen=True)
    class Seeing(SamplingMethod):
        keeps_known = keeps

        def before_denoise(self, state):
            seen.append((state.x, state.now))
            return state.x

    grey = WORLD.hole.clone()
    grey[..., 4] *= 0.5
    draw = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = replace(Task.from_image(WORLD.y, grey), start=WORLD.y.flip(-2) + 1)
    noise = type("Fixed", (), {"randn": lambda self, number, shape: draw})()
    Sampler(Uniform(linear_betas()), Seeing(), steps=4, strength=0.5)(WORLD.denoiser, given, noise=noise)
    x, now = seen[0]
    content = torch.where(grey > 0, given.start, given.known) if keeps else given.start
    torch.testing.assert_close(x, now.alpha_map() * content + now.sigma_map() * draw, rtol=0, atol=1e-12)


@pytest.mark.spread(2)
@pytest.mark.parametrize("name", ["rad", "replacement", "repaint", "ddnm", "dps"])
def test_a_low_strength_stays_near_the_content_and_1_hides_it(name):
    method = METHODS[name]()
    assert isinstance(method, SamplingMethod)
    process = method.process(Uniform(linear_betas()), "adm")

    def fill(strength, given):
        sampler = Sampler(process, method, steps=50, strength=strength)
        with KeyedNoise(0, ["a"]) as noise:
            return sampler(WORLD.denoiser, given, noise=noise).image

    inside = WORLD.hole == 1
    near, far = (float((fill(strength, task()) - CONTENT)[inside].abs().mean()) for strength in (0.04, 0.9))
    assert near < 0.1 < far
    assert torch.equal(fill(1.0, task()), fill(1.0, task(start=False)))


def test_methods_never_see_the_content():
    seen = []

    @dataclass(frozen=True)
    class Curious(SamplingMethod):
        def after_step(self, state, denoised, x_next):
            seen.append(state.task.start)
            return x_next

    Sampler(Uniform(linear_betas()), Curious(), steps=4, strength=0.5)(WORLD.denoiser, task(), noise=Zeros())
    assert seen == [None, None]


def test_latent_known_cells_do_not_depend_on_the_content():
    codec, hole = LinearAutoencoder(blur=0.5), WORLD.hole.float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = Task.encoded(image, hole, codec, start=True)
    hidden = Task.encoded(torch.where(hole == 1, 0.5, image), hole, codec)
    assert torch.equal(made.known, hidden.known)
    assert hidden.start is None
    assert made.start is not None
    assert torch.equal(made.start, codec.encode(image))


def test_a_budget_counts_the_levels_that_are_visited():
    method = METHODS["ddnm"]()
    assert cost(method, 100, strength=0.3).nfe == 30
    assert steps_within(method, 30, strength=0.3) == 103
    assert cost(method, 103, strength=0.3).nfe == 30


REFUSED = (
    *("growrad", "blended", "blended_latent", "daps", "pnpflow", "flair", "latino", "reddiff", "resample", "copaint"),
    *("vipaint", "pilot", "mcgdiff", "m2s", "grow", "mean", "biharmonic", "telea", "navier_stokes", "lama"),
)
"""Methods with a start, stages or a loop of their own."""


def test_methods_that_cannot_start_from_the_content_refuse_it():
    assert {name for name, kind in METHODS.items() if not kind().takes_strength} == set(REFUSED)
    for name in REFUSED:
        with pytest.raises(ValueError, match=rf"method '{name}' cannot start from the image's content"):
            METHODS[name]().check_strength(0.5)
        assert METHODS[name]().check_strength(1.0) == 1
    for strength in (0, -1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            METHODS["rad"]().check_strength(strength)
    with pytest.raises(ValueError, match="the task has no start"):
        Sampler(Uniform(linear_betas()), steps=4, strength=0.5)(WORLD.denoiser, task(start=False), noise=Zeros())


def test_new_pixels_have_no_content_to_start_from():
    with pytest.raises(ValueError, match="the new pixels of extend have no content"):
        find_extension((0, 0, 4, 0), None, strength=0.5)
    assert find_extension((0, 0, 4, 0), None)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["crop", "resize", "zoom"])
@pytest.mark.parametrize("sides", [(16, 16), (12, 14), (24, 30)])
def test_every_size_policy_keeps_the_content(base, policy, sides):
    """Also of images that are smaller or larger than the model's 16x16."""
    inpainter = Inpainter.from_pretrained(base, device="cpu")
    image, hole = Image.new("RGB", sides[::-1], (200, 60, 90)), box_hole(*sides, 2, 3, 11, 12)
    pixels, inside = (
        np.array(image),
        box_hole(*sides, 5, 6, 8, 9)[0].numpy() == 1,
    )  # away from the border, which a resize blends
    pixels[hole[0].numpy() == 1] = (20, 220, 240)

    def filled(strength):
        options = {"method": "replacement", "steps": 50, "size_policy": policy, "strength": strength}
        result = np.array(inpainter(Image.fromarray(pixels), hole, **options).images[0], int)
        return np.abs(result - pixels)[inside].mean()

    assert filled(0.02) < 25
    assert filled(1.0) > 40


@pytest.mark.slow
def test_rad_sample_records_the_strength(base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random_image(16, 16).save("in.png")
    Image.fromarray(np.uint8(255 * box_hole(16, 16, 4, 4, 9, 9)[0].numpy())).save("mask.png")
    words = f"--checkpoint {base} --image in.png --mask mask.png --steps 10 --device cpu --method replacement".split()

    def sample(*more):
        return cli.sample([*words, *more]), capsys.readouterr().err

    def request(path):
        with Image.open(path) as image:
            return image.info["rad"], np.array(image)

    assert sample("--output", "half.png", "--strength", "0.5")[0] == 0
    assert '"start_strength": 0.5' in request("half.png")[0]
    assert sample("--output", "whole.png")[0] == sample("--output", "one.png", "--strength", "1")[0] == 0
    assert "strength" not in request("whole.png")[0]
    assert (request("whole.png")[1] == request("one.png")[1]).all()
    code, err = sample("--output", "half.png", "--strength", "0.4")
    assert code == 2
    assert "start_strength 0.5, now 0.4" in err
    result = Inpainter.from_pretrained(base, device="cpu")(
        "in.png", "mask.png", method="replacement", steps=10, strength=0.5, names="in.png"
    )
    assert (np.array(result.images[0]) == request("half.png")[1]).all()
    assert result.nfe == 5
    code, err = sample("--output", "both", "--method", "replacement@10,strength=0.5", "ddnm@10")
    assert code == 0, err
    assert (request("both/replacement@10,strength=0.5/in.png")[1] == request("half.png")[1]).all()
    for more, message in (
        (("--method", "daps"), "daps: strength is 0.5; method 'daps' cannot start"),
        (("--extend", "0,0,4,0", "--size_policy", "crop"), "new pixels of --extend have no content"),
    ):
        code, err = sample("--output", "other", "--strength", "0.5", *more)
        assert code == 2
        assert message in err
    code, err = sample("--output", "other", "--method", "ddnm@4,strength=2")
    assert code == 2
    assert "strength is 2.0; allowed are above 0 to 1" in err
