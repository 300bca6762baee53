"""The picture at the top of README: three photographs of the gallery, damaged above and restored below.

python docs/scripts/hero.py
"""

from gallery import restored
from pictures import grid, save

SHOWN = {"scratched": 0, "lettered": 0, "badge": 1}
"""Cases of the gallery, and the sample of each."""


def main() -> None:
    """Write docs/images/hero.webp."""
    columns = [(images[0], images[1 + sample]) for images, sample in ((restored(name), SHOWN[name]) for name in SHOWN)]
    save(grid([[column[row] for column in columns] for row in range(2)]), "hero.webp", quality=80)


if __name__ == "__main__":
    main()
