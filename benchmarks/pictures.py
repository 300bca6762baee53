"""Writes the pictures of a comparison: evenly spread over a folder or zip, the middle square, at the model's size, as PNG.

python benchmarks/pictures.py --source nature64_val.zip --size 32 --count 200 --output runs/pictures32
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image, ImageOps

from rad.pictures import list_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="folder of any depth, or zip")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--count", type=int, help="all if not given")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    pictures = list_pictures(options.source)
    count = len(pictures) if options.count is None else min(options.count, len(pictures))
    options.output.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = pictures[number * len(pictures) // count]
        square = ImageOps.fit(picture.open(), (options.size, options.size), Image.Resampling.LANCZOS)
        square.save(options.output / f"{Path(picture.name).stem}.png")
    print(f"{count} of {len(pictures)} pictures in {options.output}")


if __name__ == "__main__":
    main()
