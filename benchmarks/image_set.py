"""Writes the images of a comparison: middle squares of photographs, at the model's size, as PNG.

    python benchmarks/image_set.py --source nature64_val.zip --size 32 --count 200 --output runs/images32

The photographs are evenly spread over the source. With `--captions`, OUTPUT.json holds the text of each image.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageOps

from rad.data.captions import read_captions
from rad.images.sources import ImageFile, list_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of any depth, or zip")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--count", type=int, help="number of images (default: all)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--captions", help="captions file of a training: also writes OUTPUT.json, for --prompts of sample.py"
    )
    options = parser.parse_args()
    captions = None if options.captions is None else read_captions(options.captions)
    images = list_images(options.source)
    chosen = spread(images, options.count)
    options.output.mkdir(parents=True, exist_ok=True)
    texts = {}
    for image in chosen:
        name = f"{Path(image.name).stem}.png"
        square(image, (options.size, options.size)).save(options.output / name)
        if captions is not None:
            texts[name] = captions(image.name)
    if captions is not None:
        Path(f"{options.output}.json").write_text(json.dumps(texts, indent=2) + "\n")
    print(f"{len(chosen)} of {len(images)} images in {options.output}")


def spread(images: Sequence[ImageFile], count: int | None) -> list[ImageFile]:
    """`count` images, evenly spread; all if it is None or exceeds their number."""
    count = len(images) if count is None else min(count, len(images))
    return [images[number * len(images) // count] for number in range(count)]


def square(image: ImageFile, size: tuple[int, int]) -> Image.Image:
    """The middle of an image, reduced to (height, width) pixels."""
    return ImageOps.fit(image.open(), size[::-1], Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
