"""Draws docs/images/sizes.webp: the part of an image that the network sees with each size policy. Loads no model.

With --large also docs/images/sizes-large.webp: a large hole filled with each policy, by the model checkpoints/photos.

python docs/scripts/sizes.py --large
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from rad.inpainting.canvas.outpaint import Extension
from rad.inpainting.canvas.resize import mean_pool
from rad.inpainting.canvas.windows import Box, plan_windows
from rad.inpainting.canvas.zoom import zoom_region

MODEL = 128
"""Side of the model's images in this picture, in pixels."""

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "docs" / "images" / "sizes.webp"
LARGE = ROOT / "docs" / "images" / "sizes-large.webp"
CHECKPOINT = ROOT / "checkpoints" / "photos"
BLUE, RED = "#1f77ff", (230, 40, 40)


def holes() -> np.ndarray:
    """A long scratch and a small spot on the photograph, (300,451) bool."""
    rows, columns = np.mgrid[:300, :451]
    scratch = (np.abs(rows - 130 - 0.35 * (columns - 150)) < 7) & (columns > 150) & (columns < 300)
    return scratch | ((rows - 70) ** 2 + (columns - 370) ** 2 < 14**2)


def painted(photo: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The photograph (H,W,3) with its hole (H,W) in red."""
    return np.where(hole[..., None], np.uint8(RED), photo)


def show(axes: Axes, picture: np.ndarray, title: str, boxes: list[Box]) -> None:
    """A picture with the network's input areas as frames."""
    axes.imshow(picture)
    axes.set_title(title, fontsize=9, loc="left")
    axes.axis("off")
    for top, left, bottom, right in boxes:
        corner, sides = (left - 0.5, top - 0.5), (right - left, bottom - top)
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor="white", linewidth=3))
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=BLUE, linewidth=1.6))


def main() -> None:
    matplotlib.use("Agg")
    photo, hole = skimage.data.chelsea(), holes()
    values = hole[None].astype(np.float32)
    zoomed = zoom_region(values, (MODEL, MODEL), margin=16)
    assert zoomed is not None
    small = mean_pool(np.moveaxis(photo, 2, 0).astype(np.float32), (MODEL, MODEL)).transpose(1, 2, 0).astype(np.uint8)
    small_hole = mean_pool(values, (MODEL, MODEL))[0] > 0

    extended, new = extend(photo, Extension.parse("0,0,96,0"))
    figure, panels = pyplot.subplots(2, 2, figsize=(8, 5.9), dpi=100, facecolor="white")
    crop = [window.window for window in plan_windows(hole, size=MODEL, margin=MODEL // 8)]
    show(panels[0, 0], painted(photo, hole), f"crop: {len(crop)} windows at full resolution", crop)
    show(panels[0, 1], painted(photo, hole), "zoom with --margin 16: one region, scaled", [zoomed])
    show(panels[1, 0], painted(small, small_hole), "resize: the whole image, scaled", [(0, 0, MODEL, MODEL)])
    outpainted = [window.window for window in plan_windows(new, size=MODEL, margin=MODEL // 8)]
    title = f"--extend 0,0,96,0 with crop: {len(outpainted)} windows"
    show(panels[1, 1], painted(extended, new), title, outpainted)
    figure.tight_layout()
    figure.savefig(OUTPUT, pil_kwargs={"quality": 85})
    if "--large" in sys.argv[1:]:
        large()


def large() -> None:
    """A hole of about 100 x 130 pixels in a photograph, and its fill with each policy."""
    from rad import Inpainter

    photo = skimage.data.chelsea()
    rows, columns = np.mgrid[: photo.shape[0], : photo.shape[1]]
    hole = ((rows - 225) / 50) ** 2 + ((columns - 90) / 65) ** 2 < 1
    inpainter = Inpainter.from_pretrained(CHECKPOINT, device="cpu")
    figure, panels = pyplot.subplots(2, 2, figsize=(8, 5.6), dpi=100, facecolor="white")
    show(panels[0, 0], painted(photo, hole), "a hole of 100x130 pixels", [])
    for panel, policy in zip(panels.flat[1:], ("crop", "zoom", "pyramid"), strict=True):
        result = inpainter(photo, hole.astype(np.float32), size_policy=policy, names="chelsea.png")
        show(panel, np.asarray(result.images[0]), f"{policy}: {result.nfe} network calls", [])
    figure.tight_layout()
    figure.savefig(LARGE, pil_kwargs={"quality": 85})


def extend(photo: np.ndarray, extension: Extension) -> tuple[np.ndarray, np.ndarray]:
    """The photograph with new black pixels, and where these are, (H,W) bool."""
    sides = ((extension.top, extension.bottom), (extension.left, extension.right))
    new = np.pad(np.zeros(photo.shape[:2], bool), sides, constant_values=True)
    return np.pad(photo, (*sides, (0, 0))), new


if __name__ == "__main__":
    main()
