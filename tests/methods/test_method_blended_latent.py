"""Blended Latent Diffusion: its limits among the other methods, wider holes, pixel blending, and the repair after decoding."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from PIL import Image

from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.spacings import spaced_timesteps
from rad.diffusion.step import Denoised
from rad.inpainting.inpainter import Inpainter
from rad.methods.blended import Blended
from rad.methods.blended_latent import BlendedLatent
from rad.methods.replacement import Replacement
from rad.models.settings.preferred import NOTHING
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser, State
from rad.sampling.task import Task
from tests.codecs import Blocks, encoded_task
from tests.gaussian import DOUBLE, law, make_world
from tests.linear_autoencoder import LinearAutoencoder
from tests.rounding import assert_same

WORLD = make_world()
PROCESS = Uniform(linear_betas())
CODEC = Blocks(2, keep=3, colours=1)


def run(method, *, hole=WORLD.hole, steps=12, eta=0.0):
    task = Task.from_image(WORLD.y.expand(2, -1, -1, -1), hole.expand(2, -1, -1, -1))
    with KeyedNoise(0, range(2)) as noise:
        return Sampler(PROCESS, method, steps=steps, eta=eta)(WORLD.denoiser, task, noise=noise)


def state_of(task, *, step=0, steps=4, t=600, u=400):
    """One step on any task, all of whose draws are the same."""
    generator = torch.Generator().manual_seed(3)
    x, x0, fresh = (torch.randn(task.known.shape, generator=generator, dtype=DOUBLE) for _ in range(3))
    now, nxt = (PROCESS.noise(torch.tensor([time])) for time in (t, u))
    denoiser = CountedDenoiser(WORLD.denoiser)
    return State(task, PROCESS, denoiser, step, steps, t, u, now, nxt, x, lambda: fresh), Denoised(x0), fresh


# ---- the chain -----------------------------------------------------------------------------------------


def test_it_is_blended_and_without_skip_replacement():
    assert torch.equal(run(BlendedLatent()).raw, run(Blended()).raw)
    assert torch.equal(run(BlendedLatent(skip=0.0)).raw, run(Replacement()).raw)
    assert BlendedLatent().cost(BlendedLatent().plan(spaced_timesteps(1000, 50))).nfe == 38


@pytest.mark.parametrize("blend", ["u", "t", "before"])
def test_known_cells_have_the_documented_noise_level(blend):
    state, denoised, fresh = state_of(Task.from_image(WORLD.y, WORLD.hole))
    method, known = BlendedLatent(blend=blend), (WORLD.hole == 0)
    before, after = method.before_denoise(state), method.after_step(state, denoised, 2 * state.x)
    level = {"u": state.next, "t": state.now, "before": state.now}[blend]
    blended, other = (before, after) if blend == "before" else (after, before)
    plain, scale = (2 * state.x, 1) if blend == "before" else (state.x, 2)
    assert torch.equal(other, plain)
    assert torch.equal(blended[~known], scale * state.x[~known])
    torch.testing.assert_close(
        blended[known], (level.alpha_map() * WORLD.y + level.sigma_map() * fresh)[known], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("method", [BlendedLatent(skip=0.0, blend=blend) for blend in ("u", "t", "before")])
def test_all_hole_is_the_plain_chain(method):
    everything = torch.ones_like(WORLD.hole)
    task = Task.from_image(WORLD.y, everything)
    with KeyedNoise(0, ["a"]) as noise:
        plain = Sampler(PROCESS, steps=12, eta=0)(WORLD.denoiser, task, noise=noise).raw
    with KeyedNoise(0, ["a"]) as noise:
        assert torch.equal(Sampler(PROCESS, method, steps=12, eta=0)(WORLD.denoiser, task, noise=noise).raw, plain)


def test_known_at_the_end():
    """With level u the raw result is y. Otherwise it keeps noise of the last level, denoised or not."""
    known, left = ~WORLD.inside, {}
    for blend in ("u", "t", "before"):
        mean, covariance = law(WORLD, BlendedLatent(blend=blend), steps=10)
        left[blend] = float(covariance.diagonal()[known].sqrt().max())
        torch.testing.assert_close(mean[known], WORLD.y.flatten()[known], rtol=0, atol=0.01)
    assert left["u"] == 0 < left["before"] < left["t"]
    assert left["t"] == pytest.approx(0.01, rel=1e-3)


def test_the_hole_is_wider_at_first():
    method, widths = BlendedLatent(dilations=2), []
    hole = torch.zeros(1, 1, 9, 9, dtype=DOUBLE)
    hole[..., 4, 4] = 1
    task = Task.from_image(torch.ones(1, 1, 9, 9, dtype=DOUBLE), hole)
    for step in range(9):
        wide = method.hole(state_of(task, step=step, steps=9)[0])
        side = int(wide.sum().sqrt())
        assert torch.equal(wide, (wide.amax(2, keepdim=True) * wide.amax(3, keepdim=True)))
        assert float(wide[..., 4, 4]) == 1
        widths.append(side)
    assert widths == [5, 5, 5, 3, 3, 3, 1, 1, 1]
    assert torch.equal(BlendedLatent().hole(state_of(task)[0]), hole)
    known = run(BlendedLatent(dilations=3)).raw[:, WORLD.hole[0] == 0]
    assert torch.equal(known, WORLD.y[:, WORLD.hole[0] == 0].expand_as(known))


def test_the_last_steps_may_blend_pixels():
    task = encoded_task(WORLD, CODEC)
    method = BlendedLatent(pixel_fraction=0.5)
    assert [method.in_pixels(state_of(task, step=step)[0]) for step in range(4)] == [False, False, True, True]
    assert not any(BlendedLatent().in_pixels(state_of(task, step=step)[0]) for step in range(4))
    state, denoised, fresh = state_of(task, step=2)
    pixels = torch.where(WORLD.hole == 1, CODEC.decode(denoised.x0), WORLD.y)
    expected = state.next.alpha_map() * CODEC.encode(pixels) + state.next.sigma_map() * fresh
    torch.testing.assert_close(method.after_step(state, denoised, state.x), expected, rtol=0, atol=1e-12)
    # Cells that hold a little of the hole differ: there the image's part of the cell is met too.
    assert float((expected - BlendedLatent().after_step(state, denoised, state.x)).abs().max()) > 0.1


# ---- the repair ----------------------------------------------------------------------------------------


def misses(image, task):
    """How far known pixels are off."""
    return float(((1 - task.image_hole) * (image - task.image)).square().mean().sqrt())


@pytest.mark.parametrize("reconstruct", ["latent", "weights"])
def test_the_repair_brings_known_pixels_nearer_and_leaves_the_hole(reconstruct):
    """An autoencoder with a wrong brightness, which both can undo; on two images, whose results do not depend on each other."""
    autoencoder = Blocks(2, colours=1)
    task = encoded_task(WORLD, autoencoder, rows=2)
    with torch.no_grad():
        assert autoencoder.decoder.bias is not None
        autoencoder.decoder.bias.add_(0.02)
    weights = [one.clone() for one in autoencoder.decoder.parameters()]
    x = autoencoder.encode(torch.cat([WORLD.y, 0.5 * WORLD.y]).clamp(-0.9, 0.9))
    task = replace(task, image=(1 - task.image_hole) * torch.cat([WORLD.y, 0.5 * WORLD.y]).clamp(-0.9, 0.9))
    method = BlendedLatent(reconstruct=reconstruct)
    with torch.inference_mode():
        sample = x + 0  # as it comes from the sampler
    with torch.no_grad():
        made, plain = method.decode(sample, task), autoencoder.decode(x)
    assert not made.requires_grad
    if reconstruct == "weights":
        assert misses(made, task) < 0.8 * misses(plain, task)
    else:
        assert misses(made, task) < 0.2 * misses(plain, task)
        assert_same(made[..., 2:6, 4:6], plain[..., 2:6, 4:6])  # cells with no known pixel stay
    assert all(torch.equal(one, old) for one, old in zip(autoencoder.decoder.parameters(), weights, strict=True))
    assert not any(one.requires_grad for one in autoencoder.decoder.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.decode(sample, task), made), "bf16 is for the denoiser"
    alone = method.decode(x[1:], replace(task, image=task.image[1:], image_hole=task.image_hole[1:]))
    assert torch.equal(alone, made[1:])
    assert torch.equal(BlendedLatent().decode(x, task), plain)


def test_the_repair_weighs_known_pixels_a_hundred_times():
    """In cells that are half known, the minimum is (d + 100 y) / 101, with the decoded pixels d = 0."""
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., ::2] = 1
    task = Task.encoded(torch.full((1, 3, 4, 4), 0.5), hole, LinearAutoencoder())
    made = BlendedLatent(reconstruct="latent", iterations=200).decode(torch.zeros(1, 1, 2, 2), task)
    torch.testing.assert_close(made, torch.full_like(made, 50 / 101), rtol=0, atol=0.01)


class Independent:
    """The denoiser of standard normal numbers."""

    channels = 12

    def __init__(self):
        self.calls = 0

    def denoise(self, x, noise):
        self.calls += 1
        a, s = noise.alpha_map().to(x.dtype), noise.sigma_map().to(x.dtype)
        return Denoised(a * x / (a.square() + s.square()))


class Unshown(Blocks):
    """An autoencoder that does not show its decoder."""

    def __init__(self):
        super().__init__(2, colours=1)
        self.hidden = self.decoder
        del self.decoder

    def decode(self, latents):
        return self.hidden(latents)


@pytest.mark.parametrize(
    ("task", "reconstruct", "message"),
    [
        (
            Task.from_image(WORLD.y, WORLD.hole),
            "latent",
            "this model works on pixels, which need no repair: use 'none'",
        ),
        (encoded_task(WORLD, Unshown()), "weights", "this model's decoder cannot be fitted: use 'latent' or 'none'"),
    ],
)
def test_reconstruction_of_unsuitable_models_is_refused_before_any_call(task, reconstruct, message):
    denoiser = Independent()
    with KeyedNoise(0, ["a"]) as noise, pytest.raises(ValueError, match=message):
        Sampler(PROCESS, BlendedLatent(reconstruct=reconstruct), steps=3)(denoiser, task, noise=noise)
    assert denoiser.calls == 0


class Latent:
    """The least latent model."""

    source, hash, size, base_process, info, has_base, has_adapter = "latent", "0", (8, 8), PROCESS, None, True, False
    for_inpainting, preferred = False, NOTHING

    def __init__(self):
        self.autoencoder = Blocks(2, dtype=torch.float32)

    def check(self, conditions):
        pass

    def denoiser(self, conditions, *, adapter):
        return Independent()

    def in_evaluation(self):
        return nullcontext()


def test_the_inpainter_lets_the_method_decode():
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:5, 2:5] = 1
    raw = {}
    for reconstruct in ("none", "weights"):
        method = BlendedLatent(reconstruct=reconstruct)
        found = Inpainter(Latent())(image, mask, method=method, steps=3)  # pyright: ignore[reportArgumentType]
        assert found.images[0].getpixel((0, 0)) == (200, 100, 50)
        raw[reconstruct] = found.raw[0].tobytes()
    assert raw["none"] != raw["weights"]
