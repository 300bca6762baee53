"""RAD without torch: images are filled with NumPy and ONNX Runtime; `export` alone needs torch.

Example:
    inpainter = OnnxInpainter.from_pretrained("rad-onnx")     # a folder of `rad export CHECKPOINT --onnx rad-onnx`
    result = inpainter("photo.png", "mask.png", size_policy="crop")   # white in the mask = fill
    result.images[0].save("filled.png")
"""

from typing import TYPE_CHECKING

from rad.lazy import lazy_names

if TYPE_CHECKING:
    from rad.runtime.inpainter import OnnxInpainter
    from rad.runtime.sampling.methods import RAD, RePaint

__all__ = ["RAD", "OnnxInpainter", "RePaint"]

__getattr__ = lazy_names(__name__, {"inpainter": "OnnxInpainter", "sampling.methods": "RAD RePaint"})
