"""TD-Paint: Faster Diffusion Inpainting Through Time-Aware Pixel Conditioning (Mayet et al., ICLR 2025, arXiv 2410.09306).

Each pixel has its own step of the DDPM schedule: t in the hole, none at known pixels. The plain reverse process fills the
hole. The weights were trained on per-pixel noise (an adapter).
"""

from dataclasses import dataclass

from rad.diffusion.processes import PerPixel, Process, TimeOrigin, get_betas
from rad.sampling.method import SamplingMethod


@dataclass(frozen=True)
class TDPaint(SamplingMethod):
    """For a binary mask, levels and timesteps are RAD's. Soft masks: a pixel with a hole value above 0 is filled completely.

    At borders the network mixes the embeddings of the two timesteps, as RAD does. The official network resizes the timesteps.
    """

    paper = "Mayet et al. 2025, arXiv 2410.09306"
    preset_steps = 250
    weights = "adapter"
    multistep = True
    fractional = True
    soft = False

    def process(self, base_process: Process, time_origin: TimeOrigin) -> Process:
        return PerPixel(get_betas(base_process), time_origin=time_origin)
