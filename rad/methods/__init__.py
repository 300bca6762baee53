"""Zero-shot methods by name, as callbacks of the sampler; "rad" is the loop with no callback."""

from collections.abc import Callable

from rad.methods.replacement import Replacement
from rad.sampler import SamplingCallback

METHODS: dict[str, Callable[[], SamplingCallback] | None] = {
    "rad": None,
    "replacement": Replacement,
}
