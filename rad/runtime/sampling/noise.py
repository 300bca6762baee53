"""Keyed noise without torch: the draws of `rad.rng.KeyedNoise` on the CPU, to float32 rounding.

PyTorch's CPU generator is mt19937 (Matsumoto, Nishimura 1998), seeded by the low 32 bits of the seed. Its normal numbers are
those of Box and Muller (1958): n, n' = sqrt(-2 ln u1) (cos, sin)(2 pi u2). The uniform numbers are exact here; logarithm and
cosine differ in the last bits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rad.keys import Part, check_seed, identity, key

BLOCK = 16
"""Normal numbers that PyTorch computes together: 8 cosines, then 8 sines."""


class KeyedNoise:
    """Standard normal images for a batch, keyed by (seed, image id, sample number, draw number).

    Args:
        seed: whole number, see `rad.keys.check_seed`.
        images: (B) identity of each image; samples: (B) sample numbers.

    Raises ValueError for an unsuitable seed or identity.
    """

    def __init__(self, seed: int, images: Sequence[Part], samples: Sequence[int]) -> None:
        self.seed = check_seed(seed)
        self.rows = [(identity(image), sample) for image, sample in zip(images, samples, strict=True)]

    def randn(self, number: int, shape: Sequence[int]) -> NDArray[np.float32]:
        """Draw `number` for every image: (B, *shape) float32."""
        return np.stack([randn(key(self.seed, image, sample, number), shape) for image, sample in self.rows])


def randn(seed: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal float32 numbers of `shape`, as torch.randn of a CPU generator with this seed."""
    count = int(np.prod(shape))
    words = np.random.RandomState(seed & 0xFFFFFFFF)  # the same state as PyTorch's generator
    normal = _few(words, count) if count < BLOCK else _blocks(uniforms(words, count), words)
    return normal.reshape(tuple(shape))


def uniforms(words: np.random.RandomState, count: int) -> NDArray[np.float32]:
    """(count,) float32 in [0,1): the low 24 bits of each 32-bit number, divided by 2^24."""
    drawn = np.frombuffer(words.bytes(4 * count), "<u4") & np.uint32(2**24 - 1)
    return drawn.astype(np.float32) * np.float32(2**-24)


def _blocks(uniform: NDArray[np.float32], words: np.random.RandomState) -> NDArray[np.float32]:
    """Normal numbers from uniform numbers, 16 at a time. An incomplete last block is drawn anew, with the numbers before it."""
    whole = len(uniform) // BLOCK * BLOCK
    normal = _box_muller(uniform[:whole])
    if whole == len(uniform):
        return normal
    return np.concatenate([normal[: len(uniform) - BLOCK], _box_muller(uniforms(words, BLOCK))])


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    first, second = np.moveaxis(uniform.reshape(-1, 2, BLOCK // 2), 1, 0)
    radius = np.sqrt(np.float32(-2) * np.log(1 - first))
    angle = np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()


def _few(words: np.random.RandomState, count: int) -> NDArray[np.float32]:
    """Fewer than 16 normal numbers, in pairs, from uniform numbers of 53 bits."""
    pairs = -(-count // 2)
    halves = np.frombuffer(words.bytes(16 * pairs), "<u4").astype(np.uint64).reshape(pairs, 2, 2)
    drawn = (halves[..., 0] << np.uint64(32) | halves[..., 1]) & np.uint64(2**53 - 1)
    angle, second = (drawn * 2.0**-53).T
    radius = np.sqrt(-2 * np.log1p(-second))
    normal = np.stack([radius * np.cos(2 * np.pi * angle), radius * np.sin(2 * np.pi * angle)], 1)
    return normal.ravel()[:count].astype(np.float32)
