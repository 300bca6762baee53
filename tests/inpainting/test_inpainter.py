"""The inpainter: known pixels, seeds, batches, size policies, leaks, one network for adapter and base."""

import json
import shutil
import sys
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image

from rad.diffusion.schedules import linear_betas
from rad.inpainting.canvas.composite import composite
from rad.inpainting.inpainter import Inpainter
from rad.methods import METHODS
from rad.methods.registry import create
from rad.models.base import save_base
from rad.models.load import load_model
from rad.sampling.method import SamplingMethod
from tests.conftest import SIZE, box_hole, make_adapter, random_image
from tests.tiny_networks import small_unet

# Image sizes (height, width) for each policy: the model's own, larger, smaller, smaller in one axis only, one pixel high.
SIZES = {
    "error": [(SIZE, SIZE)],
    "resize": [(SIZE, SIZE), (20, 27), (9, 11), (8, 25), (25, 8), (1, 23)],
    "crop": [(SIZE, SIZE), (20, 27), (9, 11), (8, 25), (25, 8), (1, 23)],
}
SOME = ("rad", "replacement", "mean")  # adapter, base, no network; test_methods.py has them all, on exact data
POLICY_AND_SIZE = [(policy, size) for policy, sizes in SIZES.items() for size in sizes]


@pytest.fixture(scope="module")
def rad(adapter):
    return Inpainter.from_pretrained(adapter)


@pytest.fixture
def plain(base):
    return Inpainter.from_pretrained(base)


class Counted(torch.nn.Module):
    """A network that records its batch sizes, processes them row by row, and runs out of memory above a limit."""

    def __init__(self, network, *, limit=1000):
        super().__init__()
        self.network, self.limit, self.batches, self.refused = network, limit, [], []

    @property
    def calls(self):
        return sum(self.batches)

    def forward(self, x, times, index=None):
        if len(x) > self.limit:
            self.refused.append(len(x))
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append(len(x))
        rows = [
            self.network(x[i : i + 1], times[i : i + 1], index=None if index is None else index[i : i + 1]).sample
            for i in range(len(x))
        ]
        return SimpleNamespace(sample=torch.cat(rows))


@contextmanager
def counted(inpainter, **options):
    """Run the network row by row, since CPU kernels round differently for another batch size."""
    name = "unet" if inpainter.model.adapted is None else "adapted"
    network = getattr(inpainter.model, name)
    replacement = Counted(network, **options)
    setattr(inpainter.model, name, replacement)
    try:
        yield replacement
    finally:
        setattr(inpainter.model, name, network)


def pixels(image):
    return np.asarray(image).astype(int)


def holes(height, width):
    """Holes of many kinds: a box, a soft one, single pixels in the corners, the border, two far apart, everything, nothing."""
    box = box_hole(height, width, height // 4, width // 4, height // 2 + 1, width // 2 + 1)
    soft = box.clone()
    soft[:, : height // 2] *= 0.3
    corners = torch.zeros(1, height, width)
    corners[:, [0, 0, -1, -1], [0, -1, 0, -1]] = 1
    border = torch.ones(1, height, width)
    border[:, 1:-1, 1:-1] = 0
    apart = box_hole(height, width, 0, 0, 1, 2, height - 2, width - 3, height, width)
    return {
        "box": box,
        "soft": soft,
        "corners": corners,
        "border": border,
        "apart": apart,
        "all": torch.ones(1, height, width),
        "none": torch.zeros(1, height, width),
    }


# ---- known pixels --------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "size"), POLICY_AND_SIZE)
def test_known_pixels_are_the_inputs_and_the_hole_is_not(rad, policy, size):
    original, kinds = random_image(*size), holes(*size)
    result = rad([original] * len(kinds), list(kinds.values()), steps=1, size_policy=policy)
    for (kind, hole), image in zip(kinds.items(), result.images, strict=True):
        assert image.size == original.size
        assert image.mode == "RGB"
        known = (hole[0] == 0).numpy()
        assert np.array_equal(pixels(image)[known], pixels(original)[known]), kind
        if kind != "soft" and hole.any():
            assert (pixels(image) != pixels(original))[~known].mean() > 0.5, kind


def test_a_feather_ends_at_its_width_also_at_corners():
    image, filled = Image.new("RGB", (11, 11)), Image.new("RGB", (11, 11), (255, 255, 255))
    hole = np.zeros((1, 11, 11), np.float32)
    hole[0, 5, 5] = 1
    result = np.asarray(composite(image, filled, hole, feather=3))[..., 0]
    distance = np.hypot(*(np.mgrid[:11, :11] - 5))
    assert np.array_equal(result, np.where(distance > 3, 0, np.rint(255 * (1 - distance / 4))))


def test_composite_takes_no_pixel_of_a_soft_hole_from_the_input():
    image, filled = Image.new("RGB", (3, 1), (10, 20, 30)), Image.new("RGB", (3, 1), (40, 50, 60))
    result = composite(image, filled, np.array([[[0.0, 1.0, 1e-6]]], np.float32))
    assert np.asarray(result)[0].tolist() == [[10, 20, 30], [40, 50, 60], [40, 50, 60]]


@pytest.mark.parametrize("policy", list(SIZES))
def test_all_known_is_the_input_without_a_network_call(rad, policy):
    size = SIZES[policy][-1]
    image = random_image(*size)
    with counted(rad) as network:
        result = rad(image, torch.zeros(1, *size), steps=3, size_policy=policy)
    assert np.array_equal(pixels(result.images[0]), pixels(image))
    assert (network.calls, result.nfe) == (0, 0)


@pytest.mark.parametrize("policy", list(SIZES))
@pytest.mark.parametrize("method", SOME)
def test_all_hole_depends_on_no_pixel(rad, policy, method):
    for size in SIZES[policy][:3]:
        hole = torch.ones(1, *size)
        one, other = (
            rad(random_image(*size, seed=seed), hole, method=method, steps=1, size_policy=policy).images[0]
            for seed in (1, 2)
        )
        assert np.array_equal(pixels(one), pixels(other))


@pytest.mark.spread(12)
@pytest.mark.parametrize("method", SOME)
@pytest.mark.parametrize(("policy", "size"), POLICY_AND_SIZE)
def test_no_pixel_inside_the_hole_reaches_the_result(rad, policy, size, method):
    kinds = {kind: (hole > 0).float() for kind, hole in holes(*size).items()}
    image, secret = random_image(*size), random_image(*size, seed=7)
    secrets = [composite(image, secret, hole.numpy()) for hole in kinds.values()]
    one, other = (
        rad(given, list(kinds.values()), method=method, steps=2, size_policy=policy)
        for given in ([image] * len(kinds), secrets)
    )
    for number, kind in enumerate(kinds):
        assert kind == "none" or not np.array_equal(pixels(secrets[number]), pixels(image))
        assert np.array_equal(pixels(one.images[number]), pixels(other.images[number])), kind
        assert np.array_equal(pixels(one.raw[number]), pixels(other.raw[number])), kind


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coarse") / "base"
    save_base(folder, small_unet(size=SIZE // 2), betas=linear_betas(), half=False)
    return folder


RUNNING = [name for name, kind in METHODS.items() if not kind.needs_text and name not in ("inpainting_model", "lama")]
"""Methods that run on a base model of pixels and its adapter."""


@pytest.mark.spread(8)
@pytest.mark.parametrize("name", RUNNING)
def test_every_method_works_on_a_network(rad, coarse, name):
    settings = {
        "m2s": {"coarse": str(coarse), "trips": "1"},
        "mcgdiff": {"particles": "2"},
        "vipaint": {"iterations": "2"},
    }
    method = create(name, settings.get(name))
    image, secret, hole = (
        random_image(SIZE, SIZE),
        random_image(SIZE, SIZE, seed=7),
        box_hole(SIZE, SIZE, 3, 4, 12, 9),
    )
    progress = []
    one, other = (
        rad([given] * 2, hole, method=method, steps=3, names=["a", "b"], on_step=progress.append)
        for given in (image, composite(image, secret, hole.numpy()))
    )
    cost = rad.sampler(method, steps=3).cost
    assert (one.nfe >= 2 * cost.nfe) if name == "copaint" else (one.nfe == 2 * cost.nfe)
    assert one.vjp == 2 * cost.vjp
    assert one.peak_memory > 2**20
    assert len(progress) == 2 * max(1, one.nfe // 2), "one report for each network call of a batch"
    assert (progress[-1].done, progress[-1].planned) == (one.nfe, 2 * cost.nfe)
    known = (hole[0] == 0).numpy()
    for number in range(2):
        assert np.array_equal(pixels(one.raw[number]), pixels(other.raw[number])), "the hole's content leaks"
        assert np.array_equal(pixels(one.images[number])[known], pixels(image)[known])
    assert np.array_equal(pixels(one.images[0]), pixels(one.images[1])) == (method.weights == "none")


@pytest.mark.spread(5)
@pytest.mark.parametrize("name", RUNNING)
def test_grey_mask_values_have_an_effect_or_a_warning(rad, coarse, name):
    settings = {
        "m2s": {"coarse": str(coarse), "trips": "1"},
        "mcgdiff": {"particles": "2"},
        "vipaint": {"iterations": "2"},
    }
    method, image = create(name, settings.get(name)), random_image(SIZE, SIZE)
    results = []
    for value in (0.3, 0.9):
        hole = value * box_hole(SIZE, SIZE, 3, 4, 12, 9)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append(pixels(rad(image, hole, method=method, steps=3).raw[0]).astype(int)[hole[0].numpy() > 0])
        messages = [(str(each.message), each.filename) for each in caught if "fills grey pixels" in str(each.message)]
        expected = f"method {name!r} fills grey pixels of a mask completely: use 'rad' to keep part of the image"
        assert messages == ([] if method.soft else [(expected, __file__)])
    assert (np.abs(results[0] - results[1]).mean() > 2) == method.soft


@pytest.mark.spread(6)
@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.weights == "base"])
def test_half_precision_is_for_methods_without_gradients(base, name):
    half = Inpainter.from_pretrained(base, precision="bf16")
    if name == "m2s":
        return
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 4, 12, 9)
    if METHODS[name].needs_text:
        with pytest.raises(ValueError, match=f"'{name}' reads the attention of a prompt"):
            half(image, hole, method=name, steps=2)
        return
    if METHODS[name].needs_grad:
        with pytest.raises(ValueError, match=f"'{name}' differentiates the network.*use precision '32', or one of rad"):
            half(image, hole, method=name, steps=2)
        return
    method = create(name, {"particles": "2"} if name == "mcgdiff" else None)
    result = half(image, hole, method=method, steps=2)
    full = Inpainter.from_pretrained(base)(image, hole, method=method, steps=2)
    assert np.abs(pixels(result.images[0]) - pixels(full.images[0])).mean() < 8


def test_a_large_network_that_is_differentiated_recomputes_activations(base, monkeypatch):
    """The same result; decided when a model is loaded for sampling, as calls change nothing in it."""
    plain = Inpainter.from_pretrained(base)
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 4, 12, 9)
    expected = plain(image, hole, method="dps", steps=2).images[0]
    monkeypatch.setattr("rad.models.loaded_model.CHECKPOINTED_SIZE", SIZE)
    large = Inpainter.from_pretrained(base)
    assert not plain.model.unet.is_gradient_checkpointing
    assert large.model.unet.is_gradient_checkpointing
    assert not load_model(base, training=True).network.is_gradient_checkpointing
    saved = large(image, hole, method="dps", steps=2).images[0]
    assert np.abs(pixels(saved) - pixels(expected)).max() <= 1


def test_known_pixels_around_the_hole_do_matter(rad):
    hole = box_hole(SIZE, SIZE, 4, 4, 12, 12)
    one, other = (rad(random_image(SIZE, SIZE, seed=seed), hole, steps=2).images[0] for seed in (1, 2))
    inside = (hole[0] > 0).numpy()
    assert (pixels(one) != pixels(other))[inside].any()


class SpoilsKnown(SamplingMethod):
    """A method that overwrites the known pixels: the whole image becomes grey 64."""

    def after_step(self, state, denoised, x_next):
        return torch.full_like(x_next, -0.5)


@pytest.mark.parametrize(
    ("policy", "size"), [("error", (16, 16)), ("crop", (16, 31)), ("crop", (9, 40)), ("resize", (9, 11))]
)
def test_raw_is_the_output_of_the_method_and_images_keep_known_pixels(rad, policy, size, monkeypatch):
    monkeypatch.setitem(METHODS, "spoils", SpoilsKnown)
    image = Image.new("RGB", (size[1], size[0]), (200, 200, 200))
    hole = box_hole(*size, 0, 0, 2, 2)
    result = rad(image, hole, method="spoils", steps=2, size_policy=policy)
    assert result.raw[0].size == image.size
    known = (hole[0] == 0).numpy()
    assert (pixels(result.images[0])[known] == 200).all()
    assert (pixels(result.images[0])[~known] == 64).all()
    width = 14 if policy == "crop" else size[1]  # of the core: the margin is an eighth of 16
    assert (pixels(result.raw[0])[:, :width] == 64).all()
    assert (pixels(result.raw[0])[:, width:] == 200).all(), "no window was there"


def test_raw_of_a_padded_image_is_cropped_and_not_resized(rad):
    image = random_image(9, 11)
    result = rad(image, box_hole(9, 11, 0, 0, 1, 1), steps=1, size_policy="crop")
    assert np.array_equal(pixels(result.raw[0])[1:], pixels(image)[1:])


# ---- seeds, samples, batches, order --------------------------------------------------------------


def test_one_seed_one_result_and_another_seed_another(rad):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 2, 2, 9, 9)
    first, again, other = (pixels(rad(image, hole, steps=3, seed=seed).images[0]) for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_results_do_not_depend_on_the_global_generator_nor_change_it(rad):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 2, 2, 9, 9)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(pixels(rad(image, hole, steps=2).images[0]))
        assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(*results)


def eight():
    images = [random_image(SIZE, SIZE, seed=seed) for seed in range(8)]
    boxes = [box_hole(SIZE, SIZE, i % 4, i % 3, 8 + i, 12) for i in range(8)]
    return images, boxes, [f"{i}.png" for i in range(8)]


def test_a_batch_of_eight_is_eight_single_runs(rad):
    images, boxes, names = eight()
    with counted(rad) as network:
        together = rad(images, boxes, names=names, steps=2, batch_size=8)
        assert network.batches == [8, 8]
        for original, box, name, image in zip(images, boxes, names, together.images, strict=True):
            assert np.array_equal(pixels(rad(original, box, names=[name], steps=2).images[0]), pixels(image))


@pytest.mark.parametrize("method", SOME)
def test_a_true_batch_differs_from_single_runs_by_the_rounding_of_kernels_alone(rad, method):
    images, boxes, names = eight()
    boxes[3][:, 3:6, 3:6] = 0.4  # a soft mask, so that the batch holds images of two and of three levels
    together = rad(images, boxes, names=names, steps=3, method=method)
    for original, box, name, image in zip(images, boxes, names, together.images, strict=True):
        single = rad(original, box, names=[name], steps=3, method=method).images[0]
        off = np.abs(pixels(single) - pixels(image))
        assert off.max() <= 1
        assert (off > 0).mean() < 0.01


def test_another_order_gives_the_same_images_in_that_order(rad):
    images, boxes, names = eight()
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    with counted(rad):
        straight = rad(images, boxes, names=names, steps=1, num_samples=2, batch_size=3)
        shuffled = rad(
            [images[i] for i in order],
            [boxes[i] for i in order],
            names=[names[i] for i in order],
            steps=1,
            num_samples=2,
            batch_size=5,
        )
    for place, number in enumerate(order):
        for sample in range(2):
            one, other = shuffled.images[2 * place + sample], straight.images[2 * number + sample]
            assert np.array_equal(pixels(one), pixels(other))


def test_samples_differ_and_do_not_depend_on_their_number(rad):
    original, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 2, 2, 12, 12)
    with counted(rad):
        two = rad(original, hole, steps=2, num_samples=2)
        four = rad(original, hole, steps=2, num_samples=4)
    samples = [pixels(image) for image in four.images]
    assert len(samples) == 4
    assert not any(np.array_equal(samples[i], samples[j]) for i in range(4) for j in range(i))
    assert all(np.array_equal(pixels(image), sample) for image, sample in zip(two.images, samples, strict=False))


def test_a_name_is_the_identity_of_an_image_for_its_noise(rad):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 2, 2, 12, 12)
    with counted(rad):
        a, b, again = rad([image] * 3, hole, names=["a", "b", "a"], steps=2).images
        nameless = rad([image] * 2, hole, steps=2).images
    assert np.array_equal(pixels(a), pixels(again))
    assert not np.array_equal(pixels(a), pixels(b))
    assert np.array_equal(pixels(nameless[0]), pixels(nameless[1]))


def test_without_memory_batches_are_halved_and_results_stay(rad):
    images, boxes, names = eight()
    with counted(rad):
        expected = rad(images, boxes, names=names, steps=2, batch_size=8)
    progress = []
    with counted(rad, limit=2) as network:
        result = rad(
            images,
            boxes,
            names=names,
            steps=2,
            batch_size=7,
            on_step=lambda state: progress.append((state.done, state.planned)),
        )
    assert network.refused == [7, 4]
    assert network.batches == [2] * 8
    assert result.nfe == expected.nfe == 16
    assert progress == sorted(progress)
    assert progress[-1] == (16, 16)
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(result.images, expected.images, strict=True))
    with counted(rad, limit=0), pytest.raises(torch.OutOfMemoryError):
        rad(images[0], boxes[0], steps=2)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not forget the peak")
def test_peak_memory_is_that_of_the_call(rad):
    before = torch.ones(2**28)  # 1 GiB
    large = rad(random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 2, 2, 12, 12), steps=1).peak_memory
    del before
    small = rad(random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 2, 2, 12, 12), steps=1).peak_memory
    assert 0.9 * 2**30 < large - small < 1.1 * 2**30


# ---- windows -------------------------------------------------------------------------------------


@pytest.mark.spread(4)
@pytest.mark.parametrize(("policy", "size"), POLICY_AND_SIZE)
def test_planned_network_calls_equal_the_actual_ones(rad, policy, size):
    kinds = list(holes(*size).values())
    windows = sum(rad.count_windows(hole, size_policy=policy, margin=3) for hole in kinds)
    progress = []
    with counted(rad) as network:
        result = rad(
            [random_image(*size)] * len(kinds),
            kinds,
            steps=1,
            num_samples=2,
            size_policy=policy,
            margin=3,
            batch_size=5,
            on_step=lambda state: progress.append((state.done, state.planned)),
        )
    expected = 2 * windows * rad.sampler("rad", steps=1).cost.nfe
    assert network.calls == result.nfe == expected
    assert max(network.batches) <= 5
    assert progress == sorted(progress)
    assert progress[-1] == (expected, expected)


def test_crop_on_an_image_of_the_models_size_is_the_plain_run(rad):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 2, 5, 9, 12)
    plainly, cropped = (rad(image, hole, steps=3, size_policy=policy).images[0] for policy in ("error", "crop"))
    assert np.array_equal(pixels(plainly), pixels(cropped))


def test_the_outside_of_a_small_image_is_unknown(rad):
    big = random_image(SIZE, SIZE)
    hole = box_hole(SIZE, SIZE, 2, 3, 6, 9, 9, 0, 16, 16, 0, 11, 16, 16)
    small = rad(big.crop((0, 0, 11, 9)), hole[:, :9, :11], steps=3, size_policy="crop").images[0]
    assert np.array_equal(pixels(small), pixels(rad(big, hole, steps=3).images[0])[:9, :11])


def test_a_far_away_hole_does_not_change_a_window(rad):
    image = random_image(40, 60)
    here = box_hole(40, 60, 10, 10, 14, 14)
    with counted(rad):
        alone = pixels(rad(image, here, steps=2, size_policy="crop").images[0])
        both = pixels(rad(image, here + box_hole(40, 60, 30, 50, 33, 54), steps=2, size_policy="crop").images[0])
    assert np.array_equal(alone[:20], both[:20])


def test_equal_windows_of_an_image_are_filled_with_different_noise(rad):
    original = Image.new("RGB", (60, 40), (90, 120, 60))
    with counted(rad):
        image = rad(original, box_hole(40, 60, 10, 10, 14, 14, 10, 40, 14, 44), steps=2, size_policy="crop").images[0]
    assert not np.array_equal(pixels(image)[10:14, 10:14], pixels(image)[10:14, 40:44])


def test_a_window_sees_the_pixels_around_it_and_none_further_away(rad):
    hole = box_hole(40, 60, 18, 30, 22, 34)  # the window is rows 12 to 27, columns 24 to 39
    results = []
    for row, column in ((39, 59), (12, 24)):
        changed = np.array(random_image(40, 60))
        changed[row, column] ^= 255
        results.append(
            pixels(rad(Image.fromarray(changed), hole, steps=2, solver="ddpm", size_policy="crop").images[0])[
                18:22, 30:34
            ]
        )
    unchanged = pixels(rad(random_image(40, 60), hole, steps=2, solver="ddpm", size_policy="crop").images[0])[
        18:22, 30:34
    ]
    assert np.array_equal(results[0], unchanged)
    assert not np.array_equal(results[1], unchanged)


def test_a_long_hole_is_filled_from_window_to_window(rad):
    """The pixel left of a hole of two windows reaches its right end, because later windows see earlier ones."""
    hole = box_hole(16, 48, 6, 8, 10, 34)
    results = []
    for change in (0, 255):
        changed = np.array(random_image(16, 48))
        changed[:, :6] ^= change
        results.append(pixels(rad(Image.fromarray(changed), hole, steps=2, size_policy="crop", margin=4).images[0]))
    assert (results[0] != results[1])[6:10, 26:34].any()


# ---- adapter and base ----------------------------------------------------------------------------


def test_without_the_adapter_it_is_the_base_model(rad, plain):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 13, 13)
    on = rad(image, hole, steps=3).images[0]
    off = rad(image, hole, steps=3, method="replacement")
    of_base = plain(image, hole, steps=3, method="replacement")
    assert np.array_equal(pixels(off.raw[0]), pixels(of_base.raw[0]))
    assert np.array_equal(pixels(rad(image, hole, steps=3).images[0]), pixels(on))


def test_adapter_and_base_changes_the_result(rad, models, tmp_path):
    """Another adapter on the same base gives another image, which the fixture relies on."""
    make_adapter(tmp_path / "other", models / "base", seed=2)
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 13, 13)
    other = Inpainter.from_pretrained(tmp_path / "other")
    assert not np.array_equal(
        pixels(rad(image, hole, steps=2).images[0]), pixels(other(image, hole, steps=2).images[0])
    )


def test_folders_moved_together_still_find_each_other(rad, models, tmp_path):
    shutil.copytree(models, tmp_path / "away")
    rad_config = tmp_path / "away" / "adapter" / "rad_config.json"
    named = json.loads(rad_config.read_text())
    rad_config.write_text(json.dumps({**named, "base": "/not/there/any/more/base"}))
    moved = Inpainter.from_pretrained(tmp_path / "away" / "adapter")
    assert moved.model.base.source == str(tmp_path / "away" / "base")
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 13, 13)
    assert np.array_equal(pixels(rad(image, hole, steps=2).images[0]), pixels(moved(image, hole, steps=2).images[0]))


def test_an_adapter_without_its_base_is_an_error_that_names_it(models, tmp_path):
    shutil.copytree(models / "adapter", tmp_path / "adapter")
    rad_config = tmp_path / "adapter" / "rad_config.json"
    rad_config.write_text(json.dumps({**json.loads(rad_config.read_text()), "base": "/gone/base-x"}))
    with pytest.raises(FileNotFoundError, match="/gone/base-x"):
        Inpainter.from_pretrained(tmp_path / "adapter")
    given = Inpainter.from_pretrained(tmp_path / "adapter", base=models / "base")
    assert given.model.base.source == str(models / "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 4}, "RGB"),
        ({"num_class_embeds": 10}, "classes"),
        ({"sample_size": None}, "sample_size"),
    ],
)
def test_a_base_model_that_cannot_inpaint_is_an_error(tmp_path, changes, message):
    config = {name: value for name, value in small_unet(size=SIZE).config.items() if not name.startswith("_")}
    save_base(tmp_path, UNet2DModel(**{**config, **changes}), betas=linear_betas())
    with pytest.raises(ValueError, match=message):
        Inpainter.from_pretrained(tmp_path)


@pytest.fixture
def other_base(base, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other-base"
    shutil.copytree(base, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_in.bias"][0] += 1e-3
    save_file(state, weights)
    return folder


def test_an_adapter_on_another_base_is_an_error(adapter, other_base):
    with pytest.raises(ValueError, match="hash"):
        Inpainter.from_pretrained(adapter, base=other_base)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"abc"), "corrupt"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "missing"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "missing"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be used"),
        (lambda folder: (folder / "rad_config.json").unlink(), "rad_config.json"),
        (lambda folder: (folder / "rad_config.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "rad_config.json").write_text('{"format": 99}'), "format"),
        (lambda folder: (folder / "rad_config.json").write_text('{"format": 1}'), "rad_config.json"),
    ],
)
def test_a_damaged_adapter_is_an_error(adapter, base, tmp_path, damage, message):
    shutil.copytree(adapter, tmp_path / "adapter")
    damage(tmp_path / "adapter")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Inpainter.from_pretrained(tmp_path / "adapter", base=base)


def test_an_adapter_with_other_keys_is_an_error(adapter, base, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({f"unet.{name}": value for name, value in load_file(weights).items()}, weights)
    with pytest.raises(ValueError, match="does not fit"):
        Inpainter.from_pretrained(tmp_path / "adapter", base=base)


# ---- valid and invalid inputs ---------------------------------------------------------------------


def test_files_images_and_tensors_give_equal_results(rad, tmp_path):
    original, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 13, 13)
    original.save(tmp_path / "image.png")
    mask = Image.fromarray(np.uint8(255 * hole[0].numpy()))
    mask.save(tmp_path / "mask.png")
    tensor = torch.from_numpy(np.array(original)).permute(2, 0, 1) / 255
    results = [
        pixels(rad(image, given, steps=2).images[0])
        for image, given in (
            (original, hole),
            (tmp_path / "image.png", tmp_path / "mask.png"),
            (str(tmp_path / "image.png"), mask),
            (tensor, mask.convert("RGB")),
        )
    ]
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("kind", ["tensor", "image"])
def test_the_polarity_inverts_a_mask(rad, kind):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 13, 13)
    mask = 1 - hole if kind == "tensor" else Image.fromarray(np.uint8(255 * (1 - hole[0].numpy())))
    turned = rad(image, mask, steps=2, mask_polarity="white_is_known").images[0]
    assert np.array_equal(pixels(turned), pixels(rad(image, hole, steps=2).images[0]))


def test_an_image_with_an_exif_rotation_is_upright_as_its_file_is(rad, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image(SIZE, SIZE).save(tmp_path / "turned.png", exif=exif)
    hole = box_hole(SIZE, SIZE, 0, 0, 4, 9)
    of_file = rad(tmp_path / "turned.png", hole, steps=1).images[0]
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(pixels(rad(opened, hole, steps=1).images[0]), pixels(of_file))
    upright = random_image(SIZE, SIZE).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(pixels(of_file)[4:], pixels(upright)[4:])


def test_one_mask_serves_all_images(rad):
    images, hole = [random_image(SIZE, SIZE, seed=seed) for seed in range(3)], box_hole(SIZE, SIZE, 3, 3, 9, 9)
    with counted(rad):
        one = rad(images, hole, steps=1).images
        three = rad(images, [hole] * 3, steps=1).images
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "1000"),
        ({"eta": 2.0}, "eta"),
        ({"eta": -0.1}, "eta"),
        ({"eta": 0.5}, r"allows 0 \(ODE\) and 1 \(SDE\)"),
        ({"spacing": "even"}, "use spacing 'logsnr' or 'quad', or solver 'ddpm'"),
        ({"solver": "euler"}, "allowed are ddpm, ddim, dpm"),
        ({"method": "ddnm", "solver": "dpm++2m"}, "method 'ddnm' changes x or x0"),
        ({"method": "magic"}, "replacement"),
        ({"size_policy": "stretch"}, "resize"),
        ({"mask_polarity": "black"}, "white_is_fill"),
        ({"num_samples": 0}, "num_samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"names": ["a", "b"]}, "names"),
        ({"size_policy": "crop", "margin": 8}, "margin"),
        ({"size_policy": "crop", "margin": -1}, "margin"),
        ({"image": random_image(SIZE, 20), "mask": torch.zeros(1, SIZE, 20)}, "20x16"),
        ({"image": [random_image(SIZE, SIZE)] * 2, "mask": [torch.zeros(1, SIZE, SIZE)] * 3}, "2 images, 3 masks"),
        ({"mask": torch.zeros(1, SIZE, 20)}, "the mask is 20x16"),
        ({"mask": Image.new("L", (20, SIZE))}, "20x16"),
        ({"mask": torch.full((1, SIZE, SIZE), 2.0)}, r"outside \[0,1\]"),
        ({"mask": torch.full((1, SIZE, SIZE), float("nan"))}, r"outside \[0,1\]"),
        ({"mask": "nowhere.png"}, "nowhere.png"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"image": torch.full((3, SIZE, SIZE), -1.0)}, r"outside \[0,1\]"),
        ({"image": torch.full((3, SIZE, SIZE), float("nan"))}, r"outside \[0,1\]"),
        ({"image": torch.zeros(SIZE, SIZE, 3)}, r"\(3,H,W\)"),
        ({"image": torch.zeros(3, SIZE, SIZE, dtype=torch.int64)}, "uint8, or float"),
        ({"image": Image.fromarray(np.full((SIZE, SIZE), 40000, np.uint16))}, "I;16"),
    ],
)
def test_an_invalid_input_is_an_error_before_any_network_call(rad, change, message):
    given = {"image": random_image(SIZE, SIZE), "mask": box_hole(SIZE, SIZE, 3, 3, 9, 9), "steps": 2, **change}
    with counted(rad) as network, pytest.raises((ValueError, FileNotFoundError), match=message):
        rad(given.pop("image"), given.pop("mask"), **given)
    assert network.calls == 0


def test_rad_needs_an_adapter(plain):
    with pytest.raises(ValueError, match="needs an adapter"):
        plain(random_image(SIZE, SIZE), torch.ones(1, SIZE, SIZE), steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nonsense"}, "nonsense"),
        ({"device": "meta"}, "meta"),
        ({"device": "hpu"}, "hpu"),
        ({"precision": "fp8"}, "bf16"),
        ({"path": "step=1.ckpt"}, "models beside it: none"),
        ({"path": "nowhere"}, "nowhere"),
        ({"path": "base", "base": "base"}, "no effect"),
    ],
)
def test_an_invalid_option_of_loading_is_an_error(models, options, message):
    path = models / options.pop("path", "adapter")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Inpainter.from_pretrained(path, **options)


def test_bfloat16_is_close_to_float32_and_not_the_same(adapter, rad):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 13, 13)
    half = Inpainter.from_pretrained(adapter, precision="bf16")
    known = (hole[0] == 0).numpy()
    exact, rounded = (pixels(one(image, hole, steps=3).images[0]) for one in (rad, half))
    assert np.array_equal(rounded[known], exact[known])
    difference = np.abs(exact - rounded)[~known]
    assert 0 < difference.mean() < 8


def test_more_steps_and_less_eta_change_the_result(rad):
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 13, 13)
    results = [pixels(rad(image, hole, **o).images[0]) for o in ({"steps": 2}, {"steps": 3}, {"steps": 3, "eta": 1.0})]
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[1], results[2])


def test_solver_and_spacing_of_rad_are_the_preset_or_the_given_ones(rad):
    def chosen(**options):
        sampler = rad.sampler("rad", **options)
        return len(sampler.timesteps) - 1, sampler.solver, sampler.eta, sampler.timesteps[1]

    assert chosen()[:3] == (20, "dpm++2m", 0.0)
    assert chosen(solver="ddpm", steps=5) == (5, "ddpm", 1.0, 749)
    assert chosen(solver="ddpm", spacing="trailing", steps=5) == (5, "ddpm", 1.0, 799)
    assert chosen(solver="ddim", steps=5, spacing="quad") == (5, "ddim", 0.0, 561.9375)
    image, hole = random_image(SIZE, SIZE), box_hole(SIZE, SIZE, 3, 3, 13, 13)
    results = [
        pixels(rad(image, hole, steps=4, **options).images[0])
        for options in ({}, {"spacing": "quad"}, {"solver": "ddim", "spacing": "logsnr"}, {"solver": "ddpm"})
    ]
    assert all(not np.array_equal(a, b) for n, a in enumerate(results) for b in results[:n])
    known = (hole[0] == 0).numpy()
    assert all(np.array_equal(one[known], pixels(image)[known]) for one in results)


def test_a_solver_without_effect_gives_a_warning(rad):
    with pytest.warns(UserWarning, match="spacing has no effect on method 'grow'"):
        rad.sampler("grow", steps=4, spacing="quad")
    with pytest.warns(UserWarning, match="solver has no effect on method 'ddrm'"):
        rad.sampler("ddrm", steps=4, solver="ddim")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rad.sampler("ddrm", steps=4, solver="ddpm", spacing="quad")
