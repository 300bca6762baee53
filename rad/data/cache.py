"""Encodings on disk: latents of images and embeddings of texts, computed once and then read."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rad.images.atomic import replacing

_DIGEST = 32


@dataclass(frozen=True)
class EncodingCache:
    """Keeps tensors in files of a folder. Several processes may share it; a damaged file is computed again.

    The key contains all inputs of the encoding, so an entry cannot be out of date. The folder may be deleted at any time.
    A folder that cannot be written causes a warning.
    """

    folder: Path

    def __call__(self, key: str, build: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """The tensors of `key`, on the CPU.

        Args:
            key: everything that the tensors depend on.
            build: computes them, at the first use; on any device.
        """
        name = sha256(key.encode()).hexdigest()
        file = self.folder / name[:2] / f"{name[2:]}.tensors"
        tensors = _read(file)
        if tensors is None:
            tensors = [tensor.detach().cpu().contiguous() for tensor in build()]
            data = save({str(number): tensor for number, tensor in enumerate(tensors)})
            try:
                with replacing(file) as temporary:
                    temporary.write_bytes(sha256(data).digest() + data)
            except OSError as error:  # the tensors are at hand, so the run goes on
                reason = error.strerror or error
                warnings.warn(
                    f"data.cache={self.folder} cannot be written ({reason}): missing entries are computed at every use",
                    stacklevel=1,  # one place, so one warning
                )
        return tensors


def _read(file: Path) -> list[Tensor] | None:
    """The tensors of a file; None if it is absent, damaged, or cannot be read."""
    try:
        content = file.read_bytes()
        digest, data = content[:_DIGEST], content[_DIGEST:]
        if sha256(data).digest() != digest:
            return None
        named = load(data)
    except (OSError, SafetensorError):
        return None
    return [named[str(number)] for number in range(len(named))]
