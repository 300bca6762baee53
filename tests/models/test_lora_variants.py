"""Variants of LoRA: scales, norms and ranks in closed form, merged = unmerged, folders, keyed dropout, refused settings."""

import json
import re
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from rad.models.adapter import AdapterInfo, load_adapter, save_adapter
from rad.models.lora import LoRA, inject, lora_layers, merge, trainable, twin
from rad.networks.dropout import find_keys
from rad.networks.unet import patch
from tests.rounding import assert_same
from tests.tiny_networks import small_transformer, small_unet

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([[0.0, 300.0], [0.0, 900.0]])
INDEX = (torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5).long()
INFO = AdapterInfo(base="base", base_hash="", time_origin="adm", steps=1000, size=(16, 16))

VARIANTS = {
    "rslora": LoRA(rank=4, alpha=8, use_rslora=True),
    "dora": LoRA(rank=4, alpha=8, use_dora=True),
    "dora-time": LoRA(rank=4, alpha=8, use_dora=True, time_layers="lora"),
    "patterns": LoRA(rank=4, alpha=8, rank_pattern={"mid_block.*": 6, "conv_in": 2}, alpha_pattern={"conv1": 3}),
    "dropout": LoRA(rank=4, alpha=8, dropout=0.25),
    "all": LoRA(
        rank=4, dropout=0.25, use_rslora=True, use_dora=True, rank_pattern={"to_q": 2}, alpha_pattern={".*to_[kv]": 0.5}
    ),
}
EACH = pytest.mark.parametrize("lora", VARIANTS.values(), ids=VARIANTS)


@torch.no_grad()
def output(network):
    return network(X.to(network.dtype), TIMES, index=INDEX).sample


def adapted(lora, *, dtype=torch.float32, change=0.05):
    model = inject(patch(small_unet()), lora).to(dtype)
    source = torch.Generator().manual_seed(2)
    for parameter in trainable(model).values():
        parameter.data += change * torch.randn(parameter.shape, generator=source, dtype=dtype)
    return model.eval()


@EACH
def test_a_fresh_variant_changes_nothing(lora):
    assert torch.equal(output(inject(patch(small_unet()), lora).eval()), output(patch(small_unet())))


@pytest.mark.spread(2)
@EACH
def test_merged_equals_unmerged_and_leaves_the_shared_base_alone(lora):
    model, network = adapted(lora, dtype=torch.float64), patch(small_unet()).double()
    expected, trained = output(model), trainable(model)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    other = inject(twin(network), lora).double().eval()
    for name, parameter in trainable(other).items():
        parameter.data.copy_(trained[name])
    merged = merge(other)
    assert_same(output(merged), expected, gain=10)  # float64: within some thousand roundings
    assert merged.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())


def test_merged_weights_are_those_of_the_papers():
    rs, dora, patterns = (adapted(VARIANTS[name], dtype=torch.float64) for name in ("rslora", "dora", "patterns"))
    for model, rank, alpha in ((rs, 4, 8), (dora, 4, 8), (patterns, 6, 3)):
        layer = model.get_base_model().mid_block.resnets[0].conv1
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert len(A) == rank
        scale = alpha / rank**0.5 if model is rs else alpha / rank
        expected = layer.base_layer.weight + scale * torch.einsum("orxy,rihw->oihw", B, A)
        if model is dora:
            magnitude = layer.lora_magnitude_vector["default"].weight
            assert magnitude.numel() == len(expected)
            expected = magnitude.view(-1, 1, 1, 1) * expected / expected.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        assert_same(merge(model).mid_block.resnets[0].conv1.weight, expected)


def test_each_layer_starts_with_the_deviation_of_its_own_rank():
    model = inject(patch(small_unet()), LoRA(rank=4, rank_pattern={"mid_block.*": 16}))
    A = {name: layer.lora_A["default"].weight for name, layer in lora_layers(model).items()}
    for inside, rank in ((True, 16), (False, 4)):
        some = torch.cat([w.flatten() for name, w in A.items() if name.startswith("mid_block") == inside])
        assert float(some.detach().std()) == pytest.approx(1 / rank, rel=0.03)


@pytest.mark.spread(2)
@EACH
@pytest.mark.parametrize("half", [True, False])
def test_folders_restore_the_variant(tmp_path, lora, half):
    model = adapted(lora)
    folder = save_adapter(model, tmp_path / "adapter", INFO, card="", half=half)
    loaded = load_adapter(patch(small_unet()), folder)
    if half:
        torch.testing.assert_close(output(loaded), output(model), rtol=2e-2, atol=2e-2)
        return
    weights, expected = loaded.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    assert_same(output(loaded.double()), output(model.double()))
    again = load_adapter(patch(small_unet()), folder, trained=True)
    assert trainable(again).keys() == trainable(model).keys()
    assert (find_keys(again) is None) == (lora.dropout == 0)
    second = save_adapter(again, tmp_path / "second", INFO, card="")
    assert (second / "adapter_config.json").read_text() == (folder / "adapter_config.json").read_text()


def test_peft_itself_reads_the_folder(tmp_path):
    from peft import PeftModel

    model = adapted(VARIANTS["all"])
    folder = save_adapter(model, tmp_path / "adapter", INFO, card="")
    again = PeftModel.from_pretrained(patch(small_unet()), str(folder)).eval()
    assert_same(output(again.double()), output(model.double()))


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank_pattern": {"conv_in": 3}}, "rank_pattern is 3 for conv_in, the weights have 2"),
        ({"rank_pattern": {"conv_in": True}}, "rank_pattern"),
        ({"rank_pattern": {"(a+)+": 10**9}}, "rank_pattern"),
        ({"rank_pattern": {"nowhere": 10**9}}, "rank_pattern is 1000000000 for nowhere, the weights have None"),
        ({"rank_pattern": [4]}, "rank_pattern"),
        ({"rank_pattern": {}}, "r is 4, the weights have"),
        ({"r": 10**9}, "r is 1000000000, the weights have"),
        ({"alpha_pattern": {"conv_in": float("inf")}}, "alpha_pattern"),
        ({"alpha_pattern": {"nowhere": 1.0}}, "alpha_pattern has nowhere, which has no weights"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0"),
        ({"lora_dropout": True}, "lora_dropout is true"),
        ({"use_rslora": 1}, "use_rslora is 1"),
        ({"use_dora": "yes"}, 'use_dora is "yes"'),
        ({"use_dora": True}, "does not fit the base model"),
        ({"use_qalora": True}, "which no adapter of rad has"),
    ],
)
def test_hostile_settings_are_refused(tmp_path, changes, words):
    folder = save_adapter(adapted(VARIANTS["patterns"]), tmp_path / "adapter", INFO, card="")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=re.escape(words)):
        load_adapter(patch(small_unet()), folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dropout": 1.0}, "lora.dropout is 1.0"),
        ({"dropout": float("nan")}, "lora.dropout is nan"),
        ({"rank_pattern": {"to_q": 0}}, "lora.rank_pattern has 0 for 'to_q'"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"alpha_pattern": {"to_q": float("inf")}}, "lora.alpha_pattern has inf"),
        ({"rank_pattern": {"middle.*": 2}}, "matches none of the"),
        ({"alpha_pattern": {"time_emb_proj": 2}}, "matches none of the"),
        ({"rank_pattern": {".*": 2}}, "lora.rank is 16, and lora.rank_pattern gives all layers other ranks, [2]"),
    ],
)
def test_unsuitable_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        inject(patch(small_unet()), LoRA(**settings))


def test_dora_refuses_weights_without_a_direction():
    unet = patch(small_unet())
    unet.conv_out.weight.data[1] = 0
    with pytest.raises(ValueError, match="an output channel of conv_out has only zeros"):
        inject(unet, LoRA(use_dora=True))


@pytest.mark.parametrize("time_layers", ["full", "lora"])
def test_dropout_of_a_network_is_keyed_and_recomputed(time_layers):
    model = adapted(LoRA(rank=4, dropout=0.3, use_dora=True, time_layers=time_layers), dtype=torch.float64).train()
    keys = find_keys(model)
    x = X.double()

    def run(rows, network=model):
        keys.set(5, [10 + row for row in rows], device=x.device)
        return network(x[rows], TIMES[rows], index=INDEX[rows]).sample

    both = run([0, 1])
    assert not torch.allclose(both, output(model.eval()), atol=1e-4)
    model.train()
    torch.manual_seed(3)
    assert_same(run([1]), both[1:], gain=10)
    assert torch.equal(run([0, 1]), both)
    loss = both.square().mean()
    expected = torch.autograd.grad(loss, list(trainable(model).values()))
    again = checkpoint(partial(run, [0, 1]), use_reentrant=False, preserve_rng_state=False)
    recomputed = torch.autograd.grad(again.square().mean(), list(trainable(model).values()))
    assert all(torch.equal(one, other) for one, other in zip(expected, recomputed, strict=True))


@pytest.mark.slow
def test_a_network_with_every_variant_compiles_to_one_graph():
    model = adapted(VARIANTS["all"]).train()
    find_keys(model).set(5, [10, 11], device=torch.device("cpu"))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X, TIMES, index=INDEX).sample, model(X, TIMES, index=INDEX).sample)


def test_dropout_of_a_transformer_reads_samples_first():
    model = inject(small_transformer(), LoRA(rank=2, dropout=0.5, time_layers="lora")).train()
    find_keys(model).set(0, [0, 1], device=torch.device("cpu"))
    arguments = {
        "hidden_states": torch.randn(2, model.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0)),
        "encoder_hidden_states": torch.ones(2, 3, model.config.joint_attention_dim),
        "pooled_projections": torch.ones(2, model.config.pooled_projection_dim),
    }
    for parameter in trainable(model).values():
        parameter.data += 0.1
    with torch.no_grad():
        both = model(**arguments, timestep=torch.tensor([100, 200])).sample
        find_keys(model).set(0, [1], device=torch.device("cpu"))
        second = model(**{name: value[1:] for name, value in arguments.items()}, timestep=torch.tensor([200])).sample
        torch.testing.assert_close(second, both[1:], rtol=1e-3, atol=1e-3)
        assert not torch.allclose(both, model.eval()(**arguments, timestep=torch.tensor([100, 200])).sample, atol=1e-3)
