"""Errors that several packages raise. Loads no torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class NotFiniteError(FloatingPointError, ValueError):
    """Images of a batch have values that are not finite (NaN or infinity).

    Args:
        reason: cause and advice; rows: numbers of the images in the batch; names: of the images of the batch, if known.
    """

    def __init__(self, reason: str, rows: Sequence[int] = (), names: Sequence[str] = ()) -> None:
        images = [(names[row] if names else "") or f"image {row + 1} of the batch" for row in rows]
        super().__init__(f"{', '.join(images)}: {reason}" if images else reason)
        self.reason, self.rows = reason, list(rows)


@contextmanager
def naming_images(names: Sequence[str]) -> Iterator[None]:
    """Context whose NotFiniteErrors name the images of a batch. Rows after the names are copies."""
    try:
        yield
    except NotFiniteError as error:
        rows = [row for row in error.rows if row < len(names)]
        raise NotFiniteError(error.reason, rows, names) from None
