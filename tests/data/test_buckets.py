"""Buckets of aspect ratios: each step has one size, no image is lost or repeated, and positions are the only state."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from rad.data.buckets import Buckets, bucket_sizes, image_sizes, nearest
from rad.data.framing import Framing
from rad.data.module import ImageDataModule
from rad.images.sources import list_images
from rad.masks.shapes import make
from rad.models.load import load_model
from tests.images.test_remote import folder, local, server, url
from tests.images.test_sources import write_tar

__all__ = ["folder", "local", "server"]

SIZES = ((8, 16), (16, 16), (16, 8))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eleven images: 6 wide, 4 high and a square, each of one colour."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    for number in range(11):
        size = (20, 20) if number == 10 else (40 + number, 20) if number < 6 else (20, 40)
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / "photos" / f"{number:02d}.png")
    return tmp_path / "photos"


def order(contents: Sequence[int], block: int, **settings: object) -> Buckets:
    assigned = np.repeat(np.arange(len(contents)), contents)
    np.random.default_rng(0).shuffle(assigned)
    return Buckets(SIZES[: len(contents)], assigned, block, 7, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("contents", "block"), [((6, 4, 1), 4), ((1, 2, 30), 8), ((5, 0, 5), 1), ((2, 3, 0), 16)])
def test_images_wait_for_their_block_and_none_is_lost_or_repeated(contents: tuple[int, ...], block: int) -> None:
    buckets, count = order(contents, block), sum(contents)
    blocks = 12 * count // block
    seen = [buckets(position) for position in range(blocks * block)]
    shown = Counter[int]()
    for start in range(0, len(seen), block):
        assert len({size for _, size in seen[start : start + block]}) == 1, "a block has one size"
        shown.update(number for number, _ in seen[start : start + block])
        for number, content in enumerate(contents):
            inside = [shown[image] for image in np.flatnonzero(buckets.assigned == number)]
            assert not inside or max(inside) - min(inside) <= 1, (
                "an image returns when all others of its bucket were shown"
            )
            epochs = (start + block) / count
            assert all(abs(times - epochs) <= 1 + len(SIZES) * block / max(1, content) for times in inside)
    for number, content in enumerate(contents):
        waiting = 12 * content - sum(shown[image] for image in np.flatnonzero(buckets.assigned == number))
        assert -block < waiting < block * len(SIZES)
    assert all(size == SIZES[buckets.assigned[number]] for number, size in seen)


def test_two_epochs_show_every_image_twice_but_for_those_that_wait() -> None:
    buckets = order((9, 6, 5), 4)
    complete = [2 * content // 4 * 4 for content in (9, 6, 5)]  # 16, 12 and 8 of 18, 12 and 10 samples
    shown = Counter(buckets(position)[0] for position in range(sum(complete)))
    assert sum(shown.values()) == 36
    assert set(shown.values()) <= {1, 2}
    assert len(shown) == 20
    for number, samples in enumerate(complete):
        assert sum(shown[image] for image in np.flatnonzero(buckets.assigned == number)) == samples


def test_the_order_is_a_function_of_the_position() -> None:
    expected = [order((6, 4, 1), 4)(position) for position in range(200)]
    shuffled, again = np.random.default_rng(1).permutation(200).tolist(), order((6, 4, 1), 4)
    assert {position: again(position) for position in shuffled} == dict(enumerate(expected))


def test_sources_take_turns_by_blocks() -> None:
    buckets = order((10, 6, 4), 2, counts=(12, 8), weights=(3, 1))
    sources = [[buckets(position)[0] >= 12 for position in range(start, start + 2)] for start in range(0, 160, 2)]
    assert all(first == second for first, second in sources)
    assert [first for first, _ in sources] == [False, False, True, False] * 20
    shown = Counter(buckets(position)[0] for position in range(160))
    assert len(shown) == 20


def test_automatic_sizes_have_the_area_of_the_square() -> None:
    for side, step in ((32, 8), (256, 32), (512, 64), (1024, 64)):
        sizes = bucket_sizes(True, side)
        assert (side, side) in sizes
        assert set(sizes) == {(width, height) for height, width in sizes}
        assert all(height % step == width % step == 0 for height, width in sizes)
        assert all(0.8 * side**2 <= height * width <= side**2 for height, width in sizes if side >= 256)
        assert all(0.5 <= height / width <= 2 for height, width in sizes)
    assert bucket_sizes(False, 32) == ()
    assert bucket_sizes([(16, 8), (8, 16), (16, 8)], 32) == ((8, 16), (16, 8))
    for wrong in ([], [(0, 8)]):
        with pytest.raises(ValueError, match=r"give true, or a list of \[height, width\]"):
            bucket_sizes(wrong, 32)
    with pytest.raises(ValueError, match="multiple of 8, got 36"):
        bucket_sizes(True, 36)


def test_an_image_belongs_to_the_nearest_aspect_ratio() -> None:
    sizes = np.array([(100, 200), (100, 150), (100, 130), (100, 100), (200, 101), (1, 1000)])
    assert nearest(sizes, SIZES).tolist() == [0, 0, 1, 1, 2, 0]  # the border is at 1.414
    assert nearest(np.array([(100, 138), (138, 100), (100, 145), (145, 100)]), SIZES).tolist() == [1, 1, 0, 2]


def test_crops_keep_the_aspect_ratio_and_stay_in_the_image() -> None:
    draws = torch.rand(300, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    assert Framing(16).box(60, 40, draws[0], (8, 16)) == (0, 5, 60, 30)
    assert Framing(16).box(100, 40, draws[0], (8, 16)) == (10, 0, 80, 40)
    assert Framing(16).box(60, 40, draws[0], (16, 16)) == Framing(16).box(60, 40, draws[0])
    for crop in ("random", "random_scale"):
        boxes = [Framing(16, crop=crop).box(90, 40, draw, (8, 16)) for draw in draws]
        assert all(0 <= left <= 90 - wide and 0 <= top <= 40 - high for left, top, wide, high in boxes)
        assert all(abs(wide - 2 * high) <= 1 for _, _, wide, high in boxes)
        assert max(left + wide for left, _, wide, _ in boxes) == 90
    image = Image.fromarray(np.uint8(np.arange(60) * 4)[None, :, None].repeat(30, 0).repeat(3, 2))
    whole = Framing(30)(image, torch.Generator(), (30, 60))
    assert torch.equal(whole[0, 0], torch.arange(60) * 4 / 255 * 2 - 1)


def module(path: Path | str, **settings: object) -> ImageDataModule:
    defaults: dict = {"size": 16, "val_count": 0, "batch_size": 4, "seed": 3, "buckets": list(SIZES)}
    data = ImageDataModule(str(path), **(defaults | settings))
    data.setup("fit")
    return data


def attached(data: ImageDataModule, rank: int, world: int, steps: int, accumulate: int = 1) -> ImageDataModule:
    progress = SimpleNamespace(total=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trainer = SimpleNamespace(
        global_rank=rank, world_size=world, accumulate_grad_batches=accumulate, fit_loop=loop, global_step=0,
        max_steps=steps, lightning_module=None,
    )  # fmt: skip
    data.trainer = cast(Trainer, trainer)
    return data


def samples(batches: Sequence[dict]) -> dict[int, tuple[str, torch.Tensor, torch.Tensor]]:
    return {
        int(position): (name, image, hole)
        for batch in batches
        for position, name, image, hole in zip(
            batch["position"], batch["name"], batch["image"], batch["hole"], strict=True
        )
    }


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(
        left[position][0] == right[position][0]
        and torch.equal(left[position][1], right[position][1])
        and torch.equal(left[position][2], right[position][2])
        for position in left
    )


def test_the_stream_does_not_depend_on_workers_devices_accumulation_or_a_resume(photos: Path) -> None:
    settings: dict = {"crop": "random", "flip": True, "masks": make("box")}
    batches = list(attached(module(photos, **settings), 0, 1, 12).train_dataloader())
    whole = samples(batches)
    assert len(whole) == 48
    assert {tuple(batch["image"].shape[2:]) for batch in batches} == set(SIZES)
    for name, image, hole in whole.values():
        wide = int(name[:2]) < 6
        assert image.shape[1:] == hole.shape[1:] == ((8, 16) if wide else (16, 16) if name == "10.png" else (16, 8))
    parts: dict = {}
    for rank in range(2):
        parts |= samples(list(attached(module(photos, **settings, batch_size=2), rank, 2, 12).train_dataloader()))
    assert same(parts, whole)
    small = attached(module(photos, **settings, batch_size=1, num_workers=2), 0, 1, 12, accumulate=4)
    assert same(samples(list(small.train_dataloader())), whole)
    resumed = attached(module(photos, **settings), 0, 1, 7)
    resumed.load_state_dict({"position": 20, "batches": 0, "images": resumed.state_dict()["images"]})
    assert same(samples(list(resumed.train_dataloader())), {p: each for p, each in whole.items() if p >= 20})


def test_another_effective_batch_starts_at_a_block(photos: Path) -> None:
    data = attached(module(photos, batch_size=6), 0, 1, 3)
    data.load_state_dict({"position": 20, "batches": 0, "images": data.state_dict()["images"]})
    with pytest.warns(UserWarning, match="position 20 is no multiple of the 6 samples .* goes on at 24"):
        batches = list(data.train_dataloader())
    assert [int(batch["position"][0]) for batch in batches] == [24, 30, 36]
    assert data.position() == 24


def test_validation_stays_square_and_settings_record_the_sizes(photos: Path) -> None:
    data = module(photos, val_count=3)
    assert all(batch["image"].shape[2:] == (16, 16) for batch in data.val_dataloader())
    assert data.settings()["buckets"] == tuple(sorted(SIZES))
    with pytest.raises(ValueError, match="resize='none' contradicts buckets"):
        module(photos, resize="none")


def test_sizes_are_upright_and_read_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("turned.jpg", "turned.png"):
        Image.new("RGB", (30, 10)).save(photos / name, exif=exif)
    write_tar(photos.parent / "all.tar", {path.name: path.read_bytes() for path in sorted(photos.iterdir())})
    (photos / "broken.png").write_text("no image")
    for source in (photos, photos.parent / "all.tar"):
        images = list_images(source)
        sizes = image_sizes(images)
        for image, size in zip(images, sizes.tolist(), strict=True):
            assert size == ([1, 1] if image.name == "broken.png" else list(image.open().size[::-1]))
        monkeypatch.setattr("rad.data.buckets._size", lambda _: pytest.fail("a header was read again"))
        assert np.array_equal(image_sizes(images), sizes)
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(photos.parent / "cache"))
    for kept in (photos.parent / "cache" / "rad" / "sizes").glob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(image_sizes(images), sizes)
    Image.new("RGB", (5, 50)).save(photos / "00.png")
    assert image_sizes(list_images(photos))[0].tolist() == [50, 5]


def test_sizes_of_remote_images_take_their_headers_only(server, local: dict[str, str]) -> None:
    big = Image.effect_noise((700, 500), 90).convert("RGB")
    big.save(Path(local["folder"]) / "s-0" / "big.png")
    write_tar(Path(local["tar"]), {"big.png": (Path(local["folder"]) / "s-0" / "big.png").read_bytes()})
    for kind in ("tar", "folder"):
        images = [image for image in list_images(url(server, local[kind])) if image.name.endswith("big.png")]
        server.requests.clear()
        assert image_sizes(images).tolist() == [[500, 700]]
        (given,) = [given for _, given in server.requests if given]
        first, last = (int(text) for text in str(given).removeprefix("bytes=").split("-"))
        assert last + 1 - first == 1 << 16


def test_a_model_refuses_sides_that_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("checkpoints/base-nature32")
    model.require_sides(bucket_sizes(True, 32))
    model.require_sides(())
    with pytest.raises(ValueError, match=rf"has 30x32 .* multiples of {model.side_multiple}: give data.buckets a list"):
        model.require_sides([(32, 32), (30, 32)])
    monkeypatch.setattr(model, "largest_side", 64.0)
    with pytest.raises(ValueError, match=r"has 32x128 .* sides of at most 64 that are multiples"):
        model.require_sides([(32, 128)])
    assert math.isinf(type(model).largest_side)
