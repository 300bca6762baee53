"""`OnnxInpainter` equals `Inpainter` to within one grey level, and needs no torch."""

import inspect
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from rad import Inpainter
from rad.inpainting import Cancelled, Extension
from rad.inpainting.canvas.layout import Layout
from rad.methods import METHODS
from rad.runtime import OnnxInpainter, RePaint
from rad.runtime.filling import WindowFiller
from tests.conftest import SIZE, random_image
from tests.runtime.tiny_onnx import TinyNetwork, write_folder

LARGE = (40, 51)
CASES = {
    "preset": {},
    "sde": {"eta": 1.0, "steps": 5},
    "ddpm": {"solver": "ddpm", "steps": 6},
    "ddim": {"solver": "ddim", "steps": 6, "spacing": "trailing"},
    "official": {"solver": "ddpm", "steps": 6, "spacing": "official", "eta": 0.5},
    "repaint": {"method": "repaint", "steps": 12},
}
SHAPES = {
    "crop": {"size_policy": "crop"},
    "margin": {"size_policy": "crop", "margin": 0, "batch_size": 3, "num_samples": 2},
    "mean": {"size_policy": "crop", "margin": 0, "num_samples": 2, "average": 3},
    "zoom": {"size_policy": "zoom", "margin": 1},
    "resize": {"size_policy": "resize", "names": "x.png", "feather": 2},
    "outpaint": {"size_policy": "crop", "extend": (3, 0, 0, 5)},
    "pyramid": {"size_policy": "pyramid"},
    "thin": {"size_policy": "crop", "margin": 0, "thin_steps": 1},
    "thin pyramid": {"size_policy": "pyramid", "thin_steps": 1},
    "soft": {"size_policy": "crop", "soft_mask": True, "mask_dilate": 1},
    "inverted": {"size_policy": "crop", "mask_polarity": "white_is_known"},
}


def levels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image).astype(np.int64) for image in images])


def assert_equal(mine: list[Image.Image], expected: list[Image.Image], *, share: float = 0.005) -> None:
    difference = np.abs(levels(mine) - levels(expected))
    assert difference.max() <= 1
    assert (difference > 0).mean() < share


def mask(height: int, width: int, *, soft: bool = False) -> Image.Image:
    values = np.zeros((height, width), np.uint8)
    values[3 : height // 2, 2 : width // 3] = 255
    values[-6:-2, -9:-1] = 255
    if soft:
        values[:6] //= np.arange(1, 7, dtype=np.uint8)[:, None]
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def networks() -> dict[str, TinyNetwork]:
    return {"rad": TinyNetwork(1).eval(), "base": TinyNetwork(2).eval()}


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("exported") / "tiny", networks, size=[SIZE, SIZE])


@pytest.fixture(scope="module")
def onnx(folder) -> OnnxInpainter:
    return OnnxInpainter.from_pretrained(folder, threads=1)


@pytest.fixture(scope="module")
def reference(networks, adapter) -> Inpainter:
    """The torch path with the same networks."""
    inpainter = Inpainter.from_pretrained(adapter, device="cpu")
    inpainter.model.sampled_network = lambda *, adapter: networks["rad" if adapter else "base"]
    return inpainter


@pytest.mark.parametrize("case", CASES)
def test_results_equal_the_torch_path_to_one_grey_level(onnx, reference, case):
    arguments = ([random_image(SIZE, SIZE, seed=seed) for seed in range(3)], mask(SIZE, SIZE))
    mine, expected = (fill(*arguments, seed=4, num_samples=2, **CASES[case]) for fill in (onnx, reference))
    assert_equal(mine.images, expected.images)
    assert_equal(mine.raw, expected.raw)
    assert (mine.nfe, mine.vjp) == (expected.nfe, 0)
    assert mine.seconds > 0
    assert mine.peak_memory > 2**20
    assert len({np.asarray(image).tobytes() for image in mine.raw}) == 6, "samples and images differ"


@pytest.mark.filterwarnings("ignore::rad.masks.reading.format.MaskWarning")
@pytest.mark.parametrize("shape", SHAPES)
def test_images_of_any_size_equal_the_torch_path(onnx, reference, shape):
    arguments = (random_image(*LARGE), mask(*LARGE, soft=shape == "soft"))
    mine, expected = (fill(*arguments, steps=4, seed=1, **SHAPES[shape]) for fill in (onnx, reference))
    assert_equal(mine.images, expected.images)
    assert_equal(mine.raw, expected.raw)
    assert mine.nfe == expected.nfe


def test_thin_windows_have_their_own_calls(onnx):
    image, hole, planned = random_image(*LARGE), mask(*LARGE), set()
    counts = Layout((SIZE, SIZE), "crop", 0, thin=True).count_windows(np.float32(np.asarray(hole)[None] > 0))
    assert counts["first"] > 0 < counts["thin"]
    arguments = {"size_policy": "crop", "margin": 0, "steps": 3, "average": 2, "thin_steps": 1}
    result = onnx(image, hole, on_step=lambda step: planned.add(step.planned), **arguments)
    assert {result.nfe} == planned == {2 * (3 * counts["first"] + counts["thin"])}
    assert_equal(result.raw, onnx(image, hole, batch_size=1, **arguments).raw)
    with pytest.warns(UserWarning, match="thin_steps=1 has no effect on method 'repaint'"):
        assert onnx(image, hole, method="repaint", size_policy="crop", steps=3, thin_steps=1).nfe % 3 == 0


def test_known_pixels_are_exact_and_profiles_stay(onnx):
    image, hole = random_image(*LARGE), mask(*LARGE)
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    result = onnx(image, hole, steps=2, size_policy="crop").images[0]
    known = np.asarray(hole) == 0
    assert np.array_equal(np.asarray(result)[known], np.asarray(image)[known])
    assert (np.asarray(result)[~known] != np.asarray(image)[~known]).mean() > 0.5
    assert result.info == image.info


def test_batches_and_threads_change_no_result(onnx):
    arguments = {"size_policy": "crop", "margin": 0, "num_samples": 2, "steps": 3, "solver": "ddpm"}
    image, hole = random_image(*LARGE), mask(*LARGE)
    serial = onnx(image, hole, **arguments)
    assert_equal(onnx(image, hole, batch_size=1, **arguments).raw, serial.raw)
    results = {}
    threads = [
        threading.Thread(target=lambda seed=seed: results.update({seed: onnx(image, hole, seed=seed % 2, **arguments)}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, result in results.items():
        alone = serial if seed % 2 == 0 else onnx(image, hole, seed=1, **arguments)
        assert np.array_equal(levels(result.raw), levels(alone.raw)), seed


def test_a_smaller_batch_is_used_when_memory_runs_out(onnx, monkeypatch):
    image, hole = random_image(*LARGE), mask(*LARGE)
    arguments = {"size_policy": "crop", "margin": 0, "num_samples": 2, "steps": 2}
    expected, sizes, fill = onnx(image, hole, **arguments), [], WindowFiller._fill_batch

    def limited(self, jobs, *others):
        sizes.append(len(jobs))
        if len(jobs) > 2:
            raise MemoryError
        return fill(self, jobs, *others)

    monkeypatch.setattr(WindowFiller, "_fill_batch", limited)
    result = onnx(image, hole, **arguments)
    assert max(sizes) > 2
    assert sizes[-1] <= 2
    assert_equal(result.raw, expected.raw)
    assert result.nfe == expected.nfe


def test_progress_counts_calls_and_shows_the_estimates(onnx, reference):
    image, hole = random_image(*LARGE), mask(*LARGE)
    runs = []
    for fill in (onnx, reference):
        steps = []
        fill(
            image,
            hole,
            size_policy="crop",
            steps=3,
            batch_size=2,
            num_samples=2,
            on_step=lambda progress, steps=steps: steps.append(
                (progress.done, progress.planned, progress.indices, [progress.preview(n) for n in progress.indices])
            ),
        )
        runs.append(steps)
    mine, expected = runs
    assert [step[:3] for step in mine] == [step[:3] for step in expected]
    assert mine[-1][0] == mine[-1][1] > 6
    for (*_, previews), (*_, others) in zip(mine, expected, strict=True):
        assert_equal(previews, others)
    known = np.asarray(hole) == 0
    assert all(np.array_equal(np.asarray(each)[known], np.asarray(image)[known]) for each in mine[0][3])


def test_an_error_in_the_callback_stops_the_run(onnx):
    calls = []

    def stop(progress):
        calls.append(progress.done)
        if len(calls) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        onnx(random_image(SIZE, SIZE), mask(SIZE, SIZE), on_step=stop)
    assert calls == [1, 2]


def test_arguments_and_defaults_are_those_of_the_torch_path():
    mine, expected = (inspect.signature(kind.__call__).parameters for kind in (OnnxInpainter, Inpainter))
    without = [name for name in expected if name not in ("condition", "grid", "fill", "strength")]
    assert list(mine) == without
    assert {name: mine[name].default for name in mine} == {name: expected[name].default for name in without}
    assert {name: mine[name].kind for name in mine} == {name: expected[name].kind for name in without}


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": 2.5},
        {"num_samples": 0},
        {"batch_size": True},
        {"feather": -1},
        {"margin": "a"},
        {"size_policy": "cut"},
        {"steps": 0},
        {"steps": 1001},
        {"solver": "euler"},
        {"solver": "ddim", "eta": 1.0},
        {"spacing": "even"},
        {"method": "repaint", "solver": "dpm++2m"},
        {"mask_polarity": "black"},
        {"names": ["a", "b"]},
        {"extend": (1, 2)},
        {"mask": None},
        {"mask": "no such mask"},
        {"mask": "missing.png"},
        {"image": random_image(SIZE, SIZE + 2)},
        {"image": "missing.png"},
        {"image": 3},
        {"prompt": "a cat"},
        {"stepps": 3},
    ],
    ids=lambda arguments: "-".join(map(str, arguments)),
)
def test_errors_equal_those_of_the_torch_path(onnx, reference, arguments):
    if "image" in arguments and isinstance(arguments["image"], Image.Image):
        arguments = {"mask": mask(SIZE, SIZE + 2), **arguments}
    arguments = {"image": random_image(SIZE, SIZE), "mask": mask(SIZE, SIZE), **arguments}
    errors = []
    for fill in (onnx, reference):
        with pytest.raises((ValueError, FileNotFoundError, TypeError)) as error:
            fill(**arguments)
        errors.append((type(error.value), str(error.value).partition(": allowed are ")[0]))
    assert errors[0] == errors[1]


def test_methods_depend_on_the_networks_of_the_folder(networks, tmp_path, onnx):
    assert onnx.methods == ("rad", "repaint")
    assert set(onnx.methods) <= set(METHODS)
    alone = OnnxInpainter.from_pretrained(write_folder(tmp_path / "rad", {"rad": networks["rad"]}, size=[SIZE, SIZE]))
    assert alone.methods == ("rad",)
    with pytest.raises(ValueError, match=r"'repaint' is not available without torch on this model; allowed are rad$"):
        alone(random_image(SIZE, SIZE), mask(SIZE, SIZE), method="repaint")
    with pytest.raises(ValueError, match="method 'ddnm' is not available"):
        onnx(random_image(SIZE, SIZE), mask(SIZE, SIZE), method="ddnm")
    few = onnx(random_image(SIZE, SIZE), mask(SIZE, SIZE), method=RePaint(2, 1), steps=4)
    assert few.nfe == 4


def test_other_folders_are_refused(folder, networks, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*runtime.json: give a folder that `rad export"):
        OnnxInpainter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="path is 3; give a folder"):
        OnnxInpainter.from_pretrained(3)
    changes = {
        r"has format 2; this version of rad reads format 1": {"format": 2},
        r"has kind 'latent'; only pixel models": {"kind": "latent"},
        r"is damaged \(prediction is 'x'; allowed are epsilon": {"prediction": "x"},
        r"is damaged \(a side of size is": {"size": [SIZE, "16"]},
        r"is damaged \(size is 16x17; its sides must be multiples of 2": {"size": [17, SIZE]},
        r"is damaged \(betas": {"betas": [2.0]},
        r"is damaged \(betas is no list of numbers": {"betas": ["0.1"]},
        r"is damaged \(betas has 2 values; expected as many as steps, 3": {"betas": [0.1, 0.2], "steps": 3},
        r"is damaged \(clip is 'no'; allowed are true and false": {"clip": "no"},
        r"is damaged \(learned_variance is 1;": {"learned_variance": 1},
        r"is damaged \(process is 'x'; allowed are uniform": {"process": "x"},
        r"is damaged \(precision is 'x'; allowed are fp32": {"precision": "x"},
        r"is damaged \(size is no list of height and width": {"size": SIZE},
        r"is damaged \(name is None": {"name": None},
        r"has format True; this version": {"format": True},
        r"is damaged \(networks": {"networks": {"rad": {"file": "../rad.onnx", "sha256": ""}}},
        r"is damaged \(networks has": {"networks": {}},
    }
    for match, change in changes.items():
        with pytest.raises(ValueError, match=match):
            OnnxInpainter.from_pretrained(
                write_folder(tmp_path / "changed", networks, **({"size": [SIZE, SIZE]} | change))
            )
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "runtime.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match=r"runtime.json is damaged"):
        OnnxInpainter.from_pretrained(damaged)
    settings = json.loads((folder / "runtime.json").read_text())
    (damaged / "runtime.json").write_text(json.dumps({key: value for key, value in settings.items() if key != "clip"}))
    with pytest.raises(ValueError, match=r"runtime.json is damaged \(no entry 'clip'\)"):
        OnnxInpainter.from_pretrained(damaged)


def test_damaged_and_missing_networks_are_refused(folder, tmp_path):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    content = bytearray((damaged / "base.onnx").read_bytes())
    content[200] ^= 1
    (damaged / "base.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"base.onnx is damaged: its SHA-256 differs"):
        OnnxInpainter.from_pretrained(damaged)
    (damaged / "base.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*base.onnx, which runtime.json names"):
        OnnxInpainter.from_pretrained(damaged)


@pytest.mark.parametrize("threads", [0, 2.5, "2"])
def test_threads_are_checked(folder, threads):
    with pytest.raises(ValueError, match="threads is"):
        OnnxInpainter.from_pretrained(folder, threads=threads)


WITHOUT_TORCH = """
import sys
for name in ("torch", "diffusers", "lightning", "peft", "transformers", "scipy", "skimage", "torchvision", "onnx"):
    sys.modules[name] = None
from rad.runtime import OnnxInpainter
inpainter = OnnxInpainter.from_pretrained(sys.argv[1], threads=1)
for arguments in ({}, {"method": "repaint", "steps": 3}, {"extend": (4, 0, 0, 0), "soft_mask": True}):
    result = inpainter("image.png", "mask.png", steps=arguments.pop("steps", 4), size_policy="crop", seed=2, **arguments)
    result.images[0].save(f"filled{len(arguments)}.png")
try:
    inpainter("image.png", "wide", size_policy="crop")
except ValueError as error:
    assert "generators of masks need torch" in str(error), error
else:
    raise AssertionError
"""


def test_fills_an_image_where_torch_cannot_be_imported(folder, reference, tmp_path):
    random_image(*LARGE).save(tmp_path / "image.png")
    mask(*LARGE).save(tmp_path / "mask.png")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, folder], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    expected = reference(tmp_path / "image.png", tmp_path / "mask.png", steps=4, size_policy="crop", seed=2)
    assert_equal([Image.open(tmp_path / "filled0.png")], expected.images)
    expected = reference(
        tmp_path / "image.png",
        tmp_path / "mask.png",
        steps=4,
        size_policy="crop",
        seed=2,
        extend=Extension(4),
        soft_mask=True,
    )
    assert_equal([Image.open(tmp_path / "filled2.png")], expected.images)
