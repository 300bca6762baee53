"""Qwen-Image, Z-Image and FLUX.2 [klein]: diffusers' own levels, predictions and whole runs; and holes that are filled."""

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rad.diffusion.choices import CLEAN
from rad.diffusion.processes import LEAST_SIGNAL, Flow
from rad.diffusion.spacings import sampling_timesteps
from rad.inpainting.inpainter import Inpainter
from rad.methods import METHODS
from rad.models.load import load_model
from rad.models.loaded_model import Condition
from rad.models.text_to_image.flow import to_tokens
from rad.models.text_to_image.newer.flux2_klein import Flux2Autoencoder, Flux2KleinModel
from rad.models.text_to_image.newer.qwen_image import QwenAutoencoder, QwenImageModel, norm_keeping_guidance
from rad.models.text_to_image.newer.z_image import ZImageModel
from rad.models.text_to_image.prompts import Text
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.conftest import box_hole, random_image
from tests.newer_pipelines import tiny_newer
from tests.pipelines import SIDE

NAMES = ("qwen", "z", "klein", "klein-base")
HOLE = box_hole(SIDE, SIDE, 4, 5, 11, 12)
PROMPT = "a cat"
GUIDANCE = {"qwen": 4.0, "z": 3.0, "klein": None, "klein-base": 4.0}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("newer")
    return {name: tiny_newer(root / name, name) for name in NAMES}


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(folders, name):
    return load_model(folders[name], size=SIDE)


class ClampedScheduler(FlowMatchEulerDiscreteScheduler):
    """The scheduler of a pipeline, with the little signal that rad keeps at the first level."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        self.sigmas = self.sigmas.clamp(max=1 - LEAST_SIGNAL)
        self.timesteps = 1000 * self.sigmas[:-1]


@pytest.fixture(scope="module")
def pipeline(folders, name):
    kind = json.loads((folders[name] / "model_index.json").read_text())["_class_name"]
    pipeline = getattr(diffusers, kind).from_pretrained(folders[name])
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = ClampedScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def arguments(pipeline, name, start, condition):
    """Of a pipeline's call: its own packing of latents, and its own number for rad's guidance."""
    scale, negative = condition.guidance, condition.negative
    if name == "qwen":
        packed = pipeline._pack_latents(start, 1, 4, 8, 8)
        return {"true_cfg_scale": scale, "negative_prompt": negative if scale > 1 else None, "latents": packed}
    if name == "z":
        return {"guidance_scale": scale - 1, "negative_prompt": negative, "latents": start}
    return {"guidance_scale": 1.0 if scale is None else scale, "latents": pipeline._patchify_latents(start)}


# ---- parts -----------------------------------------------------------------------------------------


def test_guidance_of_qwen_keeps_the_norm_of_each_token():
    prompt, negative, scale = random(2, 4, 6, 4), random(2, 4, 6, 4, seed=1), torch.tensor([2.0, 5.0])
    guided = norm_keeping_guidance(prompt, negative, scale[:, None, None, None])
    torch.testing.assert_close(to_tokens(guided).norm(dim=-1), to_tokens(prompt).norm(dim=-1))
    linear = to_tokens(negative + scale[:, None, None, None] * (prompt - negative))
    cosine = torch.nn.functional.cosine_similarity(to_tokens(guided), linear, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_shorter_texts_are_padded_and_masked():
    short, long = Text(torch.ones(1, 2, 3)), Text(torch.ones(1, 4, 3))
    assert Text.cat([long, long]).mask is None
    both = Text.cat([short, long])
    assert both.valid.tolist() == [[True, True, False, False], [True] * 4]
    assert both.tokens[0].sum(1).tolist() == [3, 3, 0, 0]
    assert Text.cat([both, short]).valid.sum(1).tolist() == [2, 4, 2]


def test_a_plan_gives_the_levels_for_each_number_of_steps():
    flow = Flow(torch.arange(1, 101) / 100, plan=lambda steps: torch.linspace(1 / steps**2, 1, steps))
    assert sampling_timesteps(flow, 2, fractional=False) == [99, 24, CLEAN]
    sigmas = flow.noise(torch.tensor(sampling_timesteps(flow, 3, fractional=True))).sigma[:, 0]
    expected = torch.tensor([1 - LEAST_SIGNAL, (1 + 1 / 9) / 2, 1 / 9, 0], dtype=torch.float64)
    torch.testing.assert_close(sigmas, expected, rtol=0, atol=1e-6)
    assert len(sampling_timesteps(flow, 5, spacing="quad")) == 6, "other spacings use the table"


class Frames(torch.nn.Module):
    """An autoencoder whose latents are the pixels."""

    def __init__(self, **config):
        super().__init__()
        self.config, self.bn = {"in_channels": 3, "input_channels": 3, **config}, torch.nn.BatchNorm2d(12)

    def encode(self, pixels):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: pixels))

    def decode(self, latents):
        return SimpleNamespace(sample=latents)


def test_latents_of_qwen_have_the_mean_and_scale_of_each_channel():
    mean, std, x = torch.tensor([0.1, 0.2, -0.3]), torch.tensor([0.5, 2.0, 1.5]), random(2, 3, 4, 6)
    config = {"temperal_downsample": [], "z_dim": 3, "latents_mean": mean.tolist(), "latents_std": std.tolist()}
    autoencoder = QwenAutoencoder(Frames(**config))
    latents = autoencoder.encode(x)
    torch.testing.assert_close(latents, (x - mean[:, None, None]) / std[:, None, None])
    torch.testing.assert_close(autoencoder.decode(latents), x)


def test_latents_of_flux2_have_the_statistics_of_each_channel_of_a_token():
    network = Frames(patch_size=[2, 2], block_out_channels=[8], latent_channels=3, batch_norm_eps=0.01)
    network.bn.running_mean.copy_(random(12))
    network.bn.running_var.copy_(random(12, seed=1).square())
    autoencoder, x = Flux2Autoencoder(network), random(2, 3, 4, 6)
    latents = autoencoder.encode(x)
    expected = (to_tokens(x) - network.bn.running_mean) / (network.bn.running_var + 0.01).sqrt()
    torch.testing.assert_close(to_tokens(latents), expected)
    torch.testing.assert_close(autoencoder.decode(latents), x)


def test_sign_and_time_of_the_predictions():
    """Z-Image's network gives -v at 1 - sigma, and the others v at sigma, in tokens of 2x2 cells."""
    x, text = random(2, 4, 4, 6), Text(random(2, 3, 5))
    seen = {}

    def z_image(frames, times, texts, return_dict):
        seen["z"] = times
        assert [len(words) for words in texts] == [3, 3]
        return ([2 * frame for frame in frames],)

    def tokens(*, hidden_states, timestep, **_):
        seen["tokens"] = timestep
        return (2 * hidden_states,)

    for kind, network, sign in ((ZImageModel, z_image, -2), (QwenImageModel, tokens, 2), (Flux2KleinModel, tokens, 2)):
        model = object.__new__(kind)
        model.base_process = Flow(torch.arange(1, 11) / 10)
        model.sampled_network = lambda *, adapter, network=network: network
        times = torch.tensor([[300.0], [800.0]])
        torch.testing.assert_close(model.velocity(x, times, text), sign * x)
    torch.testing.assert_close(seen["z"], torch.tensor([0.7, 0.2]))
    torch.testing.assert_close(seen["tokens"], torch.tensor([0.3, 0.8]))


# ---- diffusers' own sampling -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
def test_everything_hole_is_the_pipelines_own_run(model, pipeline, name, guided):
    """Levels, prompts, guidance, packing, sign and time of the prediction, steps and decoding."""
    scale = GUIDANCE[name] if guided or name == "klein" else 1.0
    condition = Condition(PROMPT, "dark" if guided and name in ("qwen", "z") else "", scale)
    task = Task.encoded(torch.zeros(1, 3, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE), model.autoencoder)
    noise = random(1, 4, 8, 8)

    class Start:
        def randn(self, number, shape):
            return noise

    sample = Sampler(model.base_process, steps=7, eta=0)(
        model.denoiser([condition], adapter=False), task, noise=Start()
    )
    assert sample.nfe == 7
    start = (1 - LEAST_SIGNAL) * noise + LEAST_SIGNAL * task.known
    given = arguments(pipeline, name, start, condition)
    theirs = pipeline(prompt=PROMPT, height=SIDE, width=SIDE, num_inference_steps=7, output_type="pt", **given).images
    assert float(theirs.std()) > 0.05
    ours = (model.autoencoder.decode(sample.raw) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    levels = [
        float(model.base_process.noise(torch.tensor([t])).sigma) for t in Sampler(model.base_process, steps=7).timesteps
    ]
    torch.testing.assert_close(torch.tensor(levels), pipeline.scheduler.sigmas, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_autoencoder_inverts_its_own_scale(model, pipeline, name):
    """Encoded images are those that the pipeline's decoding expects."""
    image = random(1, 3, SIDE, SIDE).clamp(-1, 1)
    latents = model.autoencoder.encode(image)
    with torch.no_grad():
        if name == "qwen":
            z = pipeline.vae.encode(image[:, :, None]).latent_dist.mode()
            expected = pipeline.vae.decode(z).sample[:, :, 0]
        else:
            expected = pipeline.vae.decode(pipeline.vae.encode(image).latent_dist.mode()).sample
    torch.testing.assert_close(model.autoencoder.decode(latents), expected, rtol=1e-4, atol=1e-4)
    if name.startswith("klein"):
        with torch.no_grad():
            theirs = pipeline._unpatchify_latents(pipeline._encode_vae_image(image, None))
        torch.testing.assert_close(latents, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_texts_of_different_lengths_in_a_batch(model, name):
    """A row depends on its own text alone, but for rounding."""
    scales = [GUIDANCE[name], GUIDANCE[name], None]
    conditions = [
        Condition(text, guidance=scale) for text, scale in zip(("a cat", "a much longer text", ""), scales, strict=True)
    ]
    x, noise = random(3, 4, 8, 8), model.base_process.noise(torch.tensor([600.5]).expand(3))
    with torch.no_grad():
        together = model.denoiser(conditions, adapter=False).denoise(x, noise).x0
        for row, condition in enumerate(conditions):
            level = model.base_process.noise(torch.tensor([600.5]))
            alone = model.denoiser([condition], adapter=False).denoise(x[row : row + 1], level).x0
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(together[0], together[1])


# ---- filling ---------------------------------------------------------------------------------------

FLOW_METHODS = ["flowchef", "flowdps", "pnpflow", "flair", "latino", "ding", "blended_latent", "replacement", "dps"]


@pytest.mark.slow
@pytest.mark.parametrize("method", FLOW_METHODS)
def test_holes_are_filled_and_known_pixels_kept(model, name, method):
    image = random_image(SIDE, SIDE)
    condition = Condition(PROMPT, guidance=GUIDANCE[name])
    result = Inpainter(model)(image, HOLE, method=METHODS[method](), steps=4, condition=condition)
    known = (HOLE[0] == 0).numpy()
    assert np.array_equal(pixels(result.images[0])[known], pixels(image)[known])
    assert (pixels(result.images[0]) != pixels(image))[~known].mean() > 0.5


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.slow
def test_options_without_effect_and_other_folders_are_refused(folders, tmp_path, monkeypatch):
    klein = load_model(folders["klein"], size=SIDE)
    for condition in (Condition(PROMPT, "dark"), Condition(PROMPT, guidance=2.0)):
        with pytest.raises(ValueError, match="is distilled: it takes no negative prompt and no guidance"):
            klein.check([condition])
    with pytest.raises(ValueError, match="negative prompt has no effect with guidance 1"):
        load_model(folders["z"], size=SIDE).check([Condition(PROMPT, "dark")])
    with pytest.raises(ValueError, match=r"which has no RAD adapters"):
        klein.region_aware_network()
    with pytest.raises(ValueError, match=r"size is 6; allowed with .* are multiples of 4"):
        load_model(folders["qwen"], size=6)
    folder = tiny_newer(tmp_path / "other", "z")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder": ["x", "Evil"]}))
    with pytest.raises(ValueError, match=r"text_encoder of .* is Evil; supported are Qwen3Model"):
        load_model(folder, size=SIDE)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.33.1" if name == "diffusers" else version(name))
    with pytest.raises(
        ValueError, match=r"needs diffusers 0.42 or newer; installed is 0.33.1: pip install -U diffusers"
    ):
        load_model(Path(folders["qwen"]), size=SIDE)
