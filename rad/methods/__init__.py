"""Methods by name: RAD, and zero-shot methods as callbacks of the sampler or as loops of their own."""

from rad.methods.rad import RAD
from rad.methods.replacement import Replacement
from rad.sampler import Method

METHODS: dict[str, type[Method]] = {
    kind.__name__.lower(): kind
    for kind in (
        RAD,
        Replacement,
    )
}
