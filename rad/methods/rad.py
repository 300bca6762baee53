"""RAD: Region-Aware Diffusion Models for Image Inpainting (Kim, Suh, Lee, CVPR 2025, arXiv 2412.09191).

The network reads a noise level for each pixel, and the plain reverse process fills the hole.
"""

from dataclasses import dataclass

from rad.diffusion.processes import Process, TimeOrigin, region_aware
from rad.sampling.method import SamplingMethod


@dataclass(frozen=True)
class RAD(SamplingMethod):
    """Has no settings: the process and the adapter are the method.

    The paper samples with solver "ddpm" and spacing "even". The preset is a second-order solver, even in log(a / s): its 10 NFE
    give the texture that DDPM lacks at 50 NFE (docs/results/results.md).
    """

    paper = "Kim, Suh, Lee 2025, arXiv 2412.09191"
    preset_steps = 20
    preset_eta = 0.0
    preset_solver = "dpm++2m"
    preset_spacing = "logsnr"
    weights = "adapter"
    multistep = True
    fractional = True

    def process(self, base_process: Process, time_origin: TimeOrigin) -> Process:
        return region_aware(base_process, time_origin=time_origin)
