"""Measures the texture in the holes of a comparison; a fill with less than the originals is too smooth.

    python benchmarks/texture.py --results runs/compare --reference runs/images32 --mask box

Prints the mean square of the Laplacian in the hole, images in [-1,1]: of each method, and of the originals of its images.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, required=True, help="output folder of `rad sample` with several methods"
    )
    parser.add_argument("--reference", type=Path, required=True, help="folder of the originals, PNG")
    parser.add_argument("--mask", required=True, help="name of a mask set in --results")
    options = parser.parse_args()
    root = options.results / options.mask
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name != "masks"):
        names = [path.name for path in sorted(folder.glob("*.png")) if not path.stem.endswith("-raw")]
        inside = {name: binary_erosion(np.asarray(Image.open(root / "masks" / name)) > 0) for name in names}
        method, originals = (
            np.mean([squared_laplacian(source / name)[inside[name]].mean() for name in names if inside[name].any()])
            for source in (folder, options.reference)
        )
        print(f"{folder.name}: {method:.3f}, originals {originals:.3f}, {len(names)} images")


def squared_laplacian(path: Path) -> np.ndarray:
    """(H,W): mean over RGB of the squared Laplacian, image in [-1,1]; zero on the outermost ring."""
    x = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) / 127.5 - 1
    square = np.zeros(x.shape[:2])
    laplacian = 4 * x[1:-1, 1:-1] - x[2:, 1:-1] - x[:-2, 1:-1] - x[1:-1, 2:] - x[1:-1, :-2]
    square[1:-1, 1:-1] = (laplacian**2).mean(-1)
    return square


if __name__ == "__main__":
    main()
