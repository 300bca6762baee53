"""Inpainting images with a saved model: `Inpainter.from_pretrained(path)(image, mask, steps=100, seed=0)`."""

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rad.device import find_device
from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.images.codecs import open_image, to_rgb, to_tensor, to_uint8
from rad.inpainting.composite import Canvas
from rad.inpainting.windows import Window, next_wave, plan_windows
from rad.masks.files import read_mask
from rad.methods import METHODS
from rad.methods.m2s import M2S, Coarse
from rad.methods.registry import find
from rad.models.adapter import AdapterInfo
from rad.models.latent_mask import Grid, Prefill
from rad.models.load import load_model
from rad.models.loaded_model import PLAIN, Condition, LoadedModel
from rad.models.vae import IDENTITY
from rad.resources import find_data, located
from rad.rng import KeyedNoise
from rad.sampling.method import CustomSampler, Method, SamplingMethod
from rad.sampling.sampler import Sample, Sampler
from rad.sampling.state import Cost
from rad.sampling.task import Task

Polarity = Literal["white_is_fill", "white_is_known"]


SizePolicy = Literal["error", "resize", "crop"]


Precision = Literal["32", "bf16"]


ImageLike = Image.Image | Tensor | str | Path


@dataclass(frozen=True)
class Inpainted:
    """Results in the order of the input, the samples of an image side by side: image i, sample j is number i * num_samples + j.

    Args:
        images: in the size of the input, equal to it where the hole is 0, bit for bit; with its colour profile, if it has one,
            in `info`, from where Pillow saves it.
        raw: the same before known pixels are put back.
        nfe, vjp: network calls and backward passes of the whole run, counted for each image that went through the network.
        seconds: of the sampling loops.
        peak_memory: in bytes: of this run on an accelerator, of the process so far on a CPU.
    """

    images: list[Image.Image]
    raw: list[Image.Image]
    nfe: int
    vjp: int
    seconds: float
    peak_memory: int


class Inpainter:
    """A model in memory, and images of any size and number around it.

    Args:
        model: on `device` already.
        precision: "bf16": networks run in bfloat16 (autocast).
    """

    def __init__(self, model: LoadedModel, *, device: str | torch.device = "cpu", precision: Precision = "32") -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision is {precision!r}; allowed are {', '.join(get_args(Precision))}")
        self.model, self.device, self.precision = model, torch.device(device), precision
        self.size = model.size

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
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
        """Load an adapter folder with its base, or a base model.

        Args:
            path: adapter folder; base model (diffusers folder, hub id, guided-diffusion .pt); folder of a model trained as a
                whole, with rad_config.json; or the name of a checkpoint that comes with rad ("rad-nature32").
            base: the base of an adapter; None: the path, neighbouring folder or hub id that the adapter names. Its weights are
                compared with the hash in the adapter.
            device: "auto": an accelerator if there is one.
            precision: "bf16": the network runs in bfloat16 (autocast). SD3 and Flux without an adapter also keep their weights
                in it.
            size: side of the images in pixels, for SD3 and Flux; None: the model's default, or the adapter's.
            controlnet, t2i_adapter, ip_adapter, loras: for Stable Diffusion 1, 2 and XL, see `load_model`; loras cannot be
                combined with a RAD adapter.

        Raises:
            FileNotFoundError: something is missing; ValueError: something does not fit.
        """
        if not Path(path).exists() and (found := find_data(path)) is not None:
            path = str(found)
        folder = Path(path)
        target = find_device(device)
        described = (folder / "adapter_config.json").exists() or (folder / "rad_config.json").exists()
        if folder.suffix == ".ckpt":
            raise ValueError(
                f"{folder} resumes training; to sample give an adapter folder beside it, step=N-ema or step=N"
            )
        whole = (folder / "unet").is_dir()  # a base model, or one of which all weights were trained
        info = AdapterInfo.read(folder) if described else None
        adapter, revision, source = None, None, path
        if info is not None and not whole:
            source = _find_base(folder, info) if base is None else str(base)
            adapter, revision = folder, None if base else info.base_revision
        elif base is not None:
            raise ValueError(
                f"{path} is not an adapter folder (rad_config.json, no unet), so base={str(base)!r} has no use"
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

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        mask: ImageLike | Sequence[ImageLike],
        *,
        method: str | Method = "rad",
        steps: int | None = None,
        eta: float | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        seed: int = 0,
        num_samples: int = 1,
        mask_polarity: Polarity = "white_is_fill",
        size_policy: SizePolicy = "error",
        margin: int | None = None,
        batch_size: int = 8,
        names: Sequence[str] | None = None,
        condition: Condition | Sequence[Condition] = PLAIN,
        grid: Grid | None = None,
        fill: Prefill = "smooth",
        feather: int = 0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Inpainted:
        """Fill the holes of one image or several.

        Args:
            image: PIL image, file, or tensor (3,H,W) in [0,1]; or a list of these.
            mask: the same, one for each image or one for all; white / 1 = fill. A tensor is (1,H,W) in [0,1].
            method: a name of `rad.methods.METHODS`; your own, as "FILE.py:CLASS", whose code is run; or one with settings:
                `RePaint(resamplings=5)`.
            steps: noise levels visited, 1 to the number that the method has (1000); None: the method's preset.
            eta: 1 DDPM to 0 DDIM; with solver "dpm++2m" 0 (ODE) or 1 (SDE). None: the method's preset, or the solver's own if
                you choose another solver than the preset.
            solver: "ddpm", "ddim", or "dpm++2m" (second order, for few steps; for `rad` and `tdpaint`); None: the method's
                preset.
            spacing: where the noise levels lie: "even", "trailing", "quad", "logsnr", "official", see `Spacing`;
                None: the method's preset, or the solver's own if you choose another solver than the preset.
            seed: with the image's name it fixes the noise; results do not depend on batch size or order (but for
                `share` of VIPaint).
            num_samples: fillings of each image.
            size_policy: images of another size than the model's: "error"; "resize" there and back; "crop" a window of the
                model's size around each hole.
            margin: for "crop": what a window sees around its core, in pixels; None: an eighth of the model's size.
            batch_size: windows that go through the network together; halved when memory runs out.
            names: an identity of each image for its noise; None: all images get the same noise.
            condition: what to fill with, for models that take text: one for all, or one for each image.
            grid: for latent models: how the hole comes to the latent grid; None: `Grid()`.
            fill: for latent models: what the encoder sees in the hole; "none": its content, as other programs, which leaks.
            feather: known pixels within so many of the hole pass over into what the model made of them; 0: none does.
            on_step: called with (network calls done, in all) for a progress bar, both counted for single windows.

        Raises:
            ValueError: before any network call, for whatever cannot be done.
        """
        images = [image] if isinstance(image, str) or not isinstance(image, Sequence) else list(image)
        masks = [mask] * len(images) if isinstance(mask, str) or not isinstance(mask, Sequence) else list(mask)
        if len(masks) != len(images) or (names is not None and len(names) != len(images)):
            raise ValueError(
                f"{len(images)} images, {len(masks)} masks, {len(names or images)} names: give one of each an image"
            )
        if num_samples < 1 or batch_size < 1:
            raise ValueError(f"num_samples is {num_samples} and batch_size {batch_size}; both must be at least 1")
        names = [""] * len(images) if names is None else names
        conditions = [condition] * len(images) if isinstance(condition, Condition) else list(condition)
        if len(conditions) != len(images):
            raise ValueError(
                f"{len(images)} images and {len(conditions)} conditions: give one for all, or one an image"
            )
        if feather < 0:
            raise ValueError(f"feather is {feather}; allowed are 0 (known pixels stay exact) and more pixels")
        self.check(conditions, grid=grid, fill=fill)
        sampler = self.sampler(method, steps=steps, eta=eta, solver=solver, spacing=spacing)
        originals = [_image(one) for one in images]
        holes = [_hole(one, original, mask_polarity) for one, original in zip(masks, originals, strict=True)]
        canvases = [
            canvas
            for original, hole, name in zip(originals, holes, names, strict=True)
            for canvas in self._canvases(original, hole, name, num_samples, size_policy, margin)
        ]
        asked = {}
        for number, canvas in enumerate(canvases):
            size = originals[number // num_samples].size if size_policy == "crop" else (self.size[1], self.size[0])
            asked[id(canvas)] = conditions[number // num_samples].resized(size)
        total = sampler.cost.nfe * sum(len(canvas.windows) for canvas in canvases)
        spent, seconds, planned = Cost(0), 0.0, 0
        _forget_peak(self.device)
        differentiated = any(method.needs_grad for method in sampler.methods)
        with self.model.weights(adapter=self._with_adapter(sampler), differentiated=differentiated):
            while any(canvas.windows for canvas in canvases):
                jobs = [(c, w) for c in canvases if c.windows for w in next_wave(c.unknown, list(c.windows))]
                cost, taken = self._fill(
                    sampler,
                    jobs,
                    asked,
                    (grid, fill),
                    seed,
                    batch_size,
                    lambda done, before=planned: on_step(before + done, total) if on_step else None,
                )
                spent, seconds, planned = spent + cost, seconds + taken, planned + sampler.cost.nfe * len(jobs)
        finished, raw = [], []
        for number in range(len(canvases)):
            original, hole = originals[number // num_samples], holes[number // num_samples]
            filled = _back(canvases.pop(0).raw, original.size)
            filled.info = dict(original.info)
            raw.append(filled)
            finished.append(composite(original, filled, hole, feather=feather))
        return Inpainted(finished, raw, spent.nfe, spent.vjp, seconds, _peak_memory(self.device))

    def check(self, conditions: Sequence[Condition], *, grid: Grid | None = None, fill: Prefill = "smooth") -> None:
        """Raises ValueError for conditions and settings that this model does not take, or that would change nothing."""
        self.model.check(conditions)
        if self.model.autoencoder is IDENTITY and (grid is not None or fill != "smooth"):
            raise ValueError(
                f"{self.model.source} works on pixels: there is no latent grid, and no encoder that sees the hole"
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
        """The loop of a method on this model; arguments as of a call.

        Warns of a solver or spacing without effect. Raises ValueError for what the model or the method cannot do.
        """
        if isinstance(method, str):
            method = find(method)()
        method = self.complete(method)
        if method.weights == "adapter" and not self.model.has_adapter:
            zero_shot = ", ".join(n for n, kind in METHODS.items() if kind.weights != "adapter" and n != method.name)
            raise ValueError(
                f"method {method.name!r} needs an adapter, and {self.model.source} is a base model: use one of {zero_shot}"
            )
        if method.weights == "base" and not self.model.has_base:
            assert self.model.info is not None
            raise ValueError(
                f"method {method.name!r} needs a base model, and {self.model.source} was trained on per-pixel noise without "
                "images that are all hole (model.unconditional_share): use rad, or the model that it was trained from, "
                f"{self.model.info.base!r}"
            )
        if method.needs_grad and self.precision == "bf16":
            free = ", ".join(n for n, kind in METHODS.items() if not kind.needs_grad and n != method.name)
            raise ValueError(
                f"method {method.name!r} differentiates the network, for which bf16 is too coarse: "
                f"use precision '32', or one of {free}"
            )
        method.check()
        info = self.model.info
        process = method.process(self.model.base_process, "adm" if info is None else info.time_origin)
        for name in method.unused(solver=solver, spacing=spacing):
            warnings.warn(f"{name} has no effect on method {method.name!r}", stacklevel=3)
        chosen = method.choose(steps=steps, solver=solver, spacing=spacing, eta=eta)
        assert isinstance(method, CustomSampler | SamplingMethod)
        return Sampler(process, method if isinstance(method, CustomSampler) else (method,), **vars(chosen))

    def complete(self, method: Method) -> Method:
        """The method with what it needs besides this model: the coarse model of M2S is loaded from its path."""
        if isinstance(method, M2S) and self.model.autoencoder is not IDENTITY:
            raise ValueError(
                f"m2s needs a model of pixels, and {self.model.source} works on latents: use another method"
            )
        if not isinstance(method, M2S) or not isinstance(method.coarse, str):
            return method
        coarse = load_model(method.coarse, device=self.device)
        if coarse.autoencoder is not IDENTITY:
            raise ValueError(f"m2s needs a coarse model of pixels, and {method.coarse} works on latents: use another")
        size, height = coarse.size[0], self.size[0]
        if height % size or size == height:
            fit = ", ".join(str(n) for n in range(1, height) if height % n == 0)
            raise ValueError(
                f"{method.coarse} is a model of {size}x{size} images; m2s needs a smaller one that divides: {fit}"
            )
        return replace(method, coarse=Coarse(coarse.denoiser([], adapter=False), coarse.base_process, size))

    def count_windows(self, hole: Tensor, *, size_policy: SizePolicy = "error", margin: int | None = None) -> int:
        """Windows that a hole (1,H,W) needs; each costs `sampler(...).cost` a sample."""
        return len(self._plan(hole, size_policy, margin)[1])

    def _plan(self, hole: Tensor, policy: SizePolicy, margin: int | None) -> tuple[Tensor, list[Window]]:
        """The hole (1,H,W) in the size in which it is filled, and its windows."""
        height, width = self.size
        whole = Window((0, 0, height, width), (0, 0, height, width))
        if policy not in get_args(SizePolicy):
            raise ValueError(f"size_policy is {policy!r}; allowed are {', '.join(get_args(SizePolicy))}")
        if policy == "crop":
            if height != width:
                raise ValueError(f"size_policy 'crop' needs a square model; this one is {width}x{height}: use 'resize'")
            margin = height // 8 if margin is None else margin
            padded = _pad(hole, self.size, 1.0)  # what lies outside is unknown too
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
        self, image: Image.Image, hole: Tensor, name: str, samples: int, policy: SizePolicy, margin: int | None
    ) -> list[Canvas]:
        hole, windows = self._plan(hole, policy, margin)
        if policy == "resize" and image.size != self.size[::-1]:
            # The windows of both poolings are the same, so no known pixel of the small image has seen the hole.
            pixels = F.adaptive_avg_pool2d(to_tensor(image).mul_(2).sub_(1), self.size)
        else:
            pixels = _pad(torch.from_numpy(np.array(image)).permute(2, 0, 1), self.size, 0)
        return [Canvas(name, sample, pixels, hole, windows) for sample in range(samples)]

    def _fill(
        self,
        sampler: Sampler,
        jobs: list[tuple[Canvas, Window]],
        asked: Mapping[int, Condition],
        encoding: tuple[Grid | None, Prefill],
        seed: int,
        batch_size: int,
        on_calls: Callable[[int], None],
    ) -> tuple[Cost, float]:
        """Fill windows that do not overlap, in batches; their canvases are brought up to date. Returns (cost, seconds)."""
        cost, seconds, start, planned = Cost(0), 0.0, 0, sampler.cost.nfe
        while start < len(jobs):
            batch = jobs[start : start + batch_size]
            wanted = [asked[id(canvas)].cut(window.window) for canvas, window in batch]
            rows = len(batch)
            sampler.on_step = lambda done, all_, before=start * planned, rows=rows: on_calls(
                before + rows * planned * done // all_
            )
            try:
                result = self._fill_batch(sampler, batch, wanted, encoding, seed)
            except RuntimeError as error:
                if not _is_lack_of_memory(error):
                    raise
                if rows == 1:
                    raise torch.OutOfMemoryError(str(error)) from None
                batch_size = (rows + 1) // 2
                continue
            cost = cost + Cost(result.nfe * rows, result.vjp * rows)
            seconds, start = seconds + result.seconds, start + rows
        return cost, seconds

    def _fill_batch(
        self,
        sampler: Sampler,
        batch: list[tuple[Canvas, Window]],
        conditions: list[Condition],
        encoding: tuple[Grid | None, Prefill],
        seed: int,
    ) -> Sample:
        cuts = [canvas.cut(window) for canvas, window in batch]
        pixels, hole = (torch.stack(part).to(self.device) for part in zip(*cuts, strict=True))
        names = [canvas.job_name(window) for canvas, window in batch]
        with KeyedNoise(seed, names, [canvas.sample for canvas, _ in batch]) as noise, self._autocast():
            with torch.no_grad():
                task = self._task(pixels, hole, *encoding)
            result = sampler(self.model.denoiser(conditions, adapter=self._with_adapter(sampler)), task, noise=noise)
            with torch.no_grad():
                x = result.raw if self.model.autoencoder is IDENTITY else result.image
                made = sampler.methods[0].decode(x, task)
        for (canvas, window), one in zip(batch, made.float().cpu(), strict=True):
            canvas.paste(window, one)
        return result

    def _task(self, pixels: Tensor, hole: Tensor, grid: Grid | None, fill: Prefill) -> Task:
        return Task.encoded(pixels, hole, self.model.autoencoder, grid=grid, fill=fill)

    def _with_adapter(self, sampler: Sampler) -> bool:
        return any(method.weights == "adapter" for method in sampler.methods)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def composite(image: Image.Image, filled: Image.Image, hole: Tensor, *, feather: int = 0) -> Image.Image:
    """`image` where hole (1,H,W) is 0, `filled` elsewhere; both RGB of the same size, no arithmetic on the pixels.

    With `feather` what is known passes into `filled` towards the hole, linearly in the distance, over so many pixels.
    """
    composed, inside = image.copy(), (hole[0] > 0).numpy()
    if feather and inside.any():
        from scipy.ndimage import distance_transform_edt

        distance = np.asarray(distance_transform_edt(~inside))
        share = np.clip(1 - distance / (feather + 1), 0, 1)
        share[distance > feather] = 0
        composed.paste(filled, mask=Image.fromarray(np.rint(255 * share).astype(np.uint8)))
    else:
        composed.paste(filled, mask=Image.fromarray(inside))
    return composed


def _pad(image: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """(C,H,W), made at least `size` (height, width) by rows below and columns on the right."""
    rows, columns = (max(0, wanted - there) for wanted, there in zip(size, image.shape[1:], strict=True))
    return F.pad(image, (0, columns, 0, rows), value=value) if rows or columns else image


def _back(pixels: Tensor, size: tuple[int, int]) -> Image.Image:
    """In the input's size (width, height): what was resized is scaled, what was padded is cut off."""
    width, height = size
    if pixels.is_floating_point():
        pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
        return to_uint8(pixels.clamp_(-1, 1).div_(2).add_(0.5))
    return Image.fromarray(pixels[:, :height, :width].permute(1, 2, 0).contiguous().numpy())


def _image(image: ImageLike) -> Image.Image:
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ValueError(f"image is a tensor {tuple(image.shape)} {image.dtype}; expected (3,H,W) float in [0,1]")
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise ValueError("image is a tensor with values outside [0,1], which is where an image lies")
        return to_uint8(image)
    if not isinstance(image, Image.Image):
        return open_image(image)
    if image.mode[0] in "IF":
        raise ValueError(
            f"image has mode {image.mode!r}, whose range is not known: give its file, or convert it to 'RGB'"
        )
    return to_rgb(image)


def _hole(mask: ImageLike, image: Image.Image, polarity: Polarity) -> Tensor:
    size = (image.height, image.width)
    if polarity not in get_args(Polarity):
        raise ValueError(f"mask_polarity is {polarity!r}; allowed are {', '.join(get_args(Polarity))}")
    if not isinstance(mask, Tensor):
        return read_mask(mask, polarity=polarity, size=size)
    if mask.shape != (1, *size):
        raise ValueError(f"mask is a tensor {tuple(mask.shape)}; expected {(1, *size)}, as large as its image")
    hole = mask.to(torch.float32)
    if not bool(((hole >= 0) & (hole <= 1)).all()):
        raise ValueError("mask has values outside [0,1]; 1 is what is to be filled")
    return hole if polarity == "white_is_fill" else 1 - hole


def _is_lack_of_memory(error: RuntimeError) -> bool:
    """An accelerator's own error, or the plain one of the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux alone has it; "5" is the peak of the resident size
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA what was allocated, otherwise the resident size of this process; the largest since `_forget_peak`, or where
    a system cannot forget, of all time."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource  # POSIX only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _find_base(folder: Path, info: AdapterInfo) -> str:
    """The base that an adapter names: that path, a folder of that name beside the adapter or among ours, or a hub id."""
    for path in (Path(info.base), folder.resolve().parent / Path(info.base).name, located(info.base)):
        if path.exists():
            return str(path)
    if info.base_revision is not None:
        return info.base
    raise FileNotFoundError(
        f"{folder} was trained on {info.base!r}, which is neither there nor beside the adapter: give its place with base="
    )
