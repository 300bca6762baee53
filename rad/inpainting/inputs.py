"""Inputs of an inpainter: images, masks, names and conditions, aligned and converted; outpainting.

Only mask generators load torch.
"""

import os
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from io import BytesIO
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Union, cast

import numpy as np
from PIL import Image

from rad.arguments import describe, integer
from rad.images.sources import is_source
from rad.inpainting.arrays import ImageLike, MaskLike, is_array, is_generator, to_image, to_list, to_mask
from rad.inpainting.canvas.layout import WITH_MARGIN, SizePolicy
from rad.inpainting.canvas.outpaint import Extension
from rad.inpainting.canvas.resize import Floats
from rad.keys import Part, identity
from rad.masks.reading.format import DEFAULT, MaskFormat, MaskWarning
from rad.masks.reading.hole import check_hole, dilate, fit, load_hole, name_of
from rad.models.settings.preferred import takes_thin_steps

if TYPE_CHECKING:
    from rad.masks.base import MaskGenerator
    from rad.models.loaded_model import Condition

Hole = Floats
Mask = Union[Hole, Image.Image, Path, bytes, "MaskGenerator"]
"""A mask as a hole (1,H,W), an image, a file, its bytes, or its generator."""

_READING = threading.Lock()
"""Threads take turns to load images, as Pillow loads an opened file at its first use."""

GIVEN = name_of(None)
"""How messages call a mask in memory."""


@dataclass(frozen=True)
class Inputs:
    """One image, mask, name and condition per entry.

    Args:
        masks: None: nothing is to fill.
        names: keys of the noise.
        mask_names: keys of generated masks, those of `rad sample`: the names, or else the file names of the images.
        conditions: empty for an inpainter without them.
    """

    images: list[Image.Image]
    masks: Sequence[Mask | None]
    names: Sequence[int | str]
    mask_names: Sequence[int | str]
    conditions: "list[Condition]"

    @classmethod
    def align(
        cls,
        image: ImageLike | Sequence[ImageLike],
        mask: MaskLike | Sequence[MaskLike] | None,
        *,
        names: Sequence[Part] | Part | None,
        condition: "Condition | Sequence[Condition] | None" = None,
    ) -> "Inputs":
        """Repeat a single mask or condition for each image. Raises ValueError if types or numbers do not fit."""
        images = to_list(image, "image")
        count = len(images)
        masks = [None] if mask is None else [_mask(entry) for entry in to_list(mask, "mask")]
        masks = masks * count if len(masks) == 1 and not isinstance(mask, list | tuple) else masks
        keys = _names(names, count)
        if len(masks) != count or len(keys) != count:
            counts = f"{count} images, {len(masks)} masks" + ("" if names is None else f", {len(keys)} names")
            raise ValueError(f"{counts}: give one mask {'' if names is None else 'and one name '}per image")
        mask_names = [_file_name(entry) for entry in images] if names is None else keys
        drawn = [name for name, entry in zip(mask_names, masks, strict=True) if is_generator(entry)]
        if names is None and len(set(drawn)) < len(drawn):
            raise ValueError(
                f"mask is drawn from the name of each image, and {count} images lack one: give names=[...]"
            )
        conditions = [] if condition is None else _conditions(condition, count)
        with _READING:
            _load(masks, conditions)
            return cls([to_image(entry) for entry in images], masks, keys, mask_names, conditions)

    def read(self, format: MaskFormat, seed: int) -> list[Hole]:
        """The holes (1,H,W) in [0,1]; those of generators as `rad sample` draws them."""
        holes: list[Hole] = []
        for image, mask, name in zip(self.images, self.masks, self.mask_names, strict=True):
            if is_generator(mask):
                from rad.rng import generator

                holes.append(mask([generator(seed, "mask", name)], image.height, image.width)[0].numpy())
            elif mask is None:
                holes.append(np.zeros((1, image.height, image.width), np.float32))
            else:
                holes.append(read_hole(cast("Hole | Image.Image | Path | bytes", mask), image, format))
        return holes

    def extended(self, extension: Extension, holes: Sequence[Hole]) -> tuple["Inputs", list[Hole]]:
        """The extended images and their holes; guidance images get black pixels too. Raises ValueError as `Extension.image`."""
        if not extension:
            return self, list(holes)
        left, top, right, bottom = astuple(extension)
        images = [extension.image(image) for image in self.images]
        conditions = [
            condition.resized(image.size).cut((-top, -left, image.height + bottom, image.width + right))
            for image, condition in zip(self.images, self.conditions, strict=bool(self.conditions))
        ]
        extended = [extension.hole(hole[0])[None] for hole in holes]
        return replace(self, images=images, conditions=conditions), extended


def check_numbers(
    *, num_samples: int, average: int | None, thin_steps: int | None, batch_size: int, feather: int
) -> None:
    """Raise ValueError for a number outside its range."""
    integer("num_samples", num_samples, low=1, high=10**4)
    if average is not None:
        integer("average", average, low=1, high=10**4)
    if thin_steps is not None:
        integer("thin_steps", thin_steps, low=1, high=10**5)
    integer("batch_size", batch_size, low=1, high=2**16)
    integer("feather", feather, low=0, high=2**16)


def find_extension(
    extend: Extension | tuple[int, int, int, int] | None,
    mask: MaskLike | Sequence[MaskLike] | None,
    *,
    strength: float = 1.0,
) -> Extension:
    """The extension of `Inpainter.__call__`. Raises ValueError for another type, without any hole, or with strength < 1."""
    extension = Extension() if extend is None else Extension.of(extend)
    if extension and strength < 1:
        raise ValueError(
            f"strength is {strength}, and the new pixels of extend have no content to start from: leave out one"
        )
    if mask is None and not extension:
        raise ValueError(
            "mask is None; give a mask, or extend=(left, top, right, bottom) with new pixels to fill around the image"
        )
    return extension


def find_thin_steps(steps: int | None, *, method: str, strength: float, stacklevel: int) -> int | None:
    """Steps of thin windows; None, with a warning, where they have no effect."""
    if steps is None or takes_thin_steps(method, strength):
        return steps
    reason = f"on method {method!r}" if strength == 1 else f"with strength {strength}"
    warnings.warn(f"thin_steps={steps} has no effect {reason}", stacklevel=stacklevel)
    return None


def warn_unused(
    masks: Sequence[Mask | None],
    format: MaskFormat,
    *,
    margin: int | None,
    size_policy: SizePolicy,
    stacklevel: int,
) -> None:
    """Warn about options of mask files with a generated mask, and about a margin that the size policy does not use."""
    if any(is_generator(mask) for mask in masks):
        for name in changed_options(format):
            warnings.warn(f"{name} has no effect on a generated mask: leave it out", stacklevel=stacklevel)
    if margin is not None and size_policy not in WITH_MARGIN:
        message = f"margin={margin} has no effect with size_policy {size_policy!r}: use 'crop', 'zoom' or 'pyramid'"
        warnings.warn(message, stacklevel=stacklevel)


def changed_options(format: MaskFormat) -> list[str]:
    """Names of the options that differ from their defaults, as arguments of `Inpainter`: "soft_mask", "mask_dilate"."""
    changed = [name for name, default in vars(DEFAULT).items() if getattr(format, name) != default]
    return ["soft_mask" if name == "soft" else f"mask_{name}" for name in changed]


def _load(masks: Sequence[Mask | None], conditions: "Sequence[Condition]") -> None:
    for image in (*masks, *(guide for condition in conditions for guide in condition.images)):
        if isinstance(image, Image.Image):
            image.load()


def _mask(mask: MaskLike) -> Mask:
    if is_array(mask):
        return to_mask(mask)
    if isinstance(mask, Image.Image | bytes) or is_generator(mask):
        return mask
    assert isinstance(mask, str | os.PathLike)  # `to_list` has read open files
    if not isinstance(mask, str) or is_source(mask) or "." in mask or os.sep in mask:
        return Path(mask)  # it may be missing
    return _generator(mask)


def _generator(name: str) -> "MaskGenerator":
    try:
        from rad.masks.shapes import MASKS, main_names, make
    except ImportError as error:
        raise ValueError(
            f"mask {describe(name)} is no file, and generators of masks need torch ({error}): give a file"
        ) from error
    if name not in MASKS:
        raise ValueError(f"mask {describe(name)} is neither a file nor a generator ({', '.join(main_names())})")
    return make(name)


def _file_name(image: ImageLike) -> str:
    return PurePath(image).name if isinstance(image, str | os.PathLike) else ""


def _names(names: Sequence[Part] | Part | None, count: int) -> Sequence[int | str]:
    if names is None:
        return [""] * count
    several = names.ndim > 0 if isinstance(names, np.ndarray) else isinstance(names, list | tuple)
    return [identity(name) for name in (cast("Sequence[Part]", names) if several else [cast("Part", names)])]


def _conditions(condition: "Condition | Sequence[Condition]", count: int) -> "list[Condition]":
    from rad.models.loaded_model import Condition

    conditions = [condition] * count if isinstance(condition, Condition) else condition
    if not isinstance(conditions, list | tuple) or not all(isinstance(each, Condition) for each in conditions):
        raise ValueError(f"condition is {describe(condition)}; give Condition(prompt=...), or a list of them")
    if len(conditions) != count:
        raise ValueError(
            f"{count} images and {len(conditions)} conditions: give one condition for all, or one per image"
        )
    return list(conditions)


def read_hole(mask: Hole | Image.Image | Path | bytes, image: Image.Image, format: MaskFormat) -> Hole:
    """The hole (1,H,W) in [0,1], 1 = fill, in the size of its image. Greys of a hole in memory are exact, and stay.

    Raises ValueError for an unsuitable mask. Warns as `rad.masks.files.load_mask` describes. Both name arguments, not flags.
    """
    try:
        return _read_hole(mask, image, format)
    except ValueError as error:
        raise ValueError(as_arguments(str(error))) from error


def as_arguments(message: str) -> str:
    """A message with arguments of `Inpainter` in place of flags: `--mask_resize nearest` as `mask_resize='nearest'`."""
    message = message.replace("--soft_mask", "soft_mask=True")
    message = re.sub(r"--(mask_threshold) ([\d.]+)", r"\1=\2", message)
    return re.sub(r"--(mask_\w+) (\w+)", r"\1='\2'", message)


def _read_hole(mask: Hole | Image.Image | Path | bytes, image: Image.Image, format: MaskFormat) -> Hole:
    if not isinstance(mask, np.ndarray):
        name = name_of(mask)
        loaded = load_hole(BytesIO(mask) if isinstance(mask, bytes) else mask, format, image=image, name=name)
        for message in loaded.notes + loaded.warnings:
            warnings.warn(f"{name}: {as_arguments(message)}", MaskWarning, stacklevel=3)
        return loaded.hole[None]
    if format.channel != "auto":
        raise ValueError("mask has one channel, so mask_channel has no effect on it: leave it out")
    white = np.array(fit(Image.fromarray(mask[0]), (image.height, image.width), format, GIVEN))
    if format.threshold is not None:
        white = ((white > float(format.threshold)) | (white == 1)).astype(np.float32)
    hole = dilate(white if format.polarity == "white_is_fill" else 1 - white, format.dilate)
    for message in check_hole(hole, format):
        warnings.warn(f"{GIVEN}: {as_arguments(message)}", MaskWarning, stacklevel=3)
    return hole[None]
