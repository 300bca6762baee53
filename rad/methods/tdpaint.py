"""TD-Paint: Faster Diffusion Inpainting Through Time-Aware Pixel Conditioning. Mayet et al., ICLR 2025, arXiv 2410.09306.

Every pixel has its own whole step of the DDPM schedule: t in the hole, none where the image is known; a plain reverse
process of the hole. It runs on weights that were trained on per-pixel noise: an adapter. Hook: none.
"""

from dataclasses import dataclass

from rad.diffusion.processes import PerPixel, Process, TimeOrigin, get_betas
from rad.sampling.method import SamplingMethod


@dataclass(frozen=True)
class TDPaint(SamplingMethod):
    """For a mask of 0 and 1 the levels and times are RAD's.

    It knows no soft masks: a pixel with a hole value above 0 is filled altogether. The network mixes the embeddings of the
    two times at borders, as RAD does; the official one resizes the map of times, and so makes times between them.
    """

    paper = "Mayet et al. 2025, arXiv 2410.09306"
    preset_steps = 250
    weights = "adapter"
    multistep = True
    fractional = True

    def process(self, base_process: Process, time_origin: TimeOrigin) -> Process:
        return PerPixel(get_betas(base_process), time_origin=time_origin)
