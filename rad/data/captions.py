"""Texts for images: their folder's name as the name of a class, or a file of texts."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from rad.resources import located


@dataclass(frozen=True)
class Captions:
    """The text of an image by its name.

    Args:
        source: what was given, for messages.
        texts: by names of images (as in batches, or without the folders) or of their folders, in this order; None: the name
            of an image's folder is its text.
    """

    source: str
    texts: Mapping[str, str] | None

    def __call__(self, name: str) -> str:
        """Raises ValueError for an image without a text."""
        path = PurePosixPath(name)
        if self.texts is None:
            if path.parent.name in ("", ".", ".."):
                raise ValueError(
                    f"image {name} lies in no folder whose name could be its text: set data.captions to null"
                )
            return path.parent.name.replace("_", " ")
        found = next((key for key in (name, path.name, path.parent.name) if key in self.texts), None)
        if found is None:
            raise ValueError(f"{self.source} has no text for image {name}, nor for its folder: add one")
        return self.texts[found]

    def require(self, names: Iterable[str]) -> None:
        """Raises ValueError if one of these images has no text."""
        for name in names:
            self(name)


def read_captions(source: str) -> Captions:
    """Captions by what is called `data.captions`.

    Args:
        source: "folder"; a .json file, {"name": "text"}; or a .jsonl file of {"file_name": "name", "text": "text"}, as
            Hugging Face's image folders have. Names are of images, or of folders that are classes.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or does not hold texts.
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
    return Captions(source, texts)
