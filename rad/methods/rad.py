"""RAD. Kim, Suh, Lee, RAD: Region-Aware Diffusion Models for Image Inpainting, CVPR 2025, arXiv 2412.09191.

Every pixel has its own noise level and the network is told all of them, so the plain reverse process fills the hole.
Hook: none.
"""

from dataclasses import dataclass

from rad.diffusion.processes import Process, TimeOrigin, region_aware
from rad.sampling.method import SamplingMethod


@dataclass(frozen=True)
class RAD(SamplingMethod):
    """No settings: the method lies in the process and in the adapter.

    The paper samples with DDPM on evenly spaced times (solver "ddpm", spacing "even"). The preset is a second-order solver
    on levels evenly spaced in log(a / s): at 10 network calls it has the texture that DDPM lacks at 50 (docs/results.md).
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
