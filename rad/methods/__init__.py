"""Methods by name: RAD, and zero-shot methods as callbacks of the sampler or as loops of their own."""

from rad.methods.biharmonic import Biharmonic
from rad.methods.grow import Grow
from rad.methods.growrad import GrowRAD
from rad.methods.mean import Mean
from rad.methods.rad import RAD
from rad.methods.replacement import Replacement
from rad.methods.tdpaint import TDPaint
from rad.sampler import Method

METHODS: dict[str, type[Method]] = {
    kind.__name__.lower(): kind
    for kind in (
        RAD,
        TDPaint,
        GrowRAD,
        Replacement,
        Grow,
        Mean,
        Biharmonic,
    )
}
