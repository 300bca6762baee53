"""Adapters of latent and text-to-image models: from a step of training through the folder to a filled image."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from rad.cli import main as cli
from rad.data.module import ImageDataModule
from rad.diffusion.levels import NoiseRegions
from rad.inpainting.inpainter import Inpainter
from rad.models.adapter import AdapterInfo, save_adapter
from rad.models.hub.convert import save_merged
from rad.models.loaded_model import Condition
from rad.models.lora import LoRA
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from tests.conftest import box_hole, random_image
from tests.rounding import assert_same
from tests.tiny_networks import small_conditional
from tests.tiny_pipelines import captions, write_pipeline
from tests.tiny_stable import write_controlnet, write_ip_adapter, write_lora, write_t2i_adapter

SIDE = 16
HOLE = box_hole(SIDE, SIDE, 4, 4, 12, 12)
BOAT, SKY = Condition("a red boat", "blue"), Condition("sky", guidance=1.0)
EACH = pytest.mark.parametrize("kind", ["latent", "stable", "stable3"])
TEXT = pytest.mark.parametrize("kind", ["stable", "stable3"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base of each kind, and of each two adapters: `KIND-trained`, of one step, and `KIND-zero`, fresh."""
    root = tmp_path_factory.mktemp("adapters")
    (root / "images").mkdir()
    for number in range(4):
        random_image(SIDE, SIDE, seed=number).save(root / "images" / f"{number}.png")
    (root / "captions.json").write_text(captions([f"{number}.png" for number in range(4)]))
    for kind in ("latent", "stable", "stable3"):
        base = str(write_pipeline(root / kind, kind))
        told = None if kind == "latent" else str(root / "captions.json")
        module = Diffusion(base=base, image_size=SIDE, lora=LoRA(rank=2), optimizer=partial(torch.optim.AdamW, lr=0.03))
        module.configure_model()
        info = module.adapter_info(ema=False)
        save_adapter(module.network, root / f"{kind}-zero", info, card="# fresh")
        trainer = L.Trainer(
            max_steps=1,
            accelerator="cpu",
            use_distributed_sampler=False,
            callbacks=[Checkpoint(1, dirpath=str(root / "checkpoints" / kind))],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        images = ImageDataModule(str(root / "images"), size=SIDE, batch_size=4, val_count=0, captions=told)
        trainer.fit(module, datamodule=images)
        (root / "checkpoints" / kind / "step=1").rename(root / f"{kind}-trained")
    return root


@pytest.fixture(scope="module")
def inpainters(world):
    names = [f"{kind}{end}" for kind in ("latent", "stable", "stable3") for end in ("", "-zero", "-trained")]
    return {name: Inpainter.from_pretrained(world / name, device="cpu") for name in names}


def pixels(image):
    return np.asarray(image).astype(int)


def condition(kind):
    return Condition() if kind == "latent" else BOAT


def whole(count):
    """Regions of a hole that is everything."""
    return NoiseRegions.from_mask(torch.ones(count, 1, SIDE // 2, SIDE // 2))


def denoise(inpainter, noise, *conditions, adapter):
    x = torch.randn(len(conditions), 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return inpainter.model.denoiser(conditions, adapter=adapter).denoise(x, noise).x0


@pytest.mark.slow
@EACH
def test_an_adapter_is_loaded_on_its_pipeline(inpainters, world, kind):
    model = inpainters[f"{kind}-trained"].model
    assert type(model) is type(inpainters[kind].model)
    assert (model.has_base, model.has_adapter, inpainters[kind].model.has_adapter) == (True, True, False)
    info = AdapterInfo.read(world / f"{kind}-trained")
    assert model.info == info
    assert (info.kind, info.base_hash, info.steps) == (kind, inpainters[kind].model.hash, model.base_process.steps)
    assert model.hash == info.base_hash
    assert model.size == (SIDE, SIDE)


@pytest.mark.parametrize("kind", ["latent", "stable"])
def test_a_merged_adapter_gives_the_same_results(inpainters, tmp_path, kind):
    rad = inpainters[f"{kind}-trained"]
    save_merged(rad.model, tmp_path, card="# Mine\n", name="mine")
    merged = Inpainter.from_pretrained(tmp_path, device="cpu")
    assert (merged.model.has_adapter, merged.model.has_base, merged.model.kind) == (True, False, kind)
    spatial = rad.sampler("rad").process.noise(torch.tensor([700]), whole(1))
    results = [denoise(inpainter, spatial, condition(kind), adapter=True) for inpainter in (rad, merged)]
    assert_same(results[1], results[0])
    plain = denoise(rad, rad.model.base_process.noise(torch.tensor([700])), condition(kind), adapter=False)
    assert (plain - results[0]).abs().max() > 1e-3, "the adapter matters, or the comparison says nothing"
    hole = box_hole(SIDE, SIDE, 4, 4, 20, 20)
    with pytest.raises(ValueError, match="repaint"):
        merged(random_image(SIDE, SIDE), hole, method="repaint", steps=2, condition=condition(kind))
    known = (hole[0] == 0).numpy()
    image = random_image(SIDE, SIDE)
    result = merged(image, hole, steps=2, condition=condition(kind)).images[0]
    assert np.array_equal(pixels(result)[known], pixels(image)[known])


def test_an_adapter_of_sd3_is_not_merged(inpainters, tmp_path):
    with pytest.raises(ValueError, match="kind 'stable3'; --merge is for pixel, latent, stable"):
        save_merged(inpainters["stable3-trained"].model, tmp_path, card="", name="mine")


@EACH
@pytest.mark.parametrize("time", [999, 400, 3])
def test_a_fresh_adapter_on_one_level_is_the_base(inpainters, kind, time):
    """K = 2 levels; all cells have that of the hole, which is the base's level at this timestep."""
    rad, base = inpainters[f"{kind}-zero"], inpainters[kind]
    conditions = [condition(kind), Condition() if kind == "latent" else SKY]
    time = min(time, rad.model.base_process.steps - 1)
    t = torch.tensor([time, time // 2])
    spatial = rad.sampler("rad").process.noise(t, whole(2))
    assert spatial.timesteps.shape == (2, 2)
    found = denoise(rad, spatial, *conditions, adapter=True)
    expected = denoise(base, base.model.base_process.noise(t), *conditions, adapter=False)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


@EACH
@pytest.mark.parametrize("solver", [{"solver": "ddpm", "spacing": "even"}, {"solver": "dpm++2m", "spacing": "logsnr"}])
def test_a_fresh_adapter_fills_a_whole_image_as_the_base_would(inpainters, kind, solver):
    rad, base, steps = inpainters[f"{kind}-zero"], inpainters[kind], 4
    hole, image = torch.ones(1, SIDE, SIDE), random_image(SIDE, SIDE)
    filled = rad(image, hole, steps=steps, condition=condition(kind), names=["a"], **solver).images[0]
    task = Task.encoded(torch.zeros(1, 3, SIDE, SIDE), hole[None], base.model.autoencoder)
    with KeyedNoise(0, ["a"]) as noise, torch.no_grad():
        denoiser = base.model.denoiser([condition(kind)], adapter=False)
        sample = Sampler(base.model.base_process, steps=steps, **solver)(denoiser, task, noise=noise)
        made = base.model.autoencoder.decode(sample.image)[0].clamp(-1, 1)
    expected = (255 * (made / 2 + 0.5)).round().permute(1, 2, 0).numpy()
    assert expected.std() > 1
    assert np.abs(pixels(filled) - expected).max() <= 1


@EACH
def test_a_trained_adapter_fills_and_its_base_is_still_there(inpainters, kind):
    rad, fresh, base = (inpainters[f"{kind}{end}"] for end in ("-trained", "-zero", ""))
    image, known = random_image(SIDE, SIDE), (HOLE[0] == 0).numpy()
    options = {"steps": 3, "condition": condition(kind)}
    made = rad(image, HOLE, **options)
    assert np.array_equal(pixels(made.images[0])[known], pixels(image)[known])
    assert (pixels(made.images[0]) != pixels(image))[~known].mean() > 0.5
    assert made.nfe == 3, "both branches of guidance are one call"
    assert (pixels(made.raw[0]) != pixels(fresh(image, HOLE, **options).raw[0]))[~known].any(), "training is heard"
    pairs = [one(image, HOLE, method="ddnm", **options).raw[0] for one in (rad, base)]
    assert np.abs(pixels(pairs[0]) - pixels(pairs[1])).max() <= 1, "with the adapter off it is the base model"


@EACH
def test_every_cell_has_its_own_timestep(inpainters, kind):
    """Known cells are clean. With the hole's timestep everywhere, the network's output differs."""
    rad, hole = inpainters[f"{kind}-trained"], torch.zeros(1, 1, SIDE // 2, SIDE // 2)
    hole[..., :4] = 1
    noise = rad.sampler("rad").process.noise(torch.tensor([700]), NoiseRegions.from_mask(hole))
    flat = replace(noise, timesteps=noise.timesteps.amax(1, keepdim=True).expand_as(noise.timesteps))
    inside, outside = (denoise(rad, one, condition(kind), adapter=True)[0, :, :, :4] for one in (noise, flat))
    assert float((inside - outside).abs().max()) > 1e-3


@EACH
def test_sampling_and_training_give_the_network_the_same_input(inpainters, world, kind):
    """The same x, levels and text: the network's output in sampling is that of the module."""
    module = Diffusion(base=str(world / kind), image_size=SIDE, adapter=str(world / f"{kind}-trained"))
    module.configure_model()
    rad = inpainters[f"{kind}-trained"]
    hole = torch.zeros(2, 1, SIDE // 2, SIDE // 2)
    hole[0, :, 2:5], hole[1, ..., 3:] = 1, 1
    t = torch.tensor([600, 90])
    assert module.noise_process.steps == 2 * rad.model.base_process.steps
    ours, theirs = (
        process.noise(t, NoiseRegions.from_mask(hole))
        for process in (rad.sampler("rad").process, module.sampling_process)
    )
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.sigma, theirs.sigma)
    plain = [Condition(one.prompt, guidance=None if kind == "latent" else 1.0) for one in (condition(kind), SKY)]
    if kind == "latent":
        plain = [Condition()] * 2
    x = torch.randn(2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module.eval().denoiser([one.prompt for one in plain]).denoise(x, theirs).x0
    torch.testing.assert_close(denoise(rad, ours, *plain, adapter=True), expected, rtol=2e-3, atol=2e-3)


@TEXT
def test_prompts_guidance_and_batches(inpainters, kind):
    rad, original = inpainters[f"{kind}-trained"], random_image(SIDE, SIDE)

    def fill(*conditions, batch_size=8):
        count = len(conditions)
        result = rad(
            [original] * count, HOLE, steps=3, condition=list(conditions), names=["a"] * count, batch_size=batch_size
        )
        return [pixels(image) for image in result.raw]

    told = (BOAT, SKY, Condition("a red boat", guidance=1.0))
    made, alone = fill(*told), fill(*told, batch_size=1)
    assert all(np.abs(one - other).max() <= 2 for one, other in zip(made, alone, strict=True))
    assert np.abs(made[0] - made[1]).max() > 2
    assert np.abs(made[0] - made[2]).max() > 2


def test_sample_py_fills_with_an_adapter_and_text(world, inpainters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = random_image(SIDE, SIDE)
    original.save("a.png")
    Image.fromarray(np.uint8(255 * HOLE[0].numpy())).save("mask.png")
    for kind in ("stable", "stable3"):
        place = world / f"{kind}-trained"
        words = ["--checkpoint", place, "--image", "a.png", "--mask", "mask.png", "--output", kind, "--steps", 2]
        told = ["--prompt", "a red boat", "--negative_prompt", "blue", "--guidance", 3, "--device", "cpu"]
        assert cli.sample([str(word) for word in (*words, *told)]) == 0
        result = inpainters[f"{kind}-trained"](
            "a.png", "mask.png", steps=2, condition=Condition("a red boat", "blue", 3.0), names=["a.png"]
        )
        (made,) = list((tmp_path / kind).rglob("a.png"))
        with Image.open(made) as image:
            assert np.array_equal(pixels(image), pixels(result.images[0]))


def test_controls_go_with_an_adapter_and_loras_do_not(world, inpainters, tmp_path):
    """The ControlNet gets the noisiest timestep, the hole's."""
    place, plain = world / "stable-zero", inpainters["stable"]
    unet = plain.model.unet
    networks = {"controlnet": write_controlnet(tmp_path / "control", unet)}
    networks["t2i_adapter"] = write_t2i_adapter(tmp_path / "t2i", unet.config["block_out_channels"])
    networks["ip_adapter"] = write_ip_adapter(tmp_path / "style", unet)
    rad, base = (Inpainter.from_pretrained(folder, device="cpu", **networks) for folder in (place, world / "stable"))
    image = random_image(SIDE, SIDE, seed=3)
    told = Condition("a red boat", control_image=image, adapter_image=image, style_image=image)
    t = torch.tensor([500])
    found = denoise(rad, rad.sampler("rad").process.noise(t, whole(1)), told, adapter=True)
    expected = denoise(base, base.model.base_process.noise(t), told, adapter=False)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    without = denoise(base, base.model.base_process.noise(t), Condition("a red boat"), adapter=False)
    assert float((expected - without).abs().max()) > 1e-2
    lora = write_lora(tmp_path / "lora.safetensors", small_conditional())
    with pytest.raises(ValueError, match="leave them out"):
        Inpainter.from_pretrained(place, device="cpu", loras=[(lora, 1.0)])


def test_sizes_and_precision_of_sd3(world):
    rad = Inpainter.from_pretrained(world / "stable3-trained", device="cpu", size=24, precision="bf16")
    assert rad.size == (24, 24), "it takes several sizes"
    assert next(rad.model.transformer.parameters()).dtype == torch.float32, "small updates are lost in bfloat16"
    made = rad(random_image(24, 24), torch.ones(1, 24, 24), steps=2, condition=BOAT)
    assert made.nfe == 2


@EACH
def test_an_adapter_of_another_base_is_refused(world, tmp_path, kind):
    folder = tmp_path / "adapter"
    shutil.copytree(world / f"{kind}-trained", folder)
    path = folder / "rad_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_hash": "0" * 64}))
    with pytest.raises(ValueError, match="give the base it was trained on"):
        Inpainter.from_pretrained(folder, device="cpu")
    other = {"latent": "stable", "stable": "stable3", "stable3": "latent"}[kind]
    with pytest.raises(ValueError, match=r"give the base it was trained on|cannot be used"):
        Inpainter.from_pretrained(world / f"{kind}-trained", base=world / other, device="cpu")
    with pytest.raises(ValueError, match=r"has no effect|leave out the ControlNet, or the adapter"):
        Inpainter.from_pretrained(
            world / f"{kind}-trained", device="cpu", **({"controlnet": "x"} if kind == "stable3" else {"size": 32})
        )


# ---- what ships ----------------------------------------------------------------------------------

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"
NAMES = ("goldfish", "lakeside")


@pytest.mark.slow
def test_the_shipped_text_to_image_model_loads_in_diffusers_and_follows_prompts():
    from diffusers import StableDiffusionPipeline

    inpainter = Inpainter.from_pretrained(SHIPPED / "latent-nature32", device="cpu")
    stock = StableDiffusionPipeline.from_pretrained(SHIPPED / "latent-nature32", torch_dtype=torch.float32)
    noise = inpainter.model.base_process.noise(torch.tensor([400]))
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = stock.encode_prompt("lion", "cpu", 1, False)[0]
        eps = stock.unet(x, 400, encoder_hidden_states=text).sample
        mine = inpainter.model.denoiser([Condition("lion", guidance=1.0)], adapter=False).denoise(x, noise).x0
    a, s = float(noise.alpha), float(noise.sigma)
    assert_same(mine, (x - s * eps) / a)
    red = []
    for name in NAMES:
        images = [Image.new("RGB", (32, 32))] * 4
        made = inpainter(
            images,
            torch.ones(1, 32, 32),
            method="replacement",
            steps=10,
            names=list("abcd"),
            condition=Condition(name, guidance=3.0),
        )
        red.append(np.mean([pixels(image)[..., 0] - pixels(image)[..., 2] for image in made.images]))
    assert red[0] > red[1] + 30, "goldfish are red, and lakes are not"


def test_the_shipped_adapter_finds_its_base_and_keeps_known_pixels():
    inpainter = Inpainter.from_pretrained(SHIPPED / "rad-latent-nature32", device="cpu")
    assert AdapterInfo.read(SHIPPED / "rad-latent-nature32").base_hash == inpainter.model.hash
    original = random_image(32, 32, seed=3)
    hole = torch.zeros(1, 32, 32)
    hole[:, 8:24, 8:24] = 1
    filled = [
        pixels(inpainter(original, hole, steps=4, condition=Condition(name, guidance=1.0)).images[0]) for name in NAMES
    ]
    known = hole[0].numpy() == 0
    assert all((image[known] == pixels(original)[known]).all() for image in filled)
    assert (filled[0] != filled[1])[~known].mean() > 0.5
