"""Base models: conversion against the mathematics and the published program, folders, hashes, messages."""

import hashlib
import json
import math
import shutil
import struct
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from rad.diffusion.step import reverse_step
from rad.models.base import convert_adm, load_base, save_base
from rad.models.guided_diffusion import split_qkv
from rad.models.load import load_model
from rad.models.loaded_model import PLAIN
from rad.models.weights import weights_hash
from tests.adm_reference import Adm, forward, random_state, shapes
from tests.rounding import assert_same
from tests.tiny_networks import small_unet

SHARED = Path(__file__).resolve().parents[3] / "shared"
REFERENCE = SHARED / "reference"
NATURE = SHARED / "checkpoints" / "base-nature32"

# Attention with two or more heads on two levels, neither of them the deepest.
FULL = Adm(width=32, multipliers=(1, 2, 2), blocks=2, attention=(0, 1), head_channels=16)
TINY = Adm(width=32, multipliers=(1, 2), blocks=1, attention=(1,), head_channels=32)
CONFIGS = {
    "full": FULL,
    "attention on the deepest level": TINY,
    "classes": Adm(width=32, multipliers=(1, 1), blocks=1, attention=(0,), head_channels=16, classes=5),
    "convolutions resample": Adm(
        width=32, multipliers=(1, 2, 2), blocks=1, attention=(1,), head_channels=16, resample_by_block=False
    ),
    "shift only, fixed variance": Adm(
        width=32,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        head_channels=16,
        scale_shift=False,
        out_channels=3,
    ),
    "one level": Adm(width=32, multipliers=(1,), blocks=2, attention=(0,), head_channels=16),
}
LINEAR = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a local path must not reach the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


def convert(adm: Adm, state: dict, **options) -> UNet2DModel:
    return convert_adm(state, **{"image_size": 16, "head_channels": adm.head_channels, **options})


def difference(adm: Adm, unet: UNet2DModel, state: dict) -> float:
    """Largest absolute difference between a network and the reference in float64, relative to the output."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, adm.in_channels, 16, 16, generator=generator, dtype=torch.float64)
    t = torch.tensor([3.0, 741.5])
    labels = torch.tensor([1, 4]) if adm.classes else None
    with torch.no_grad():
        wanted = forward(adm, state, x, t, labels)
        given = unet.double()(x, t, class_labels=labels).sample
    return ((given - wanted).abs().max() / wanted.abs().max()).item()


# ---- the published program -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini():
    if not REFERENCE.is_dir():
        pytest.skip("no reference numbers here")
    return load_file(REFERENCE / "adm_mini_io.safetensors")


def load_mini(**options) -> UNet2DModel:
    return load_base(REFERENCE / "adm_mini_weights.pt", image_size=32, head_channels=32, **options).unet


@torch.no_grad()
def test_converted_network_gives_the_published_programs_numbers(mini):
    unet = load_mini()
    for times, output in (("timesteps", "output"), ("timesteps_fractional", "output_fractional")):
        assert_same(unet(mini["x"], mini[times]).sample, mini[output])


@torch.no_grad()
def test_converted_network_is_exact_in_float64(mini):
    unet = load_mini().double()
    own = unet.time_proj(mini["timesteps"])
    # float32 exp differs by an ulp between builds of torch: times t = 813 that is 1e-4 at the very most.
    assert (own - mini["sinusoid"]).abs().max() <= 1e-4
    unet.time_proj.register_forward_hook(lambda *_: mini["sinusoid"])
    output = unet(mini["x"].double(), mini["timesteps"]).sample
    assert (output - mini["output_float64"]).abs().max() <= 1e-9


@torch.no_grad()
def test_naive_rows_wrong_epsilon_and_shifted_time_miss_the_published_numbers(mini):
    def error(unet: UNet2DModel, times: torch.Tensor) -> float:
        return (unet(mini["x"], times).sample - mini["output"]).abs().max().item()

    assert error(load_mini(qkv_order="naive"), mini["timesteps"]) > 1.0
    assert 5e-4 < error(load_mini(norm_eps=1e-6), mini["timesteps"]) < 5e-3
    assert error(load_mini(), mini["timesteps"] + 1) > 1.0


@torch.no_grad()
def test_readable_reference_gives_the_published_programs_numbers(mini):
    adm = Adm(width=64, multipliers=(1, 1), blocks=1, attention=(1,), head_channels=32)
    state = torch.load(REFERENCE / "adm_mini_weights.pt", weights_only=True)
    assert_same(forward(adm, state, mini["x"], mini["timesteps"]), mini["output"])


# ---- conversion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("adm", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_converted_network_equals_adm(adm):
    state = random_state(adm, seed=0)
    assert difference(adm, convert(adm, state), state) < 1e-12


def test_naive_rows_and_wrong_epsilon_compute_something_else():
    state = random_state(FULL, seed=0)
    assert difference(FULL, convert(FULL, state, qkv_order="naive"), state) > 1e-2
    assert difference(FULL, convert(FULL, state, norm_eps=1e-6), state) > 1e-7


def test_split_qkv_takes_rows_head_by_head():
    # Row number = 100 head + 10 part + place within the head.
    fused = torch.tensor([100 * h + 10 * part + i for h in (1, 2) for part in (0, 1, 2) for i in (0, 1)])
    legacy = split_qkv(fused, 2, "legacy")
    assert {part: rows.tolist() for part, rows in legacy.items()} == {
        "q": [100, 101, 200, 201],
        "k": [110, 111, 210, 211],
        "v": [120, 121, 220, 221],
    }
    assert torch.cat([*split_qkv(fused, 2, "naive").values()]).equal(fused)


@pytest.mark.parametrize(
    ("adm", "millions", "attention"),
    [
        (Adm(128, (1, 1, 2, 2, 4, 4), blocks=1, attention=(4,), head_channels=64), 93.56, [4]),
        (Adm(256, (1, 1, 2, 2, 4, 4), blocks=2, attention=(3, 4, 5), head_channels=64), 552.81, [3, 4, 5]),
    ],
    ids=["FFHQ", "LSUN and ImageNet"],
)
def test_names_of_the_published_models_map_one_to_one(adm, millions, attention):
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes(adm).items()}
    unet = convert_adm(state, image_size=256, head_channels=64)  # strict: a missing or left-over name raises
    count = sum(value.numel() for value in unet.state_dict().values())
    assert count == sum(value.numel() for value in state.values())  # so no two names met in one
    assert round(count / 1e6, 2) == millions
    fused = sum(".qkv." in name for name in state)
    assert len(unet.state_dict()) == len(state) + 2 * fused
    down = [block == "AttnDownBlock2D" for block in unet.config["down_block_types"]]
    assert [level for level, attends in enumerate(down) if attends] == attention
    assert [block == "AttnUpBlock2D" for block in unet.config["up_block_types"]] == down[::-1]


def test_conversion_copies_and_leaves_the_global_generator_alone():
    state = random_state(TINY, seed=0)
    before = torch.get_rng_state()
    unet = convert(TINY, {name: value.half() for name, value in state.items()})
    assert torch.equal(torch.get_rng_state(), before)
    assert {value.dtype for value in unet.state_dict().values()} == {torch.float32}
    assert not unet.training
    unet = convert(TINY, state)
    kept = state["out.2.bias"].clone()
    with torch.no_grad():
        unet.conv_out.bias.add_(1.0)
    assert torch.equal(state["out.2.bias"], kept)


# ---- hash ----------------------------------------------------------------------------------------


def test_hash_is_sha256_of_names_shapes_and_float32_bytes():
    state = {"b": torch.tensor([[0.5, -2.0]]), "a": torch.tensor(3.0)}
    text = b"a []\n" + struct.pack("<f", 3.0) + b"b [1, 2]\n" + struct.pack("<2f", 0.5, -2.0)
    assert weights_hash(state) == hashlib.sha256(text).hexdigest()
    assert weights_hash({name: state[name].to(torch.bfloat16) for name in ("a", "b")}) == weights_hash(state)
    for other in (
        {"b": state["b"].T, "a": state["a"]},
        {"c": state["b"], "a": state["a"]},
        {"b": -state["b"], "a": state["a"]},
    ):
        assert weights_hash(other) != weights_hash(state)


# ---- folders -------------------------------------------------------------------------------------


def edit(path: Path, *drop: str, **changes) -> None:
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in drop}
    path.write_text(json.dumps(config | changes))


def flatten(folder: Path) -> Path:
    for file in [*folder.glob("*/*")]:
        file.rename(folder / file.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    save_base(tmp_path / "base", convert(TINY, random_state(TINY, seed=0)), betas=LINEAR)
    return tmp_path / "base"


@pytest.mark.parametrize(("prediction", "outputs"), [("epsilon", 6), ("epsilon", 3), ("v_prediction", 3)])
def test_ddpm_pipeline_loads_a_base_and_its_step_equals_ours(tmp_path, prediction, outputs):
    """With the same noise. At low levels diffusers' variances, in float32, are rounded more."""
    unet = UNet2DModel(**{**small_unet().config, "out_channels": outputs})
    save_base(tmp_path, unet, betas=LINEAR, prediction_type=prediction, half=False)
    pipeline, model = DDPMPipeline.from_pretrained(tmp_path), load_model(tmp_path)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    pipeline.scheduler.set_timesteps(1000)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for t in (999, 500, 100):
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        now, nxt = (model.base_process.noise(torch.tensor([time])) for time in (t, t - 1))
        with torch.no_grad():
            output = pipeline.unet(x, t).sample
            estimate = model.denoiser([PLAIN], adapter=False).denoise(x, now)
        theirs = pipeline.scheduler.step(output, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
        ours = reverse_step(x, estimate, now, nxt, noise=drawn)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_a_network_of_maps_alone_is_marked_and_no_ddpm_pipeline(tmp_path):
    save_base(tmp_path, small_unet(), betas=LINEAR, half=False, region_aware=True)
    assert not (tmp_path / "model_index.json").exists()
    loaded = load_base(tmp_path)
    assert loaded.unet.config["region_aware"] is True
    assert UNet2DModel.from_pretrained(tmp_path / "unet").config["region_aware"] is True
    assert loaded.hash == weights_hash(small_unet().state_dict())
    save_base(tmp_path / "again", loaded.unet, betas=LINEAR, half=False)
    assert "region_aware" not in load_base(tmp_path / "again").unet.config


def test_folder_keeps_network_schedule_and_hash(tmp_path):
    unet = convert(FULL, random_state(FULL, seed=0)).half().float()  # values that float16 holds exactly
    save_base(tmp_path / "half", unet, betas=LINEAR, prediction_type="v_prediction")
    save_base(tmp_path / "full", unet, betas=LINEAR, prediction_type="v_prediction", half=False)
    half, full = load_base(tmp_path / "half"), load_base(str(tmp_path / "full"))
    stored = load_file(tmp_path / "half/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert half.hash == full.hash == weights_hash(unet.state_dict())
    assert dict(half.unet.config) == dict(full.unet.config)
    assert torch.equal(half.betas, LINEAR)
    assert half.betas.dtype == torch.float64
    assert half.prediction_type == "v_prediction"
    assert half.source == str(tmp_path / "half")
    assert half.revision is None
    assert half.unet.dtype == torch.float32
    assert not half.unet.training
    rounded = {name: value.half().float() for name, value in random_state(FULL, seed=0).items()}
    assert difference(FULL, half.unet, rounded) < 1e-12


def test_stock_diffusers_loads_a_saved_base(folder):
    stock = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True)
    assert weights_hash(stock.state_dict()) == load_base(folder).hash
    assert difference(TINY, stock, {k: v.half().float() for k, v in random_state(TINY, seed=0).items()}) < 1e-12
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    assert torch.allclose(scheduler.betas.double(), LINEAR, rtol=1e-5)
    assert scheduler.config["variance_type"] == "learned_range"


def test_flat_folder_and_torch_file_load_alike(folder):
    wanted = load_base(folder).hash
    flat = flatten(folder)
    assert load_base(flat).hash == wanted
    weights = flat / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), flat / "diffusion_pytorch_model.bin")
    weights.rename(flat / "diffusion_pytorch_model.fp16.safetensors")
    assert load_base(flat).hash == wanted
    (flat / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert load_base(flat).hash == wanted


@pytest.mark.slow
def test_a_folder_of_the_fork_loads_like_its_source_file(tmp_path):
    """Naive blocks + attention_legacy_order, epsilon 1e-6, time type "adm", as the xutongda/adm_* folders."""
    state = random_state(FULL, seed=3)
    naive = convert(FULL, state, qkv_order="naive")
    save_base(tmp_path, naive, betas=LINEAR, half=False)
    flatten(tmp_path)
    edit(
        tmp_path / "config.json",
        "attn_norm_num_groups",
        time_embedding_type="adm",  # cosines first, whatever the two positional settings say
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_legacy_order=True,
        norm_eps=1e-6,
    )
    torch.save(state, tmp_path / "adm.pt")
    file = load_base(tmp_path / "adm.pt", image_size=16, head_channels=16)
    base = load_base(tmp_path)
    assert base.hash == file.hash
    assert difference(FULL, base.unet, state) < 1e-12
    assert load_base(tmp_path, norm_eps=3e-6).unet.config["norm_eps"] == 3e-6
    official = load_base(tmp_path, qkv_order="naive")
    assert official.hash == weights_hash(naive.state_dict()) != base.hash
    assert official.unet.config["norm_eps"] == official.unet.mid_block.attentions[0].group_norm.eps == 1e-6


def test_new_order_folder_is_taken_as_it_is(folder):
    wanted = load_base(folder).hash
    edit(folder / "unet/config.json", time_embedding_type="adm", attention_legacy_order=False)
    assert load_base(folder).hash == wanted


def test_ddpm_folder_of_2022_keeps_its_own_settings(tmp_path):
    """google/ddpm-*: old attention names, sines first, epsilon 1e-6, three outputs, a .bin file."""
    config = {
        "block_out_channels": [32, 64],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None,
        "layers_per_block": 1,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "sample_size": 16,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(**config).eval()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = dict(unet.state_dict())
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert any(".proj_attn." in name for name in state)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    named = {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", **config}
    (tmp_path / "config.json").write_text(json.dumps(named))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "linear", "beta_end": 0.01}))
    base = load_base(tmp_path)
    assert base.hash == weights_hash(unet.state_dict())
    assert base.betas[-1] == 0.01
    x, t = torch.ones(1, 3, 16, 16), torch.tensor([10])
    with torch.no_grad():
        assert torch.equal(base.unet(x, t).sample, unet(x, t).sample)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "trained"])
def test_betas_are_those_of_diffusers_in_float64(folder, schedule):
    path = folder / "scheduler/scheduler_config.json"
    trained = [1e-3, 2e-3, 5e-2] if schedule == "trained" else None
    changes = {"trained_betas": trained} if trained else {"beta_schedule": schedule, "num_train_timesteps": 250}
    edit(path, **changes, beta_start=3e-4, beta_end=0.03, prediction_type="sample")
    base = load_base(folder)
    stock = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True).betas
    assert base.betas.dtype == torch.float64
    assert torch.allclose(base.betas.float(), stock, rtol=1e-5)
    assert base.prediction_type == "sample"
    if schedule == "scaled_linear":  # closed form: sqrt(beta) is linear
        assert math.isclose(base.betas[83], (0.0003**0.5 + 83 / 249 * (0.03**0.5 - 0.0003**0.5)) ** 2)
    save_base(folder, base.unet, betas=base.betas)
    assert torch.equal(load_base(folder).betas, base.betas)


def test_file_and_folder_without_scheduler_have_ddpms_schedule(folder):
    torch.save(random_state(TINY, seed=0), folder / "adm.pt")
    base = load_base(folder / "adm.pt", image_size=16, head_channels=32)
    assert torch.equal(base.betas, LINEAR)
    assert base.prediction_type == "epsilon"
    shutil.rmtree(folder / "scheduler")
    with pytest.warns(UserWarning, match="no scheduler_config"):
        assert torch.equal(load_base(folder).betas, LINEAR)


@pytest.mark.skipif(not NATURE.is_dir(), reason="the shared base model is not here")
def test_shared_base_model_survives_saving(tmp_path):
    base = load_base(NATURE)
    save_base(tmp_path, base.unet, betas=base.betas)
    assert load_base(tmp_path).hash == base.hash  # stored in half precision
    assert torch.equal(base.betas, LINEAR)


def test_hub_id_is_fetched_and_its_commit_recorded(folder, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder.rename(folder.parent / commit)
    calls = []

    def fetch(name, *, revision, allow_patterns):
        calls.append((name, revision))
        assert {"unet/config.json", "scheduler/scheduler_config.json"} <= set(allow_patterns)
        assert sum("diffusion_pytorch_model" in pattern for pattern in allow_patterns) == 2
        return str(folder.parent / commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    base = load_base("someone/base-256", revision="main")
    assert calls == [("someone/base-256", "main")]
    assert (base.source, base.revision) == ("someone/base-256", commit)


# ---- messages ------------------------------------------------------------------------------------


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("source", ["no-such-folder", "a/b/c", "models/gone.pt", Path("some/folder"), "./x/y"])
def test_a_missing_source_is_an_error(source):
    with pytest.raises(FileNotFoundError, match="no model at") as caught:
        load_base(source)
    assert str(source) in one_line(caught)


def test_a_missing_path_is_named_before_options_without_effect():
    for options in ({"size": 32}, {"quantize": "8bit"}):
        with pytest.raises(FileNotFoundError, match="no model at 'nowhere'"):
            load_model("nowhere", **options)
    with pytest.raises(ValueError, match=r"size is 16\.0; give a whole number"):
        load_model("nowhere", size=16.0)


def test_hub_failure_gives_one_line(monkeypatch):
    def fail(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("first line\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match="could not be fetched") as caught:
        load_base("someone/base-256")
    assert "someone/base-256" in one_line(caught)
    assert "local folder" in str(caught.value)


def test_damaged_files_are_named(folder, tmp_path):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged") as caught:
        load_base(folder)
    assert str(weights) in one_line(caught)
    file = tmp_path / "adm.pt"
    torch.save(random_state(TINY, seed=0), file)
    whole = file.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        whole[:50],
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="damaged") as caught:
            load_base(file)
        assert str(file) in one_line(caught)
    (folder / "unet/config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_base(folder)


class NotATensor:
    """Represents any code in a pickle."""


def test_pickled_code_is_refused(tmp_path):
    torch.save({"weights": NotATensor()}, tmp_path / "adm.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        load_base(tmp_path / "adm.pt")
    torch.save({"state_dict": random_state(TINY, seed=0)}, tmp_path / "adm.pt")
    with pytest.raises(ValueError, match="no plain dictionary"):
        load_base(tmp_path / "adm.pt")


def test_weights_that_do_not_fit_are_counted_and_named(folder):
    state = random_state(TINY, seed=0)
    some = {name: value for name, value in state.items() if "out_layers.0" not in name}
    with pytest.raises(ValueError, match=r"\d+ missing: ") as caught:
        convert(TINY, some)
    missing = one_line(caught).split("missing: ")[1].split(")")[0]
    assert missing.count(",") == 4  # five names are enough
    assert f"{len(state) - len(some)} missing" in str(caught.value)
    with pytest.raises(ValueError, match=r"\(1 left over: extra.weight\)"):
        convert(TINY, {**state, "extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 of another shape: time_embedding.linear_2.bias"):
        convert(TINY, {**state, "time_embed.2.bias": torch.zeros(7)})
    edit(folder / "unet/config.json", layers_per_block=2)
    with pytest.raises(ValueError, match=r"\d+ missing: .*\d+ of another shape: ") as caught:
        load_base(folder)
    assert str(folder) in one_line(caught)


def test_folder_whose_config_is_not_understood(folder):
    config = folder / "unet/config.json"
    edit(config, attention_flavour="new")
    with pytest.raises(ValueError, match="attention_flavour"):
        load_base(folder)
    edit(config, "attention_flavour", _anything="private settings of diffusers pass")
    load_base(folder)
    edit(config, _class_name="UNet2DConditionModel")
    with pytest.raises(ValueError, match="describes a UNet2DConditionModel"):
        load_base(folder)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json"):
        load_base(folder)


def test_folder_without_weights(folder):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights in"):
        load_base(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"prediction_type": "flow"}, "prediction_type 'flow'"),
    ],
)
def test_schedule_that_cannot_be_used(folder, changes, message):
    edit(folder / "scheduler/scheduler_config.json", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_base(folder)
    assert "scheduler_config.json" in one_line(caught)


def test_file_that_is_no_adm_network(tmp_path):
    torch.save({"conv.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"no input_blocks.0.0.weight among 1 weights") as caught:
        load_base(tmp_path / "other.pt")
    assert str(tmp_path / "other.pt") in one_line(caught)
    encoder = {name: value for name, value in random_state(TINY, seed=0).items() if "output_blocks" not in name}
    with pytest.raises(ValueError, match="0 output blocks"):
        convert(TINY, encoder)


def test_options_that_do_not_fit_a_file():
    state = random_state(FULL, seed=0)
    with pytest.raises(ValueError, match="no heads of 48: give head_channels"):
        convert(FULL, state, head_channels=48)
    with pytest.raises(ValueError, match="image_size=18 cannot be halved 2 times"):
        convert(FULL, state, image_size=18)
    with pytest.raises(ValueError, match="first channel multiplier is 1"):
        convert(FULL, {**state, "time_embed.0.weight": torch.zeros(128, 64)})
    with pytest.raises(ValueError, match="qkv_order is 'new'"):
        load_base("anything", qkv_order="new")


def test_pixel_model_with_four_outputs(tmp_path):
    state = random_state(TINY, seed=0)
    state |= {"out.2.weight": torch.zeros(4, 32, 3, 3), "out.2.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "adm.pt")
    with pytest.raises(ValueError, match="4 output channels"):
        load_base(tmp_path / "adm.pt", image_size=16, head_channels=32)


def test_settings_without_effect_warn(folder):
    for options, message in (
        ({"revision": "main"}, "revision='main' is unused"),
        ({"qkv_order": "naive"}, "qkv_order 'naive', which model.official sets too, has no effect"),
        ({"image_size": 64}, "other values do not change the network"),
    ):
        with pytest.warns(UserWarning, match=message):
            load_base(folder, **options)


def test_networks_that_cannot_be_saved(tmp_path):
    unet = convert(TINY, random_state(TINY, seed=0))
    with pytest.raises(ValueError, match="prediction_type is 'noise'"):
        save_base(tmp_path, unet, betas=LINEAR, prediction_type="noise")
    with torch.no_grad():
        unet.conv_in.bias[0] = 1e6
    with pytest.raises(ValueError, match="half=False"):
        save_base(tmp_path, unet, betas=LINEAR)
    save_base(tmp_path / "full", unet, betas=LINEAR, half=False)
    unet.conv_out.register_parameter("lora", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match=r"1 left over: conv_out.lora"):
        save_base(tmp_path, unet, betas=LINEAR, half=False)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]  # nothing half written
