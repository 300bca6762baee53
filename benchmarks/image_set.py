"""Writes the images of a comparison: evenly spread over a folder or zip, the middle square, at the model's size, as PNG.

python benchmarks/image_set.py --source nature64_val.zip --size 32 --count 200 --output runs/images32
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageOps

from rad.data.captions import read_captions
from rad.images.sources import list_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of any depth, or zip")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--count", type=int, help="all if not given")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--captions", help="as data.captions of training: writes OUTPUT.json, for --prompts of sample.py"
    )
    options = parser.parse_args()
    captions = None if options.captions is None else read_captions(options.captions)
    images = list_images(options.source)
    count = len(images) if options.count is None else min(options.count, len(images))
    options.output.mkdir(parents=True, exist_ok=True)
    texts = {}
    for number in range(count):
        image = images[number * len(images) // count]
        square = ImageOps.fit(image.open(), (options.size, options.size), Image.Resampling.LANCZOS)
        name = f"{Path(image.name).stem}.png"
        square.save(options.output / name)
        if captions is not None:
            texts[name] = captions(image.name)
    if captions is not None:
        Path(f"{options.output}.json").write_text(json.dumps(texts, indent=2) + "\n")
    print(f"{count} of {len(images)} images in {options.output}")


if __name__ == "__main__":
    main()
