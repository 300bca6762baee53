"""Inpainting pipeline for images of any size: `Inpainter.from_pretrained(path)(image, mask, steps=20, seed=0)`."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from rad.arguments import describe, integer
from rad.device import find_device
from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.images.codecs import to_tensor
from rad.inpainting.arrays import ImageLike, MaskLike
from rad.inpainting.composite import Canvas, composite, pad, restore_size
from rad.inpainting.filling import WindowFiller
from rad.inpainting.inputs import Inputs
from rad.inpainting.keywords import understood
from rad.inpainting.memory import peak_memory, reset_peak_memory
from rad.inpainting.prepare import build_sampler, check_method, load_coarse
from rad.inpainting.runs import find_trained
from rad.inpainting.windows import Window, plan_windows
from rad.masks.reading.format import MaskChannel, MaskFormat, MaskResize, Polarity
from rad.methods.registry import find
from rad.models.adapter import AdapterInfo
from rad.models.latent_mask import Grid, Prefill
from rad.models.load import load_model
from rad.models.loaded_model import PLAIN, Condition, LoadedModel
from rad.models.vae import IDENTITY
from rad.modes import Evaluation, plain_modes
from rad.resources import find_data, located
from rad.rng import Part, check_seed
from rad.sampling.method import Method
from rad.sampling.sampler import Sampler

SizePolicy = Literal["error", "resize", "crop"]


Precision = Literal["32", "bf16"]


@dataclass(frozen=True)
class Inpainted:
    """Filled images in the order of the input: sample j of image i has index i * num_samples + j.

    Args:
        images: in the input's size, bit-identical to it where the hole is 0. `info` keeps the colour profile for Pillow.
        raw: the images before known pixels are restored.
        nfe, vjp: forward and backward passes of the network, over all windows; seconds: wall time of the sampling loops.
        peak_memory: in bytes, see `rad.inpainting.memory.peak_memory`.
    """

    images: list[Image.Image]
    raw: list[Image.Image]
    nfe: int
    vjp: int
    seconds: float
    peak_memory: int


class Inpainter:
    """Inpainting pipeline for images of any size.

    Example:
        inpainter = Inpainter.from_pretrained("rad-nature32")
        result = inpainter("photo.png", "mask.png", size_policy="crop", num_samples=2)   # white in the mask = fill
        result.images[0].save("filled.png")

    Args:
        model: a loaded model, already on `device`.
        precision: "bf16" runs the networks in bfloat16 (autocast).
    """

    def __init__(self, model: LoadedModel, *, device: str | torch.device = "cpu", precision: Precision = "32") -> None:
        if not hasattr(model, "denoiser"):  # a model of your own may be of another class
            raise ValueError(f"model is {describe(model)}; give a loaded model, or use Inpainter.from_pretrained(PATH)")
        if precision not in get_args(Precision):
            raise ValueError(f"precision is {describe(precision)}; allowed are '32' and 'bf16'")
        self.model, self.device, self.precision = model, torch.device(device), precision
        self.size, self._evaluation = model.size, Evaluation()

    def __repr__(self) -> str:
        (height, width), info = self.size, self.model.info
        adapter = None if info is None else info.process
        return (
            f"Inpainter({str(self.model.source)!r}, size={width}x{height}, device={str(self.device)!r}, "
            f"precision={self.precision!r}, adapter={adapter!r})"
        )

    def to(self, device: str | torch.device) -> "Inpainter":
        """Move the model in place, and return the inpainter. Raises ValueError for a device that cannot be used."""
        if not isinstance(device, str | torch.device):
            raise ValueError(f"device is {describe(device)}; give a name such as 'cuda', 'cpu' or 'auto'")
        self.device = torch.device(find_device(str(device)))
        self.model.to(self.device)
        return self

    @classmethod
    @understood
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        base: str | Path | None = None,
        device: str = "auto",
        precision: Precision = "32",
        size: int | None = None,
        controlnet: str | Path | None = None,
        t2i_adapter: str | Path | None = None,
        ip_adapter: str | Path | None = None,
        loras: Sequence[tuple[str | Path, float]] = (),
    ) -> "Inpainter":
        """Load a base model, a fully trained RAD model, or an adapter with its base.

        Args:
            path: a folder, hub id, guided-diffusion .pt, or the name of a shipped checkpoint ("rad-nature32"). Adapters
                exist for all kinds of models but Stable Diffusion XL and Flux. For the folder of a training run: its newest
                model, see `rad.inpainting.runs.find_trained`.
            base: base model of an adapter, checked by its hash. None: the path or hub id in the adapter, or a folder of that
                name beside it.
            device: "auto" picks an accelerator if there is one.
            precision: "bf16" runs the network in bfloat16. SD3 and Flux without an adapter are loaded in it too.
            size: image side in pixels for SD3 and Flux. None: the model's own, or the one its adapter was trained at.
            controlnet, t2i_adapter, ip_adapter, loras: see `load_model`; `loras` cannot be combined with a RAD adapter.

        Raises FileNotFoundError for a missing file, ValueError for an unsuitable one or an unsuitable option.
        """
        if not isinstance(path, str | os.PathLike):
            raise ValueError(f"path is {describe(path)}; give a folder, a file or a name")
        if not Path(path).exists() and (shipped := find_data(str(path))) is not None:
            path = str(shipped)
        path = _trained(path)
        folder = Path(path)
        target = find_device(device)
        described = any((folder / name).exists() for name in ("adapter_config.json", "rad_config.json"))
        whole = (folder / "unet").is_dir()  # a base model, or a fully trained one
        info = AdapterInfo.read(folder) if described else None
        adapter, revision, source = None, None, path
        if info is not None and not whole:
            source = find_base(folder, info) if base is None else _trained(base)
            adapter, revision = folder, None if base else info.base_revision
        elif base is not None:
            raise ValueError(
                f"{path} is not an adapter folder (rad_config.json, no unet), so base={str(base)!r} has no effect"
            )
        model = load_model(
            source,
            device=target,
            revision=revision,
            adapter=adapter,
            info=info,
            size=size,
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            controlnet=controlnet,
            t2i_adapter=t2i_adapter,
            ip_adapter=ip_adapter,
            loras=loras,
        )
        return cls(model, device=target, precision=precision)

    @understood
    @plain_modes()
    @torch.no_grad()
    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        mask: MaskLike | Sequence[MaskLike],
        *,
        method: str | Method = "rad",
        steps: int | None = None,
        eta: float | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        seed: int = 0,
        num_samples: int = 1,
        mask_polarity: Polarity = "white_is_fill",
        mask_channel: MaskChannel = "auto",
        mask_threshold: float | None = None,
        soft_mask: bool = False,
        mask_resize: MaskResize = "error",
        mask_dilate: int = 0,
        size_policy: SizePolicy = "error",
        margin: int | None = None,
        batch_size: int = 8,
        names: Sequence[Part] | Part | None = None,
        condition: Condition | Sequence[Condition] = PLAIN,
        grid: Grid | None = None,
        fill: Prefill = "smooth",
        feather: int = 0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Inpainted:
        """Fill the holes of one image or several. For method, steps, eta, solver and spacing see `sampler`.

        Args:
            image: PIL image; path, bytes or binary file; array (H,W,3) or tensor (3,H,W), uint8 or float in [0,1], see
                `rad.inpainting.arrays.to_image`; a batch or a list of these.
            mask: one for each image or one for all; white / 1 = fill. As `image`, with arrays (H,W) and tensors (1,H,W); or
                a generator, such as "wide" or `Box()`, whose hole depends on the seed and on the image's name.
            seed: whole number; fixes the noise with `names`. Batch size and order have no effect (except `share` of VIPaint).
            mask_polarity, mask_channel, mask_threshold, soft_mask, mask_resize, mask_dilate: see `MaskFormat`.
            num_samples: results per image; batch_size: windows per forward pass, halved when memory runs out.
            size_policy: for images of another size: "error"; "resize" and back; "crop" windows around each hole.
            margin: context around a window's core in pixels, for "crop"; None: an eighth of the model's size.
            names: identity of each image's noise; None: equal noise for all, so that a result does not depend on the place
                in the list. Generated masks then take the file name of the image, which equals `rad sample`.
            condition: prompt and guidance images, one for each image or one for all.
            grid, fill: for latent models, see `Task.encoded`.
            feather: width in pixels of a blend into the known pixels around the hole; 0: known pixels stay exact.
            on_step: called with (network calls done, planned), counted per window.

        num_inference_steps, mask_image and num_images_per_prompt of diffusers are steps, mask and num_samples.
        Raises ValueError or FileNotFoundError for an unsuitable input or option, before any network call.
        Warns about a mask that is empty, full, or not plain black and white.
        """
        seed = check_seed(seed)
        _check_counts(num_samples, batch_size, feather, margin)
        format = MaskFormat(
            polarity=mask_polarity,
            channel=mask_channel,
            threshold=mask_threshold,
            soft=soft_mask,
            resize=mask_resize,
            dilate=mask_dilate,
        )
        inputs = Inputs.align(image, mask, names=names, condition=condition)
        self.check(inputs.conditions, grid=grid, fill=fill)
        sampler = self.sampler(method, steps=steps, eta=eta, solver=solver, spacing=spacing)
        images, holes = inputs.images, inputs.read(format, seed)
        rows = zip(images, holes, inputs.names, inputs.conditions, strict=True)
        canvases = [c for row in rows for c in _canvases(self, *row, num_samples, size_policy, margin)]
        bf16 = self.precision == "bf16"
        filler = WindowFiller(self.model, sampler, self.device, grid, fill, seed, batch_size, bf16)
        reset_peak_memory(self.device)
        with self._evaluation(_networks(self.model)):
            cost, seconds = filler.run(canvases, on_step)
        finished, raw = _finish(canvases, images, holes, feather)
        return Inpainted(finished, raw, cost.nfe, cost.vjp, seconds, peak_memory(self.device))

    def check(self, conditions: Sequence[Condition], *, grid: Grid | None = None, fill: Prefill = "smooth") -> None:
        """Raises ValueError for a condition or setting that the model does not support, or that has no effect on it."""
        self.model.check(conditions)
        if self.model.autoencoder is IDENTITY and (grid is not None or fill != "smooth"):
            raise ValueError(
                f"{self.model.source} works on pixels: there is no latent grid or encoder; leave out `grid` and `fill`"
            )

    def sampler(
        self,
        method: str | Method,
        *,
        steps: int | None = None,
        eta: float | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
    ) -> Sampler:
        """The reverse loop of a method on this model. Warns about a solver or spacing without effect.

        Args:
            method: a name in `rad.methods.METHODS`; your own as "FILE.py:CLASS", whose code is run; or an instance such
                as `RePaint(resamplings=5)`.
            steps: number of noise levels, 1 to the method's number (1000).
            eta: 1 DDPM to 0 DDIM; with solver "dpm++2m" 0 (ODE) or 1 (SDE).
            solver: "ddpm", "ddim", or "dpm++2m" (second order, for few steps; for `rad` and `tdpaint`).
            spacing: "even", "trailing", "quad", "logsnr" or "official", see `Spacing`.

        None is the method's preset. With another solver, eta and spacing default to the solver's own.
        Raises ValueError for a choice that the model or the method does not support.
        """
        if not isinstance(method, str | Method):
            raise ValueError(f"method is {describe(method)}; give a name, or an instance such as RePaint()")
        method = self.complete(find(method)() if isinstance(method, str) else method)
        bf16 = self.precision == "bf16"
        check_method(method, self.model, bf16=bf16)
        return build_sampler(
            method, self.model, steps=steps, eta=eta, solver=solver, spacing=spacing, bf16=bf16, stacklevel=3
        )

    def complete(self, method: Method) -> Method:
        """The method with its other models loaded: the coarse model of M2S."""
        return load_coarse(method, self.model, self.device)

    def count_windows(self, hole: Tensor, *, size_policy: SizePolicy = "error", margin: int | None = None) -> int:
        """Number of windows for a hole (1,H,W). Each costs `sampler(...).cost` per sample."""
        return len(self._plan(hole, size_policy, margin)[1])

    def _plan(self, hole: Tensor, policy: SizePolicy, margin: int | None) -> tuple[Tensor, list[Window]]:
        """The hole (1,H,W) in working size, and its windows."""
        height, width = self.size
        whole = Window((0, 0, height, width), (0, 0, height, width))
        if policy not in get_args(SizePolicy):
            raise ValueError(f"size_policy is {policy!r}; allowed are {', '.join(get_args(SizePolicy))}")
        if policy == "crop":
            if height != width:
                raise ValueError(f"size_policy 'crop' needs a square model; this one is {width}x{height}: use 'resize'")
            margin = height // 8 if margin is None else margin
            padded = pad(hole, self.size, 1.0)  # the outside is unknown too
            inside = padded[0].numpy() > 0
            inside[hole.shape[1] :], inside[:, hole.shape[2] :] = False, False
            return padded, plan_windows(inside, size=height, margin=margin)
        if hole.shape[1:] != (height, width):
            if policy == "error":
                raise ValueError(
                    f"the image is {hole.shape[2]}x{hole.shape[1]} and the model takes {width}x{height}: "
                    "use size_policy 'crop' (a window around each hole) or 'resize'"
                )
            hole = F.adaptive_max_pool2d(hole, (height, width))
        return hole, [whole] if bool((hole > 0).any()) else []


def _canvases(
    inpainter: Inpainter,
    image: Image.Image,
    hole: Tensor,
    name: int | str,
    condition: Condition,
    samples: int,
    policy: SizePolicy,
    margin: int | None,
) -> list[Canvas]:
    hole, windows = inpainter._plan(hole, policy, margin)
    model_size = (inpainter.size[1], inpainter.size[0])
    condition = condition.resized(image.size if policy == "crop" else model_size)
    if policy == "resize" and image.size != model_size:
        # Both poolings have the same windows: no known pixel of the small image depends on the hole's content.
        pixels = F.adaptive_avg_pool2d(to_tensor(image).mul_(2).sub_(1), inpainter.size)
    else:
        pixels = pad(torch.from_numpy(np.array(image)).permute(2, 0, 1), inpainter.size, 0)
    return [Canvas(name, sample, pixels, hole, windows, condition) for sample in range(samples)]


def _check_counts(num_samples: int, batch_size: int, feather: int, margin: int | None) -> None:
    integer("num_samples", num_samples, low=1)
    integer("batch_size", batch_size, low=1)
    integer("feather", feather, low=0)
    if margin is not None:
        integer("margin", margin, low=0)


def _networks(model: LoadedModel) -> list[nn.Module]:
    frozen = model.frozen_modules() if isinstance(model, LoadedModel) else []
    return [part for part in vars(model).values() if isinstance(part, nn.Module)] + frozen


def _finish(
    canvases: list[Canvas], images: Sequence[Image.Image], holes: Sequence[Tensor], feather: int
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Final and raw images of the canvases, whose memory is freed one by one."""
    samples = len(canvases) // max(1, len(images))
    finished, raw = [], []
    for number in range(len(canvases)):
        original, hole = images[number // samples], holes[number // samples]
        filled = restore_size(canvases.pop(0).raw, original.size)
        filled.info = dict(original.info)
        raw.append(filled)
        finished.append(composite(original, filled, hole, feather=feather))
    return finished, raw


def _trained(source: str | os.PathLike[str]) -> str:
    """The model of a training run; another source unchanged, for it may be a hub id."""
    given = located(os.fspath(source))
    model = find_trained(given)
    return os.fspath(source) if model == given else str(model)


def find_base(folder: Path, info: AdapterInfo) -> str:
    """The base that an adapter names: that path, a folder of that name beside the adapter or among ours, or a hub id."""
    for path in (Path(info.base), folder.resolve().parent / Path(info.base).name, located(info.base)):
        if path.exists():
            return str(path)
    if info.base_revision is not None:
        return info.base
    raise FileNotFoundError(
        f"{folder} was trained on {info.base!r}, which is neither there nor beside the adapter: give its place with base="
    )
