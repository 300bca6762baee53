"""Adapters: unchanged output at the start, only declared layers trained, merged = unmerged, save and load, wrong bases."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import UNet2DModel

from rad.models.adapter import AdapterInfo, load_adapter, save_adapter
from rad.models.lora import TARGETS, LoRA, inject, merge, swapped, trainable, twin
from rad.models.weights import weights_hash
from rad.networks.unet import patch
from tests.rounding import assert_same
from tests.tiny_networks import small_unet

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([[0.0, 300.0], [0.0, 900.0]])
INDEX = (torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5).long()
BOTH = pytest.mark.parametrize("time_layers", ["full", "lora"])
BASE_HASH = weights_hash(small_unet().state_dict())
INFO = AdapterInfo(base="base", base_hash=BASE_HASH, time_origin="adm", steps=1000, size=(16, 16))


@torch.no_grad()
def output(network):
    return network(X.to(network.dtype), TIMES, index=INDEX).sample


def adapted(time_layers="full", *, trained=True, dtype=torch.float32):
    model = inject(patch(small_unet()), LoRA(rank=4, alpha=8, time_layers=time_layers)).to(dtype)
    source = torch.Generator().manual_seed(2)
    if trained:
        for parameter in trainable(model).values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=source, dtype=dtype)
    return model.eval()


def assert_same_network(loaded, model):
    """Equal weights, bit for bit; outputs in float64, since kernels may differ with how a tensor lies in memory."""
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    assert_same(output(copy.deepcopy(loaded).double()), output(copy.deepcopy(model).double()))


@BOTH
def test_a_fresh_adapter_changes_nothing(time_layers):
    assert torch.equal(output(adapted(time_layers, trained=False)), output(patch(small_unet())))
    assert (output(adapted(time_layers)) - output(patch(small_unet()))).abs().max() > 1e-2


@BOTH
def test_only_declared_layers_are_trained(time_layers):
    names = list(trainable(adapted(time_layers)))
    for name in names:
        lora = ".lora_A." in name or ".lora_B." in name
        time = "time_embedding" in name or "time_emb_proj" in name
        assert lora or (time and time_layers == "full" and "modules_to_save" in name), name
    trained_layers = {target for target in TARGETS if any(f".{target}.lora_A" in name for name in names)}
    assert trained_layers == set(TARGETS)
    assert any("time_emb_proj" in name for name in names)
    assert not any("norm" in name or "shortcut" in name for name in names)


def test_sizes_of_the_ffhq_adapter():
    """specs of the paper's setting: 9.92 M in the time layers and 3.73 M in LoRA, of a 93.56 M network."""
    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=256,
            out_channels=6,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            layers_per_block=1,
            down_block_types=(*["ResnetDownsampleBlock2D"] * 4, "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
            up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D", *["ResnetUpsampleBlock2D"] * 4),
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=64,
            attn_norm_num_groups=32,
            resnet_time_scale_shift="scale_shift",
        )
        assert sum(p.numel() for p in unet.parameters()) == pytest.approx(93.56e6, abs=5e3)
        model = inject(patch(unet), LoRA())
    sizes = {name: p.numel() for name, p in trainable(model).items()}
    time = sum(size for name, size in sizes.items() if "lora" not in name)
    assert time == pytest.approx(9.92e6, abs=5e3)
    assert sum(sizes.values()) - time == pytest.approx(3.73e6, abs=5e3)


def test_initialisation_is_gaussian_seeded_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = inject(patch(small_unet()), LoRA(rank=4), seed=1)
    assert torch.equal(torch.rand(1), expected)
    weights = torch.cat([p.flatten() for name, p in trainable(first).items() if "lora_A" in name]).detach()
    assert float(weights.std()) == pytest.approx(1 / 4, rel=0.02)
    assert all((p == 0).all() for name, p in trainable(first).items() if "lora_B" in name)
    again, other = (inject(patch(small_unet()), LoRA(rank=4), seed=seed) for seed in (1, 2))
    name = next(name for name in trainable(first) if "lora_A" in name)
    assert torch.equal(trainable(first)[name], trainable(again)[name])
    assert not torch.equal(trainable(first)[name], trainable(other)[name])


@BOTH
def test_merged_equals_unmerged(time_layers):
    model = adapted(time_layers, dtype=torch.float64)
    expected = output(model)
    assert_same(output(merge(model)), expected)


@BOTH
def test_the_adapted_twin_shares_all_weights_without_adapter_and_changes_none(time_layers):
    model, network = adapted(time_layers), patch(small_unet())
    expected, trained = output(model), trainable(model)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    other = inject(twin(network), LoRA(rank=4, alpha=8, time_layers=time_layers)).eval()
    for name, parameter in trainable(other).items():
        parameter.data.copy_(trained[name])
    second = merge(other)
    assert_same(output(second), expected, gain=10)
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    assert torch.equal(output(network), output(patch(small_unet())))
    assert second.state_dict().keys() == network.state_dict().keys()
    shared = {id(parameter) for parameter in network.parameters()}
    own = [name for name, parameter in second.named_parameters() if id(parameter) not in shared]
    time = [name for name in before if "time_embedding" in name or "time_emb_proj" in name]
    low_rank = [name for name in before if any(name.endswith(f"{target}.weight") for target in TARGETS)]
    assert set(own) == set(low_rank) | {name for name in time if time_layers == "full" or "weight" in name}


def test_merged_convolution_is_base_plus_scaled_product():
    model = adapted(dtype=torch.float64)
    layer = model.get_base_model().mid_block.resnets[0].conv1
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    product = torch.einsum("orxy,rihw->oihw", B, A)
    expected = layer.base_layer.weight + 8 / 4 * product
    assert_same(merge(model).mid_block.resnets[0].conv1.weight, expected)


@pytest.mark.spread(2)
@BOTH
@pytest.mark.parametrize("half", [False, True])
def test_save_and_load(tmp_path, time_layers, half):
    model = adapted(time_layers)
    folder = save_adapter(model, tmp_path / "adapter", INFO, card="# card\n", half=half)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "rad_config.json",
    ]  # fmt: skip
    unet = patch(small_unet())
    loaded = load_adapter(unet, folder, base_hash=weights_hash(unet.state_dict()))
    if half:
        torch.testing.assert_close(output(loaded), output(model), rtol=1e-2, atol=1e-2)
    else:
        assert_same_network(loaded, model)
    assert not trainable(loaded)
    with loaded.disable_adapter():
        assert torch.equal(output(unet), output(patch(small_unet()))), "off, it is the untouched base"
    assert AdapterInfo.read(folder) == INFO


def test_peft_itself_reads_the_folder(tmp_path):
    from peft import PeftModel

    model = adapted()
    folder = save_adapter(model, tmp_path / "adapter", INFO, card="")
    again = PeftModel.from_pretrained(patch(small_unet()), str(folder))
    assert_same_network(again, model)


def test_adapters_have_only_settings_of_rad_and_those_of_newer_peft_are_read(tmp_path, monkeypatch):
    """peft 0.15 has no qalora_group_size, which later versions write as 16 and use with use_qalora alone."""
    from peft import LoraConfig

    model = adapted()
    folder = save_adapter(model, tmp_path / "adapter", INFO, card="")
    path = folder / "adapter_config.json"
    own = json.loads(path.read_text())
    assert own.keys() == {
        "peft_type", "base_model_name_or_path", "inference_mode", "init_lora_weights", "r", "lora_alpha", "target_modules",
        "modules_to_save",
    }  # fmt: skip
    everything = LoraConfig.to_dict

    def older(config):
        return {name: value for name, value in everything(config).items() if name != "qalora_group_size"}

    monkeypatch.setattr(LoraConfig, "to_dict", older)
    path.write_text(json.dumps({**own, "use_qalora": False, "qalora_group_size": 16}))
    assert_same_network(load_adapter(patch(small_unet()), folder), model)
    for changes in ({"qalora_group_size": 8}, {"use_qalora": True, "qalora_group_size": 16}):
        path.write_text(json.dumps({**own, **changes}))
        with pytest.raises(ValueError, match="which no adapter of rad has"):
            load_adapter(patch(small_unet()), folder)


def test_swapped_weights_come_back():
    model = adapted()
    before = output(model)
    zeros = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
    with swapped(model, zeros):
        assert not torch.equal(output(model), before)
    assert torch.equal(output(model), before)
    with pytest.raises(KeyError), swapped(model, zeros):
        raise KeyError
    assert torch.equal(output(model), before)


def test_unsuitable_adapters_are_refused(tmp_path):
    folder = save_adapter(adapted(), tmp_path / "adapter", INFO, card="")
    with pytest.raises(ValueError, match=f"with hash {BASE_HASH[:12]}, but the base given has hash 00000"):
        load_adapter(patch(small_unet()), folder, base_hash="0" * 64)

    def broken(name, change):
        copy = tmp_path / name
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        change(copy)
        return copy

    def truncate(copy):
        path = copy / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])

    def other_rank(copy):
        path = copy / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "r": 2}))

    def other_format(copy):
        path = copy / "rad_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))

    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is corrupt"):
        load_adapter(patch(small_unet()), broken("truncated", truncate))
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be used \(r is 2, the weights have \[4\]\)"):
        load_adapter(patch(small_unet()), broken("rank", other_rank))
    with pytest.raises(ValueError, match="this version of rad reads format 1"):
        load_adapter(patch(small_unet()), broken("format", other_format))
    for name in ("adapter_model.safetensors", "adapter_config.json", "rad_config.json"):
        with pytest.raises(FileNotFoundError, match=name):
            load_adapter(patch(small_unet()), broken("missing", lambda copy, name=name: (copy / name).unlink()))
    with pytest.raises(ValueError, match=r"rad_config.json cannot be read"):
        load_adapter(patch(small_unet()), broken("json", lambda copy: (copy / "rad_config.json").write_text("{")))
    with pytest.raises(ValueError, match="time_layers is 'none'"):
        LoRA(time_layers="none")
