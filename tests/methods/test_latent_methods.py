"""Every method on latents, in float32, on each kind of noise that a model may have of its own: variance-preserving, flow, EDM."""

from dataclasses import fields
from typing import get_args

import pytest
import torch
from torch import nn

from rad.diffusion.processes import EDM, LEAST_SIGNAL, Flow, Uniform
from rad.diffusion.schedules import karras_sigmas, linear_betas, shifted_sigmas
from rad.diffusion.step import Denoised
from rad.methods import METHODS
from rad.methods.guidance import Space
from rad.methods.registry import create
from rad.rng import KeyedNoise
from rad.sampling.method import Method
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import make_world, with_needs
from tests.linear_autoencoder import LinearAutoencoder
from tests.methods.test_methods import PULL, SHORT

WORLD = make_world()
OWN = {"vp": Uniform(linear_betas()), "flow": Flow(shifted_sigmas()), "edm": EDM(karras_sigmas())}
CODEC, BLURRED = LinearAutoencoder(), LinearAutoencoder(blur=0.5)
LATENTS = torch.cat([WORLD.y, 0.7 * WORLD.y.flip(-2)]).float()
DETAIL = 0.05 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)  # which encoding loses
PICTURES = CODEC.decode(LATENTS) + DETAIL
HOLE = WORLD.hole.float().repeat_interleave(2, 2).repeat_interleave(2, 3).repeat(2, 1, 1, 1)
HOLE[1] = HOLE[1].flip(-1)
BLIND = [
    name for name, kind in METHODS.items() if name not in ("m2s", "inpainting_model", "lama") and not kind.needs_text
]
"""Methods that do not need pixels."""


class Single:
    """The world's exact prior for float32 latents."""

    channels = 1

    def denoise(self, x, noise):
        return Denoised(WORLD.denoiser.denoise(x.double(), noise).x0.to(x.dtype))


def refused(name: str, own: str) -> bool:
    return (own == "edm" and name in ("rad", "tdpaint", "growrad")) or (
        own == "flow" and name in ("tdpaint", "growrad")
    )


ALLOWED = [(name, own) for own in OWN for name in BLIND if not refused(name, own)]


def fill(method: str | Method, own: str, task: Task, *, steps=24, names="ab"):
    method = create(method, SHORT.get(method)) if isinstance(method, str) else method
    sampler = Sampler(method.process(OWN[own], "adm"), method, **vars(method.choose(steps=steps)))  # pyright: ignore[reportArgumentType]
    with KeyedNoise(0, list(names)) as noise:
        return sampler(Single(), task, noise=noise)


def encoded(images=PICTURES, hole=HOLE, autoencoder=CODEC) -> Task:
    return Task.encoded(images, hole, autoencoder)


@pytest.mark.spread(8)
@pytest.mark.parametrize(("name", "own"), ALLOWED)
def test_known_latents_are_kept_and_the_holes_content_has_no_effect(name, own):
    task = encoded(autoencoder=BLURRED)
    sample = fill(name, own, task)
    known = task.hole == 0
    assert torch.equal(sample.image[known], task.known[known])
    assert bool(sample.raw.isfinite().all())
    assert float((sample.image - WORLD.denoiser.mean).abs().max()) < 2.6, "noise was left"
    other = encoded(torch.where(HOLE == 1, 0.9, PICTURES), autoencoder=BLURRED)
    assert torch.equal(fill(name, own, other).raw, sample.raw)
    assert not torch.equal(
        BLURRED.encode(PICTURES)[known], BLURRED.encode(torch.where(HOLE == 1, 0.9, PICTURES))[known]
    )


@pytest.mark.spread(8)
@pytest.mark.parametrize(("name", "own"), ALLOWED)
def test_with_everything_known_the_result_is_the_decoded_image(name, own):
    task = encoded(hole=torch.zeros_like(HOLE))
    sample = fill(name, own, task)
    assert torch.equal(CODEC.decode(sample.image), CODEC.decode(CODEC.encode(PICTURES)))
    error = (sample.raw - LATENTS).square().mean().sqrt()
    if name in PULL:
        nothing = fill(name, own, encoded(hole=torch.ones_like(HOLE))).raw
        assert error < 0.8 * (nothing - LATENTS).square().mean().sqrt()
    else:
        assert error < 0.03


@pytest.mark.parametrize("name", BLIND)
def test_the_smallest_signal_of_a_flow_overflows_nothing(name):
    """One step from a = 2^-12, and two: float32 in every number of the method."""
    assert float(OWN["flow"].noise(torch.tensor([999]), None).alpha) == LEAST_SIGNAL
    for steps in (1, 2):
        if not refused(name, "flow"):
            assert float((fill(name, "flow", encoded(), steps=steps).raw - WORLD.denoiser.mean).abs().max()) < 4


VARIANTS = [
    ("replacement", {"corrections": "1"}),
    ("blended", {"skip": "0"}),
    ("repaint", {"jump_length": "4", "resamplings": "3"}),
    ("ddnm", {"form": "posterior", "sigma_y": "0.05"}),
    ("ddnm", {"known_noise": "fresh", "travel_length": "4", "travel_repeat": "2"}),
    ("ddrm", {"sigma_y": "0.05"}),
    ("diffpir", {"sigma_n": "0.05", "zeta": "0.5"}),
    ("daps", {"mcmc": "langevin"}),
    ("reddiff", {"weighting": "const"}),
    ("pigdm", {"weighting": "paper"}),
    ("pigdm", {"weighting": "score", "sigma_y": "0.05"}),
    ("psld", {"norm": "l2sq"}),
    ("resample", {"exact": "false", "legacy_level": "t", "tolerance": "0"}),
    ("gradpaint", {"latent_alignment": "1", "stop": "1"}),
    ("copaint", {"visits": "2"}),
    ("vipaint", {"levels": "4", "iterations": "3", "space": "pixels"}),
]


@pytest.mark.spread(16)
@pytest.mark.parametrize("own", ["flow", "edm"])
@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_other_settings_work_on_every_kind_of_noise(name, settings, own):
    raw = fill(create(name, settings), own, encoded(autoencoder=BLURRED)).raw
    assert float((raw - WORLD.denoiser.mean).abs().max()) < 2.6


@pytest.mark.parametrize(("name", "own"), [(name, own) for name in METHODS for own in OWN if refused(name, own)])
def test_methods_without_a_flow_form_are_refused_in_one_line(name, own):
    with pytest.raises(ValueError, match="needs a variance-preserving model") as told:
        METHODS[name]().process(OWN[own], "adm")
    assert "\n" not in str(told.value)


def test_m2s_refuses_latent_models():
    with pytest.raises(ValueError, match=r"this model works on latents: use repaint$"):
        fill(with_needs(METHODS["m2s"]()), "vp", encoded())


SPACES = [name for name, kind in METHODS.items() if "space" in [one.name for one in fields(kind)]]
MORE = {"daps": {"mcmc": "langevin", "rate": "0.001", "tau": "0.1"}, "reddiff": {"weight": "0.02"}}


@pytest.mark.spread(3)
@pytest.mark.parametrize("own", list(OWN))
@pytest.mark.parametrize("name", SPACES)
def test_where_an_image_is_compared_its_pixels_are_met(name, own):
    """Through a decoder that mixes cells, pixels come nearer than where cells are compared with the encoded ones."""
    task, misfit = encoded(autoencoder=BLURRED), {}
    for space in ("latent", "pixels"):
        settings = {**SHORT.get(name, {}), **MORE.get(name, {}), "space": space}
        raw = fill(create(name, settings), own, task, steps=40).raw
        assert bool(raw.isfinite().all())
        missing = (1 - task.image_hole) * (task.image - BLURRED.decode(raw))
        misfit[space] = float(missing.square().mean().sqrt())
    # PnP-Flow takes one step a level, which a blur of the decoder keeps short.
    assert misfit["pixels"] < (1.5 if name == "pnpflow" else 1) * misfit["latent"]
    assert misfit["pixels"] < 0.25


class Network(nn.Module):
    """A decoder that is a network, with random weights."""

    factor = 2
    channels = 1

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Conv2d(3, 1, 2, 2)
            self.decoder = nn.Sequential(nn.ConvTranspose2d(1, 8, 2, 2), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))

    def encode(self, pixels):
        return self.encoder(pixels)

    def decode(self, latents):
        return self.decoder(latents)


@pytest.mark.parametrize("name", SPACES)
def test_through_a_network_an_image_does_not_depend_on_its_neighbours(name):
    """In float64; the loops of methods that do not differentiate the denoiser are differentiable for the decoder alone."""
    autoencoder = Network().double()
    with torch.no_grad():
        both = encoded(PICTURES.double(), HOLE.double(), autoencoder)
        alone = encoded(PICTURES[1:].double(), HOLE[1:].double(), autoencoder)
    settings = {**SHORT.get(name, {}), **MORE.get(name, {})}
    raw = {
        space: fill(create(name, {**settings, "space": space}), "vp", both, steps=9).raw for space in get_args(Space)
    }
    assert bool(raw["pixels"].isfinite().all())
    assert float((raw["pixels"] - raw["latent"]).abs().max()) > 0.01
    own = fill(create(name, {**settings, "space": "pixels"}), "vp", alone, steps=9, names="b").raw
    torch.testing.assert_close(own, raw["pixels"][1:], rtol=0, atol=1e-8)
    assert all(weight.grad is None for weight in autoencoder.parameters())
