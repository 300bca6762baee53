"""Arguments of diffusers as those of an inpainter: dtype, generator, prompts and guidance images."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import ParamSpec, TypeVar

import torch

from rad.arguments import describe
from rad.inpainting.arrays import ImageLike
from rad.inpainting.keywords import EQUAL, OURS, understood
from rad.inpainting.prepare import Precision
from rad.models.loaded_model import Condition
from rad.resources import located

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

ADVICE = (
    OURS
    | {ours: f"{theirs}=" for theirs, ours in EQUAL.items()}
    | {
        "seed": "generator=torch.Generator().manual_seed(SEED)",
        "latents": "generator= and names=, which fix the noise",
        "callback": "callback_on_step_end=",
        "callback_on_step_end_tensor_inputs": "callback_on_step_end= alone, which gets a Progress",
        "on_step": "callback_on_step_end=",
        "prompt_embeds": "prompt=, a text",
        "condition": "prompt=, negative_prompt=, guidance_scale= and the guidance images",
        "precision": "torch_dtype=torch.bfloat16 or torch.float32",
        "quantization_config": "quantize='8bit', '4bit' or 'int8'",
    }
)
"""Arguments of `Inpainter` and of diffusers that the pipeline lacks, and what to give in their place."""

PRECISIONS: dict[torch.dtype | None, Precision] = {None: "32", torch.float32: "32", torch.bfloat16: "bf16"}


def explained(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """As `understood`, with the names of the pipeline."""
    return understood(function, ADVICE)


@contextmanager
def renamed() -> Iterator[None]:
    """Errors name the arguments of the pipeline, and the inpainter for options that the pipeline lacks."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace("num_samples is ", "num_images_per_prompt is ")
        message = re.sub(r"^steps is ", "num_inference_steps is ", message)
        message = re.sub(r"\b(mask_\w+=[^ ,;)]+)", r"\1 to pipe.inpainter", message)
        if message == str(error):
            raise
        raise ValueError(message) from error


def at_revision(source: str | PathLike[str], revision: str | None) -> str | PathLike[str]:
    """A hub id with its revision. Raises ValueError for the revision of a local path."""
    if revision is None:
        return source
    if located(str(source)).exists():
        raise ValueError(f"{source} is a local path, so revision={revision!r} has no effect: leave it out")
    return f"{source}@{revision}"


def to_precision(dtype: torch.dtype | None) -> Precision:
    """Raises ValueError for another dtype than float32 and bfloat16."""
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype is {dtype!r}; RAD runs in torch.float32 or torch.bfloat16")
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

    Raises ValueError for another number of entries than images, or an empty list of prompts.
    """
    prompts = fields["prompt"]
    if isinstance(prompts, list | tuple) and not prompts:
        raise ValueError("prompt is an empty list: give at least one, or None")
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
