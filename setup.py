"""Build step: copies configurations, small checkpoints and the tested versions into the wheel as rad/_data.

An editable install needs no copy: `rad.resources` finds the files of the checkout.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("base-nature32", "features-nature64", "photos", "photos-turbo", "rad-nature32")
"""Checkpoints in the wheel, 32 MB. Ablations and latent models are in the checkout only."""


class BuildWithData(build_py):
    """build_py, with rad/_data/configs and rad/_data/checkpoints."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target in self._data().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)  # pyright: ignore[reportArgumentType]
        return outputs if self.editable_mode else [*outputs, *map(str, self._data().values())]

    def _data(self) -> dict[Path, Path]:
        """Files of the checkout, and their paths in the build folder."""
        files = [path for path in Path("configs").iterdir() if path.suffix in (".yaml", ".json")]
        files += [Path("constraints.txt"), Path("constraints-lowest.txt")]
        for name in SHIPPED:
            files += [path for path in Path("checkpoints", name).rglob("*") if path.is_file() and path.suffix != ".png"]
        return {path: Path(self.build_lib, "rad", "_data", path) for path in sorted(files)}


setup(cmdclass={"build_py": BuildWithData})
