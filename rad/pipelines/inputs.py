"""Arguments of diffusers as those of an inpainter: dtype, generator, prompts and guidance images."""

from collections.abc import Sequence

import torch

from rad.arguments import describe
from rad.inpainting.arrays import ImageLike
from rad.inpainting.prepare import Precision
from rad.models.loaded_model import Condition

PRECISIONS: dict[torch.dtype | None, Precision] = {None: "32", torch.float32: "32", torch.bfloat16: "bf16"}


def to_precision(dtype: torch.dtype | None) -> Precision:
    """Raises ValueError for another dtype than float32 and bfloat16."""
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype is {dtype}; RAD runs in torch.float32 or torch.bfloat16")
    return PRECISIONS[dtype]


def to_seed(generator: torch.Generator | None) -> int:
    """The seed that a generator began with; 0 for None. Raises ValueError for a list of generators."""
    if generator is None:
        return 0
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator is {describe(generator)}; give one torch.Generator for all images, and names= for other noise in each"
        )
    return generator.initial_seed()


def to_conditions(images: Sequence[ImageLike], **fields: object) -> tuple[Sequence[ImageLike], list[Condition]]:
    """Images and their conditions. A single image is repeated for a list of prompts; None is the default of a field.

    Raises ValueError for another number of entries than images.
    """
    prompts = fields["prompt"]
    if isinstance(prompts, list | tuple) and len(images) == 1:
        images = [images[0]] * len(prompts)
    rows: list[dict[str, object]] = [{} for _ in images]
    for name, value in fields.items():
        values = list(value) if isinstance(value, list | tuple) else [value] * len(images)
        if len(values) != len(images):
            raise ValueError(f"{len(images)} images and {len(values)} entries of {name}: give one for all, or one each")
        for row, entry in zip(rows, values, strict=True):
            row |= {} if entry is None else {name: entry}
    return images, [Condition(**row) for row in rows]  # pyright: ignore[reportArgumentType]
