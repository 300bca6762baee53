"""The mean of several samples: it equals that of `num_samples` before rounding, with its noise, cost and records."""

import warnings

import numpy as np
import pytest
from PIL import Image

from rad.cli import main as cli
from rad.inpainting.canvas.composite import Canvas
from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.preview import Finisher, preview
from rad.inpainting.canvas.pyramid import Pyramid
from rad.inpainting.inpainter import Inpainter
from tests.conftest import SIZE, box_hole, random_image
from tests.tiny_pipelines import write_pipeline

IMAGE, HOLE = random_image(30, 40), box_hole(30, 40, 2, 3, 27, 21, 8, 30, 12, 37)
CROP = {"size_policy": "crop", "margin": 2, "steps": 3, "solver": "ddim", "seed": 5, "names": "a"}


def rounded(values):
    return np.rint(255 * (np.clip(values, -1, 1) / 2 + 0.5))


def test_a_canvas_restarts_for_each_sample_and_rounds_their_mean_once():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 30), np.uint8)
    hole = box_hole(16, 30, 3, 2, 12, 27).numpy()
    windows = Layout((16, 16), "crop", 2).plan(hole)[1]
    assert len(windows) > 1
    (_, canvas) = Canvas("a", 0, pixels, hole, windows), Canvas("a", 4, pixels, hole, windows, average=3)
    samples, outputs = [], np.random.default_rng(1).random((3, len(windows), 3, 16, 16), np.float32) * 3 - 1.5
    for number, sample in enumerate(outputs):
        assert (canvas.sample, canvas.samples_filled) == (4 + number, number)
        assert (canvas.unknown == (hole[0] > 0)).all()
        assert list(canvas.windows) == windows
        for window, output in zip(windows, sample, strict=True):
            before, remaining = canvas.cut(window)
            seen = (canvas.hole[(slice(None), *window.slices)] > 0) & (remaining == 0)
            assert (before[:, seen[0]] == canvas.filled[(slice(None), *window.slices)][:, seen[0]]).all()
            canvas.paste(window, output)
        alone = Canvas("a", 0, pixels, hole, windows)
        for window, output in zip(windows, sample, strict=True):
            alone.paste(window, output)
        inside = hole[0] > 0
        assert (canvas.filled[:, inside] == alone.filled[:, inside]).all(), (
            "later windows see this sample, not the mean"
        )
        samples.append(alone.filled)
        mean = np.mean(np.clip(samples, -1, 1, dtype=np.float64), 0)
        assert (canvas.raw[:, inside] == rounded(mean)[:, inside]).all()
        assert (preview(canvas, {})[:, inside] == rounded(mean)[:, inside]).all()
    assert not canvas.windows
    assert canvas.sample == 6


@pytest.mark.parametrize("policy", ["crop", "pyramid"])
def test_a_known_pixel_in_two_cores_counts_once_for_each_sample(policy):
    hole = box_hole(24, 60, 10, 10, 13, 12, 10, 17, 13, 19, 4, 34, 20, 52).numpy()
    layout = Layout((16, 16), policy, 2, pyramid=Pyramid(coarsest=8) if policy == "pyramid" else None)

    def filled(**options):
        canvases = layout.canvases(random_image(24, 60), hole, "a", **options)
        overlaps = []
        for canvas in canvases:
            while canvas.windows:
                times = np.zeros(canvas.unknown.shape, int)
                sample, side = canvas.sample, canvas.pixels.shape[1]
                while (canvas.sample, canvas.pixels.shape[1]) == (sample, side) and canvas.windows:
                    window = next(iter(canvas.windows))
                    draw = np.random.default_rng([sample, side, *window.core])
                    times[window.core_slices] += 1
                    canvas.paste(window, draw.uniform(-1.3, 1.3, (3, 16, 16)).astype(np.float32))
                overlaps.append((times > 1).any())
        assert overlaps[-1], "two cores overlap at full scale"
        return [canvas.raw.astype(float) for canvas in canvases]

    singles, (mean,) = filled(samples=3), filled(samples=1, average=3)
    assert np.abs(mean - np.mean(singles, 0)).max() <= 1
    assert np.ptp(singles, 0)[:, hole[0] == 0].max() > 100, "known pixels of `raw` differ from sample to sample"


@pytest.fixture
def unrounded(monkeypatch):
    """Appends the unrounded samples of each run, (results, 3, H, W) in [-1,1]."""
    finish, runs = Finisher.finish, []

    def finish_and_note(self, canvases):
        runs.append(np.stack([np.clip(canvas.filled, -1, 1) for canvas in canvases]))
        return finish(self, canvases)

    monkeypatch.setattr(Finisher, "finish", finish_and_note)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_means_equal_those_of_the_unrounded_samples(kind, adapter, tmp_path, unrounded):
    if kind == "pixels":
        inpainter, image, hole, options = Inpainter.from_pretrained(adapter, device="cpu"), IMAGE, HOLE, CROP
    else:
        inpainter = Inpainter.from_pretrained(write_pipeline(tmp_path / "stable", "stable"), device="cpu")
        height, width = inpainter.size
        image, hole = random_image(height, width), box_hole(height, width, 4, 4, 13, 12)
        options = {"method": "replacement", "steps": 3}
    six = inpainter(image, hole, num_samples=6, **options)
    steps = []
    two = inpainter(image, hole, num_samples=2, average=3, on_step=steps.append, **options)
    inside = hole[0].numpy() > 0
    for number, result in enumerate(two.images):
        values = np.array(result).transpose(2, 0, 1)
        mean = unrounded[0][3 * number : 3 * number + 3].mean(0, dtype=np.float64)
        differ = np.abs(values - rounded(mean))[:, inside]
        assert differ.max() <= 1
        assert (differ > 0).mean() < 0.005
        assert (values == np.array(image).transpose(2, 0, 1))[:, ~inside].all()
    assert len({np.array(image).tobytes() for image in two.images}) == 2
    assert two.nfe == six.nfe
    assert steps[-1].done == steps[-1].planned == two.nfe
    for batch_size in (1, 5):
        again = inpainter(image, hole, num_samples=2, average=3, batch_size=batch_size, **options)
        for one, other in zip(again.images, two.images, strict=True):
            assert np.abs(np.array(one, int) - np.array(other, int)).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["resize", "zoom"])
def test_scaled_images_get_the_mean_too(policy, adapter):
    inpainter = Inpainter.from_pretrained(adapter, device="cpu")
    options = {"size_policy": policy, "steps": 2, "names": "a"}
    samples = np.array([np.array(i, float) for i in inpainter(IMAGE, HOLE, num_samples=4, **options).images])
    mean = np.array(inpainter(IMAGE, HOLE, average=4, **options).images[0], float)
    inside = HOLE[0].numpy() > 0
    # Samples are clipped after they are resized, and the mean before: noise of this network has many values at the limits.
    assert np.abs(mean - samples.mean(0))[inside].mean() < 6
    assert np.abs(samples[0] - samples.mean(0))[inside].mean() > 40


def test_methods_without_noise_warn(base):
    inpainter = Inpainter.from_pretrained(base, device="cpu")
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 9, 9)
    with pytest.warns(UserWarning, match="average=4 has no effect on method 'mean', which has no noise"):
        several = inpainter(image, hole, method="mean", average=4)
    assert np.array_equal(several.images[0], inpainter(image, hole, method="mean").images[0])
    for wrong in (0, 1.5, True, 10001):
        with pytest.raises(ValueError, match="average is"):
            inpainter(image, hole, method="mean", average=wrong)


@pytest.mark.slow
def test_rad_sample_labels_counts_and_records_means(adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    IMAGE.save("in.png")
    Image.fromarray(np.uint8(255 * HOLE[0].numpy())).save("mask.png")
    words = f"--checkpoint {adapter} --image in.png --mask mask.png --size_policy crop --margin 2 --device cpu".split()

    def sample(*more):
        code = cli.sample([*words, *more])
        return code, capsys.readouterr().err

    def request(path):
        with Image.open(path) as image:
            return image.info["rad"], np.array(image)

    code, err = sample("--output", "mean.png", "--steps", "2", "--average", "3")
    assert code == 0, err
    windows = Inpainter.from_pretrained(adapter, device="cpu").count_windows(HOLE, size_policy="crop", margin=2)
    assert f": {6 * windows} network calls" in err
    assert f"rad: {6 * windows} NFE" in err
    assert '"mean_of": 3' in request("mean.png")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = Inpainter.from_pretrained(adapter, device="cpu")(
            "in.png", "mask.png", steps=2, average=3, size_policy="crop", margin=2, names="in.png"
        )
    assert (np.array(result.images[0]) == request("mean.png")[1]).all()
    code, err = sample("--output", "mean.png", "--steps", "2")
    assert code == 2
    assert "mean_of 3, now by default" in err
    labels = ("rad@2,average=3", "rad@6nfe,average=3", "rad@2", "mean,average=2")
    code, err = sample("--output", "several", "--method", *labels)
    assert code == 0, err
    assert "rad@6nfe,average=3: 2 steps for a budget of 6: 6 network calls" in err
    assert "--average has no effect on mean,average=2" in err
    for label in labels[:2]:
        assert (request(f"several/{label}/in.png")[1] == request("mean.png")[1]).all()
    assert "mean_of" not in request("several/rad@2/in.png")[0]
    code, err = sample("--output", "other", "--method", "rad@2nfe,average=3")
    assert code == 2
    assert "rad with average=3 needs a budget of at least 3 network calls, not 2" in err
