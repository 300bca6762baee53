"""Names that options and help texts list; the modules that define them load torch. A test compares both."""

from typing import Literal

METHODS = (
    "rad", "tdpaint", "growrad", "replacement", "blended", "blended_latent", "differential", "repaint", "lanpaint",
    "ddrm", "ddnm", "diffpir", "daps", "ding", "flowchef", "flowdps", "pnpflow", "flair", "latino", "reddiff", "mcg",
    "dps", "psld", "resample", "pigdm", "gradpaint", "copaint", "vipaint", "pilot", "mcgdiff", "m2s", "grow",
    "inpainting_model", "mean", "biharmonic", "telea", "navier_stokes", "lama",
)  # fmt: skip

MASKS = (
    "box", "extreme", "center", "half", "expand", "lines", "superres", "pixels", "wide", "thin", "blobs", "perlin", "lettering",
    "photos",
)  # fmt: skip

Solver = Literal["ddpm", "ddim", "dpm++2m"]
Spacing = Literal["even", "trailing", "quad", "logsnr", "official"]
SizePolicy = Literal["error", "resize", "crop", "zoom", "pyramid"]
RuntimeName = Literal["auto", "torch", "onnx"]
Precision = Literal["32", "bf16"]
CompileMode = Literal["off", "default", "reduce-overhead"]
NoiseDevice = Literal["cpu", "device"]
GridRule = Literal["average", "bilinear", "nearest"]
Offload = Literal["model", "sequential"]
Quantize = Literal["8bit", "4bit", "int8"]
