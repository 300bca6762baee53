"""Stable Diffusion 3 and Flux: diffusers' own levels, steps, guidance and sampling; prompts, and whole runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusion3Pipeline

from rad.diffusion.levels import CLEAN
from rad.diffusion.processes import LEAST_SIGNAL, Flow
from rad.diffusion.schedules import shifted_sigmas
from rad.diffusion.step import reverse_step
from rad.inpainting.inpainter import Inpainter
from rad.methods import METHODS
from rad.models.load import load_model
from rad.models.loaded_model import Condition
from rad.models.text_to_image.flow import FlowDenoiser
from rad.models.text_to_image.flux import FluxModel
from rad.models.text_to_image.prompts import Text
from rad.models.text_to_image.sd3 import SD3Model
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.conftest import box_hole, random_image
from tests.pipelines import SIDE, tiny_flux, tiny_sd3
from tests.rounding import assert_same

HOLE = box_hole(SIDE, SIDE, 4, 5, 11, 12)
CAT, DOG = Condition("a cat", guidance=3.0), Condition("a dog", "dark", guidance=3.0)


def pixels(image):
    return np.asarray(image).astype(int)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("flows")
    return {"sd3": tiny_sd3(root / "sd3"), "t5": tiny_sd3(root / "t5", t5=True), "flux": tiny_flux(root / "flux")}


@pytest.fixture(scope="module")
def sd3(folders):
    return load_model(folders["sd3"])


@pytest.fixture(scope="module")
def flux(folders):
    return load_model(folders["flux"], size=SIDE)


@pytest.fixture(scope="module", params=["sd3", "t5", "flux"])
def inpainter(request, folders):
    return Inpainter.from_pretrained(folders[request.param], size=SIDE)


# ---- levels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 10, 28])
def test_sd3_is_sampled_at_the_levels_of_its_scheduler(sd3, steps):
    """Of numbers of steps that divide the table evenly; 28 is the pipeline's own."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    levels = Sampler(sd3.base_process, steps=steps).timesteps
    ours = torch.stack([sd3.base_process.noise(torch.tensor([t])).sigma[0, 0] for t in levels])
    torch.testing.assert_close(ours[1:].float(), scheduler.sigmas[1:], rtol=1e-5, atol=1e-6)
    assert float(scheduler.sigmas[0] - ours[0]) == LEAST_SIGNAL, "pure noise has a little signal"
    told = torch.stack([sd3.base_process.noise(torch.tensor([t])).timesteps[0, 0] for t in levels[:-1]])
    torch.testing.assert_close(told, 1000 * ours[:-1], rtol=0, atol=0)
    torch.testing.assert_close(told[1:].float(), scheduler.timesteps[1:], rtol=1e-5, atol=1e-3)


def test_the_table_is_the_shifted_one_up_to_how_diffusers_shifts_its_end_twice(sd3):
    torch.testing.assert_close(sd3.base_process.sigmas[:-1], shifted_sigmas(shift=3.0)[:-1], rtol=0, atol=0.006)
    assert abs(float(sd3.base_process.sigmas[0]) - 0.00893) < 1e-4


def test_levels_of_flux_depend_on_the_size_of_the_image(folders, flux):
    config = json.loads((folders["flux"] / "scheduler" / "scheduler_config.json").read_text())
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    for model, tokens in ((flux, 16), (load_model(folders["flux"], size=64), 256)):
        mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=mu)
        ours = model.base_process.sigmas[torch.arange(8, 0, -1) * 125 - 1]
        torch.testing.assert_close(ours[1:].float(), scheduler.sigmas[1:-1], rtol=1e-5, atol=1e-6)


def test_levels_that_reach_pure_noise_too_early_are_left_out(folders, tmp_path):
    """A large shift crowds the table against 1, where signal and noise have no ratio."""
    sigmas = SD3Model.sigmas(FlowMatchEulerDiscreteScheduler(shift=20.0), 16)
    assert int((sigmas >= 1 - LEAST_SIGNAL).sum()) > 1
    path = folders["sd3"] / "scheduler" / "scheduler_config.json"
    before = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(before), "shift": 20.0}))
        own = load_model(folders["sd3"]).base_process
    finally:
        path.write_text(before)
    assert own.steps == len(sigmas) - int((sigmas >= 1 - LEAST_SIGNAL).sum()) + 1
    assert float(own.sigmas[-1]) == 1 - LEAST_SIGNAL


# ---- velocity and guidance -------------------------------------------------------------------------


class Linear:
    """v = x times a number that the text says; it counts calls and rows."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, times, text, index=None):
        self.rows.append(len(x))
        return x * text.pooled[:, :1, None, None] + times[:, :1, None, None]


def text(*values):
    return Text(torch.zeros(len(values), 1, 1), torch.tensor(values)[:, None])


def test_a_step_is_that_of_diffusers_euler_scheduler():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    flow = Flow(scheduler.sigmas[:-1].flip(0), scale=1000)
    x, denoiser = random(1, 4, 8, 8), FlowDenoiser(Linear(), text(0.3), negative=None, guidance=[1.0], channels=4)
    for place in (1, 2, 3, 4):
        t = scheduler.timesteps[place]
        v = denoiser.velocity(x, t[None, None], text(0.3))
        scheduler._step_index = None
        theirs = scheduler.step(v, t, x).prev_sample
        now, nxt = (flow.noise(torch.tensor([level])) for level in (4 - place, 3 - place))
        estimate = denoiser.denoise(x, now)
        torch.testing.assert_close(estimate.x0, x - scheduler.sigmas[place] * v, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(reverse_step(x, estimate, now, nxt, eta=0), theirs, rtol=1e-4, atol=1e-3)


def test_timesteps_are_not_rounded_to_half_precision():
    seen = []
    denoiser = FlowDenoiser(
        lambda x, times, *_: seen.append(times) or x, text(0.3), negative=None, guidance=[1.0], channels=2
    )
    noise = Flow(torch.tensor([0.5, 0.999])).noise(torch.tensor([1]))
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert denoiser.denoise(random(1, 2, 4, 4).to(dtype), noise).x0.dtype == dtype
        torch.testing.assert_close(seen.pop(), torch.full((1, 1), 999.0, dtype=expected))


def test_guidance_is_linear_and_both_branches_are_one_call():
    x, noise = random(3, 2, 4, 4), Flow(torch.tensor([0.2, 0.5, 0.9])).noise(torch.full((3,), 1))
    network = Linear()
    denoiser = FlowDenoiser(
        network, text(0.1, 0.2, 0.3), negative=text(-0.4, 0.7), guidance=[1.0, 2.0, 5.0], channels=2
    )
    x0 = denoiser.denoise(x, noise).x0
    assert network.rows == [5], "the first image has no second branch"
    for row, value in enumerate((0.1, -0.4 + 2 * (0.2 + 0.4), 0.7 + 5 * (0.3 - 0.7))):
        torch.testing.assert_close(x0[row], x[row] - 0.5 * (value * x[row] + 500))


def test_guidance_of_one_is_the_prompt_alone_and_zero_is_no_guidance_either(sd3):
    x, noise = random(1, 4, 8, 8), sd3.base_process.noise(torch.tensor([600]))
    plain = [
        sd3.denoiser([Condition("a cat", guidance=guidance)], adapter=False).denoise(x, noise).x0
        for guidance in (1.0, 0.0, 1.000001)
    ]
    assert torch.equal(plain[0], plain[1])
    assert_same(plain[2], plain[0])
    default, seven = (
        sd3.denoiser([Condition("a cat", guidance=guidance)], adapter=False).denoise(x, noise).x0
        for guidance in (None, 7.0)
    )
    assert torch.equal(default, seven), "the pipeline's own"
    assert not torch.allclose(seven, plain[0], atol=1e-2)


def test_texts_are_encoded_once(sd3, monkeypatch):
    sd3.text.single.cache_clear()
    asked = []
    encode = sd3.text.pipeline.encode_prompt
    monkeypatch.setattr(
        sd3.text.pipeline, "encode_prompt", lambda **told: asked.append(told["prompt"]) or encode(**told)
    )
    for _ in range(2):
        sd3.denoiser([CAT, DOG, CAT], adapter=False)
    assert asked == [["a cat"], ["a dog"], [""], ["dark"]]


# ---- diffusers' own sampling -----------------------------------------------------------------------


def everything(model, condition, *, steps, start):
    """Filling an image that is all hole, by Euler's steps from `start`, in latents."""
    task = Task.encoded(torch.zeros(1, 3, SIDE, SIDE), torch.ones(1, 1, SIDE, SIDE), model.autoencoder)

    class Start:
        def randn(self, number, shape):
            return start

    sampler = Sampler(model.base_process, steps=steps, eta=0)
    return sampler(model.denoiser([condition], adapter=False), task, noise=Start())


@pytest.mark.parametrize("kind", ["sd3", "t5"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_everything_hole_is_the_pipelines_own_sampling(folders, kind, guidance):
    model, start, told = load_model(folders[kind]), random(1, 4, 8, 8), Condition("a cat", "a dog", guidance)
    if guidance == 1:
        told = replace(told, negative="")
    sample = everything(model, told, steps=4, start=start)
    assert sample.nfe == 4
    absent = {} if kind == "t5" else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folders[kind], **absent)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)  # which takes the levels as they are given
    levels = [float(model.base_process.noise(torch.tensor([t])).sigma_map()) for t in (999, 666, 333, 0)]
    theirs = pipeline(
        "a cat",
        negative_prompt="a dog",
        sigmas=levels,
        guidance_scale=guidance,
        latents=levels[0] * start,
        output_type="latent",
    ).images
    assert float((theirs - start).std()) > 0.1
    torch.testing.assert_close(sample.raw, theirs, rtol=1e-3, atol=1e-3)
    decoded = pipeline.vae.decode(theirs / 1.5 + 0.06).sample
    assert_same(model.autoencoder.decode(theirs), decoded)


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_call_of_flux_is_the_pipelines_own(folders, flux, guidance):
    """Packing, positions, timestep, guidance, and unpacking."""
    x, t = random(2, 4, 8, 8), 400
    noise = flux.base_process.noise(torch.tensor([t, t]))
    ours = flux.denoiser([Condition("a cat", guidance=guidance), Condition("", guidance=guidance)], adapter=False)
    pipeline = FluxPipeline.from_pretrained(folders["flux"])
    for row, prompt in enumerate(("a cat", "")):
        tokens, pooled, ids = pipeline.encode_prompt(prompt, device="cpu")
        packed = pipeline._pack_latents(x[row : row + 1], 1, 4, 8, 8)
        with torch.no_grad():
            v = pipeline.transformer(
                hidden_states=packed,
                timestep=noise.sigma[row].float(),
                guidance=torch.tensor([3.5 if guidance is None else guidance]),
                pooled_projections=pooled,
                encoder_hidden_states=tokens,
                txt_ids=ids,
                img_ids=pipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
                return_dict=False,
            )[0]
            x0 = ours.denoise(x, noise).x0
        v = pipeline._unpack_latents(v, SIDE, SIDE, 2)
        torch.testing.assert_close(x0[row], x[row] - noise.sigma_map()[row].float() * v[0], rtol=1e-3, atol=1e-3)


# ---- whole runs ------------------------------------------------------------------------------------


@pytest.mark.spread(7)
@pytest.mark.parametrize("method", ["replacement", "ddnm", "repaint", "dps", "psld", "flair", "latino"])
def test_whole_runs(inpainter, method):
    image = random_image(SIDE, SIDE)
    settings = {"repaint": {"jump_length": 2, "resamplings": 2}}.get(method, {})
    result = inpainter(image, HOLE, method=METHODS[method](**settings), steps=4, condition=Condition("a cat"))
    known = (HOLE[0] == 0).numpy()
    assert np.array_equal(pixels(result.images[0])[known], pixels(image)[known])
    assert (pixels(result.images[0]) != pixels(image))[~known].mean() > 0.5
    other = inpainter(image, HOLE, method=METHODS[method](**settings), steps=4, condition=Condition("a dog"))
    assert not np.array_equal(pixels(result.images[0]), pixels(other.images[0])), "the prompt matters"


def test_an_image_does_not_depend_on_its_neighbours_nor_on_their_prompts(inpainter):
    images = [random_image(SIDE, SIDE, seed=seed) for seed in range(3)]
    told = [Condition("a cat"), Condition("a dog", guidance=1.0), Condition("a boat", guidance=2.0)]
    options = {"method": "replacement", "steps": 3}
    together = inpainter(images, HOLE, names=["a", "b", "c"], condition=told, **options).raw
    for row, name in enumerate("abc"):
        alone = inpainter(images[row], HOLE, names=[name], condition=told[row], **options).raw[0]
        assert np.abs(pixels(together[row]) - pixels(alone)).max() <= 1, "but for how kernels round"


def test_a_negative_prompt_changes_the_result(sd3):
    inpainter, image = Inpainter(sd3), random_image(SIDE, SIDE)
    results = [
        pixels(inpainter(image, HOLE, method="ddnm", steps=3, condition=Condition("a cat", negative)).raw[0])
        for negative in ("", "a dog")
    ]
    assert not np.array_equal(*results)


def test_bfloat16_is_near(folders):
    image = random_image(SIDE, SIDE)
    told = {"method": "replacement", "steps": 3, "condition": Condition("a cat", guidance=1.0)}
    half = Inpainter.from_pretrained(folders["sd3"], precision="bf16")
    assert half.model.transformer.dtype == torch.bfloat16
    assert next(half.model.autoencoder.network.parameters()).dtype == torch.float32
    x, noise = random(1, 4, 8, 8), half.model.base_process.noise(torch.tensor([300]))
    full = Inpainter.from_pretrained(folders["sd3"])
    with torch.no_grad():
        near, exact = (
            one.model.denoiser([told["condition"]], adapter=False).denoise(x, noise).x0 for one in (half, full)
        )
    assert near.dtype == torch.float32
    assert 0 < float((near - exact).abs().max()) < 0.1 * float(exact.abs().max())
    assert half(image, HOLE, **told).nfe == 3


def test_other_sizes(folders):
    inpainter, image = Inpainter.from_pretrained(folders["sd3"], size=24), random_image(24, 24)
    hole = box_hole(24, 24, 3, 4, 15, 20)
    result = inpainter(image, hole, method="replacement", steps=2)
    assert (pixels(result.images[0]) != pixels(image))[(hole[0] == 1).numpy()].mean() > 0.5
    for size in (0, 6, 18, 36):
        with pytest.raises(ValueError, match=f"size is {size}; allowed with .* are multiples of 4 up to 32"):
            load_model(folders["sd3"], size=size)


# ---- what is refused -------------------------------------------------------------------------------


def test_options_without_effect_are_refused(sd3, flux, tmp_path):
    with pytest.raises(ValueError, match="negative prompt has no effect with guidance 1"):
        sd3.check([CAT, Condition("a cat", "a dog", guidance=1.0)])
    with pytest.raises(ValueError, match="takes no negative prompt"):
        flux.check([Condition("a cat", "a dog")])
    schnell = load_model(tiny_flux(tmp_path, guidance_embeds=False), size=SIDE)
    assert isinstance(schnell, FluxModel)
    with pytest.raises(ValueError, match="takes no guidance"):
        schnell.check([Condition("a cat", guidance=2.0)])
    x0 = schnell.denoiser([Condition("a cat")], adapter=False).denoise(
        random(1, 4, 8, 8), schnell.base_process.noise(torch.tensor([5]))
    )
    assert bool(x0.x0.isfinite().all())


def test_rad_needs_an_adapter(sd3):
    with pytest.raises(ValueError, match="needs an adapter"):
        Inpainter(sd3)(random_image(SIDE, SIDE), HOLE, method="rad")


def test_the_clean_level_has_no_noise(sd3):
    assert float(sd3.base_process.noise(torch.tensor([CLEAN])).sigma_map()) == 0


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "no FlowMatchEulerDiscreteScheduler"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000"),
        ("transformer/config.json", {"num_layers": 3}, "missing"),
        ("transformer/config.json", {"_class_name": "Evil"}, "describes a Evil; supported are SD3Transformer2DModel"),
        ("text_encoder/config.json", {"quantization_config": {"quant_method": "x"}}, "quantised"),
        ("text_encoder/config.json", {"num_hidden_layers": 4}, "missing"),
        ("vae/config.json", {"latent_channels": 3}, "has 3 channels, its network takes 4"),
    ],
)
def test_damaged_folders_give_one_line(tmp_path, file, change, message):
    path = tiny_sd3(tmp_path) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message) as caught:
        Inpainter.from_pretrained(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "vae", "transformer"])
def test_missing_parts_are_named(tmp_path, part):
    tiny_sd3(tmp_path)
    (tmp_path / part).rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=part):
        Inpainter.from_pretrained(tmp_path)
