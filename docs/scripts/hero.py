"""The picture at the top of README: three photographs of the gallery, damaged above and restored below.

python docs/scripts/hero.py
"""

from gallery import restored
from pictures import grid, save


def main() -> None:
    columns = [restored(name) for name in ("scratched", "lettered", "badge")]
    save(grid([[column[row] for column in columns] for row in range(2)]), "hero.webp", quality=80)


if __name__ == "__main__":
    main()
