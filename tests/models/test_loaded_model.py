"""Loaded models: training and sampling share prompts, denoiser, hash and the rule of the latent grid."""

import copy
import pickle

import pytest
import torch

from rad.models import IDENTITY, LoRA, UNetModel, inject, load_model, new_model
from rad.models.latent_mask import encode_known, encode_training
from rad.models.loaded_model import Condition
from tests.conftest import box_hole
from tests.linear_autoencoder import LinearAutoencoder
from tests.rounding import assert_same
from tests.tiny_pipelines import write_pipeline

KINDS = pytest.mark.parametrize("kind", ["latent", "stable", "stable3"])
PROMPTS = ["a red boat", ""]
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for kind in ("latent", "stable", "stable3"):
        write_pipeline(root / kind, kind)
    return root


def for_training(path):
    return load_model(path, size=16, training=True)


@KINDS
def test_the_denoiser_of_training_is_that_of_sampling_without_guidance(folder, kind):
    """Prompts are encoded in one batch in training and one by one in sampling."""
    sampling, training = load_model(folder / kind), for_training(folder / kind)
    conditions = [Condition(prompt if training.takes_text else "", guidance=None) for prompt in PROMPTS]
    if training.takes_text:
        conditions = [Condition(prompt, guidance=1.0) for prompt in PROMPTS]
    noise = sampling.base_process.noise(torch.tensor([700, 300]))
    training.region_aware_network()
    with torch.no_grad():
        expected = sampling.denoiser(conditions, adapter=False).denoise(X, noise).x0
        x0 = training.training_denoiser(PROMPTS, learned_variance=False).denoise(X, noise).x0
    assert_same(x0, expected, gain=10)
    if kind == "stable":
        other = training.training_denoiser(["a", "b"], learned_variance=False)
        with torch.no_grad():
            assert float((other.denoise(X, noise).x0 - x0).abs().max()) > 1e-3, "the prompt matters"


@KINDS
def test_the_hash_is_of_the_base_weights_with_any_adapter(folder, kind):
    training = for_training(folder / kind)
    inject(training.region_aware_network(), LoRA(rank=2))
    assert training.hash == load_model(folder / kind).hash
    assert any("lora" in name for name, _ in training.network.named_parameters()), "injected in place"


@KINDS
def test_frozen_modules_share_no_parameter_with_the_network(folder, kind):
    model = for_training(folder / kind)
    trained = {id(parameter) for parameter in model.network.parameters()}
    frozen = [parameter for module in model.frozen_modules() for parameter in module.parameters()]
    assert frozen
    assert not any(id(parameter) in trained or parameter.requires_grad for parameter in frozen)
    assert len(model.frozen_modules()) == {"latent": 1, "stable": 2, "stable3": 4}[kind]


@pytest.mark.parametrize(
    ("kind", "process", "message"),
    [
        ("latent", "region_aware", None),
        ("stable", "uniform", None),
        ("stable", "region_aware", "set model.lora, or process.kind 'uniform'"),
        ("stable3", "uniform", "an adapter is trained, not all of it"),
    ],
)
def test_which_models_are_trained_as_a_whole(folder, kind, process, message):
    model = for_training(folder / kind)
    model.require_trainable(process, whole=False)
    if message is None:
        model.require_trainable(process, whole=True)
        return
    with pytest.raises(ValueError, match=message):
        model.require_trainable(process, whole=True)


def test_sides_are_multiples_of_the_latent_cells_and_the_halvings(folder):
    assert [for_training(folder / kind).side_multiple for kind in ("latent", "stable", "stable3")] == [4, 2, 4]
    with pytest.raises(ValueError, match=r"are 18x18; their sides must be multiples of 4"):
        load_model(folder / "latent", size=18, training=True)


def test_known_cells_of_training_are_those_of_sampling_and_the_hole_holds_the_image():
    autoencoder = LinearAutoencoder()
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hole = box_hole(16, 16, 4, 4, 12, 12)[None]
    known, cells = encode_known(image, hole, autoencoder)
    x0, same = encode_training(image, hole, autoencoder)
    inside = (cells == 1).expand_as(x0)
    assert torch.equal(same, cells)
    assert torch.equal(x0[~inside], known[~inside])
    assert torch.equal(x0[inside], autoencoder.encode(image)[inside])
    assert not torch.equal(x0[inside], known[inside])
    assert encode_training(image, hole, IDENTITY) == (image, hole), "pixels stay as they are"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_of_a_pixel_model_are_pixel_models(copied):
    assert copied(IDENTITY) is IDENTITY


def test_a_new_model_predicts_zero_and_has_a_hash_of_its_frozen_parts_alone(folder):
    fields = {"block_out_channels": (32, 64), "down_block_types": ("DownBlock2D",) * 2, "norm_num_groups": 16}
    fields |= {"up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1}
    first, second = (new_model(fields, image_size=16, seed=seed) for seed in (0, 1))
    assert isinstance(first, UNetModel)
    assert first.hash == second.hash
    weights = [model.network.state_dict()["conv_in.weight"] for model in (first, second)]
    assert not torch.equal(*weights), "drawn from the seed"
    with torch.no_grad():
        assert float(first.network(torch.ones(1, 3, 16, 16), 5).sample.abs().max()) == 0
    latent = {**fields, "in_channels": 4, "out_channels": 4}
    assert new_model(latent, autoencoder=folder / "latent", image_size=16).hash != first.hash
