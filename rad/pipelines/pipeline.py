"""The `custom_pipeline` of diffusers; saved pipelines have a copy. It needs the package rad-inpainting."""

from rad.pipelines import RADInpaintPipeline

__all__ = ["RADInpaintPipeline"]
