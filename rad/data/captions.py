"""Texts of images: the name of their folder as class name, or a file of texts."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from unicodedata import normalize

from rad.resources import located


@dataclass(frozen=True)
class Captions:
    """The text of an image by its name.

    Args:
        source: the option, for messages.
        texts: by image path (as in batches), file name or folder name, in this order; in Unicode's form NFC. None: the
            folder's name.
    """

    source: str
    texts: Mapping[str, str] | None

    def __call__(self, name: str) -> str:
        """Raises ValueError for an image without a text."""
        name = normalize("NFC", name)
        path = PurePosixPath(name)
        if self.texts is None:
            if path.parent.name in ("", ".", ".."):
                raise ValueError(
                    f"image {name} lies in no folder whose name could be its text: set data.captions to null"
                )
            return path.parent.name.replace("_", " ")
        for key in (name, path.name, path.parent.name):
            if key in self.texts:
                return self.texts[key]
        raise ValueError(f"{self.source} has no text for image {name}, nor for its folder: add one")

    def require(self, names: Iterable[str]) -> None:
        """Raises ValueError if an image has no text."""
        for name in names:
            self(name)


def read_captions(source: str) -> Captions:
    """Captions from the option `data.captions`. Raises FileNotFoundError or ValueError for a missing or unsuitable file.

    Args:
        source: "folder"; a .json file, {"name": "text"}; or a .jsonl file of {"file_name": "name", "text": "text"}, as in Hugging
            Face's image folders. Names are of images, or of folders that are classes.
    """
    if source == "folder":
        return Captions(source, None)
    path = located(source)
    if not path.is_file():
        raise FileNotFoundError(f"captions {source!r} is no file: give 'folder', a .json or a .jsonl file")
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in content.split("\n") if line.strip()]
            texts = {row["file_name"]: row["text"] for row in rows}
        else:
            texts = dict(json.loads(content))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f'{path} cannot be read ({type(error).__name__}: {error}): write {{"name": "text", ...}}, or in a .jsonl file '
            'lines of {"file_name": "name", "text": "text"}'
        ) from error
    wrong = [name for name, text in texts.items() if not (isinstance(name, str) and isinstance(text, str))]
    if wrong:
        raise ValueError(f"{path}: the text of {wrong[0]!r} is no text, but {type(texts[wrong[0]]).__name__}")
    return Captions(source, {normalize("NFC", name): text for name, text in texts.items()})
