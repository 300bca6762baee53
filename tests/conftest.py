"""Shared fixtures: a small base model of 16x16 pixels with random weights, an adapter for it, and random images."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning  # noqa: F401  # its log handler keeps the stderr of its import, so import it outside of tests
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rad.diffusion.schedules import linear_betas
from rad.methods import METHODS, own
from rad.models.adapter import AdapterInfo, save_adapter
from rad.models.base import load_base, save_base
from rad.models.lora import LoRA, inject, trainable
from rad.networks.unet import patch
from tests.tiny_networks import small_unet

SIZE = 16


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test with the mark spread(n), mark all slow but n, which are spread evenly."""
    cases: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("spread") is not None:
            cases.setdefault((item.path, item.name.partition("[")[0]), []).append(item)
    for of_one in cases.values():
        marker = of_one[0].get_closest_marker("spread")
        assert marker is not None
        (count,) = marker.args
        kept = {number * len(of_one) // count for number in range(count)}
        for number, item in enumerate(of_one):
            if number not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[None]:
    """Set torch's threads to RAD_TEST_THREADS or 1; small networks run faster on one. No test depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("RAD_TEST_THREADS", "1")))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread, to compare files of this process bit for bit with those of a single-threaded subprocess."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def forget_methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unregister the methods that the test registers or loads."""
    monkeypatch.setattr(own, "_loaded", {})
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)
    for name in [name for name in sys.modules if name.startswith("rad.methods.own.")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `adapter`, which refers to it. Copy it before you change it."""
    folder = tmp_path_factory.mktemp("models")
    save_base(folder / "base", small_unet(size=SIZE), betas=linear_betas(), half=False)
    make_adapter(folder / "adapter", folder / "base", seed=1)
    return folder


@pytest.fixture(scope="session")
def base(models: Path) -> Path:
    return models / "base"


@pytest.fixture(scope="session")
def adapter(models: Path) -> Path:
    return models / "adapter"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with `base/`, a base model, and `images/`, twelve of them."""
    root = tmp_path_factory.mktemp("world")
    save_base(root / "base", small_unet(), betas=linear_betas(), half=False)
    source = torch.Generator().manual_seed(0)
    (root / "images").mkdir()
    for number in range(12):
        pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=source), (20, 24), mode="bicubic")[0]
        Image.fromarray((pixels.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()).save(
            root / "images" / f"{number}.png"
        )
    return root


def make_adapter(folder: Path, base: Path, *, seed: int) -> None:
    """Save an adapter of rank 2 on `base` with random, non-zero weights."""
    loaded = load_base(base)
    peft = inject(patch(loaded.unet), LoRA(rank=2, alpha=2))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(peft).values():
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)
    info = AdapterInfo(
        base=str(base), base_hash=loaded.hash, time_origin="adm", steps=len(loaded.betas), size=(SIZE, SIZE)
    )
    save_adapter(peft, folder, info, card="# A random adapter\n")


@pytest.fixture
def carrying(models: Path, tmp_path: Path):
    """Copies the adapter with an object "sampling"; returns its folder."""

    def make(sampling: object) -> Path:
        folder = tmp_path / "models" / "carrying"
        shutil.copytree(models / "base", tmp_path / "models" / "base", dirs_exist_ok=True)
        shutil.copytree(models / "adapter", folder, dirs_exist_ok=True)
        content = json.loads((folder / "rad_config.json").read_text())
        (folder / "rad_config.json").write_text(json.dumps(content | {"sampling": sampling}))
        return folder

    return make


def random_image(height: int, width: int, *, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box_hole(height: int, width: int, *box: int) -> Tensor:
    """(1,H,W), 1 inside the boxes; each box is four numbers: top, left, bottom, right."""
    hole = torch.zeros(1, height, width)
    for number in range(0, len(box), 4):
        top, left, bottom, right = box[number : number + 4]
        hole[:, top:bottom, left:right] = 1
    return hole
