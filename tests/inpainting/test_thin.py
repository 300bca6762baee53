"""Thin windows: the rule, their sampler at every scale, exact counts, and settings without effect."""

from collections import Counter

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from rad.inpainting import Inpainter, Pyramid
from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.windows import THIN
from tests.conftest import SIZE, box_hole, random_image
from tests.inpainting.test_inpainter import counted
from tests.inpainting.test_windows import KINDS, random_hole

HEIGHT, WIDTH = 60, 90
IMAGE = random_image(HEIGHT, WIDTH)
WIDE, SCRATCH = box_hole(HEIGHT, WIDTH, 10, 12, 48, 55), box_hole(HEIGHT, WIDTH, 15, 80, 30, 82)
BOTH = WIDE + SCRATCH
DDIM = {"solver": "ddim", "spacing": "trailing"}
PYRAMID = Pyramid(coarsest=12, steps=2)
"""Its coarsest scale has a square of nine cells in the wide hole."""


@pytest.fixture(scope="module")
def rad(adapter):
    return Inpainter.from_pretrained(adapter, device="cpu")


def kinds(hole, policy="crop", size=SIZE, **settings):
    return Layout((size, size), policy, thin=True, **settings).count_windows(np.asarray(hole, np.float32))


def pixels(result):
    return np.asarray(result.images[0])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_thin_windows_are_those_without_a_square_of_nine(kind):
    hole = random_hole(np.random.default_rng(3), kind, 50, 60)
    layout = Layout((24, 24), "crop", thin=True)
    padded, windows = layout.plan(hole[None].astype(np.float32))
    squares = [sliding_window_view(padded[0][window.slices] > 0, (9, 9)).all((2, 3)).any() for window in windows]
    assert [window.kind for window in windows] == ["first" if wide else "thin" for wide in squares]
    plain = Layout((24, 24), "crop")
    assert {window.kind for window in plain.plan(padded)[1]} == {"first"}
    assert plain.count_windows(padded).total() == layout.count_windows(padded).total() == len(windows)


@pytest.mark.parametrize(
    ("height", "width", "value", "kind"),
    [(8, 16, 1, "thin"), (16, 8, 1, "thin"), (9, 8, 1, "thin"), (9, 9, 1, "first"), (9, 9, 0.1, "first")],
)
@pytest.mark.parametrize("policy", ["error", "resize", "crop", "pyramid"])
def test_the_widest_thin_hole(height, width, value, kind, policy):
    hole = value * box_hole(SIZE, SIZE, 0, 0, height, width)
    assert THIN == 8
    assert kinds(hole, policy) == Counter({kind: 1})


def test_windows_count_in_working_size_without_what_lies_outside_the_image():
    assert kinds(box_hole(8, 40, 2, 3, 4, 6)) == kinds(box_hole(8, 40, 2, 3, 4, 6), "zoom") == Counter(thin=1)
    enlarged, reduced = box_hole(8, 8, 1, 1, 7, 7), box_hole(64, 64, 8, 8, 20, 20)
    assert kinds(enlarged) == kinds(reduced, "resize") == Counter(thin=1)
    assert kinds(enlarged, "resize") == kinds(reduced) == Counter(first=1)


def test_each_scale_has_thin_windows():
    pyramid = kinds(BOTH, "pyramid", pyramid=PYRAMID)
    plain = Layout((SIZE, SIZE), "pyramid", pyramid=PYRAMID).count_windows(BOTH.numpy())
    assert plain["thin"] == 0
    assert min(pyramid[kind] for kind in ("first", "finer", "thin")) > 0
    assert pyramid.total() == plain.total()
    (canvas,) = Layout((SIZE, SIZE), "pyramid", pyramid=PYRAMID, thin=True).canvases(
        IMAGE, BOTH.numpy(), "", samples=1, average=2
    )
    assert canvas.counts == pyramid
    assert canvas.count_calls({"first": 100, "finer": 10, "thin": 1}) == 2 * (
        100 * pyramid["first"] + 10 * pyramid["finer"] + pyramid["thin"]
    )


def test_thin_windows_see_the_image_and_finer_ones_the_coarser_result():
    """A soft hole keeps a part of the image, to which a coarser result was added."""
    (canvas,) = Layout((SIZE, SIZE), "pyramid", pyramid=PYRAMID, thin=True).canvases(
        IMAGE, 0.5 * BOTH.numpy(), "", samples=1
    )
    original = np.asarray(IMAGE).transpose(2, 0, 1) / 127.5 - 1
    seen = set()
    while canvas.windows:
        window = next(iter(canvas.windows))
        cut = canvas.cut(window)[0]
        if canvas.scale.side == 1:
            area = (slice(None), *window.slices)
            unknown = canvas.unknown[window.slices]
            equal = np.allclose(cut[:, unknown], original[area][:, unknown], atol=1e-6)
            assert equal == (window.kind == "thin")
            seen.add(window.kind)
        canvas.paste(window, np.full((3, SIZE, SIZE), 0.3, np.float32))
    assert seen == {"finer", "thin"}


def test_thin_windows_have_their_steps_and_others_the_usual_ones(rad):
    options, box = {"size_policy": "crop", "seed": 2, **DDIM}, box_hole(HEIGHT, WIDTH, 10, 12, 21, 23)
    thin, wide = rad(IMAGE, SCRATCH, steps=1, **options), rad(IMAGE, box, steps=2, **options)
    assert np.array_equal(pixels(rad(IMAGE, SCRATCH, steps=2, thin_steps=1, **options)), pixels(thin))
    both = rad(IMAGE, SCRATCH + box, steps=2, thin_steps=1, **options)
    assert both.nfe == thin.nfe + wide.nfe
    assert np.array_equal(pixels(both)[:, 70:], pixels(thin)[:, 70:])
    assert np.array_equal(pixels(both)[:, :70], pixels(wide)[:, :70])


def test_settings_without_effect_warn(base, rad):
    zero_shot = Inpainter.from_pretrained(base, device="cpu")
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 9, 5)
    with pytest.warns(UserWarning, match="thin_steps=1 has no effect on method 'mean'"):
        zero_shot(image, hole, method="mean", thin_steps=1)
    with pytest.warns(UserWarning, match=r"thin_steps=1 has no effect with strength 0\.5"):
        assert rad(image, hole, steps=4, thin_steps=1, strength=0.5).nfe == 2
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="thin_steps is"):
            rad(image, hole, thin_steps=wrong)


@pytest.mark.slow
def test_the_pyramid_counts_its_calls_and_fills_thin_windows_from_noise(rad):
    planned, names = set(), ["a"]
    pyramid = {"size_policy": "pyramid", "pyramid": PYRAMID, "steps": 3, "thin_steps": 1, **DDIM}
    with counted(rad) as network:
        result = rad(IMAGE, BOTH, names=names, on_step=lambda step: planned.add(step.planned), **pyramid)
        cropped = rad(IMAGE, BOTH, names=names, size_policy="crop", steps=1, **DDIM)
        batches = [rad(IMAGE, BOTH, names=names, batch_size=size, average=2, **pyramid) for size in (1, 3)]
    counts = kinds(BOTH, "pyramid", pyramid=PYRAMID)
    assert result.nfe == 3 * counts["first"] + 2 * counts["finer"] + counts["thin"]
    assert planned == {result.nfe}
    assert network.calls == result.nfe + cropped.nfe + 4 * result.nfe
    assert np.array_equal(pixels(result)[:, 70:], pixels(cropped)[:, 70:])
    assert np.array_equal(*map(pixels, batches))


@pytest.mark.slow
def test_batches_and_neighbours_change_no_result(rad):
    images, holes = [IMAGE, random_image(20, 24, seed=1)], [BOTH, box_hole(20, 24, 2, 2, 20, 5)]
    options = {"size_policy": "crop", "steps": 3, "thin_steps": 1, **DDIM}
    with counted(rad):
        together = rad(images, holes, names=["a", "b"], batch_size=8, **options)
        alone = [rad(images[n], holes[n], names=["ab"[n]], batch_size=1, **options) for n in (0, 1)]
    for result, single in zip(together.images, alone, strict=True):
        assert np.array_equal(result, single.images[0])
    assert together.nfe == sum(each.nfe for each in alone)
