"""The LightningDataModule of square images, counted in steps instead of epochs."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from rad.data.buckets import Buckets, bucket_sizes, image_sizes, nearest
from rad.data.cache import EncodingCache
from rad.data.captions import read_captions
from rad.data.draws import Purpose
from rad.data.framing import SCALE_RANGE, ColourJitter, Crop, Framing, Resize, ScaleDraw
from rad.data.listing import check_paths, hash_images, split_images
from rad.data.stream import Draw, HeldOut, PositionSampler, Source, Stream, StreamLoader, Turns
from rad.images.remote import without_query
from rad.masks import MaskGenerator
from rad.rng import check_seed, key_of

_FRESH = {"position": 0, "batches": 0}  # state of a run that was not resumed


class _LoaderOptions(TypedDict):
    num_workers: int
    persistent_workers: bool
    pin_memory: bool


class ImageDataModule(LightningDataModule):
    """Square images for training and validation, counted in steps instead of epochs.

    Batches are dicts: "image" (B,3,size,size) float32 in [-1, 1], "position" (B) int64, "name" list of B. `masks` adds "hole"
    (B,1,size,size), 1 = fill; `captions` adds "text", list of B. `Diffusion` adds "draws": the random numbers of its samples,
    drawn by the workers, see `rad.data.draws`. The run is one pass of Lightning, `trainer.max_steps` long, or
    `trainer.max_epochs` times the images. The trainer needs `use_distributed_sampler=False`. One warning lists the unreadable
    images that are skipped. If damage shows only in decoding, the next image stands in. Small images are enlarged (Lanczos).

    Args:
        path: folder of any depth, zip, tar, SHARD-{0000..0099}.tar, folder of tars, folder of an LMDB, "hf:ID:SPLIT:COLUMN" for a
            Hugging Face dataset, a URL of a folder, zip or tar, such as s3://BUCKET/train.zip, or "skimage" for scikit-image's
            photographs; or a list of these. See docs/guides/data.md.
        weights: relative number of samples of each path, whole numbers, drawn in a fixed pattern. Each path then has its own
            epochs; `trainer.max_epochs` still counts all images. None: all images are equally frequent.
        val_path: source for validation, or a list. None: hold out `val_count` images of `path`, chosen by a hash of their names,
            or the photographs that "skimage" keeps for this.
        val_count: images to hold out without `val_path`; 0: no validation. Number of crops for "skimage" at random scales.
        val_limit: validate on the first of these images only, as many over all devices together. None: on all.
        size: side of the squares, in pixels.
        resize: "short_side" scales the short side to `size` before the crop, "none" crops unscaled pixels.
        crop: "center"; "random": at a random place; "random_scale": a square at a random place, its side drawn from `scale_range`
            or `side_range`, scaled to `size`. Validation uses the center, or for "random_scale" a crop fixed by the name.
        scale_range: smallest and largest side for "random_scale", as shares of the short side.
        side_range: the same in pixels, instead of `scale_range`; largest null: the short side. Smaller images are used whole.
        scale_draw: "uniform" side, or "log_uniform": as many crops between 32 and 64 pixels as between 64 and 128.
        flip: mirror half of the training images.
        jitter: colour jitter of the training images, after the crop. None: none.
        batch_size: images per step and device.
        num_workers: processes that read images; 0: the main process.
        seed: of order, crops, flips and holes.
        strict: make unreadable images an error.
        masks: draws a hole for every image. None: no holes.
        in_memory: decode all images at the start, and keep them at 4 bytes a pixel in every process.
        captions: texts for models that take them: "folder" for folder names, or a .json or .jsonl file, see
            `rad.data.captions.read_captions`. None: no text.
        buckets: train on sizes close to the aspect ratio of each image: true for sizes of about `size` x `size` pixels, or a list
            of [height, width]; all samples of an optimiser step have one size. False: squares. Validation has squares.
        cache: folder for latents and text embeddings, which latent models then compute once; needs crop "center" and no jitter.

    Raises:
        ValueError: a setting is out of range; at setup, a path is missing or holds no readable image.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # there may be more devices than validation images

    def __init__(
        self,
        path: str | list[str],
        *,
        weights: list[int] | None = None,
        val_path: str | list[str] | None = None,
        val_count: int = 64,
        val_limit: int | None = None,
        size: int = 256,
        resize: Resize = "short_side",
        crop: Crop = "center",
        scale_range: tuple[float, float] = SCALE_RANGE,
        side_range: tuple[int, int | None] | None = None,
        scale_draw: ScaleDraw = "uniform",
        flip: bool = False,
        jitter: ColourJitter | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        strict: bool = False,
        masks: MaskGenerator | None = None,
        in_memory: bool = False,
        captions: str | None = None,
        buckets: bool | list[tuple[int, int]] = False,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        least_values = (("size", size, 1), ("batch_size", batch_size, 1), ("val_count", val_count, 0))
        for name, value, least in (*least_values, ("val_limit", val_limit, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: it must be at least {least}")
        self.paths, self.val_paths = check_paths(path, val_path)
        self.weights = None if weights is None else _check_weights(weights, self.paths)
        self.val_count, self.val_limit = val_count, val_limit
        self.buckets = bucket_sizes(buckets, size)
        if self.buckets and resize == "none":
            raise ValueError(
                "resize='none' contradicts buckets, which scale images to their size: leave one of them out"
            )
        self.framing = Framing(size, resize, crop, scale_range, flip, side_range, scale_draw, jitter)
        self.cache = None if cache is None else _open_cache(cache, self.framing)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, check_seed(seed)
        self.strict, self.masks, self.in_memory = strict, masks, in_memory
        self.captions = None if captions is None else read_captions(captions)
        self.train_images: Sequence[Source] = []
        self.val_images: Sequence[Source] = []
        self._counts: tuple[int, ...] = ()
        self._val_counts: tuple[int, ...] = ()
        self._hash: int | None = None
        self._hashes: dict[str, str] = {}
        self._resumed = _FRESH
        self._assigned = np.empty(0, np.int32)

    def setup(self, stage: str) -> None:
        if not self.train_images:
            split = split_images(
                self.paths, self.val_paths, val_count=self.val_count, strict=self.strict, in_memory=self.in_memory
            )
            self.train_images, self.val_images = split.train, split.val
            self._counts, self._val_counts = split.counts, split.val_counts
            if self.weights is not None and 0 in self._counts:
                empty = without_query(self.paths[self._counts.index(0)])
                raise ValueError(f"{empty} has a weight and no image left to train on: leave it out or lower val_count")
            if self.captions is not None:
                self.captions.require(image.name for image in chain(self.train_images, self.val_images))
            if self.buckets:
                self._assigned = nearest(image_sizes(self.train_images), self.buckets)
        if stage == "fit" and self.trainer is not None:
            self._resumed = _FRESH  # Lightning calls `load_state_dict` after `setup`
            _count_in_steps(self.trainer, len(self.train_images), self.batch_size)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _batches_done(self) -> int:
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return progress.total.processed  # pyright: ignore[reportAttributeAccessIssue]

    def position(self) -> int:
        """Number of samples of the stream that the run has used, over all devices and resumes."""
        batches = max(0, self._batches_done() - self._resumed["batches"])
        return self._resumed["position"] + batches * self.batch_size * self._rank_and_world()[1]

    def _fingerprint(self) -> int:
        if self._hash is None:
            weights = [] if self.weights is None else ["weights", *self.weights, *self._counts]
            self._hash = key_of(chain([self.seed], (image.name for image in self.train_images), weights))
        return self._hash

    def settings(self) -> dict[str, object]:
        """What the samples depend on; checkpoints record it, and a resumed run reports the differences."""
        self._hashes = self._hashes or hash_images(self.train_images, in_memory=self.in_memory)
        texts = None if self.captions is None else self.captions.texts
        return {
            **vars(self.framing),
            "path": [without_query(path) for path in self.paths],
            "val_path": None if self.val_paths is None else [without_query(path) for path in self.val_paths],
            "val_count": self.val_count,
            "val_limit": self.val_limit,
            "weights": self.weights,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "masks": self.masks,
            "buckets": self.buckets,
            "captions": None if self.captions is None else self.captions.source,
            "texts_hash": None if texts is None else f"{key_of(chain.from_iterable(sorted(texts.items()))):016x}",
            "images": len(self.train_images),
            **self._hashes,
        }

    def state_dict(self) -> dict[str, int]:
        """The position, valid for any batch size, and a hash of the images, weights and seed that it depends on."""
        return {"position": self.position(), "batches": self._batches_done(), "images": self._fingerprint()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._resumed = state_dict

    def stream(self) -> Stream:
        """All samples of the run."""
        buckets = None
        if self.buckets:
            buckets = Buckets(self.buckets, self._assigned, self._block(), self.seed, self._counts, self.weights)
        return Stream(
            self.train_images, self.framing, self.seed, self.masks, self.strict, self.captions,
            self._counts, self.weights, self._draw("train"), buckets,
            hashed=self.cache is not None,
        )  # fmt: skip

    def _block(self) -> int:
        """Samples of an optimiser step over all devices."""
        accumulate = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return self.batch_size * self._rank_and_world()[1] * accumulate

    def _start_at_block(self) -> None:
        """Move the position of a resumed run to the next block of buckets, if an optimiser step has another size now."""
        position, block = self._resumed["position"], self._block()
        if self.buckets and position % block:
            start = math.ceil(position / block) * block
            rank_zero_warn(
                f"position {position} is no multiple of the {block} samples of an optimiser step, as buckets need: "
                f"the stream goes on at {start}"
            )
            self._resumed = {**self._resumed, "position": start}

    def _draw(self, purpose: Purpose) -> Draw | None:
        """Draws of the module that is trained; None if it offers none."""
        draws = getattr(getattr(self.trainer, "lightning_module", None), "draws", None)
        return None if draws is None else draws(purpose, with_holes=self.masks is None)

    def train_dataloader(self) -> StreamLoader:
        """The rest of the run, from `position()`; without a trainer, one pass over the images."""
        reports = getattr(getattr(self.trainer, "lightning_module", None), "reports_changes", False)
        if not reports and self._resumed is not _FRESH and self._resumed["images"] != self._fingerprint():
            rank_zero_warn(
                "the training images, their weights or the seed are not those of the checkpoint: "
                f"the stream goes on at position {self.position()} in its new order"
            )
        self._start_at_block()
        left = math.ceil(len(self.train_images) / self.batch_size)
        if self.trainer is not None:
            steps = max(0, self.trainer.max_steps - self.trainer.global_step)
            left = steps * self.trainer.accumulate_grad_batches
        done, (rank, world_size) = self._batches_done(), self._rank_and_world()
        sampler = PositionSampler(
            start=self.position,
            length=done + left,
            batch_size=self.batch_size,
            done=done,
            rank=rank,
            world_size=world_size,
        )
        return StreamLoader(self.stream(), batch_sampler=sampler, **_loader_options(self.num_workers))

    def held_out(self) -> HeldOut | None:
        """All validation images in their fixed order, whatever `val_limit` is; None without any."""
        crop: Crop = "random_scale" if self.framing.crop == "random_scale" else "center"
        few = self.val_paths == ["skimage"] and crop == "random_scale"
        length = self.val_count if few else len(self.val_images)
        if length == 0:
            return None
        framing = replace(self.framing, crop=crop, flip=False, jitter=None)
        return HeldOut(self.val_images, framing, length, self.masks, self.strict, self.captions, self._val_counts)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The first `val_limit` validation images once over all ranks, in a fixed order; [] when there are none."""
        held_out = self.held_out()
        if held_out is None:
            return []
        length = len(held_out) if self.val_limit is None else min(self.val_limit, len(held_out))
        return DataLoader(
            replace(held_out, draw=self._draw("val"), hashed=self.cache is not None),
            batch_sampler=_validation_batches(length, self.batch_size, *self._rank_and_world()),
            **_loader_options(self.num_workers),
        )

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """As Lightning's, but positions stay on the host: it reads them, and would wait for the device."""
        moved = {name: value for name, value in batch.items() if name != "position"}
        return {**batch, **super().transfer_batch_to_device(moved, device, dataloader_idx)}


def _count_in_steps(trainer: Trainer, images: int, batch_size: int) -> None:
    """Make Lightning stop by steps alone: its own epochs would restart the loader."""
    if getattr(trainer, "overfit_batches", 0):
        raise ValueError("overfit_batches repeats an epoch, which this data has not: give a path with few images")
    if trainer.accumulate_grad_batches < 1:
        raise ValueError(f"accumulate_grad_batches is {trainer.accumulate_grad_batches}; allowed are >= 1")
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        epoch = math.ceil(images / (batch_size * trainer.world_size))
        limits.append(math.ceil(trainer.max_epochs * epoch / trainer.accumulate_grad_batches))
    if not limits:
        raise ValueError("the training has no end: set trainer.max_steps or trainer.max_epochs")
    trainer.fit_loop.epoch_loop.max_steps = min(limits)
    trainer.fit_loop.max_epochs = -1


def _check_weights(weights: list[int], paths: list[str]) -> tuple[int, ...]:
    """Raises ValueError for weights that are no turns, or that do not match the paths."""
    Turns(tuple(weights))
    if len(weights) != len(paths):
        raise ValueError(f"weights={weights}: give one weight for each path ({len(paths)}), or null for none")
    return tuple(weights)


def _open_cache(folder: str, framing: Framing) -> EncodingCache:
    """Raises ValueError for no folder, or for images whose pixels change."""
    if not (folder.strip() and framing.is_fixed):
        raise ValueError(
            f"cache={folder!r} with crop={framing.crop!r}: give a folder, and images of constant pixels (crop='center', "
            "no jitter), or set cache to null"
        )
    return EncodingCache(Path(folder))


def _validation_batches(length: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """The positions of one rank in batches. Raises ValueError if a rank would have none."""
    if length < world_size:
        raise ValueError(f"{length} validation images for {world_size} devices: give at least one for each, or none")
    positions = list(range(rank, length, world_size))
    return [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]


def _loader_options(num_workers: int) -> _LoaderOptions:
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }
