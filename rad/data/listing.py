"""Images of a source: those inside scikit-image, a part held out for validation, hashes for a resume."""

from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import numpy as np

from rad.data.stream import Source
from rad.images.sources import Decoded, Gathered, ImageFile, list_images
from rad.rng import key, key_of

# Colour photographs inside the scikit-image wheel; the motorcycles are two views of one scene.
SKIMAGE_TRAIN = ("astronaut.png", "chelsea.png", "hubble_deep_field.jpg", "motorcycle_left.png", "motorcycle_right.png")
SKIMAGE_HELD_OUT = ("coffee.png", "rocket.jpg")

CHECKED = 64
"""Number of training images whose content is compared with the checkpoint's at a resume."""


def list_source(source: str, *, held_out: bool = False) -> Sequence[ImageFile]:
    """Images as of `list_images`, or one part of the photographs inside scikit-image ("skimage")."""
    if source != "skimage":
        return list_images(source)
    folder = Path(str(files("skimage"))) / "data"
    return [ImageFile(name, folder / name) for name in (SKIMAGE_HELD_OUT if held_out else SKIMAGE_TRAIN)]


def hold_out(images: Sequence[Source], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending numbers of the rest, and of the `count` images with the smallest name hash. A new image moves at most one."""
    if count >= len(images):
        raise ValueError(f"val_count={count} leaves none of {len(images)} images to train on: lower it or set val_path")
    hashes = np.fromiter((key("held out", image.name) for image in images), np.int64, len(images))
    ranked = np.argsort(hashes, kind="stable")
    return np.sort(ranked[count:]), np.sort(ranked[:count])


def hash_images(images: Sequence[Source], *, in_memory: bool) -> dict[str, str]:
    """Hashes of all names, and of up to `CHECKED` images: of their files, or of the pixels of images in memory."""
    numbers = np.linspace(0, len(images) - 1, min(CHECKED, len(images))).astype(int)
    content = f"{key_of(_digest(images[number]) for number in numbers.tolist()):016x}"
    names = f"{key_of(image.name for image in images):016x}"
    return {"names_hash": names, "pixels_hash" if in_memory else "content_hash": content}


def _digest(image: Source) -> str:
    """Hash of an image's file, or of the pixels of one in memory; "" if it cannot be read."""
    if isinstance(image, Decoded):
        return sha256(image.image.tobytes()).hexdigest()
    try:
        file = image.file()
        return sha256(file.read_bytes() if isinstance(file, Path) else file.getvalue()).hexdigest()
    except (OSError, ValueError):
        return ""


def choose(images: Sequence[Source], numbers: np.ndarray) -> Sequence[Source]:
    """The images of these numbers."""
    if isinstance(images, list):
        return [images[number] for number in numbers]
    return Gathered([images], numbers)
