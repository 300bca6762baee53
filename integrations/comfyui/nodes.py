"""Nodes for ComfyUI: load a RAD model, fill the masked part of images.

ComfyUI's images are float tensors (B,H,W,C) in [0,1], its masks float tensors (B,H,W) with 1 = fill.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rad.inpainting import Inpainter, Progress
from rad.inpainting.canvas.layout import SizePolicy
from rad.inpainting.prepare import Precision
from rad.inpainting.runs import MODEL_FILES
from rad.methods import METHODS
from rad.models.loaded_model import Condition
from rad.resources import checkpoint_names, find_data
from rad.sampling.method import paths_of

try:
    import comfy.model_management as comfy_models
    import comfy.utils as comfy_utils
    import folder_paths
except ImportError:  # outside of ComfyUI, in tests
    comfy_models = comfy_utils = folder_paths = None

FOLDER, NAMED, AUTO = "rad", "named by adapter", "auto"
"""Folder of models in ComfyUI/models; choices that leave the base to the adapter, and the size policy to the model."""

if folder_paths is not None:
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))

PREVIEW_SECONDS, PREVIEW_SIDE = 1.0, 512
"""Least time between previews, and their longest side in pixels."""

ALLOWED = [name for name, kind in METHODS.items() if not paths_of(kind)]
"""Methods without paths among their settings, which nodes cannot give."""

Inputs = dict[str, dict[str, tuple[Any, ...]]]


def model_places() -> dict[str, Path]:
    """Folders of models by name: those in ComfyUI/models/rad, then the checkpoints that come with RAD."""
    places: dict[str, Path] = {}
    for root in [] if folder_paths is None else folder_paths.get_folder_paths(FOLDER):
        places = {path.name: path for path in sorted(Path(root).glob("[!.]*")) if path.is_dir()} | places
    for name in checkpoint_names():
        path = find_data(name)
        if path is not None and any((path / file).exists() for file in MODEL_FILES):
            places.setdefault(name, path)
    return places


class RADModelLoader:
    """Loads a RAD model, an adapter with its base, or a base model for zero-shot methods."""

    CATEGORY = "RAD"
    DESCRIPTION = "Loads a model for RAD Inpaint: from ComfyUI/models/rad, or one that comes with RAD."
    FUNCTION = "load"
    RETURN_TYPES = ("RAD_MODEL",)
    RETURN_NAMES = ("model",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        return {
            "required": {
                "model": (list(model_places()), {"tooltip": "A folder in ComfyUI/models/rad, or a model of RAD."}),
                "precision": (list(get_args(Precision)), {"tooltip": "bf16: the network runs in bfloat16."}),
            },
            "optional": {
                "base": (
                    [NAMED, *model_places()],
                    {"tooltip": "Base model of an adapter. By default the one that the adapter names."},
                ),
            },
        }

    def load(self, model: str, precision: Precision, base: str = NAMED) -> tuple[Inpainter]:
        """Load a model by its name in the list. Raises ValueError for another name."""
        places = model_places()
        for name in (model, *([] if base == NAMED else [base])):
            if name not in places:
                raise ValueError(f"model {name!r} is not in the list: put its folder into ComfyUI/models/{FOLDER}")
        device = "auto" if comfy_models is None else str(comfy_models.get_torch_device())
        return (Inpainter.from_pretrained(places[model], base=places.get(base), device=device, precision=precision),)


class RADInpaint:
    """Fills the masked part of images with RAD or a zero-shot method. Known pixels stay bit-identical."""

    CATEGORY = "RAD"
    DESCRIPTION = "Fills the white part of the mask. All other pixels stay exactly as they are."
    FUNCTION = "fill"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        text = {"multiline": True, "tooltip": "For text-to-image models only."}
        return {
            "required": {
                "model": ("RAD_MODEL",),
                "image": ("IMAGE",),
                "mask": ("MASK", {"tooltip": "White is filled. One mask for all images, or one for each."}),
                "method": (ALLOWED, {"tooltip": "rad needs a RAD model; most others need a base model."}),
                "steps": (
                    "INT",
                    {"default": 0, "min": 0, "max": 1000, "tooltip": "0: the number of the model or the method."},
                ),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
                "samples": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "Results for each image."}),
                "size_policy": (
                    [AUTO, "crop", *(policy for policy in get_args(SizePolicy) if policy != "crop")],
                    {
                        "tooltip": "Images of another size than the model's: crop fills windows around each hole. auto: as "
                        "the model prefers, otherwise crop."
                    },
                ),
                "soft_mask": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Keep the grey values of the mask; otherwise above 0.5 is filled."},
                ),
            },
            "optional": {
                "prompt": ("STRING", {"default": "", **text}),
                "negative": ("STRING", {"default": "", **text}),
                "guidance": (
                    "FLOAT",
                    {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": "0: the model's own."},
                ),
            },
        }

    def fill(
        self,
        model: Inpainter,
        image: Tensor,
        mask: Tensor,
        method: str,
        steps: int,
        seed: int,
        samples: int,
        size_policy: Literal["auto"] | SizePolicy,
        soft_mask: bool,
        prompt: str = "",
        negative: str = "",
        guidance: float = 0.0,
    ) -> tuple[Tensor]:
        """Fill images (B,H,W,C) in [0,1] where masks (B,H,W) or (1,H,W) are white; returns (B*samples,H,W,3).

        Raises ValueError for a method out of the list, or another number or size of masks than of images.
        """
        if method not in ALLOWED:  # a file of one's own would run code from a workflow
            raise ValueError(f"method is {method!r}; allowed are {', '.join(ALLOWED)}")
        image, mask = image[..., :3].detach().float().cpu(), mask.detach().float().cpu()
        mask = mask[None] if mask.ndim == 2 else mask
        if len(mask) not in (1, len(image)) or mask.shape[1:] != image.shape[1:3]:
            if mask.shape[1:] == (64, 64) and not mask.any():  # Load Image's, of a file without transparency
                raise ValueError("the mask is empty: paint one in the mask editor of Load Image")
            raise ValueError(
                f"the mask is {tuple(mask.shape)} and the image {tuple(image.shape[:3])} (number, height, width): "
                "give masks of the image's size, one for all or one each"
            )
        hole = (mask if soft_mask else (mask > 0.5).float()).expand(len(image), -1, -1)
        result = model(
            list(image.clamp(0, 1).permute(0, 3, 1, 2)),
            list(hole),
            method=method,
            steps=steps or None,
            seed=seed,
            num_samples=samples,
            size_policy=model.model.preferred.size_policy or "crop" if size_policy == AUTO else size_policy,
            soft_mask=soft_mask,
            condition=Condition(prompt=prompt, negative=negative, guidance=guidance or None),
            on_step=reporter(),
        )
        filled = torch.stack([as_tensor(output) for output in result.images])
        known = (hole == 0)[..., None].repeat_interleave(samples, dim=0)
        return (torch.where(known, image.repeat_interleave(samples, dim=0), filled),)


def as_tensor(image: Image.Image) -> Tensor:
    """(H,W,3) in [0,1]."""
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)


def reporter() -> Callable[[Progress], None] | None:
    """The `on_step` that moves ComfyUI's progress bar, shows previews and obeys its Cancel button; None outside of it."""
    if comfy_models is None or comfy_utils is None:
        return None
    bar, shown = None, 0.0

    def on_step(progress: Progress) -> None:
        nonlocal bar, shown
        comfy_models.throw_exception_if_processing_interrupted()
        if progress.planned == 0:  # a method without network calls
            return
        bar = comfy_utils.ProgressBar(progress.planned) if bar is None else bar
        preview, now = None, time.monotonic()
        if now - shown >= PREVIEW_SECONDS:
            preview, shown = ("JPEG", progress.preview(progress.indices[0]), PREVIEW_SIDE), now
        bar.update_absolute(progress.done, progress.planned, preview)

    return on_step


NODE_CLASS_MAPPINGS = {"RADModelLoader": RADModelLoader, "RADInpaint": RADInpaint}
NODE_DISPLAY_NAME_MAPPINGS = {"RADModelLoader": "Load RAD Model", "RADInpaint": "RAD Inpaint"}
