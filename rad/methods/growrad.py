"""RAD with a schedule that fills the hole from its boundary inwards. Needs a network that reads a noise level per pixel.

Inferred from the abstract of Growing Images: Spatial Scheduling in Diffusion Inpainting (ICML 2026 workshop, OpenReview
6VOu2xvsbd). Each pixel goes through the whole DDPM schedule, but bands of the hole start one after another. Bands near known
pixels finish first, and the rest sees them clean.
"""

from dataclasses import dataclass

from rad.diffusion.levels import NoiseRegions
from rad.diffusion.processes import Bands, Process, TimeOrigin, get_betas
from rad.masks.fill_order import fill_order
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.task import Task


@dataclass(frozen=True)
class GrowRAD(SamplingMethod):
    """Adapters are trained on two levels per image; here they read up to bands + 1. Soft masks are filled completely.

    An image without known pixels is one band, with only its share of the steps.
    """

    paper = "after Growing Images 2026, OpenReview 6VOu2xvsbd"
    uses_strength = False  # bands that go first would keep their content
    reconstructed = True
    weights = "adapter"
    soft = False

    bands: int = setting(4, "number of parts of the hole, of equal area", low=1)
    overlap: float = setting(
        0.5, "0: a band starts when the previous one is clean; 1: all together (RAD)", low=0, high=1
    )

    def process(self, base_process: Process, time_origin: TimeOrigin) -> Process:
        return Bands(get_betas(base_process), bands=self.bands, overlap=self.overlap, time_origin=time_origin)

    def regions(self, task: Task) -> NoiseRegions:
        return NoiseRegions.from_mask(fill_order(task.hole, self.bands))
