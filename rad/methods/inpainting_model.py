"""Networks trained for inpainting: Stable Diffusion's inpainting models (Rombach et al. 2022, arXiv 2112.10752, section 4.5).

The network reads the hole and the known pixels beside x. The plain reverse process fills the hole.
"""

from dataclasses import dataclass

from rad.diffusion.denoiser import Denoiser, InpaintingDenoiser
from rad.sampling.method import SamplingMethod
from rad.sampling.task import Task


@dataclass(frozen=True)
class InpaintingModel(SamplingMethod):
    """Has no settings. The preset has the steps and the solver of diffusers' pipelines, with spacing "trailing".

    Differences from diffusers: the known pixels are encoded as the mean of the encoder's distribution, not as a draw. Grey
    pixels of a mask belong to the hole.
    """

    paper = "Rombach et al. 2022, arXiv 2112.10752, 4.5"
    preset_steps = 50
    preset_eta = 0.0
    preset_solver = "ddim"
    preset_spacing = "trailing"
    weights = "inpainting"
    keeps_known = False
    multistep = True
    soft = False

    def view(self, denoiser: Denoiser, task: Task) -> Denoiser:
        if not isinstance(denoiser, InpaintingDenoiser):
            raise ValueError(
                f"method {self.name!r} needs a network trained for inpainting, whose input contains the hole"
            )
        hole = (task.image_hole > 0).to(task.image.dtype)
        return denoiser.for_hole(task.image * (1 - hole), hole)
