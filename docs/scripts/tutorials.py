"""Pictures of the tutorials: runs the code of the pages, and writes docs/images/tutorial-*.webp from its results.

    python docs/scripts/tutorials.py restore remove tune --work runs/tutorials     # quarter of an hour on two CPU cores

A page whose folder in --work is complete is not run again.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
PAGES = {"restore": "restore-a-photograph", "remove": "remove-an-object", "tune": "fine-tune"}
GAP = 8


def run(name: str, folder: Path) -> None:
    """Runs the code of a page in `folder`, without the programs that open a browser, and prints the seconds of each block."""
    from tests.pages import code, run_command, run_python, words_of

    page, names = f"tutorials/{PAGES[name]}.md", dict[str, object]()
    for language, block in code(page):
        start = time.perf_counter()
        if language == "python":
            names = run_python(page, block, names)
        else:
            for words in words_of(block):
                if words[0] != "studio":
                    run_command(words)
        print(f"{time.perf_counter() - start:6.1f} s  {block.splitlines()[0]}", flush=True)
    (folder / "complete").touch()


def beside(images: Sequence[Image.Image], *, scale: int = 1) -> Image.Image:
    """The images in a row with a transparent gap, each enlarged `scale` times."""
    images = [image.convert("RGBA").resize((image.width * scale, image.height * scale)) for image in images]
    row = Image.new("RGBA", (sum(image.width + GAP for image in images) - GAP, max(image.height for image in images)))
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + GAP
    return row


def below(rows: Sequence[Image.Image]) -> Image.Image:
    """Rows of images with a transparent gap."""
    page = Image.new("RGBA", (max(row.width for row in rows), sum(row.height + GAP for row in rows) - GAP))
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height + GAP
    return page


def save(image: Image.Image, name: str) -> None:
    path = IMAGES / f"tutorial-{name}.webp"
    image.save(path, quality=85, method=6)
    print(f"{path.relative_to(ROOT)}: {image.width}x{image.height}, {path.stat().st_size // 1024} KB")


def draw_restore(folder: Path) -> None:
    names = ("scan", "filled", "one", "telea", "biharmonic", "original")
    images = {name: Image.open(folder / f"{name}.png") for name in names}
    save(beside([images["scan"], images["filled"]]), "restore")
    overlays = [Image.open(folder / name / "scan-overlay.png") for name in ("overlay-drawn", "overlay")]
    save(beside([overlay.crop(FACE) for overlay in overlays], scale=2), "restore-mask")
    details = {name: image.crop(FACE) for name, image in images.items()}
    save(beside([details["scan"], details["filled"], details["original"]], scale=2), "restore-filled")
    save(beside([details["one"], details["telea"], details["biharmonic"]], scale=2), "restore-compare")


FACE = (96, 56, 256, 226)
"""The part of the scan of which details are shown: left, top, right, bottom."""


def draw_remove(folder: Path) -> None:
    names = ("photo", "first", "removed", "crop", "zoom", "telea")
    images = {name: Image.open(folder / f"{name}.png") for name in names}
    save(beside([images["photo"], images["removed"]]), "remove")
    save(beside([images[name].crop(LIGHTS) for name in ("first", "removed")], scale=2), "remove-samples")
    save(beside([images[name].crop(SKY) for name in ("crop", "zoom", "telea")], scale=2), "remove-compare")


SKY = (76, 10, 236, 310)
"""The part of the photograph around the tower."""
LIGHTS = (76, 170, 236, 320)
"""The part around the foot of the tower."""


def draw_tune(folder: Path) -> None:
    rows = []
    for path in sorted((folder / "held-out").iterdir())[:12:3]:
        photo, hole = Image.open(path), Image.open(folder / "before" / "box" / "masks" / path.name).convert("L")
        blank = Image.composite(Image.new("RGB", photo.size, (214, 60, 60)), photo, hole)
        results = [Image.open(folder / model / "box" / "rad" / path.name) for model in ("before", "after")]
        rows.append(beside([blank, *results, photo], scale=2))
    save(below(rows), "fine-tune")
    panel = Image.open(folder / "runs" / "bricks" / "panels" / "step=300.png")
    save(panel.resize((4 * panel.width, 4 * panel.height), Image.Resampling.NEAREST), "fine-tune-panel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", choices=PAGES)
    parser.add_argument("--work", type=Path, required=True, help="folder for the files of the pages")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # for tests.pages
    for name in options.pages:
        folder = options.work.resolve() / name
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        if not (folder / "complete").exists():
            run(name, folder)
        {"restore": draw_restore, "remove": draw_remove, "tune": draw_tune}[name](folder)


if __name__ == "__main__":
    main()
