"""Feature networks: distances in closed form, provenance, standard networks from a cache of random weights, errors."""

import json
import sys
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import squeezenet1_1
from torchvision.models.resnet import BasicBlock, ResNet

from benchmarks import feature_classifier as classifier
from rad.evaluation.features import Extractor, feature_net, inception, lpips, tensors_hash
from tests.conftest import random_image
from tests.rounding import assert_same

NATURE = Path(__file__).parents[2] / "checkpoints" / "features-nature64"
KEYS = {"extractor", "weights", "layers", "resize", "range", "library"}
RESNET = {
    "name": "tiny",
    "format": "safetensors",
    "architecture": {"class": "ResNet", "block": "BasicBlock", "layers": [1, 1, 1, 1], "num_classes": 2},
    "size": 32,
    "range": [-1, 1],
    "features": "flatten",
    "distance": ["relu", "layer1"],
}


class Image(nn.Module):
    """The image itself as the feature map, its channel means as the features."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images.mean((2, 3))


class Two(nn.Module):
    """Two maps, the image and its square, in a list."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images, images**2, images.mean((2, 3))]


class Means(nn.Module):
    """Features alone."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Maps(nn.Module):
    """No features, against the contract."""

    def forward(self, images: Tensor) -> Tensor:
        return images


class Strict(nn.Module):
    """Takes 16x16 alone, against the size in its description."""

    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(-1, 768)


def scripted(folder: Path, module: nn.Module, **settings: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(module).save(str(folder / "net.pt"))
    described = {"name": "toy", "format": "torchscript", "size": None, **settings}
    (folder / "net.json").write_text(json.dumps(described))
    return folder / "net.pt"


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def flat(*colour: float, size: int = 4) -> Tensor:
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, size, size)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ResNet of random weights, statistics of its batch norms included; copy it before changing it."""
    folder = tmp_path_factory.mktemp("resnet")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=2).state_dict()
        for name, value in state.items():
            if name.endswith("running_mean"):
                value.normal_(std=0.1)
    state = {name: value.half() for name, value in state.items() if value.is_floating_point()}
    save_file(state, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(RESNET))
    return folder


@pytest.fixture
def changed(resnet: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the ResNet with other settings (None leaves one out) or weights."""

    def write(weights: dict[str, Tensor] | None = None, **settings: Any) -> Path:
        merged = {key: value for key, value in {**RESNET, **settings}.items() if value is not None}
        (tmp_path / "model.json").write_text(json.dumps(merged))
        save_file(weights or load_file(resnet / "model.safetensors"), tmp_path / "model.safetensors")
        return tmp_path

    return write


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub on a machine without network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def one_line(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def check_distance(net: Extractor, *, height: int = 40, width: int = 36) -> None:
    images = random_images(3, 3, height, width).mul(0.6).add(0.2)
    noise = random_images(3, 3, height, width, seed=1) - 0.5
    little, much = images + 0.05 * noise, images + 0.4 * noise
    assert net.distance(images, images).tolist() == pytest.approx([0] * 3, abs=1e-6)
    there, back = net.distance(images, much), net.distance(much, images)
    assert there.shape == (3,)
    assert there.dtype == torch.float32
    assert not there.requires_grad
    assert_same(there, back)
    assert bool((there > 1.5 * net.distance(images, little)).all())
    alone = torch.cat([net.distance(images[i : i + 1], much[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(there, alone, rtol=1e-3, atol=1e-6)


def check_features(net: Extractor, count: int, *, height: int = 40, width: int = 36) -> None:
    images = random_images(3, 3, height, width)
    together = net.features(images)
    assert together.shape == (3, count)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    torch.testing.assert_close(
        together, torch.cat([net.features(image[None]) for image in images]), rtol=1e-3, atol=1e-4
    )
    assert bool((together[0] - together[1]).abs().max() > 1e-3)


def test_distance_of_an_image_as_its_own_map(tmp_path: Path) -> None:
    """|a/|a| - b/|b||^2 = 2 - 2 cos, averaged over positions: (1,0,0) and (3,4,0)/10 have cos = 0.6."""
    net = feature_net(scripted(tmp_path, Image()))
    red, other = flat(1, 0, 0), flat(0.3, 0.4, 0)
    assert net.distance(red, other).item() == pytest.approx(0.8, abs=1e-6)
    half = torch.cat([red[..., :2], other[..., 2:]], dim=-1)
    assert net.distance(red, half).item() == pytest.approx(0.4, abs=1e-6)
    assert net.distance(red, red * 0.5).item() == pytest.approx(0, abs=1e-6)  # length does not count
    assert net.distance(red, red * 0).item() == pytest.approx(1, abs=1e-6)  # black is no direction
    assert net.features(other).tolist() == [pytest.approx([0.3, 0.4, 0])]


def test_distance_is_the_mean_over_layers(tmp_path: Path) -> None:
    net = feature_net(scripted(tmp_path, Two()))
    squared = 9 / (9**2 + 16**2) ** 0.5  # cosine of (1,0,0) and (9,16,0)
    expected = (0.8 + 2 - 2 * squared) / 2
    assert net.distance(flat(1, 0, 0), flat(0.3, 0.4, 0)).item() == pytest.approx(expected, abs=1e-6)


def test_range_and_mean_are_applied(tmp_path: Path) -> None:
    grey = flat(0.25, 0.5, 1)
    net = feature_net(scripted(tmp_path, Image(), range=[-1, 1]))
    assert net.features(grey).tolist() == [pytest.approx([-0.5, 0, 1])]
    assert net.provenance["range"] == "[-1,1]"
    net = feature_net(scripted(tmp_path, Image(), range=[0, 255]))
    assert net.features(grey).tolist() == [pytest.approx([63.75, 127.5, 255])]
    net = feature_net(scripted(tmp_path, Image(), mean=[0.25, 0.25, 0.5], std=[0.5, 0.25, 0.125]))
    assert net.features(grey).tolist() == [pytest.approx([0, 1, 4])]
    assert net.provenance["range"] == "mean 0.25 0.25 0.5; std 0.5 0.25 0.125"


def test_images_of_any_size_are_resized(tmp_path: Path) -> None:
    """Enlarging and reducing keep the mean of an image; a network for 16x16 gets no other."""
    net = feature_net(scripted(tmp_path, Strict(), size=16, resize="bicubic"))
    for height, width in ((5, 9), (16, 16), (33, 20), (1, 1)):
        assert net.features(torch.full((2, 3, height, width), 0.5)).shape == (2, 768)
    assert net.provenance["resize"] == "bicubic (antialias) to 16x16"
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1  # with antialias grey, without it black or white
    net = feature_net(scripted(tmp_path, Strict(), size=[16, 16]))
    assert net.features(stripes).view(3, 16, 16)[:, :, 2:-2].sub(0.5).abs().max().item() < 0.01
    bright = torch.zeros(1, 3, 4, 4)
    bright[..., :2] = 1  # bicubic overshoots, and is clamped
    net = feature_net(scripted(tmp_path, Strict(), size=16, resize="bicubic"))
    assert net.features(bright).aminmax() == (0, 1)
    assert feature_net(scripted(tmp_path, Image())).provenance["resize"] == "none"


def test_features_alone_give_no_distance(tmp_path: Path) -> None:
    net = feature_net(scripted(tmp_path, Means()))
    assert (net.distance_name, net.frechet_name, net.kernel_name) == (None, "fd/toy", "kd/toy")
    assert "no layers" in one_line(lambda: net.distance(flat(1, 0, 0), flat(0, 1, 0)))


def test_script_hash_depends_on_its_program(tmp_path: Path) -> None:
    hashes = {feature_net(scripted(tmp_path, module)).provenance["weights"] for module in (Image(), Two())}
    assert len(hashes) == 2


def test_resnet(resnet: Path) -> None:
    net = feature_net(resnet)
    assert (net.distance_name, net.frechet_name, net.kernel_name) == ("perceptual/tiny", "fd/tiny", "kd/tiny")
    assert set(net.provenance) == KEYS
    assert net.provenance["resize"] == "bilinear (antialias) to 32x32"
    assert net.provenance["layers"] == "features flatten, distance relu layer1"
    check_distance(net)
    check_features(net, 512)
    assert net.features(random_images(1, 3, 5, 9)).shape == (1, 512)


def test_resnet_is_torchvisions(resnet: Path) -> None:
    """Features are the input of the last layer, in evaluation mode, for an image in [-1, 1]."""
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=2)
    network.load_state_dict({name: value.float() for name, value in load_file(resnet / "model.safetensors").items()})
    network.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    images = random_images(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.eval()(images * 2 - 1)
    assert_same(feature_net(resnet / "model.safetensors").features(images), expected)


def test_loading_draws_nothing(resnet: Path) -> None:
    before = torch.get_rng_state()
    feature_net(resnet)
    assert torch.equal(before, torch.get_rng_state())


def test_hash_changes_with_one_weight(resnet: Path, changed: Callable[..., Path]) -> None:
    weights = load_file(resnet / "model.safetensors")
    before = feature_net(resnet).provenance["weights"]
    assert feature_net(changed()).provenance["weights"] == before
    weights["layer1.0.conv1.weight"][3, 2, 1, 0] += 0.01
    assert feature_net(changed(weights)).provenance["weights"] != before
    assert len(before) == 16


def test_hash_depends_on_name_type_and_shape() -> None:
    value = torch.zeros(2, 3)
    hashes = [{"a": value}, {"b": value}, {"a": value.view(3, 2)}, {"a": value.int()}, {"a": value, "b": value}]
    assert len({tensors_hash(tensors) for tensors in hashes}) == 5
    assert tensors_hash({"a": value, "b": value + 1}) == tensors_hash({"b": value + 1, "a": value})
    assert len(tensors_hash({"a": value.bfloat16(), "b": torch.tensor(3)})) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a/b"}, '"name" is "a/b"'),
        ({"name": None}, '"name" is missing'),
        ({"colour": 1}, 'unknown key "colour"'),
        ({"format": "torchscript"}, '"format" is "torchscript"'),
        ({"size": 0}, '"size" is 0'),
        ({"size": [32, 32, 3]}, '"size"'),
        ({"resize": "nearest"}, "bilinear or bicubic"),
        ({"range": [1, 0]}, '"range" is [1, 0]'),
        ({"mean": [0, 0, 0], "std": [1, 1, 1]}, "not both"),
        ({"range": None, "mean": [0, 0, 0]}, '"std" is null'),
        ({"range": None, "mean": [0, 0, 0], "std": [1, 1, 0]}, "above 0"),
        ({"features": "last"}, "last"),
        ({"features": "layer4"}, "(2,D)"),
        ({"distance": ["layer9"]}, "layer9"),
        ({"distance": ["flatten"]}, "(2,C,h,w)"),
        ({"distance": "layer1"}, "a list of names"),
        ({"architecture": {"class": "VGG", "block": "BasicBlock", "layers": [1] * 4, "num_classes": 2}}, '"class"'),
        ({"architecture": {"class": "ResNet", "block": "BasicBlock", "layers": [1, 1, 1]}}, '"num_classes" is missing'),
        ({"architecture": {**RESNET["architecture"], "layers": [1, 1, 1]}}, "four numbers"),
        ({"architecture": {**RESNET["architecture"], "layers": [2, 1, 1, 1]}}, "lacks layer1.1"),
        ({"architecture": {**RESNET["architecture"], "num_classes": 3}}, "fc.bias has shape (2,)"),
        ({"architecture": {**RESNET["architecture"], "groups": 2}}, "BasicBlock"),
        ({"architecture": 5}, '"architecture" is 5'),
    ],
)
def test_mistakes_in_the_description(changed: Callable[..., Path], settings: dict[str, Any], message: str) -> None:
    folder = changed(**settings)
    assert message in one_line(lambda: feature_net(folder))


def test_mistakes_in_files(resnet: Path, changed: Callable[..., Path], tmp_path: Path) -> None:
    weights = load_file(resnet / "model.safetensors")
    folder = changed({**weights, "more": torch.zeros(1)})
    assert "holds more" in one_line(lambda: feature_net(folder))
    folder = changed({**weights, "conv1.weight": weights["conv1.weight"] * float("nan")})
    assert "not finite" in one_line(lambda: feature_net(folder))
    (folder / "model.json").write_text("{")
    assert "cannot read" in one_line(lambda: feature_net(folder))
    (folder / "model.json").write_text("[]")
    assert "give an object" in one_line(lambda: feature_net(folder))
    (folder / "model.json").unlink()
    assert "model.json" in one_line(lambda: feature_net(folder))
    (folder / "model.json").write_text(json.dumps(RESNET))
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert "model.safetensors" in one_line(lambda: feature_net(folder))
    (folder / "second.pt").write_bytes(b"nothing")
    assert "second.pt" in one_line(lambda: feature_net(folder))
    (folder / "second.json").write_text(json.dumps({"name": "x", "format": "torchscript", "size": 8}))
    assert "TorchScript" in one_line(lambda: feature_net(folder / "second.pt"))
    assert "no such file" in one_line(lambda: feature_net(folder / "third.pt"))
    assert "no feature network" in one_line(lambda: feature_net(folder / "weights.ckpt"))


def test_scripts_against_the_contract(tmp_path: Path) -> None:
    assert "(2, 3, 64, 64)" in one_line(lambda: feature_net(scripted(tmp_path, Maps())))
    assert "fails on images" in one_line(lambda: feature_net(scripted(tmp_path, Strict(), size=9)))
    assert 'unknown key "distance"' in one_line(lambda: feature_net(scripted(tmp_path, Image(), distance=[])))


def test_wrong_images(tmp_path: Path) -> None:
    net = feature_net(scripted(tmp_path, Image()))
    good = flat(1, 0, 0)
    for bad in (good * 2 - 1, good * 255, good * float("nan"), good[0], good[:, :1], good.to(torch.uint8)):
        assert "[0, 1]" in one_line(lambda bad=bad: net.features(bad))
    assert "equal size" in one_line(lambda: net.distance(good, good[..., 1:]))


def test_lpips_from_a_cache(hub: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(squeezenet1_1().state_dict(), hub / "squeezenet1_1-b8a52dc0.pth")
    before = torch.get_rng_state()
    net = lpips("squeeze")
    assert torch.equal(before, torch.get_rng_state())
    assert set(net.provenance) == KEYS
    assert (net.distance_name, net.frechet_name, net.kernel_name) == ("lpips/squeeze", None, None)
    check_distance(net)
    assert net.distance(random_images(1, 3, 5, 9), random_images(1, 3, 5, 9, seed=1)).shape == (1,)
    assert "distances only" in one_line(lambda: net.features(flat(1, 0, 0)))
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity as Metric

    first, second = random_images(2, 3, 70, 65), random_images(2, 3, 70, 65, seed=1)
    mean = Metric("squeeze", normalize=True)(first, second)  # torchmetrics' own way from [0, 1]
    assert net.distance(first, second).mean().item() == pytest.approx(mean.item(), rel=1e-5)


def test_lpips_without_a_cache(hub: Path) -> None:
    message = one_line(lambda: lpips("squeeze"))
    assert "squeezenet1_1-b8a52dc0.pth" in message
    assert str(hub) in message
    assert "no network" in message
    assert "--feature_net" in message
    (hub / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"half a file")
    assert "damaged" in one_line(lambda: lpips("squeeze"))
    assert "alex, vgg, squeeze" in one_line(lambda: lpips("resnet"))  # pyright: ignore[reportArgumentType]


def test_inception_from_a_cache(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    assert source.URL_INCEPTION_V3.rsplit("/", 1)[-1] in one_line(inception)
    with monkeypatch.context() as patched, torch.random.fork_rng():
        torch.manual_seed(0)
        patched.setattr(source, "load_state_dict_from_url", lambda *_, **__: {})
        patched.setattr(source.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        state = source.FeatureExtractorInceptionV3("random", ["2048"]).state_dict()
    torch.save(state, hub / source.URL_INCEPTION_V3.rsplit("/", 1)[-1])
    net = inception()
    assert set(net.provenance) == KEYS
    assert (net.distance_name, net.frechet_name, net.kernel_name) == (None, "fid/inception", "kid/inception")
    seen: list[Tensor] = []
    real = type(net._net).forward  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(type(net._net), "forward", lambda self, x: (seen.append(x), real(self, x))[1])  # pyright: ignore
    features = net.features(torch.tensor([0.0, 99.6 / 255, 1.0]).view(1, 3, 1, 1).expand(2, 3, 5, 9))
    assert features.shape == (2, 2048)
    assert bool(features.isfinite().all())
    assert seen[0][0, :, 0, 0].tolist() == [0, 100, 255]
    assert seen[0].dtype == torch.uint8
    assert "features only" in one_line(lambda: net.distance(flat(1, 0, 0), flat(0, 1, 0)))


def test_inception_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert "pip install -e '.[fid]'" in one_line(inception)


def test_augmentation_moves_mirrors_and_coarsens() -> None:
    images = random_images(64, 3, 32, 32)
    moved = classifier.augment(images, torch.Generator().manual_seed(0), shift=4)
    padded = nn.functional.pad(images, (4,) * 4, mode="reflect")
    sharp = 0
    for image, result in zip(padded, moved, strict=True):
        windows = image.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)
        error = (torch.cat([windows, windows.flip(-1)]) - result).abs().amax((1, 2, 3)).min()
        sharp += bool(error < 1e-6)
    assert 20 <= sharp <= 44
    assert moved[0].std() < images[0].std() or moved[1].std() < images[1].std()


@pytest.mark.slow
def test_classifier_learns_and_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red and blue images: the classes are the names of the folders.

    The learning rate belongs to batches of 8. With that of 128 the logits pass 1000, and it is chance what is learned.
    """
    for name, tint in (("blue", (60, 60, 250)), ("red", (250, 60, 60))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            image = random_image(40, 32, seed=number).point([value // 8 for value in range(256)] * 3)
            image.paste(tint, (0, 0, 32, 30))
            image.save(tmp_path / "data" / name / f"{number}.png")
    data, output = str(tmp_path / "data"), tmp_path / "net"
    options = ["--data", data, "--val_data", data, "--output", str(output), "--name", "two", "--size", "32"]
    assert classifier.main([*options, "--epochs", "10", "--batch_size", "8", "--learning_rate", "0.005"]) == 0
    assert "epoch 10: accuracy 1.000" in capsys.readouterr().out
    assert feature_net(output).frechet_name == "fd/two"
    assert "perceptual/two" in (output / "README.md").read_text()


def test_classes_are_folders(tmp_path: Path) -> None:
    random_image(8, 8).save(tmp_path / "loose.png")
    assert "in no folder" in one_line(lambda: classifier.read_classes(tmp_path, size=8))
    (tmp_path / "new").mkdir()
    (tmp_path / "loose.png").rename(tmp_path / "new" / "a.png")
    images, labels, classes = classifier.read_classes(tmp_path, size=8)
    assert (images.shape, images.dtype, labels.tolist(), classes) == ((1, 8, 8, 3), torch.uint8, [0], ["new"])
    assert "class new" in one_line(lambda: classifier.read_classes(tmp_path, size=8, classes=["old"]))


def test_spoiling_is_measured_in_its_unit() -> None:
    random = torch.Generator().manual_seed(0)
    grey = torch.full((2, 3, 64, 64), 0.5)
    assert (classifier.spoil(grey, "noise", 0.1, random) - grey).std().item() == pytest.approx(0.1, rel=0.05)
    shifted = classifier.spoil(grey, "colour", 0.1, random)
    assert shifted[0, :, 0, 0].tolist() == pytest.approx([0.6, 0.5, 0.4])
    black_and_white = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    mixed = classifier.spoil(black_and_white, "blocks", 0.25, random)
    assert mixed[0].mean().item() == pytest.approx(0.25, abs=0.12)
    assert 1 - mixed[1].mean().item() == pytest.approx(0.25, abs=0.12)
    point = torch.zeros(1, 3, 33, 33)
    point[..., 16, 16] = 1
    spread = classifier.spoil(point, "blur", 2, random)[0, 0]
    assert spread.sum().item() == pytest.approx(1, abs=1e-3)
    places = torch.arange(33) - 16.0
    assert float((spread.sum(0) * places**2).sum()) == pytest.approx(4, rel=0.05)  # the variance of the blur


@pytest.mark.skipif(not (NATURE / "model.safetensors").exists(), reason="the trained network is not here")
def test_trained_network() -> None:
    net = feature_net(NATURE)
    assert (net.distance_name, net.frechet_name) == ("perceptual/nature64-resnet", "fd/nature64-resnet")
    check_distance(net)
    check_features(net, 512)
