"""Images are read right; the stream depends neither on how a run is split nor on interruptions."""

import pickle
import shutil
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

from rad.data.framing import ColourJitter, Framing
from rad.data.listing import SKIMAGE_HELD_OUT, SKIMAGE_TRAIN, hold_out
from rad.data.module import ImageDataModule
from rad.data.stream import PositionSampler, Stream, Turns
from rad.images.codecs import open_image
from rad.images.sources import list_images
from rad.images.tensors import to_tensor, to_uint8
from rad.masks import Box, MaskGenerator
from rad.rng import generator

COLOURS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


class CoinHoles(MaskGenerator):
    """Each pixel a hole with probability one quarter."""

    def __call__(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return torch.stack([(torch.rand(1, height, width, generator=each) < 0.25).float() for each in generators])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve noise images of several sizes, at depths 0 to 2."""
    noise = np.random.default_rng(0)
    root = tmp_path / "images"
    for number in range(12):
        file = root / ["", "b", "b/a"][number % 3] / f"{number:02d}.{'PNG' if number % 2 else 'png'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (20 + number, 28 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, format="PNG")
    return root


def make(path: Path, **settings: object) -> ImageDataModule:
    defaults: dict = {"size": 8, "val_count": 2, "batch_size": 2}
    data = ImageDataModule(str(path), **(defaults | settings))
    data.setup("fit")
    return data


def saved(image: Image.Image, file: Path, **options: object) -> Image.Image:
    image.save(file, **options)
    return open_image(file)


# reading


def test_folder_and_zip_hold_the_same_images(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("not an image")
    (folder / "._00.png").write_text("left by another system")
    archive = Path(shutil.make_archive(str(tmp_path / "all"), "zip", folder))
    files, members = list_images(folder), list_images(archive)
    names = [image.name for image in files]
    assert names == sorted(names)
    assert len(names) == 12
    assert {"00.png", "b/01.PNG", "b/a/02.png"} <= set(names)
    assert [image.name for image in members] == names
    for file, member in zip(files, pickle.loads(pickle.dumps(members)), strict=True):
        assert file.open().tobytes() == member.open().tobytes()
    assert list_images(folder / "b" / "01.PNG")[0].name == "01.PNG"


def test_every_kind_of_image_becomes_8_bit_rgb(tmp_path: Path) -> None:
    rgb = Image.fromarray(COLOURS)
    grey = np.array(rgb.convert("L"))
    clear = Image.fromarray(np.dstack([COLOURS, np.zeros_like(grey)]))
    cmyk = Image.fromarray(np.dstack([255 - COLOURS, np.zeros_like(grey)]), mode="CMYK")
    palette = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6), mode="P")
    palette.putpalette(COLOURS.tobytes())
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257 + 20)

    assert np.array_equal(saved(clear, tmp_path / "alpha.png"), COLOURS)
    assert np.array_equal(saved(cmyk, tmp_path / "cmyk.tif"), COLOURS)
    assert np.array_equal(saved(palette, tmp_path / "palette.png"), COLOURS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(saved(palette, tmp_path / "clear.png", transparency=bytes(24)), COLOURS)
    for name, image in (("grey.png", Image.fromarray(grey)), ("sixteen.png", sixteen)):
        assert np.array_equal(saved(image, tmp_path / name), np.dstack([grey] * 3)), name
    black_and_white = Image.fromarray(grey > 100)
    assert np.array_equal(saved(black_and_white, tmp_path / "bit.png"), np.dstack([(grey > 100) * 255] * 3))
    with pytest.raises(ValueError, match=r"float\.tif: float pixels"):
        saved(Image.fromarray(grey.astype(np.float32)), tmp_path / "float.tif")


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, COLOURS),
        (2, COLOURS[:, ::-1]),
        (3, COLOURS[::-1, ::-1]),
        (4, COLOURS[::-1]),
        (5, COLOURS.transpose(1, 0, 2)),
        (6, np.rot90(COLOURS, -1)),
        (7, np.rot90(COLOURS, 2).transpose(1, 0, 2)),
        (8, np.rot90(COLOURS, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, upright: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(saved(Image.fromarray(COLOURS), tmp_path / "turned.png", exif=exif), upright)


def test_damaged_images_are_named_in_one_line(tmp_path: Path) -> None:
    whole, cut, text = tmp_path / "whole.jpg", tmp_path / "cut.jpg", tmp_path / "text.png"
    Image.effect_noise((64, 64), 80).save(whole)
    cut.write_bytes(whole.read_bytes()[:1000])
    text.write_text("no image at all")
    for file in (cut, text, tmp_path / "absent.png"):
        with pytest.raises(ValueError, match=f"^cannot read image .*{file.name}: [^\n]+$"):
            open_image(file)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(cut, "deep/cut.jpg")
    with pytest.raises(ValueError, match=r"all\.zip:deep/cut\.jpg"):
        list_images(tmp_path / "all.zip")[0].open()


def test_tensors_keep_all_8_bit_values_and_round_once() -> None:
    values = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(np.dstack([values.reshape(16, 16), values[::-1].reshape(16, 16), values.reshape(16, 16)]))
    tensor = to_tensor(image)
    assert tensor[:, 0, 1].tolist() == pytest.approx([1 / 255, 254 / 255, 1 / 255])
    assert to_uint8(tensor).tobytes() == image.tobytes()
    borders = torch.tensor([-1.0, 0.49 / 255, 0.51 / 255, 254.4 / 255, 2.0]).expand(3, 1, 5)
    assert np.asarray(to_uint8(borders))[0, :, 0].tolist() == [0, 0, 1, 254, 255]


# unusable input


def test_unreadable_files_are_skipped_with_one_warning(folder: Path) -> None:
    clean = make(folder, val_count=0).train_images
    for number in range(7):
        (folder / f"bad{number}.png").write_bytes(b"\x89PNG\r\n")
    with pytest.warns(UserWarning, match=r"7 of 19 images cannot be read: .*bad0\.png.*bad4\.png, \.\.\.") as caught:
        data = make(folder, val_count=0)
    assert len([warning for warning in caught if "cannot be read" in str(warning.message)]) == 1
    assert data.train_images == clean
    with pytest.raises(ValueError, match=r"7 of 19 images cannot be read: .*bad0\.png"):
        make(folder, strict=True)


def test_damage_found_in_decoding_takes_the_next_image(folder: Path) -> None:
    cut = folder / "05cut.png"
    cut.write_bytes((folder / "b" / "a" / "05.PNG").read_bytes()[:200])
    data = make(folder, val_count=0)
    names = [image.name for image in data.train_images]
    stream = Stream(data.train_images, data.framing)
    with pytest.warns(UserWarning, match=r"05cut\.png.*next image"):
        seen = [stream[position]["name"] for position in range(13)]
    following = names[names.index("05cut.png") + 1]
    assert sorted(seen) == sorted([name for name in names if name != "05cut.png"] + [following])
    with pytest.raises(ValueError, match=r"05cut\.png"):
        list(Stream(data.train_images, data.framing, strict=True)[position] for position in range(13))
    with pytest.warns(UserWarning, match=r"1 of 13 images cannot be read: .*05cut\.png"):
        assert len(make(folder, val_count=0, in_memory=True).train_images) == 12


def test_missing_empty_and_contradictory_settings_are_errors(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_text("not a zip")
    for path, message in (
        ("absent", "no such file"),
        ("empty", "no images in"),
        ("broken.zip", "cannot read zip"),
    ):
        with pytest.raises(ValueError, match=message):
            make(tmp_path / path)
    for settings, message in (
        ({"val_count": 12}, "val_count=12"),
        ({"size": 0}, "size=0"),
        ({"crop": "middle"}, "crop='middle'"),
        ({"scale_range": (0.5, 2.0)}, "scale_range"),
        ({"crop": "random_scale", "resize": "none"}, "contradicts"),
        ({"crop": "random_scale", "scale_draw": "log"}, "scale_draw='log'"),
        ({"scale_draw": "log_uniform"}, "no effect.*random_scale"),
        ({"side_range": (8, None)}, "no effect.*random_scale"),
        ({"crop": "random_scale", "side_range": (0, None)}, r"side_range=\(0, None\)"),
        ({"crop": "random_scale", "side_range": (9, 8)}, r"side_range=\(9, 8\)"),
        ({"crop": "random_scale", "side_range": (8, 9), "scale_range": (0.5, 1.0)}, "contradict: give one"),
        ({"weights": [1, 2]}, "weights=.1, 2.*one weight for each path"),
        ({"weights": [0]}, "weights=.0.*at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make(folder, **settings)


# framing


def test_known_pixels_in_minus_one_to_one(tmp_path: Path) -> None:
    pixels = np.zeros((4, 9, 3), dtype=np.uint8)
    pixels[:, 2:6] = (255, 51, 0)  # the center square: (9 - 4) // 2 = 2
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = make(tmp_path, val_count=0, size=4)
    image = next(iter(data.train_dataloader()))["image"]
    assert image.dtype == torch.float32
    assert torch.equal(image[0], torch.tensor([1.0, -0.6, -1.0]).view(3, 1, 1).expand(3, 4, 4))
    enlarged = make(tmp_path, val_count=0, size=8, in_memory=True).train_dataloader()
    assert torch.equal(next(iter(enlarged))["image"][0, :, ::2, ::2], image[0])


def test_boxes_cover_the_image_and_nothing_else() -> None:
    draws = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    framing = Framing(16, crop="random_scale", scale_range=(0.25, 0.75))
    boxes = [framing.box(60, 40, draw)[:3] for draw in draws]
    assert {side for _, _, side in boxes} == set(range(10, 31))  # 0.25 * 40 to 0.75 * 40
    assert all(0 <= left <= 60 - side and 0 <= top <= 40 - side for left, top, side in boxes)
    assert min(left for left, _, _ in boxes) == min(top for _, top, _ in boxes) == 0
    assert max(left + side for left, _, side in boxes) == 60
    assert max(top + side for _, top, side in boxes) == 40
    assert {Framing(16, crop="random").box(60, 40, draw)[:3:2] for draw in draws} == {(x, 40) for x in range(21)}
    assert Framing(16).box(60, 40, draws[0]) == (10, 0, 40, 40)
    assert Framing(16, resize="none").box(60, 40, draws[0]) == (22, 12, 16, 16)
    assert Framing(16, resize="none").box(60, 9, draws[0])[2] == 9


def test_sides_in_pixels_are_log_uniform_up_to_the_whole_short_side() -> None:
    framing = Framing(32, crop="random_scale", side_range=(32, None), scale_draw="log_uniform")
    assert [framing.box(500, 400, (share, 0, 0, 0))[2] for share in (0, 0.25, 0.5, 1 - 1e-9)] == [32, 60, 113, 400]
    draws = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    sides = np.array([framing.box(500, 400, draw)[2] for draw in draws])
    for low, high in ((32, 64), (64, 128), (128, 256), (256, 401)):
        share = ((sides >= low) & (sides < high)).mean()
        assert share == pytest.approx(np.log(min(high, 400) / low) / np.log(400 / 32), abs=0.03)
    boxes = [framing.box(500, 400, draw)[:3] for draw in draws]
    assert all(0 <= left <= 500 - side and 0 <= top <= 400 - side for left, top, side in boxes)


def test_sides_in_pixels_stay_in_their_range_and_in_the_image() -> None:
    draws = torch.rand(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    for scale_draw in ("uniform", "log_uniform"):
        framing = Framing(16, crop="random_scale", side_range=(20, 40), scale_draw=scale_draw)
        sides = {framing.box(300, 100, draw)[2] for draw in draws}
        assert sides == set(range(20, 41))
        assert max(framing.box(30, 90, draw)[2] for draw in draws) == 30
        assert {framing.box(12, 90, draw)[2] for draw in draws} == {12}, "smaller than the range: used whole"
    uniform = Framing(16, crop="random_scale", side_range=(20, 40))
    assert np.mean([uniform.box(99, 99, draw)[2] for draw in draws]) == pytest.approx(30, abs=1)
    shares = Framing(16, crop="random_scale", scale_range=(0.1, 0.4), scale_draw="log_uniform")
    assert [shares.box(100, 100, (share, 0, 0, 0))[2] for share in (0, 0.5, 1 - 1e-9)] == [10, 20, 40]


def test_colour_jitter_follows_the_position_and_moves_no_other_draw(folder: Path) -> None:
    settings = {"crop": "random_scale", "flip": True}
    data = make(folder, **settings, masks=CoinHoles(), jitter=ColourJitter(brightness=0.5, hue=0.1))
    plain, jittered = make(folder, **settings, masks=CoinHoles()).stream(), data.stream()
    for position in range(6):
        before, after = plain[position], jittered[position]
        assert torch.equal(after["image"], jittered[position]["image"])
        assert torch.equal(before["hole"], after["hole"])
        assert not torch.equal(before["image"], after["image"])
        assert float(after["image"].abs().max()) <= 1
    brightness = make(folder, **settings, jitter=ColourJitter(brightness=0.5)).stream()
    for position in range(6):  # the same crop and flip: every pixel has the factor of its image, up to clipping
        before, after = plain[position]["image"] / 2 + 0.5, brightness[position]["image"] / 2 + 0.5
        inside = (after < 1) & (before > 0.2)
        factors = (after / before)[inside]
        assert float(factors.max() - factors.min()) < 1e-4
        assert 0.5 <= float(factors.mean()) <= 1.5
    held_out = next(iter(data.val_dataloader()))
    assert torch.equal(held_out["image"], next(iter(make(folder, **settings).val_dataloader()))["image"])


def test_a_property_does_not_change_the_draws_of_another_and_its_factors_are_uniform() -> None:
    grey = torch.full((3, 2, 2), 0.4)
    rngs = [generator("jitter", number) for number in range(2000)]
    factors = torch.stack([ColourJitter(brightness=0.25)(grey, rng)[0, 0, 0] for rng in rngs]) / 0.4
    assert float(factors.min()) >= 0.75
    assert float(factors.max()) <= 1.25
    assert float(factors.mean()) == pytest.approx(1, abs=0.015)
    assert float(factors.std()) == pytest.approx(0.5 / 12**0.5, abs=0.008)
    rngs = [generator("jitter", number) for number in range(50)]
    both = torch.stack([ColourJitter(brightness=0.25, hue=0.5)(grey, rng)[0, 0, 0] for rng in rngs]) / 0.4
    torch.testing.assert_close(both, factors[:50], rtol=0, atol=1e-4)  # grey has no hue


def test_factors_of_wide_jitter_begin_at_0() -> None:
    grey = torch.full((3, 1, 1), 0.2)
    rngs = [generator("jitter", number) for number in range(200)]
    factors = torch.stack([ColourJitter(brightness=1.5)(grey, rng)[0, 0, 0] for rng in rngs]) / 0.2
    assert 0 <= float(factors.min()) < 0.1
    assert 2.4 < float(factors.max()) < 2.5


@pytest.mark.parametrize("jitter", [{"hue": 0.6}, {"brightness": -0.1}, {"saturation": float("nan")}])
def test_jitter_out_of_range_is_refused(jitter: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"jitter\.{next(iter(jitter))}="):
        ColourJitter(**jitter)


def test_crop_and_flip_follow_the_position(folder: Path) -> None:
    data = make(folder, crop="random_scale", flip=True)
    stream = Stream(data.train_images, data.framing, seed=3)
    plain = Stream(data.train_images, make(folder, crop="random_scale").framing, seed=3)
    other = Stream(data.train_images, data.framing, seed=4)
    flipped = 0
    for position in range(40):
        image, unflipped = stream[position]["image"], plain[position]["image"]
        assert torch.equal(image, stream[position]["image"])
        flipped += torch.equal(image, unflipped.flip(-1))
        assert torch.equal(image, unflipped.flip(-1)) != torch.equal(image, unflipped)
    assert 10 < flipped < 30
    assert [stream[position]["name"] for position in range(10)] != [other[position]["name"] for position in range(10)]
    first, again = stream[0], stream[next(p for p in range(10, 20) if stream[p]["name"] == stream[0]["name"])]
    assert not torch.equal(first["image"], again["image"])  # another epoch, another crop


def test_holes_are_drawn_by_position(folder: Path) -> None:
    data = make(folder, masks=CoinHoles(), size=32)
    batch = next(iter(data.train_dataloader()))
    assert batch["hole"].shape == (2, 1, 32, 32)
    assert batch["hole"].mean().item() == pytest.approx(0.25, abs=0.05)
    assert not torch.equal(batch["hole"][0], batch["hole"][1])
    assert torch.equal(batch["hole"][1], pickle.loads(pickle.dumps(data.train_dataloader().dataset))[1]["hole"])
    held_out = data.val_dataloader()
    assert torch.equal(next(iter(held_out))["hole"], next(iter(held_out))["hole"])
    assert "hole" not in next(iter(make(folder).train_dataloader()))


# the stream


def test_each_epoch_shows_every_image_once_in_its_own_order(folder: Path) -> None:
    data = make(folder)
    stream = Stream(data.train_images, data.framing)
    epochs = [[stream[10 * epoch + place]["name"] for place in range(10)] for epoch in range(3)]
    assert all(sorted(epoch) == [image.name for image in data.train_images] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_split_over_ranks_takes_the_same_positions_a_step() -> None:
    whole = list(PositionSampler(start=lambda: 40, length=7, done=2, batch_size=8))
    ranks = [
        list(PositionSampler(start=lambda: 40, length=7, done=2, batch_size=4, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    assert len(whole) == 5
    assert [first + second for first, second in zip(*ranks, strict=True)] == whole
    assert [position for batch in whole for position in batch] == list(range(40, 80))


def test_position_counts_the_samples_of_all_ranks(folder: Path) -> None:
    data = make(folder, batch_size=4)
    loop = SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=7)))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=1, world_size=2, fit_loop=SimpleNamespace(epoch_loop=loop)
    )
    assert data.position() == 7 * 4 * 2
    data.load_state_dict({"position": 100, "batches": 5, "images": 0})
    assert data.position() == 100 + 2 * 4 * 2


def test_workers_and_memory_change_nothing(folder: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", folder)
    settings = {"crop": "random_scale", "flip": True, "masks": CoinHoles(), "seed": 5}
    here = list(make(folder, **settings).train_dataloader())
    assert torch.cat([batch["position"] for batch in here]).tolist() == list(range(10))
    for path, options in ((archive, {"num_workers": 2}), (folder, {"in_memory": True})):
        there = list(make(Path(path), **settings, **options).train_dataloader())
        for expected, batch in zip(here, there, strict=True):
            assert expected["name"] == batch["name"]
            assert all(torch.equal(expected[field], batch[field]) for field in ("image", "position", "hole"))


# several sources


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Three folders of 7, 4 and 5 images, each of its own grey."""
    for number, (source, count) in enumerate({"a": 7, "b": 4, "c": 5}.items()):
        (tmp_path / source).mkdir()
        for image in range(count):
            Image.new("RGB", (9, 9), (60 * number,) * 3).save(tmp_path / source / f"{source}{image}.png")
    return [str(tmp_path / source) for source in "abc"]


def mixed(paths: list[str], **settings: object) -> ImageDataModule:
    data = ImageDataModule(paths, **({"val_count": 0, "size": 8, "batch_size": 2} | settings))
    data.setup("fit")
    return data


@pytest.mark.parametrize("weights", [(1,), (3, 1), (1, 1, 1), (5, 3, 2), (1, 7, 12)])
def test_turns_give_every_source_its_exact_share(weights: tuple[int, ...]) -> None:
    turns, period = Turns(weights), sum(weights)
    seen = [0] * len(weights)
    for position in range(5 * period):
        source, before = turns(position)
        assert before == seen[source], "counts the earlier positions of the source"
        seen[source] += 1
        due = [(position + 1) * weight / period for weight in weights]
        assert max(abs(count - share) for count, share in zip(seen, due, strict=True)) < len(weights)
    assert seen == [5 * weight for weight in weights]
    assert turns(10**15 * period + 1) == (turns(1)[0], 10**15 * weights[turns(1)[0]] + turns(1)[1])


def test_each_source_goes_through_its_own_epochs(sources: list[str]) -> None:
    stream = mixed(sources, weights=[3, 1, 2]).stream()
    names = [stream[position]["name"] for position in range(6 * 28)]
    assert all(sorted(name[0] for name in names[start : start + 6]) == list("aaabcc") for start in range(0, 168, 6))
    for source, count in (("a", 7), ("b", 4), ("c", 5)):
        drawn = [name for name in names if name[0] == source]
        epochs = [drawn[start : start + count] for start in range(0, len(drawn) - count + 1, count)]
        assert len(epochs) >= 7
        assert all(sorted(epoch) == [f"{source}{number}.png" for number in range(count)] for epoch in epochs)
        assert len(set(map(tuple, epochs))) > 3, "in another order each time"
    image = stream[names.index("c0.png")]["image"]
    assert torch.allclose(image, torch.full_like(image, 120 / 255 * 2 - 1)), "the image of that name"


def test_without_weights_the_list_is_one_source(sources: list[str]) -> None:
    """The order is that of a single permutation of all, which earlier versions drew."""
    data = mixed(sources, seed=3)
    names = [image.name for image in data.train_images]
    for epoch in range(2):
        order = torch.randperm(16, generator=generator(3, "order", epoch)).tolist()
        drawn = [data.stream()[16 * epoch + place]["name"] for place in range(16)]
        assert drawn == [names[number] for number in order]
    weighted = mixed(sources[:1], seed=3, weights=[1]).stream()
    alone = mixed(sources[:1], seed=3).stream()
    assert [weighted[position]["name"] for position in range(20)] == [alone[position]["name"] for position in range(20)]


def test_held_out_images_of_several_sources(sources: list[str]) -> None:
    data = mixed(sources, weights=[1, 1, 1], val_count=6)
    trained = {data.stream()[position]["name"] for position in range(60)}
    held_out = {image.name for image in data.val_images}
    assert len(held_out) == 6
    assert trained == {image.name for image in data.train_images}
    assert len(trained) == 10
    assert not trained & held_out
    names = [data.stream()[position]["name"][0] for position in range(60)]
    assert [names.count(source) for source in "abc"] == [20, 20, 20]
    with pytest.raises(ValueError, match="has a weight and no image left"):
        mixed(sources, weights=[1, 1, 1], val_count=15)
    apart = mixed(sources[:1], val_path=sources[1:])
    assert [image.name[0] for image in apart.val_images] == list("bbbbccccc")


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_sources_with_weights_resume_in_the_middle(sources: list[str], tmp_path: Path) -> None:
    whole, rest, changed = Recorder(), Recorder(), Recorder()
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    trainer(tmp_path, callbacks=[keep], max_steps=12).fit(whole, mixed(sources, weights=[3, 2, 1]))
    checkpoint = tmp_path / "step=5.ckpt"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the training images, their weights")
        trainer(tmp_path, max_steps=12).fit(
            rest, mixed(sources, weights=[3, 2, 1], num_workers=1), ckpt_path=checkpoint, weights_only=True
        )
    assert rest.names == whole.names[5:]
    assert [name[0] for batch in whole.names for name in batch].count("a") == 12
    with pytest.warns(UserWarning, match="the training images, their weights or the seed are not those"):
        trainer(tmp_path, max_steps=6).fit(
            changed, mixed(sources, weights=[3, 1, 1]), ckpt_path=checkpoint, weights_only=True
        )


class Recorder(LightningModule):
    """Trains one number and records its samples."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []
        self.names: list[list[str]] = []
        self.validated: list[int] = []
        self.fail_at = fail_at

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        if len(self.seen) == self.fail_at:
            raise RuntimeError("power cut")
        self.seen.append(batch["position"].tolist())
        self.names.append(batch["name"])
        return (self.weight - batch["image"].mean()) ** 2

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.validated += batch["position"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(root: Path, **settings: object) -> Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    defaults: dict = {
        "use_distributed_sampler": False,
        "enable_checkpointing": "callbacks" in settings,
        **quiet,
    }
    return Trainer(default_root_dir=root, **(defaults | settings))


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("error:.*your dataloader is not resumable")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("validation", [{}, {"check_val_every_n_epoch": None, "val_check_interval": 5}])
def test_resume_neither_repeats_nor_skips(folder: Path, tmp_path: Path, accumulate: int, validation: dict) -> None:
    settings = {"max_steps": 10, "accumulate_grad_batches": accumulate, **validation}
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    whole, rest, extended = Recorder(), Recorder(), Recorder()
    data = make(folder)
    trainer(tmp_path, callbacks=[keep], **settings).fit(whole, data)
    assert whole.seen == [[2 * step, 2 * step + 1] for step in range(10 * accumulate)]

    resumed = trainer(tmp_path, **settings)
    resumed.fit(rest, make(folder), ckpt_path=tmp_path / "step=5.ckpt", weights_only=True)
    assert rest.seen == whole.seen[5 * accumulate :]
    assert resumed.global_step == 10
    assert torch.equal(rest.weight, whole.weight)

    longer = settings | {"max_steps": 13}  # a finished run goes on
    trainer(tmp_path, **longer).fit(extended, make(folder), ckpt_path=tmp_path / "step=10.ckpt", weights_only=True)
    assert extended.seen == [[2 * step, 2 * step + 1] for step in range(10 * accumulate, 13 * accumulate)]


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_resume_after_a_crash_with_another_batch_size(folder: Path, tmp_path: Path) -> None:
    crashed, rest = Recorder(fail_at=4), Recorder()
    first = trainer(tmp_path, max_steps=10)
    with pytest.raises(RuntimeError, match="power cut"):
        first.fit(crashed, make(folder))
    first.save_checkpoint(tmp_path / "crash.ckpt")
    second = trainer(tmp_path, max_steps=10, callbacks=[])
    second.fit(rest, make(folder, batch_size=4), ckpt_path=tmp_path / "crash.ckpt", weights_only=True)
    assert [position for batch in rest.seen for position in batch] == list(range(8, 8 + 6 * 4))
    with pytest.warns(UserWarning, match="goes on at position 8"):
        trainer(tmp_path, max_steps=5).fit(
            Recorder(), make(folder, seed=1), ckpt_path=tmp_path / "crash.ckpt", weights_only=True
        )


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_one_pass_of_lightning_is_the_whole_run(folder: Path, tmp_path: Path) -> None:
    epochs, limited = Recorder(), Recorder()
    by_epochs = trainer(tmp_path, max_epochs=3)
    by_epochs.fit(epochs, make(folder, batch_size=4))  # 10 images: 3 batches an epoch
    assert [position for batch in epochs.seen for position in batch] == list(range(36))
    assert by_epochs.global_step == by_epochs.max_steps == 9
    assert by_epochs.max_epochs == -1
    trainer(tmp_path, max_steps=7, limit_train_batches=3).fit(limited, make(folder))
    assert [position for batch in limited.seen for position in batch] == list(range(14))
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        trainer(tmp_path, max_epochs=-1).fit(Recorder(), make(folder))
    with pytest.raises(ValueError, match="overfit_batches"):
        trainer(tmp_path, max_steps=3, overfit_batches=1).fit(Recorder(), make(folder))


# validation


def test_held_out_images_are_never_trained_on(folder: Path) -> None:
    before = make(folder, val_count=4)
    trained = {name for batch in before.train_dataloader() for name in batch["name"]}
    held_out = {name for batch in before.val_dataloader() for name in batch["name"]}
    assert len(held_out) == 4
    assert len(trained) == 8
    assert not trained & held_out
    assert {image.name for image in make(folder, val_count=4, seed=9).val_images} == held_out
    mirrored = next(iter(make(folder, val_count=4, flip=True, crop="random", batch_size=4).val_dataloader()))
    centered = next(iter(make(folder, val_count=4, batch_size=4).val_dataloader()))
    assert torch.equal(mirrored["image"], centered["image"])
    shutil.copy(folder / "00.png", folder / "new.png")
    after = {image.name for image in make(folder, val_count=4).val_images}
    assert after == held_out or ("new.png" in after and len(after & held_out) == 3)
    images = list_images(folder)
    backwards = len(images) - 1 - hold_out(images[::-1], 5)[1]
    assert hold_out(images, 5)[1].tolist() == sorted(backwards.tolist())


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_validation_shows_every_image_once_over_all_ranks(folder: Path, tmp_path: Path) -> None:
    data = make(folder, val_path=str(folder), batch_size=2)
    recorder = Recorder()
    trainer(tmp_path).validate(recorder, data, verbose=False)
    assert recorder.validated == list(range(12))

    seen, names = [], []
    for rank in range(5):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=5)  # type: ignore[assignment]
        for batch in data.val_dataloader():
            seen += batch["position"].tolist()
            names += batch["name"]
    assert sorted(seen) == list(range(12))
    assert sorted(names) == [image.name for image in data.val_images]


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_a_limit_counts_images_over_all_devices(folder: Path, world_size: int) -> None:
    data = make(folder, val_path=str(folder), batch_size=2, val_limit=7)
    seen = []
    for rank in range(world_size):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
        seen += [position for batch in data.val_dataloader() for position in batch["position"].tolist()]
    assert sorted(seen) == list(range(7))
    held_out = data.held_out()
    assert held_out is not None
    assert len(held_out) == 12, "the limit is of validation only"
    with pytest.raises(ValueError, match="val_limit=0"):
        make(folder, val_limit=0)


def test_fewer_validation_images_than_devices_are_an_error(folder: Path) -> None:
    data = make(folder, val_count=1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="1 validation images for 2 devices"):
        data.val_dataloader()


def test_photographs_of_scikit_image(tmp_path: Path) -> None:
    data = ImageDataModule("skimage", crop="random_scale", size=16, val_count=5)
    data.setup("validate")
    assert [original.name for original in data.train_images] == list(SKIMAGE_TRAIN)
    batch = next(iter(data.val_dataloader()))
    assert batch["name"] == [SKIMAGE_HELD_OUT[index % 2] for index in range(5)]
    assert len({image.numpy().tobytes() for image in batch["image"]}) == 5
    assert torch.equal(batch["image"], next(iter(data.val_dataloader()))["image"])
    assert not set(SKIMAGE_TRAIN) & set(SKIMAGE_HELD_OUT)


def test_equal_names_in_two_validation_sources_have_independent_draws(tmp_path):
    for source in ("first", "second"):
        (tmp_path / source).mkdir()
        for name in ("1.png", "2.png"):
            Image.new("RGB", (64, 64)).save(tmp_path / source / name)
    paths = [str(tmp_path / source) for source in ("first", "second")]

    def holes(val_path):
        data = ImageDataModule(paths[0], val_path=val_path, size=32, masks=Box(side=(0.2, 0.8)))
        data.setup("validate")
        dataset = data.val_dataloader().dataset
        return [dataset[number]["hole"] for number in range(len(dataset))]

    alone, both = holes(paths[0]), holes(paths)
    assert all(torch.equal(one, other) for one, other in zip(alone, both, strict=False)), (
        "a single source keeps its draws"
    )
    assert not torch.equal(both[0], both[2])
    assert not torch.equal(both[1], both[3])
