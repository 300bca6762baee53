"""Inputs of the inpainter: every common form of an image and a mask is the same input; others are refused in one line."""

import copy
import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import Label, make_plan
from rad.inpainting.arrays import to_image, to_mask
from rad.inpainting.inpainter import Inpainter
from rad.masks.shapes import Box
from rad.rng import generator
from tests.conftest import SIZE, random_image

HEIGHT, WIDTH = 6, 9
PIXELS = np.asarray(random_image(HEIGHT, WIDTH))
GREY = PIXELS[..., 0]
HOLE = np.zeros((HEIGHT, WIDTH), bool)
HOLE[1:4, 2:7] = True


@pytest.fixture(scope="module")
def rad(adapter):
    return Inpainter.from_pretrained(adapter)


@pytest.fixture
def files(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    Image.fromarray(HOLE).save(tmp_path / "mask.png")
    return tmp_path


def tensor(array):
    return torch.from_numpy(array.copy())


@pytest.mark.parametrize(
    "image",
    [
        PIXELS,
        PIXELS.transpose(2, 0, 1),
        PIXELS[::-1, ::-1][::-1, ::-1],
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        (PIXELS / 255).astype(">f8"),
        np.dstack([PIXELS, GREY]),
        np.dstack([PIXELS, GREY]) / 255,
        tensor(PIXELS).permute(2, 0, 1),
        tensor(PIXELS).permute(2, 0, 1) / 255,
        tensor(PIXELS).permute(2, 0, 1).double().div(255).requires_grad_(),
        Image.fromarray(PIXELS),
    ],
)
def test_forms_of_an_image(image):
    assert np.array_equal(to_image(image), PIXELS)


@pytest.mark.parametrize(
    "image", [GREY, GREY[..., None], GREY / 255, tensor(GREY), tensor(GREY)[None], tensor(GREY) / 255]
)
def test_grey_images(image):
    assert np.array_equal(to_image(image), np.dstack([GREY] * 3))


def test_files_and_bytes(files):
    photo = files / "photo.png"
    for image in (photo, str(photo), photo.read_bytes()):
        assert np.array_equal(to_image(image), PIXELS)


@pytest.mark.parametrize(
    "mask",
    [
        HOLE,
        HOLE[..., None],
        HOLE[None],
        HOLE.astype(np.uint8),
        HOLE * np.uint8(255),
        HOLE.astype(int),
        HOLE * 255,
        HOLE.astype(np.float64),
        tensor(HOLE),
        tensor(HOLE)[None],
        tensor(HOLE) * 255,
        tensor(HOLE).half(),
        np.dstack([HOLE] * 3),
        np.dstack([HOLE] * 3).astype(np.float32),
    ],
)
def test_forms_of_a_mask(mask):
    hole = to_mask(mask)
    assert (hole.dtype, hole.shape) == (np.float32, (1, HEIGHT, WIDTH))
    assert np.array_equal(hole[0], HOLE)


def test_soft_masks():
    values = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    assert np.array_equal(to_mask(values)[0], values)
    assert np.array_equal(to_mask(GREY), GREY), "grey values of 8 bits are read as those of a file"


@pytest.mark.parametrize("number", [1, 2])
def test_batches_and_lists(rad, number):
    image, hole = np.asarray(random_image(SIZE, SIZE)), np.zeros((SIZE, SIZE), bool)
    hole[4:9, 3:8] = True
    expected = rad(Image.fromarray(image), Image.fromarray(hole), steps=1).images[0]
    channels_first, content = np.ascontiguousarray(image.transpose(2, 0, 1)), BytesIO()
    Image.fromarray(hole).save(content, "PNG")
    content.seek(0)
    batch, masks = [np.stack([part] * number) for part in (image, hole)]
    for images, given in (
        (batch, masks),
        (batch / 255, hole),
        (tensor(np.stack([channels_first] * number)), tensor(masks)[:, None]),
        ([image] * number, content),
        ((tensor(channels_first),) * number, [hole] * number),
    ):
        results = rad(images, given, steps=1).images
        assert len(results) == number
        assert all(np.array_equal(result, expected) for result in results)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image is None; give"),
        ([], "image is empty"),
        (np.zeros((0, SIZE, SIZE, 3)), "image is empty"),
        (3, "image is 3; give"),
        ((_ for _ in ()), "an object of type generator"),
        ([[PIXELS]], "an object of type list"),
        (PIXELS.astype(np.uint16), r"\(6, 9, 3\) uint16; expected uint8"),
        (PIXELS > 0, "bool; expected uint8"),
        (PIXELS.astype(np.float32), "from 0 to 255|outside"),
        (np.full((SIZE, SIZE, 3), np.nan), "outside"),
        (PIXELS[..., :2], "expected"),
        (tensor(PIXELS), "permute"),
        (b"no image", "in 8 bytes: not an image"),
    ],
)
def test_other_images_are_refused_in_one_line(rad, image, message):
    with pytest.raises(ValueError, match=message) as error:
        rad(image, HOLE)
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "mask is None; give"),
        ([], "mask is empty"),
        (HOLE.astype(np.uint16) * 7, "other values than 0 and 1"),
        (HOLE.astype(int) - 1, "other values"),
        (HOLE * 255.0, "from 0 to 255"),
        (np.where(HOLE, np.nan, 0.0), "outside"),
        (np.zeros((2, 2, HEIGHT, WIDTH)), "give"),
        (np.dstack([HOLE, HOLE, ~HOLE]), "several colours"),
        (tensor(HOLE * 255).to_sparse(), "give a dense one"),
        (torch.empty(HEIGHT, WIDTH, device="meta"), "give a dense one"),
        ("widee", "neither a file nor a generator .*wide"),
        ("nowhere.png", "nowhere.png"),
        ([PIXELS[..., 0] > 1] * 2, "1 images, 2 masks"),
    ],
)
def test_other_masks_are_refused_in_one_line(rad, mask, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        rad(PIXELS, mask, size_policy="crop")
    assert len(str(error.value)) < 250


def test_errors_and_warnings_of_masks_name_arguments(rad):
    twice = Image.fromarray(HOLE).resize((2 * WIDTH, 2 * HEIGHT))
    with pytest.raises(ValueError, match="give mask_resize='nearest', or give the mask"):
        rad(PIXELS, twice)
    with pytest.raises(ValueError, match=r"give mask_threshold=0\.5 .* or soft_mask=True"):
        rad(PIXELS, Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * 4))
    inverted = ~np.pad(np.ones((1, 1), bool), ((2, 3), (4, 4)))
    with pytest.warns(UserWarning, match="use mask_polarity='white_is_known'"):
        rad(PIXELS, inverted, method="mean", size_policy="crop")


def test_numbers_of_masks_and_names(rad):
    with pytest.raises(ValueError, match=r"^1 images, 2 masks: give one mask per image$"):
        rad(PIXELS, [HOLE, HOLE])
    with pytest.raises(ValueError, match=r"^1 images, 1 masks, 2 names: give one mask and one name per image$"):
        rad(PIXELS, HOLE, names=["a", "b"])


def test_text_files_are_refused(rad, tmp_path):
    (tmp_path / "text").write_text("text")
    with (tmp_path / "text").open() as file, pytest.raises(ValueError, match="mode 'rb'"):
        rad(file, HOLE)


def test_8_bit_images_of_0_and_1_warn():
    with pytest.warns(UserWarning, match="nearly black"):
        to_image(np.ones((4, 4, 3), np.uint8))


# ---- generators as masks, names ------------------------------------------------------------------


def test_a_generated_mask_equals_that_of_rad_sample(rad, files):
    hole = Box()([generator(5, "mask", "photo.png")], SIZE, SIZE)[0, 0].numpy() > 0
    image = random_image(SIZE, SIZE)
    image.save(files / "photo.png")
    for given, names in (
        (str(files / "photo.png"), None),
        (files / "photo.png", None),
        (image, ["photo.png"]),
        (image, "photo.png"),
    ):
        for mask in ("box", Box()):
            result = rad(given, mask, steps=1, seed=np.int64(5), names=names)
            changed = (np.asarray(result.images[0]) != np.asarray(image)).any(2)
            assert not changed[~hole].any()
            assert changed[hole].mean() > 0.9


def test_generated_masks_of_several_images_need_names(rad):
    images = [random_image(SIZE, SIZE)] * 2
    with pytest.raises(ValueError, match="names="):
        rad(images, "box", steps=1)
    first, second = rad(images, "box", steps=1, names=["cat/1.png", "dog/1.png"]).images
    assert not np.array_equal(first, second)


def test_equal_file_names_in_two_folders_have_independent_masks_and_noise(tmp_path):
    for name in ("1.png", "cat/1.png", "dog/1.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True, parents=True)
        random_image(64, 64).save(tmp_path / "in" / name)
    options = SampleOptions(image=str(tmp_path / "in"), mask=["wide"], output=str(tmp_path / "out"), checkpoint="x")
    (run,) = make_plan(options, [Label("mean", "mean")])
    assert [job.name for job in run.jobs] == ["1.png", "cat/1.png", "dog/1.png"]
    holes = [job.read(options)[1].hole for job in run.jobs]
    assert not np.array_equal(holes[1], holes[2])
    drawn = run.jobs[0].mask([generator(0, "mask", "1.png")], 64, 64)[0, 0].numpy()
    assert np.array_equal(holes[0], drawn), "a flat folder keeps its masks"


@pytest.mark.parametrize("names", [[np.str_("a")], [Path("a")], Path("a"), "a", np.array(["a"]), ("a",)])
def test_names_are_their_text(rad, names):
    hole = torch.ones(1, SIZE, SIZE)
    first, second = (rad(random_image(SIZE, SIZE), hole, steps=1, names=each).images[0] for each in (["a"], names))
    assert np.array_equal(first, second)


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": True}, "seed is True"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"steps": 20.0}, "steps is 20.0; give a whole number"),
        ({"num_samples": 1.5}, "num_samples is 1.5"),
        ({"num_samples": True}, "num_samples is True"),
        ({"batch_size": None}, "batch_size is None"),
        ({"feather": float("nan")}, "feather is nan"),
        ({"margin": 1.5, "size_policy": "crop"}, "margin is 1.5"),
        ({"eta": "half"}, "eta is 'half'; give a number"),
        ({"method": None}, "method is None; give a name"),
        ({"names": ["a", "b"]}, "2 names"),
        ({"names": [1.5]}, "name is 1.5"),
        ({"names": 1.5}, "name is 1.5"),
        ({"names": b"a"}, "name is b'a'"),
        ({"names": {"a"}}, "of type set"),
        ({"num_samples": 10**12}, "num_samples is 1000000000000; give a whole number from 1 to 10000"),
        ({"solver": ["ddim"]}, "solver is .* allowed are ddpm, ddim"),
        ({"spacing": "evn"}, "spacing is 'evn'; allowed are even"),
        ({"mask_threshold": "half"}, "mask_threshold is 'half'; give a number"),
        ({"method": ""}, "method '' is not known"),
        ({"condition": "a cat"}, r"give Condition\(prompt="),
    ],
)
def test_wrong_types_are_refused(rad, options, message):
    with pytest.raises(ValueError, match=message):
        rad(random_image(SIZE, SIZE), torch.ones(1, SIZE, SIZE), **{"steps": 1, **options})


def test_words_of_diffusers(rad):
    image, hole = random_image(SIZE, SIZE), torch.ones(1, SIZE, SIZE)
    expected = rad(image, hole, steps=2, num_samples=2).images
    results = rad(image=image, mask_image=hole, num_inference_steps=2, num_images_per_prompt=2).images
    assert all(np.array_equal(result, other) for result, other in zip(results, expected, strict=True))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("generator", "seed="),
        ("prompt", r"Condition\(prompt="),
        ("guidance_scale", r"Condition\(guidance="),
        ("output_type", "PIL images"),
        ("step", r"did you mean steps\?"),
        ("mask_polarty", r"did you mean mask_polarity\?"),
        ("num_inference_stps", r"did you mean num_inference_steps\?"),
        ("num_inference_steps", "another name of steps"),
        ("colour", "allowed are image, mask, method"),
    ],
)
def test_other_words_are_explained(rad, word, message):
    with pytest.raises(TypeError, match=message):
        rad(random_image(SIZE, SIZE), torch.ones(1, SIZE, SIZE), steps=1, **{word: 2})


def test_masks_in_memory_can_have_another_size(rad):
    hole = np.zeros((SIZE, SIZE), bool)
    hole[4:9, 3:8] = True
    double, image = np.kron(hole, np.ones((2, 2), bool)), random_image(SIZE, SIZE)
    for mask in (double, tensor(double), double.astype(np.float32)):
        result = rad(image, mask, steps=1, mask_resize="nearest").images[0]
        assert np.array_equal(result, rad(image, hole, steps=1).images[0])
        with pytest.raises(ValueError, match=r"the mask is 32x32 .* not 16x16"):
            rad(image, mask, steps=1)


def test_copies_equal_the_inpainter(rad):
    hole = torch.ones(1, SIZE, SIZE)
    expected = rad(random_image(SIZE, SIZE), hole, steps=1).images[0]
    for other in (copy.deepcopy(rad), pickle.loads(pickle.dumps(rad))):
        assert np.array_equal(other(random_image(SIZE, SIZE), hole, steps=1).images[0], expected)


def test_words_of_loading():
    with pytest.raises(TypeError, match="precision="):
        Inpainter.from_pretrained("checkpoints/rad-nature32", torch_dtype=torch.float16)
    for path in (None, ""):
        with pytest.raises(ValueError, match=f"path is {path!r}"):
            Inpainter.from_pretrained(path)
    with pytest.raises(ValueError, match="base is 3"):
        Inpainter.from_pretrained("checkpoints/rad-nature32", base=3)
    with pytest.raises(ValueError, match="device is None"):
        Inpainter.from_pretrained("checkpoints/rad-nature32", device=None)


def test_repr_and_device(adapter):
    inpainter = Inpainter.from_pretrained(adapter)
    assert f"{inpainter!r}".endswith("size=16x16, device='cpu', precision='32', adapter='region_aware')")
    assert inpainter.to("cpu") is inpainter
    assert inpainter.device == torch.device("cpu")
    with pytest.raises(ValueError, match="of type dtype; give a name"):
        inpainter.to(torch.float16)
    with pytest.raises(ValueError, match="give a loaded model"):
        Inpainter(str(adapter))
