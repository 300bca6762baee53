"""RAD in diffusers' form: a `DiffusionPipeline` around an `Inpainter`.

Example:
    pipe = RADInpaintPipeline.from_pretrained("rad-nature32")
    seeded = torch.Generator().manual_seed(0)
    pipe(image=image, mask_image=mask, num_inference_steps=20, generator=seeded).images[0].save("filled.png")
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.pipelines.inpaint import RADInpaintPipeline
    from rad.pipelines.output import RADInpaintPipelineOutput

__all__ = ["RADInpaintPipeline", "RADInpaintPipelineOutput"]

__getattr__ = lazy_names(__name__, {"inpaint": "RADInpaintPipeline", "output": "RADInpaintPipelineOutput"})
