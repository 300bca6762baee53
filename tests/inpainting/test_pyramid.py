"""size_policy "pyramid": exact averages, scales, exact known pixels, counted calls, equality with "crop" on small holes."""

import numpy as np
import pytest
import torch
from PIL import Image

from rad.cli import main as cli
from rad.diffusion.choices import last_part
from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.step import Denoised
from rad.inpainting import Inpainter, Pyramid
from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.preview import preview
from rad.inpainting.canvas.pyramid import reduce_hole, reduce_pixels
from rad.inpainting.canvas.windows import has_square
from rad.masks.reading.format import MaskWarning
from rad.methods import METHODS
from tests.conftest import SIZE, box_hole, random_image
from tests.inpainting.test_inpainter import counted

LARGE = (60, 70)
HOLE = box_hole(*LARGE, 10, 12, 48, 55)
POLICY = {"size_policy": "pyramid", "steps": 3, "pyramid": Pyramid(steps=2)}


@pytest.fixture(scope="module")
def rad(adapter):
    return Inpainter.from_pretrained(adapter, device="cpu")


def bits(images):
    return [np.asarray(image).tobytes() for image in images]


def test_cells_are_means_of_known_pixels():
    pixels = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4)
    hole = np.array([[[0, 1, 0, 0], [1, 1, 0, 1], [0, 1, 1, 1]]], np.float32)
    # Cells of 2x2; those of the last row have two pixels.
    assert np.array_equal(reduce_pixels(pixels, hole, 2), np.array([[[1, (3 + 4 + 7) / 3], [9, 0]]], np.float32))
    assert reduce_hole(hole, 2).tolist() == [[[1, 0], [0, 1]]], "1 of 4, 3 of 4, 1 of 2 and 0 of 2 known"
    grey = np.array([[[0.25, 0.75], [0.5, 1]]], np.float32)
    assert reduce_hole(grey, 2).tolist() == [[[0.5]]]
    assert reduce_pixels(np.array([[[3, 6], [0, 99]]], np.float32), grey, 2).tolist() == [[[3]]]


def test_squares_equal_a_search():
    hole = np.random.default_rng(0).random((9, 12)) < 0.8
    for side in range(1, 11):
        places = [hole[y : y + side, x : x + side] for y in range(10 - side) for x in range(13 - side)]
        assert has_square(hole, side) == any(place.all() for place in places), side


@pytest.mark.parametrize(
    ("box", "coarsest", "sides"),
    [
        ((10, 10, 22, 60), None, [1]),  # no square of 13
        ((10, 10, 23, 60), None, [2, 1]),
        ((8, 8, 80, 80), None, [8, 4, 2, 1]),  # 72, 36, 18, 9
        ((8, 8, 80, 80), 36, [2, 1]),
        ((0, 0, 200, 260), 1, [16, 8, 4, 2, 1]),  # at 1/16 one window shows the whole image
        ((10, 10, 10, 10), None, [1]),
    ],
)
def test_the_coarsest_scale(box, coarsest, sides):
    hole = box_hole(200, 260, *box).numpy()
    scales = Pyramid(coarsest).reductions(hole, 32)
    assert [side for side, _ in scales] == sides
    assert all(cells.shape == (1, -(-200 // side), -(-260 // side)) for side, cells in scales)


def test_finer_scales_have_the_steps_of_their_setting():
    for steps in range(1, 40):
        for strength in (0.07, 0.3, 0.6, 0.65, 0.7, 0.999):
            count = Pyramid(steps=steps, strength=strength).sampler_steps
            assert len(last_part([*range(count - 1, -1, -1), -1], strength)) == steps + 1


def test_unusable_settings_are_errors():
    with pytest.raises(ValueError, match=r"give less, such as 0\.65"):
        Pyramid(strength=1)
    with pytest.raises(ValueError, match="no effect with size_policy 'crop'"):
        Layout((32, 32), "crop", pyramid=Pyramid())
    with pytest.raises(ValueError, match="strength must be 1"):
        Layout((32, 32), "pyramid", content=True)


def test_scales_do_not_depend_on_the_hole():
    image, other = random_image(*LARGE), random_image(*LARGE, seed=1)
    hole = HOLE.numpy()
    other = np.where(hole[0, ..., None] > 0, np.asarray(other), np.asarray(image))
    layout = Layout((SIZE, SIZE), "pyramid")
    first, second = (layout.canvases(each, hole, "", samples=1)[0] for each in (image, Image.fromarray(other)))
    assert np.array_equal(first.pixels, second.pixels)
    assert first.count_calls({"first": 0, "finer": 1}) > 0


def test_each_sample_of_a_mean_passes_through_all_scales():
    image, inside = random_image(*LARGE), HOLE[0].numpy() > 0
    layout = Layout((SIZE, SIZE), "pyramid")
    single = layout.canvases(image, HOLE.numpy(), "a", samples=3)
    (mean,) = layout.canvases(image, HOLE.numpy(), "a", samples=1, average=3)
    assert mean.counts == single[0].counts
    calls = {"first": 3, "finer": 2}
    assert mean.count_calls(calls) == 3 * single[0].count_calls(calls)
    values, jobs = np.random.default_rng(0), []
    for number, canvas in enumerate(single):
        while canvas.windows:
            window, output = next(iter(canvas.windows)), values.random((3, SIZE, SIZE), np.float32) * 3 - 1.5
            jobs.append((number, canvas.job_name(window), window.kind, canvas.cut(window)[0], output))
            canvas.paste(window, output)
    for sample, name, kind, pixels, output in jobs:
        window = next(iter(mean.windows))
        assert (mean.sample, mean.job_name(window), window.kind) == (sample, name, kind)
        assert np.array_equal(mean.cut(window)[0], pixels), "it sees its own sample, not the mean"
        assert preview(mean, {}).shape == mean.enlarged(mean.raw).shape == (3, *LARGE)
        mean.paste(window, output)
    assert not mean.windows
    expected = np.mean([np.clip(canvas.filled, -1, 1) for canvas in single], 0, dtype=np.float64)
    assert np.abs(mean.raw - 255 * (expected / 2 + 0.5))[:, inside].max() < 0.51


@pytest.mark.slow
@pytest.mark.parametrize(("method", "average"), [("rad", 1), ("rad", 2), ("repaint", 1), ("ddnm", 1)])
def test_results_keep_known_pixels_and_count_their_calls(rad, method, average):
    image, calls = random_image(*LARGE), []
    planned = []

    def on_step(progress):
        calls.append(progress.done)
        planned.append(progress.planned)
        assert all(preview.size == image.size for preview in progress.previews())

    solver = {"solver": "ddim"} if method == "repaint" else {}
    with counted(rad) as network:
        options = {**POLICY, **solver, "method": method, "num_samples": 2, "average": average, "seed": 3}
        result = rad(image, HOLE, **options, on_step=on_step)
    known = HOLE[0].numpy() == 0
    for filled in result.images:
        assert np.array_equal(np.asarray(filled)[known], np.asarray(image)[known])
        assert (np.asarray(filled)[~known] != np.asarray(image)[~known]).mean() > 0.9
    assert calls[-1] == result.nfe
    assert set(planned) == {result.nfe}
    if method == "rad":
        assert network.calls == result.nfe
        counts = Layout((SIZE, SIZE), "pyramid", pyramid=POLICY["pyramid"]).count_windows(HOLE.numpy())
        first, finer = counts["first"], counts["finer"]
        assert result.nfe == 2 * average * (3 * first + 2 * finer)
        assert rad.count_windows(HOLE, size_policy="pyramid") == first + finer
    assert len(set(bits(result.images))) == 2


@pytest.mark.slow
def test_a_hole_that_fits_equals_crop(rad):
    image, hole = random_image(*LARGE), box_hole(*LARGE, 10, 12, 10 + SIZE // 4, 60)
    crop, pyramid = (rad(image, hole, steps=3, size_policy=policy) for policy in ("crop", "pyramid"))
    assert bits(pyramid.images) == bits(crop.images)
    assert bits(pyramid.raw) == bits(crop.raw)
    assert pyramid.nfe == crop.nfe


@pytest.mark.slow
def test_batches_change_no_result(rad):
    images = [random_image(*LARGE), random_image(30, 20, seed=1)]
    holes = [HOLE, box_hole(30, 20, 2, 2, 24, 18)]
    with counted(rad):
        together = rad(images, holes, names=["a", "b"], batch_size=8, **POLICY)
        alone = [rad(images[n], holes[n], names=["ab"[n]], batch_size=1, **POLICY).images[0] for n in (1, 0)]
    assert bits(together.images) == bits(alone[::-1])


@pytest.mark.slow
def test_means_do_not_depend_on_batches_and_lie_between_the_samples(rad):
    image, inside = random_image(*LARGE), HOLE[0].numpy() > 0
    with counted(rad):
        one, other = (rad(image, HOLE, average=2, batch_size=size, **POLICY).images[0] for size in (1, 5))
        samples = rad(image, HOLE, num_samples=2, **POLICY).images
    assert bits([one]) == bits([other])
    mean = np.mean([np.asarray(sample, float) for sample in samples], 0)
    assert np.abs(np.asarray(one) - mean)[inside].max() <= 1


@pytest.mark.slow
def test_soft_masks_feather_and_extension(rad):
    image = random_image(*LARGE)
    with pytest.warns(MaskWarning, match="is grey"):
        soft = rad(image, 0.02 * HOLE, soft_mask=True, **POLICY).images[0]
    assert np.abs(np.asarray(soft).astype(int) - np.asarray(image)).mean() < 25, "a low value keeps the image's detail"
    wider = rad(image, extend=(0, 0, 40, 0), feather=2, **POLICY).images[0]
    assert wider.size == (LARGE[1] + 40, LARGE[0])
    inner = np.asarray(wider)[:, : LARGE[1] - 2]
    assert np.array_equal(inner, np.asarray(image)[:, : LARGE[1] - 2])


@pytest.mark.slow
def test_methods_without_a_start_are_refused(rad):
    image = random_image(*LARGE)
    for name in ("telea", "daps", "copaint"):
        assert not METHODS[name]().takes_strength
        with pytest.raises(ValueError, match=f"which method '{name}' cannot: use size_policy 'crop'"):
            rad(image, HOLE, method=name, size_policy="pyramid")


@pytest.mark.slow
def test_constant_images_with_noise_have_their_posterior(rad, monkeypatch):
    """Data: one colour for the image, of variance 1/4, and noise of deviation 0.02 in each pixel. Known pixels fix the colour."""
    pixels, deviation = SIZE * SIZE, 0.02
    covariance = 0.25 * torch.ones(pixels, pixels).double() + deviation**2 * torch.eye(pixels).double()
    exact = GaussianDenoiser(torch.zeros(1, SIZE, SIZE).double(), covariance)

    class Channels:
        channels = 3

        def denoise(self, x, noise):
            rows = [exact.denoise(channel.double(), noise).x0 for channel in x.split(1, dim=1)]
            return Denoised(torch.cat(rows, 1).to(x))

    monkeypatch.setattr(rad.model, "denoiser", lambda conditions, adapter: Channels())
    image = np.broadcast_to(np.array([200, 90, 30], np.uint8), (*LARGE, 3)).copy()
    image[HOLE[0].numpy() > 0] = 0
    filled = np.asarray(rad(image, HOLE, size_policy="pyramid", steps=20).raw[0])[HOLE[0].numpy() > 0]
    assert np.abs(filled.mean(0) - [200, 90, 30]).max() < 0.5
    assert 0.8 < filled.std(0).mean() / (127.5 * deviation) < 1.2


@pytest.mark.slow
def test_rad_sample_plans_and_records_the_pyramid(adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random_image(*LARGE).save("photo.png")
    Image.fromarray(np.uint8(255 * HOLE[0].numpy())).save("mask.png")
    words = f"--checkpoint {adapter} --image photo.png --mask mask.png --output out.png --device cpu".split()
    counts = Layout((SIZE, SIZE), "pyramid").count_windows(HOLE.numpy())
    first, finer = counts["first"], counts["finer"]

    def sample(*more):
        return cli.sample([*words, *more]), capsys.readouterr().err

    pyramid = ("--size_policy", "pyramid", "--steps", "3", "--pyramid_steps")
    code, err = sample(*pyramid, "2")
    assert code == 0, err
    assert f"{first + finer} windows" in err
    assert f"{3 * first + 2 * finer} network calls" in err
    assert f"{3 * first + 2 * finer} NFE" in err
    code, err = sample(*pyramid, "2", "--average", "2", "--overwrite")
    assert code == 0, err
    assert f"{2 * (3 * first + 2 * finer)} network calls" in err
    assert f"{2 * (3 * first + 2 * finer)} NFE" in err
    assert sample(*pyramid, "2", "--overwrite")[0] == 0
    code, err = sample(*pyramid, "1")
    assert code == 2
    assert "pyramid_steps 2, now 1" in err
    code, err = sample("--size_policy", "crop", "--pyramid_steps", "2")
    assert code == 2
    assert "need --size_policy pyramid" in err
    code, err = sample("--size_policy", "pyramid", "--budget_nfe", "4", "--overwrite")
    assert code == 2
    assert "a finer scale costs 6 network calls, above the budget of 4" in err
