"""Methods by name: RAD, zero-shot methods (hooks of the sampler, or their own loop), and baselines.

Example:
    method = RePaint(jump_length=5)                        # a frozen dataclass of settings
    sampler = Sampler(process, method, steps=50)
    METHODS["repaint"].paper                               # its source
"""

from rad.methods.biharmonic import Biharmonic
from rad.methods.blended import Blended
from rad.methods.blended_latent import BlendedLatent
from rad.methods.copaint import CoPaint
from rad.methods.daps import DAPS
from rad.methods.ddnm import DDNM
from rad.methods.ddrm import DDRM
from rad.methods.differential import Differential
from rad.methods.diffpir import DiffPIR
from rad.methods.ding import DInG
from rad.methods.dps import DPS
from rad.methods.flair import FLAIR
from rad.methods.flowchef import FlowChef
from rad.methods.flowdps import FlowDPS
from rad.methods.gradpaint import GradPaint
from rad.methods.grow import Grow
from rad.methods.growrad import GrowRAD
from rad.methods.inpainting_model import InpaintingModel
from rad.methods.lama import LaMa
from rad.methods.lanpaint import LanPaint
from rad.methods.latino import LATINO
from rad.methods.m2s import M2S
from rad.methods.mcg import MCG
from rad.methods.mcgdiff import MCGDiff
from rad.methods.mean import Mean
from rad.methods.navier_stokes import NavierStokes
from rad.methods.own import register
from rad.methods.pigdm import PiGDM
from rad.methods.pilot import PILOT
from rad.methods.pnpflow import PnPFlow
from rad.methods.psld import PSLD
from rad.methods.rad import RAD
from rad.methods.reddiff import REDDiff
from rad.methods.repaint import RePaint
from rad.methods.replacement import Replacement
from rad.methods.resample import ReSample
from rad.methods.tdpaint import TDPaint
from rad.methods.telea import Telea
from rad.methods.vipaint import VIPaint
from rad.sampling.method import Method, name_of

__all__ = ["METHODS", "register"]

METHODS: dict[str, type[Method]] = {
    name_of(kind): kind
    for kind in (
        RAD,
        TDPaint,
        GrowRAD,
        Replacement,
        Blended,
        BlendedLatent,
        Differential,
        RePaint,
        LanPaint,
        DDRM,
        DDNM,
        DiffPIR,
        DAPS,
        DInG,
        FlowChef,
        FlowDPS,
        PnPFlow,
        FLAIR,
        LATINO,
        REDDiff,
        MCG,
        DPS,
        PSLD,
        ReSample,
        PiGDM,
        GradPaint,
        CoPaint,
        VIPaint,
        PILOT,
        MCGDiff,
        M2S,
        Grow,
        InpaintingModel,
        Mean,
        Biharmonic,
        Telea,
        NavierStokes,
        LaMa,
    )
}
