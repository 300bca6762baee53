"""Training in latents: encoded images and prompts, trained weights, resumed runs, files, and losses of every prediction."""

import json
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rad.data.captions import read_captions
from rad.data.module import ImageDataModule
from rad.diffusion.levels import NoiseRegions
from rad.diffusion.losses import hybrid_loss, target
from rad.diffusion.processes import Flow, RegionAwareFlow, Uniform
from rad.diffusion.schedules import linear_betas, shifted_sigmas
from rad.diffusion.step import noised
from rad.masks.shapes import make
from rad.models.adapter import AdapterInfo, load_adapter
from rad.models.latent_mask import Grid
from rad.models.load import load_model
from rad.models.lora import LoRA, trainable
from rad.training.batches import encode_images, encode_prompts
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.execution import Execution
from rad.training.inpainting import InpaintingMetrics
from rad.training.panel import Panel
from rad.training.settings import Scratch, TrainingLoss, TrainingProcess
from tests.rounding import assert_same, doubled
from tests.tiny_pipelines import captions, small_autoencoder, write_pipeline
from tests.training.test_module import adamw, configured

UNIFORM = {"process": TrainingProcess("uniform"), "image_size": 16}
KINDS = ("latent", "stable", "stable3")
EACH = pytest.mark.parametrize("kind", KINDS)
UNUSED = "transformer_blocks.2.attn.add_q_proj"  # SD3's last block makes queries of the text that nobody asks for
TEXTS = ["a red boat", "", "a blue boat", "a red sky"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model of each kind, `images/`, ten of them, and `captions.json`."""
    root = tmp_path_factory.mktemp("latents")
    for kind in KINDS:
        write_pipeline(root / kind, kind)
    source = torch.Generator().manual_seed(0)
    for number in range(10):
        place = root / "images" / ("boat" if number % 2 else "red_sky")
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=source), (20, 24), mode="bicubic")[0]
        pixels = (pixels.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / f"{number}.png")
    (root / "captions.json").write_text(captions([f"{number}.png" for number in range(10)]))
    return root


def module(world, kind, **options):
    settings = {"base": str(world / kind), "image_size": 16, "lora": LoRA(rank=2), "optimizer": adamw(1e-3)}
    return configured(**settings | options)


def data(world, kind="stable", **options):
    told = {} if kind == "latent" else {"captions": str(world / "captions.json")}
    return ImageDataModule(str(world / "images"), **({"size": 16, "batch_size": 4, "val_count": 2} | told | options))


def fit(folder, model, images, steps, *, resume=None, callbacks=(), **options):
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[EMA(decay=0.9), Checkpoint(2, dirpath=str(folder / "checkpoints")), *callbacks],
        logger=False,
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, datamodule=images, ckpt_path=resume, weights_only=True)
    return trainer


def batch(rows=4, **more):
    image = 2 * torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    return {"image": image, "position": torch.arange(rows), "text": TEXTS[:rows], **more}


def load(source):
    return load_model(str(source), size=16, training=True)


def moved(model):
    """The same model, with an adapter away from zero."""
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return model


def outputs(network, loaded, index):
    source = torch.Generator().manual_seed(3)
    x = torch.randn(4, 4, 8, 8, generator=source)
    prompts = loaded.encode_prompts(TEXTS)
    with torch.no_grad():
        return network.eval()(x, timestep=torch.tensor([[0.0, 700.0]] * 4), index=index, **prompts).sample


INDEX = (torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5).long()


def test_text_embeddings_equal_those_of_diffusers(world):
    from diffusers import StableDiffusionPipeline

    loaded = load(world / "stable")
    pipeline = StableDiffusionPipeline.from_pretrained(world / "stable", safety_checker=None)
    expected, _ = pipeline.encode_prompt(TEXTS, "cpu", 1, False)
    assert torch.equal(loaded.encode_prompts(TEXTS)["encoder_hidden_states"], expected)
    assert (expected[0] - expected[2]).abs().max() > 1e-3, "texts differ, or the comparison says nothing"


def test_sd3_reads_t5_where_there_is_one(world, tmp_path):
    alone = write_pipeline(tmp_path, "stable3", t5=False)
    first, second = (load(folder).encode_prompts(TEXTS) for folder in (world / "stable3", alone))
    assert torch.equal(first["pooled_projections"], second["pooled_projections"])
    clip = (first["encoder_hidden_states"] == second["encoder_hidden_states"]).flatten(2).all(-1)
    assert clip[:, :77].all(), "CLIP's tokens come first"
    assert (second["encoder_hidden_states"][:, 77:] == 0).all()
    assert (first["encoder_hidden_states"][:, 77:] != 0).any(-1).all()


def encode(model, image, hole):
    """x0 and regions of a batch with its own holes."""
    return encode_images(
        {"image": image, "hole": hole},
        hole,
        model.model.autoencoder,
        process=model.process,
        grid=model.grid,
        fill=model.fill,
    )


@EACH
def test_known_cells_exclude_the_hole_and_hole_cells_have_the_image(world, kind):
    model = module(world, kind)
    given = batch()
    hole = make("center")([torch.Generator()] * 4, 16, 16)
    other = torch.where(hole == 1, given["image"].flip(0), given["image"])
    x0, regions = encode(model, given["image"], hole)
    changed, _ = encode(model, other, hole)
    cells = regions.index[:, None].expand_as(x0) == 1
    assert 0 < cells.double().mean() < 1
    assert torch.equal(x0[~cells], changed[~cells])
    assert torch.equal(x0[cells], model.model.autoencoder.encode(given["image"])[cells])
    assert (x0[cells] != changed[cells]).any()
    task = model.task(given["image"], hole)
    assert_same(x0[~cells], task.known[~cells])
    assert torch.equal(regions.index, task.regions.index), "training and sampling have one rule for holes"
    leaking = module(world, kind, fill="none")
    seen, unseen = (encode(leaking, image, hole)[0] for image in (given["image"], other))
    assert (seen - unseen)[~cells].abs().max() > 1e-4


def test_holes_come_to_the_cells_by_the_grid_that_is_asked_for(world):
    hole = torch.zeros(1, 1, 16, 16)
    hole[0, 0, 4, 4] = 1
    image = torch.zeros(1, 3, 16, 16)
    counts = [
        int(encode(module(world, "latent", grid=grid), image, hole)[1].index.sum())
        for grid in (Grid(), Grid(threshold=0.5), Grid(dilate=1))
    ]
    assert counts == [1, 0, 9]


@EACH
def test_gradients_reach_the_adapter_and_nothing_else(world, kind):
    model = moved(module(world, kind))
    losses, _, _ = model.losses(batch(), "train")
    losses.total.mean().backward()
    wanted = trainable(model)
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == set(wanted)
    assert all(wanted[name].grad.abs().max() > 0 for name in wanted if UNUSED not in name), "all layers count"
    assert all(p.grad is None for p in model.model.autoencoder.network.parameters())
    frozen = [p for part in model.model.frozen_modules() for p in part.parameters()]
    assert {id(p) for p in frozen} <= {id(p) for p in model.parameters()}, "Lightning moves them to the device"
    assert not any(p.requires_grad for p in frozen), "optimiser and DDP's reducer skip them"
    assert set(model.state_dict()) == set(wanted)


@pytest.mark.spread(2)
@EACH
@pytest.mark.parametrize("time_layers", ["full", "lora"])
def test_a_fresh_adapter_changes_nothing_and_trains_the_time(world, kind, time_layers):
    loaded = load(world / kind)
    network = loaded.region_aware_network()
    before = outputs(network, loaded, INDEX)
    model = module(world, kind, lora=LoRA(rank=2, time_layers=time_layers))
    torch.testing.assert_close(outputs(model.network, loaded, INDEX), before, rtol=0, atol=0)
    names = list(trainable(model))
    time = "norm1.linear" if kind == "stable3" else "time_emb_proj"
    assert any(time in name for name in names)
    assert any("to_q" in name for name in names)
    assert all("lora" in name or ("modules_to_save" in name and time_layers == "full") for name in names)
    assert any("add_q_proj" in name for name in names) == (kind == "stable3")
    assert not any("norm1_context" in name or "text_embedder" in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stable", "latent", "stable3"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(world, tmp_path, kind):
    whole, resumed = module(world, kind), module(world, kind)
    fit(tmp_path / "whole", whole, data(world, kind), 4)
    start = tmp_path / "whole" / "checkpoints" / "step=2.ckpt"
    trainer = fit(tmp_path / "resumed", resumed, data(world, kind), 4, resume=str(start))
    assert trainer.global_step == 4
    fresh = trainable(module(world, kind))
    for name, weight in trainable(whole).items():
        assert torch.equal(weight, trainable(resumed)[name]), name
        assert UNUSED in name or not torch.equal(weight, fresh[name]), name
    content = torch.load(start, weights_only=True)
    assert set(content["state_dict"]) == set(trainable(whole)), "no frozen weight is in a checkpoint"
    averages = next(state["weights"] for name, state in content["callbacks"].items() if name.startswith("EMA"))
    moments = content["optimizer_states"][0]["state"]
    assert set(averages) == set(trainable(whole))
    assert len(moments) == len(trainable(whole))
    # the adapter beside it gives the same output on parts that are loaded anew
    folder = tmp_path / "whole" / "checkpoints" / "step=4"
    info = AdapterInfo.read(folder)
    assert (info.kind, info.size, info.process, info.learned_variance) == (kind, (16, 16), "region_aware", False)
    loaded = load(info.base)
    network = loaded.region_aware_network()
    adapted = load_adapter(network, folder, base_hash=loaded.hash)
    assert_same(outputs(adapted, loaded, INDEX), outputs(whole.network, loaded, INDEX))


def test_training_lowers_the_loss(world, tmp_path):
    model = module(world, "stable", optimizer=adamw(1e-2), lora=LoRA(rank=8))
    with torch.no_grad():
        before = model.losses(batch(), "val")[0].total.mean()
    fit(tmp_path, model, data(world), 10)
    with torch.no_grad():
        after = model.losses(batch(), "val")[0].total.mean()
    assert float(after) < 0.9 * float(before)


def test_prompts_are_encoded_and_some_are_dropped_by_position(world):
    model = moved(module(world, "stable", prompt_dropout=0.0))
    loss = model.losses(batch(), "train")[0].total
    other = model.losses(batch(text=["a blue sky"] * 4), "train")[0].total
    assert (loss != other).all()
    empty = model.losses(batch(text=[""] * 4), "train")[0].total
    model.prompt_dropout = 1.0
    assert torch.equal(model.losses(batch(), "train")[0].total, empty)
    assert not torch.equal(model.losses(batch(), "val")[0].total, model.losses(batch(text=[""] * 4), "val")[0].total)

    def encoded(positions):
        rows = {"position": positions, "text": ["red"] * len(positions)}
        return encode_prompts(rows, model.model, seed=model.seed, dropout=0.5)["encoder_hidden_states"]

    texts = encoded(torch.arange(200))
    plain = model.model.encode_prompts([""])["encoder_hidden_states"]

    def as_plain(rows):  # the same text in another batch, to rounding; another text is some tenths away
        return (rows - plain).abs().flatten(1).amax(1) < 1e-3

    dropped = as_plain(texts)
    assert float((texts - plain)[~dropped].abs().flatten(1).amax(1).min()) > 1e-2
    assert 70 <= int(dropped.sum()) <= 130
    assert torch.equal(as_plain(encoded(torch.arange(50, 60))), dropped[50:60]), "keyed by position"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stable", "stable3"])
def test_bf16_and_gradient_checkpointing(world, tmp_path, kind):
    model = module(world, kind, execution=Execution(gradient_checkpointing=True))
    assert model.model.network.is_gradient_checkpointing
    fit(tmp_path, model, data(world), 1, precision="bf16-mixed")
    fresh = trainable(module(world, kind))
    assert all(bool(p.isfinite().all()) for p in trainable(model).values())
    assert any(not torch.equal(p, fresh[name]) for name, p in trainable(model).items())


def test_double_precision_is_refused_before_training(world, tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.precision is 64-true"):
        fit(tmp_path, module(world, "latent"), data(world), 1, precision="64-true")


def test_the_loss_does_not_depend_on_how_the_batch_is_split(world):
    for kind in KINDS:
        model = moved(module(world, kind))
        encoders = [] if model.model.text is None else model.model.text.encoders
        for network in (model.network, *model.model.autoencoder.network.children(), *encoders):
            doubled(network)
        together = model.losses(batch(), "train")[0].total
        parts = [
            model.losses({name: values[rows] for name, values in batch().items()}, "train")[0].total
            for rows in (slice(0, 1), slice(1, 4))
        ]
        assert together.dtype == torch.float64
        assert_same(together, torch.cat(parts))


def test_dropout_of_a_pretrained_network_is_off_in_training(world, tmp_path):
    """Its draws would be those of the global generator, and depend on how the batch is split."""
    folder = tmp_path / "stable"
    shutil.copytree(world / "stable", folder)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dropout": 0.5}))
    model = module(tmp_path, "stable")
    assert {layer.p for layer in model.model.network.modules() if isinstance(layer, torch.nn.Dropout)} == {0.0}
    with torch.no_grad():
        first, again = (model.losses(batch(), "train")[0].total for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.slow
def test_another_autoencoder_or_text_encoder_cannot_resume_a_run(world, tmp_path):
    shutil.copytree(world / "stable", tmp_path / "stable")
    place = str(tmp_path / "stable")
    given = {"scratch": Scratch(TEXT_UNET, autoencoder=place, text_encoder=place), **UNIFORM}
    fit(tmp_path, Diffusion(**given), data(world), 1)
    state = torch.load(tmp_path / "checkpoints" / "step=1.ckpt", weights_only=True)
    configured(**given).on_load_checkpoint(state)
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        path = tmp_path / "stable" / f"{part}.safetensors"
        before = load_file(path)
        save_file({name: value + 0.01 for name, value in before.items()}, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="the checkpoint belongs to"):
            configured(**given).on_load_checkpoint(state)
        save_file(before, path, metadata={"format": "pt"})


def test_targets_in_closed_form():
    source = torch.Generator().manual_seed(0)
    x0, eps, output = (torch.randn(2, 4, 8, 8, generator=source) for _ in range(3))
    regions = NoiseRegions.from_mask((torch.rand(2, 1, 8, 8, generator=source) > 0.5).float())
    t = torch.tensor([300, 1200])
    process = RegionAwareFlow(Flow(shifted_sigmas()))
    now, previous = process.noise(t, regions), process.noise(t - 1, regions)
    x = noised(x0, now, noise=eps)
    right = target("velocity", x0=x0, eps=eps, now=now)
    torch.testing.assert_close(x - now.sigma_map().float() * right, x0)
    torch.testing.assert_close(x + now.alpha_map().float() * right, eps)
    given = {"x0": x0, "x": x, "eps": eps, "now": now, "previous": previous}
    zero = hybrid_loss(right, **given, prediction="velocity")
    assert torch.equal(zero.total, torch.zeros(2))
    some = hybrid_loss(output, **given, prediction="velocity")
    torch.testing.assert_close(some.total, (eps - x0 - output).square().mean((1, 2, 3)))
    assert torch.equal(some.vlb, torch.zeros(2))

    vp = Uniform(linear_betas()).noise(torch.tensor([10, 900]))
    x = noised(x0, vp, noise=eps)
    v = target("v_prediction", x0=x0, eps=eps, now=vp)
    torch.testing.assert_close(vp.alpha_map().float() * x - vp.sigma_map().float() * v, x0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vp.sigma_map().float() * x + vp.alpha_map().float() * v, eps, rtol=1e-4, atol=1e-5)


def test_v_prediction_trains_on_v(world, tmp_path):
    folder = write_pipeline(tmp_path / "v", "stable", prediction="v_prediction")
    v, eps = (
        configured(base=str(base), image_size=16, lora=LoRA(rank=2)).losses(batch(), "train")[0].total
        for base in (folder, world / "stable")
    )
    assert not torch.allclose(v, eps)
    with pytest.raises(ValueError, match="weight_limit is 15"):
        configured(base=str(folder), image_size=16, lora=LoRA(rank=2), loss=TrainingLoss(weight_limit=15))


@pytest.mark.spread(1)
@EACH
def test_a_panel_shows_pixels(world, tmp_path, kind):
    panel = Panel(every_n_steps=0, images=2, steps=2)
    model = module(world, kind)
    image = panel.image(fit(tmp_path, model, data(world, kind), 1), model)
    hole, result, truth = (image[:, 2:18, 2 + 18 * i : 18 + 18 * i] for i in range(3))
    known = torch.ones(16, 16, dtype=torch.bool)
    known[4:12, 4:12] = False  # the first mask is "center"
    assert torch.equal(result[:, known], truth[:, known])
    assert torch.equal(hole[:, known], truth[:, known])
    assert (result - truth)[:, ~known].abs().max() > 0.01


@pytest.mark.slow
@EACH
def test_inpainting_is_measured_in_pixels(world, tmp_path, kind):
    callback = InpaintingMetrics(every_n_steps=1, images=2, batch_size=2, steps=2, monitor="psnr")
    model = module(world, kind)
    trainer = fit(tmp_path, model, data(world, kind), 1, callbacks=[callback])
    values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("inpainting/")}
    assert len(values) == 5
    assert callback.best.value == pytest.approx(values["inpainting/psnr-hole"])
    again = callback.measure(trainer, model)
    assert again is not None
    assert all(again[name] == pytest.approx(values[name]) for name in again if "seconds" not in name)
    assert (tmp_path / "checkpoints" / "best" / "rad_config.json").is_file()


UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": 16,
}
TEXT_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 16,
    "resnet_time_scale_shift": "scale_shift",
}


def test_a_latent_model_from_scratch_is_a_base_for_an_adapter_and_stock_diffusers_reads_it(world, tmp_path):
    from diffusers import LDMPipeline

    small_autoencoder().save_pretrained(tmp_path / "autoencoder")
    network = Scratch(UNET, autoencoder=str(tmp_path / "autoencoder"))
    scratch = configured(scratch=network, optimizer=adamw(3e-3), **UNIFORM)
    with torch.no_grad():
        first = scratch.losses(batch(), "train")[0].total.mean()
    assert float(first) == pytest.approx(1, abs=0.15), "a network of zeros predicts no noise"
    fit(tmp_path / "base", scratch, data(world, "latent"), 4)
    folder = tmp_path / "base" / "checkpoints" / "step=4"
    content = torch.load(folder.with_suffix(".ckpt"), weights_only=True)
    assert all(name.startswith("network.") for name in content["state_dict"]), "the autoencoder stays out"
    pipeline = LDMPipeline.from_pretrained(folder)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_same(pipeline.unet(x, 40).sample, scratch.model.network.eval()(x, 40).sample)
    assert pipeline.vqvae.config.scaling_factor == 0.7
    assert not pipeline.scheduler.config.clip_sample
    adapter = configured(base=str(folder), image_size=16, lora=LoRA(rank=2))
    assert adapter.model.kind == "latent"
    fit(tmp_path / "adapter", adapter, data(world, "latent"), 2)
    assert AdapterInfo.read(tmp_path / "adapter" / "checkpoints" / "step=2").base == str(folder)


@pytest.mark.slow
def test_a_text_to_image_model_from_scratch_works_with_guidance_adapters_and_diffusers(world, tmp_path):
    from diffusers import StableDiffusionPipeline

    from rad.inpainting.inpainter import Inpainter
    from rad.models.loaded_model import Condition

    place = str(world / "stable")
    network = Scratch(TEXT_UNET, autoencoder=place, text_encoder=place)
    scratch = configured(scratch=network, optimizer=adamw(3e-3), **UNIFORM)
    encoder = scratch.model.text.pipeline.text_encoder
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    fit(tmp_path / "base", scratch, data(world, "stable"), 4)
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.state_dict().items()), "it stays as it is"
    folder = tmp_path / "base" / "checkpoints" / "step=4"
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    x, text = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        scratch.model.encode_prompts(["a red boat", "x"]),
    )
    with torch.no_grad():
        mine = scratch.model.network.eval()(x, 40, **text).sample
        assert_same(pipeline.unet(x, 40, **text).sample, mine)
        told = pipeline.encode_prompt(["a red boat", "x"], "cpu", 1, False)[0]
    assert_same(told, text["encoder_hidden_states"])
    assert (
        float(
            (mine[:1] - scratch.model.network(x[:1], 40, **scratch.model.encode_prompts(["a sky"])).sample).abs().max()
        )
        > 0
    )
    inpainter = Inpainter.from_pretrained(folder, device="cpu")
    hole = torch.zeros(1, 16, 16)
    hole[:, 4:12, 4:12] = 1
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    fill = [
        inpainter(image, hole, method="replacement", steps=2, condition=Condition(text, guidance=3.0))
        for text in ("a red boat", "a blue boat")
    ]
    assert fill[0].images[0].tobytes() != fill[1].images[0].tobytes()
    assert configured(base=str(folder), image_size=16, lora=LoRA(rank=2)).model.kind == "stable"


def test_names_of_classes_become_codes_that_differ(tmp_path, monkeypatch):
    from transformers import CLIPTextModel, CLIPTokenizer

    from benchmarks import class_texts
    from rad.models.text_to_image.folders import load_encoder, load_tokenizer

    names = Path(__file__).resolve().parents[2] / "configs" / "nature64_names.json"
    monkeypatch.setattr("sys.argv", ["class_texts.py", "--names", str(names), "--output", str(tmp_path)])
    class_texts.main()
    tokenizer = load_tokenizer(CLIPTokenizer, tmp_path / "tokenizer")
    texts = sorted(json.loads(names.read_text()).values())
    for text in texts:
        assert [token.removesuffix("</w>") for token in tokenizer.tokenize(text)] == text.split(), (
            "a token for each word"
        )
    assert len(tokenizer.tokenize("zebra")) > 1
    encoder = load_encoder(CLIPTextModel, tmp_path / "text_encoder")
    ids = tokenizer(["", *texts], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        codes = encoder(ids).last_hidden_state.flatten(1)
    apart = torch.cdist(codes, codes).fill_diagonal_(torch.inf).min()
    assert float(apart) > 0.2 * float((codes - codes.mean(0)).norm(dim=1).mean())


@pytest.mark.slow
def test_all_of_stable_diffusion_is_fine_tuned_as_a_base(world, tmp_path):
    """What DreamBooth and its like do: the folder is a Stable Diffusion again, with the schedule and prediction of before."""
    from diffusers import StableDiffusionPipeline

    folder = write_pipeline(tmp_path / "v", "stable", prediction="v_prediction")
    tuned = module(tmp_path, "v", lora=None, process=TrainingProcess("uniform"))
    fit(tmp_path, tuned, data(world, "stable"), 2)
    before, after = load(folder), load(tmp_path / "checkpoints" / "step=2")
    assert before.hash != after.hash
    assert before.prediction == after.prediction == "v_prediction"
    schedules = [
        StableDiffusionPipeline.from_pretrained(place).scheduler.config
        for place in (folder, tmp_path / "checkpoints" / "step=2")
    ]
    same = ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset", "clip_sample")
    assert [schedules[0][key] for key in same] == [schedules[1][key] for key in same]
    torch.testing.assert_close(
        before.base_process.noise(torch.tensor([7])).alpha, after.base_process.noise(torch.tensor([7])).alpha
    )
    torch.testing.assert_close(before.encode_prompts(["a boat"]), after.encode_prompts(["a boat"]))


def test_captions_of_files_lines_and_folders(world, tmp_path):
    train = data(world, val_count=0)
    train.setup("validate")
    texts = json.loads((world / "captions.json").read_text())
    loaded = next(iter(train.train_dataloader()))
    assert loaded["text"] == [texts[Path(name).name] for name in loaded["name"]]
    folders = data(world, val_count=0, captions="folder")
    folders.setup("validate")
    loaded = next(iter(folders.train_dataloader()))
    assert loaded["text"] == [Path(name).parent.name.replace("_", " ") for name in loaded["name"]]
    assert "red sky" in read_captions("folder")("red_sky/2.png")

    lines = tmp_path / "metadata.jsonl"
    rows = [{"file_name": "boat/1.png", "text": "mine\u2028too"}, {"file_name": "boat", "text": "any boat"}]
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    told = read_captions(str(lines))
    assert [told("boat/1.png"), told("boat/3.png")] == ["mine\u2028too", "any boat"]
    with pytest.raises(ValueError, match=r"no text for image red_sky/0\.png"):
        told("red_sky/0.png")
    with pytest.raises(ValueError, match="lies in no folder"):
        read_captions("folder")("1.png")
    with pytest.raises(ValueError, match="no text for image"):
        data(world, captions=str(lines)).setup("validate")
    with pytest.raises(FileNotFoundError, match="captions 'none' is no file"):
        read_captions("none")
    lines.write_text('{"file_name": "a.png"}\n')
    with pytest.raises(ValueError, match="lines of"):
        read_captions(str(lines))
    (tmp_path / "numbers.json").write_text('{"a.png": 3}')
    with pytest.raises(ValueError, match=r"text of 'a\.png' is no text, but int"):
        read_captions(str(tmp_path / "numbers.json"))


@EACH
def test_validation_alone(world, kind):
    """`trainer.validate` loads the model and moves its frozen parts; the result equals the loss of the module itself."""
    model = Diffusion(str(world / kind), image_size=16, lora=LoRA(rank=2))
    images = data(world, kind, batch_size=2)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    (means,) = trainer.validate(model, datamodule=images)
    with torch.no_grad():
        losses = model.losses(next(iter(images.val_dataloader())), "val")[0]
    assert means["val/loss"] == pytest.approx(losses.total.mean().item(), rel=1e-5)


@EACH
def test_frozen_parts_follow_the_device_and_keep_dtype_and_mode(world, kind):
    model = module(world, kind)
    before = [(p.dtype, p.detach().clone()) for p in model.frozen.parameters()]
    model.double().train()
    assert next(iter(trainable(model).values())).dtype == torch.float64
    assert all(
        p.dtype == dtype and torch.equal(p, value)
        for p, (dtype, value) in zip(model.frozen.parameters(), before, strict=True)
    )
    assert not any(part.training for part in model.frozen.modules())
    assert all(p.device.type == "meta" for p in model.to("meta").frozen.parameters())


def test_untrainable_settings_are_refused(world, tmp_path):
    place = str(world / "stable")

    def text(fields=TEXT_UNET, **options):
        settings = {"process": TrainingProcess("uniform"), "image_size": 16} | options
        return configured(scratch=Scratch(fields, autoencoder=place, text_encoder=place), **settings)

    with pytest.raises(ValueError, match=r"one level an image alone: set model\.lora, or process\.kind 'uniform'"):
        module(world, "stable", lora=None)
    with pytest.raises(
        ValueError, match=r"an adapter is trained, not all of it: set model\.lora, and process\.kind 'region"
    ):
        module(world, "stable3", lora=None, process=TrainingProcess("uniform"))
    with pytest.raises(ValueError, match="variance-preserving"):
        module(world, "stable3", process=TrainingProcess("tdpaint"))
    with pytest.raises(ValueError, match="a flow's timestep is its sigma"):
        module(world, "stable3", process=TrainingProcess(time_origin="official"))
    with pytest.raises(ValueError, match="multiples of 4"):
        module(world, "stable3", image_size=18)
    with pytest.raises(ValueError, match="for models on latents"):
        Scratch(TEXT_UNET, text_encoder=place)
    with pytest.raises(ValueError, match="set its cross_attention_dim to 16"):
        text({**TEXT_UNET, "cross_attention_dim": 24})
    for wrong in ({"no_such_field": 1}, {"encoder_hid_dim": 8}):
        with pytest.raises(ValueError, match=r"model\.scratch\.unet does not describe a UNet2DConditionModel"):
            text({**TEXT_UNET, **wrong})
    with pytest.raises(ValueError, match=r"images of 32 pixels give it 16"):
        text(image_size=32)
    with pytest.raises(ValueError, match=r"alone: set process\.kind 'uniform'"):
        text(process=TrainingProcess())
    with pytest.raises(ValueError, match=r"model\.scratch is trained as a whole"):
        text(process=TrainingProcess(), lora=LoRA())
    with pytest.raises(ValueError, match=r"model\.scratch\.unet\.dropout is 0\.1"):
        text({**TEXT_UNET, "dropout": 0.1})
    small_autoencoder(shift_factor=0.1).save_pretrained(tmp_path / "shifted")
    with pytest.raises(ValueError, match=r"shift_factor 0\.1"):
        configured(scratch=Scratch(UNET, autoencoder=str(tmp_path / "shifted")), **UNIFORM)
    with pytest.raises(FileNotFoundError, match="text_encoder"):
        configured(scratch=Scratch(TEXT_UNET, autoencoder=place, text_encoder=str(tmp_path)), **UNIFORM)
    with pytest.raises(ValueError, match="training is of these latents: 4, and 4"):
        configured(scratch=Scratch({**UNET, "in_channels": 3}, autoencoder=place), **UNIFORM)
    with pytest.raises(FileNotFoundError, match="no autoencoder in"):
        configured(scratch=Scratch(UNET, autoencoder=str(tmp_path)), **UNIFORM)
    for kind in ("StableDiffusionXLPipeline", "FluxPipeline"):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        with pytest.raises(ValueError, match=f"is a {kind}: training is of"):
            configured(base=str(tmp_path), image_size=16, lora=LoRA())
