"""Kept encodings: exact, computed once, and again if a file is damaged."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rad.data.cache import EncodingCache
from rad.data.module import ImageDataModule
from rad.images.sources import list_images
from tests.conftest import random_image


def test_tensors_come_back_bit_for_bit_and_are_computed_once(tmp_path: Path) -> None:
    cache, calls = EncodingCache(tmp_path / "deep" / "kept"), []
    tensors = [torch.randn(2, 3, 4), torch.randn(5, 2).T.to(torch.bfloat16), torch.tensor(float("nan"))]

    def build() -> list[Tensor]:
        calls.append(0)
        return tensors

    for _ in range(3):
        kept = EncodingCache(cache.folder)("a key\n", build)
        assert [each.dtype for each in kept] == [each.dtype for each in tensors]
        assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(kept, tensors, strict=True))
    assert len(calls) == 1
    cache("another key", build)
    assert len(calls) == 2


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    cache, numbers = EncodingCache(tmp_path), iter(range(10))
    assert cache("key", lambda: [torch.full((3,), next(numbers))])[0].tolist() == [0, 0, 0]
    (file,) = tmp_path.rglob("*.tensors")
    whole = file.read_bytes()
    for damaged in (whole[:-1], b"", whole[:50], whole[:-4] + b"\1\0\0\0", whole + b"\0"):
        file.write_bytes(damaged)
        value = next(numbers)
        assert cache("key", lambda value=value: [torch.full((3,), value)])[0].tolist() == [value] * 3
        assert cache("key", lambda: pytest.fail("the file is whole again"))[0].tolist() == [value] * 3


def test_a_folder_that_cannot_be_written_causes_a_warning_and_no_other_result(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match=r"data\.cache=.*file cannot be written \(Not a directory\)"):
        (tensor,) = EncodingCache(tmp_path / "file")("key", lambda: [torch.ones(2)])
    assert torch.equal(tensor, torch.ones(2))


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    def use(number: int) -> list[int]:
        key = str(number % 5)
        return EncodingCache(tmp_path)(key, lambda: [torch.full((1000,), int(key))])[0].unique().tolist()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(100))) == [[number % 5] for number in range(100)]
    assert len(list(tmp_path.rglob("*"))) == len({*tmp_path.glob("*")}) + 5, "no temporary file is left"


def test_hashes_name_pixels(tmp_path: Path) -> None:
    """A flip is another entry; workers, positions and names do not matter."""
    for name in ("a.png", "b.png"):
        random_image(12, 16).save(tmp_path / name)
    options: dict = {"size": 12, "val_count": 0, "batch_size": 8, "flip": True}
    data = ImageDataModule(str(tmp_path), cache=str(tmp_path / "kept"), **options)
    data.setup("fit")
    stream = data.stream()
    samples = [stream[position] for position in range(12)]
    hashes = {str(sample["pixels_hash"]) for sample in samples}
    assert len(list_images(tmp_path)) == 2
    assert len(hashes) == 2
    for sample in samples:
        same = [each for each in samples if each["pixels_hash"] == sample["pixels_hash"]]
        assert all(torch.equal(each["image"], sample["image"]) for each in same)  # type: ignore[arg-type]
    plain = ImageDataModule(str(tmp_path), **options)
    plain.setup("fit")
    assert "pixels_hash" not in plain.stream()[0]
    for wrong in ({"crop": "random"}, {"crop": "random_scale"}, {"cache": " "}):
        with pytest.raises(ValueError, match="give a folder, and images of constant pixels"):
            ImageDataModule(str(tmp_path), **{"cache": "kept", "size": 12, **wrong})
