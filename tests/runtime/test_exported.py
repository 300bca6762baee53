"""The shipped checkpoint, exported: `OnnxInpainter` equals `Inpainter` to within one grey level."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from rad import Inpainter
from rad.inpainting.runs import find_parts
from rad.models.load import load_model
from rad.runtime import OnnxInpainter
from rad.runtime.export import export_onnx

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inpainters(tmp_path_factory) -> tuple[OnnxInpainter, Inpainter]:
    folder: Path = tmp_path_factory.mktemp("nature")
    parts = find_parts("rad-nature32")
    model = load_model(parts.source, device="cpu", adapter=parts.adapter, info=parts.info)
    export_onnx(model, folder, name="rad-nature32", source="rad-nature32", base_weights=True)
    return OnnxInpainter.from_pretrained(folder, threads=1), Inpainter.from_pretrained("rad-nature32", device="cpu")


def test_larger_windows_equal_those_of_the_torch_path(inpainters, photograph):
    (image, hole), folder = photograph, inpainters[0].model.folder
    large = (
        OnnxInpainter.from_pretrained(folder, size=64),
        Inpainter.from_pretrained("rad-nature32", device="cpu", size=64),
    )
    mine, expected = (each(image, hole, size_policy="pyramid", steps=4) for each in large)
    assert [each.size for each in large] == [(64, 64)] * 2
    assert mine.nfe == expected.nfe
    assert np.abs(np.asarray(mine.images[0]).astype(int) - np.asarray(expected.images[0])).max() <= 1
    with pytest.raises(ValueError, match=r"size is 30; .* takes multiples of 4"):
        OnnxInpainter.from_pretrained(folder, size=30)


@pytest.fixture(scope="module")
def photograph() -> tuple[Image.Image, np.ndarray]:
    """Part of a photograph with holes; one is larger than the model's window."""
    hole = np.zeros((96, 128), np.float32)
    hole[8:20, 10:28] = hole[40:58, 60:110] = hole[80:, :9] = 1
    return Image.fromarray(data.coffee()[120:216, 200:328]), hole


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"steps": 8, "eta": 1.0},
        {"steps": 8, "solver": "ddpm"},
        {"steps": 8, "solver": "ddim"},
        {"steps": 8, "soft_mask": True},
        {"steps": 8, "num_samples": 3, "batch_size": 2},
        {"steps": 8, "method": "repaint"},
    ],
    ids=str,
)
def test_fills_equal_those_of_the_torch_path(inpainters, photograph, choice):
    image, hole = photograph
    if "soft_mask" in choice:
        hole = hole * np.linspace(0.2, 1, hole.shape[1], dtype=np.float32).round(1)
    mine, expected = (fill(image, hole, size_policy="crop", seed=5, **choice) for fill in inpainters)
    assert mine.nfe == expected.nfe
    for one, other in zip(mine.raw + mine.images, expected.raw + expected.images, strict=True):
        difference = np.abs(np.asarray(one).astype(int) - np.asarray(other))
        assert difference.max() <= 1
        assert (difference > 0)[hole > 0].mean() < 0.01
