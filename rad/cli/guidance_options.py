"""What images are to be filled with, as options of the command line: text, images that guide, and the networks for these."""

import argparse
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rad.images.sources import ImageFile
    from rad.models.loaded_model import Condition


IMAGES = {
    "control": ("controlnet", "the ControlNet, such as edges, white on black"),
    "adapter": ("t2i_adapter", "the T2I-Adapter"),
    "style": ("ip_adapter", "the IP-Adapter: what the filling is to be like"),
}
"""Kinds of images, with the option of their network."""


CONDITIONS = (
    "prompt",
    "negative",
    "guidance",
    *(f"{kind}_{part}" for kind in IMAGES for part in ("image", "scale")),
)


NETWORKS = ("controlnet", "t2i_adapter", "ip_adapter", "lora")
"""Names of options, that results which are to be compared have in common."""


def add_conditions(group: "argparse._ArgumentGroup") -> None:
    """The options CONDITIONS and NETWORKS."""
    group.add_argument("--prompt", default="", help="what to show in the holes of all images")
    group.add_argument(
        "--prompts", metavar="FILE.json", help='by name of the image: {"cat.png": "a cat"}; --prompt for the rest'
    )
    group.add_argument("--negative_prompt", dest="negative", default="", metavar="PROMPT", help="what not to show")
    group.add_argument(
        "--guidance",
        type=float,
        help="how much the prompt counts; 1: as it is; the model's own (7.5, XL 5, SD3 7, Flux 3.5) if not given",
    )
    for kind, (_, what) in IMAGES.items():
        group.add_argument(f"--{kind}_image", help=f"image (for all), or folder or archive (by name), for {what}")
        group.add_argument(f"--{kind}_scale", type=float, default=1.0, help="how much it counts; 0: not at all")
    group.add_argument("--controlnet", metavar="FOLDER", help="a ControlNet of diffusers")
    group.add_argument("--t2i_adapter", metavar="FOLDER", help="a T2I-Adapter of diffusers")
    group.add_argument("--ip_adapter", metavar="FILE", help=".safetensors, beside its folder image_encoder")
    group.add_argument(
        "--lora",
        nargs="+",
        action="extend",
        default=[],
        type=_lora,
        metavar="PATH[=WEIGHT]",
        help=".safetensors, or the folder of one; several add up",
    )


def check_conditions(options: argparse.Namespace) -> None:
    """Raises ValueError for images that are not there, or that no network is given for."""
    from rad.images.sources import is_source

    for kind, (network, _) in IMAGES.items():
        source = getattr(options, f"{kind}_image")
        if source is not None and getattr(options, network) is None:
            raise ValueError(f"--{kind}_image {source} needs --{network}")
        if source is not None and not is_source(source):
            raise ValueError(f"--{kind}_image {source}: no such file or folder")


def networks_of(options: argparse.Namespace) -> dict[str, Any]:
    """Keywords of `Inpainter.from_pretrained`."""
    return {
        "controlnet": options.controlnet,
        "t2i_adapter": options.t2i_adapter,
        "ip_adapter": options.ip_adapter,
        "loras": options.lora,
    }


def conditions_of(
    options: argparse.Namespace, names: Sequence[str], *, prompts: Sequence[str] | None = None
) -> list["Condition"]:
    """One for each image, by its name as in `rad.images.sources.stems`.

    Args:
        prompts: of each; None: --prompt for all.

    Raises:
        ValueError: an image that is not there, for an image or at all.
    """
    from rad.models.loaded_model import Condition

    made = []
    for name, prompt in zip(names, prompts or [options.prompt] * len(names), strict=True):
        images = {}
        for kind in IMAGES:
            source = getattr(options, f"{kind}_image")
            images[f"{kind}_image"] = None if source is None else _image_for(source, name, f"--{kind}_image")
        scales = {f"{kind}_scale": getattr(options, f"{kind}_scale") for kind in IMAGES}
        made.append(Condition(prompt, options.negative, options.guidance, **images, **scales))
    return made


def _image_for(source: str, name: str, option: str) -> Any:
    from rad.images.sources import holds_one, list_images

    if holds_one(source):
        return list_images(source)[0].open()
    found = _named(source, option).get(name)
    if found is None:
        raise ValueError(f"{option} {source} has no image for {name}: expected one of the same name")
    return found.open()


@lru_cache(maxsize=len(IMAGES))
def _named(source: str, option: str) -> "dict[str, ImageFile]":
    from rad.images.sources import by_stem, list_images

    return by_stem(list_images(source), where=f"{option} {source}", what="images")


def _lora(text: str) -> tuple[str, float]:
    path, equals, weight = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give PATH, or PATH=WEIGHT with a number") from None
