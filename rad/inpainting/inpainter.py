"""Inpainting pipeline for images of any size: `Inpainter.from_pretrained(path)(image, mask, steps=20, seed=0)`."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.arguments import describe
from rad.device import find_device
from rad.diffusion.choices import check_strength
from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.inpainting.arrays import ImageLike, MaskLike
from rad.inpainting.canvas.layout import Layout, SizePolicy
from rad.inpainting.canvas.outpaint import Extension
from rad.inpainting.canvas.preview import Finisher
from rad.inpainting.canvas.pyramid import Pyramid
from rad.inpainting.canvas.resize import Floats
from rad.inpainting.canvas.windows import Kind
from rad.inpainting.filling import WindowFiller
from rad.inpainting.inputs import Inputs, check_numbers, find_extension, find_thin_steps, warn_unused
from rad.inpainting.keywords import understood
from rad.inpainting.memory import peak_memory, reset_peak_memory
from rad.inpainting.prepare import (
    NoiseDevice,
    Precision,
    as_method,
    build_sampler,
    build_samplers,
    check_conditions,
    check_inputs,
    check_method,
    check_running,
    load_networks,
)
from rad.inpainting.result import Inpainted, Progress
from rad.inpainting.runs import find_parts
from rad.masks.reading.format import MaskChannel, MaskFormat, MaskResize, MaskWarning, Polarity
from rad.models.latent_mask import Grid, Prefill
from rad.models.load import load_model
from rad.models.loaded_model import PLAIN, Condition, LoadedModel
from rad.models.memory.choices import Offload, Quantize, check_saving
from rad.models.settings.preferred import Preferred
from rad.modes import plain_modes
from rad.networks.compiled import CompileMode
from rad.rng import Part, check_seed
from rad.sampling.method import Method
from rad.sampling.sampler import Sampler


class Inpainter:
    """Inpainting pipeline for images of any size.

    Example:
        inpainter = Inpainter.from_pretrained("rad-nature32")
        result = inpainter("photo.png", "mask.png", size_policy="crop", num_samples=2)   # white in the mask = fill
        result.images[0].save("filled.png")

    Args:
        model: a loaded model, already on `device`.
        precision: "bf16" runs the networks in bfloat16 (autocast).
        compile: mode of torch.compile for the denoising network; results agree to rounding. "reduce-overhead" records CUDA
            graphs and needs a CUDA device. The first call compiles, for a minute or more; later calls with the same image size
            and number of windows are quick. Smaller batches are padded to a compiled size.
        noise_device: "cpu" draws noise that is equal on all machines. "device" draws other noise on the accelerator: quicker,
            and equal only on the same kind of accelerator.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        device: str | torch.device = "cpu",
        precision: Precision = "32",
        compile: CompileMode = "off",
        noise_device: NoiseDevice = "cpu",
    ) -> None:
        if not hasattr(model, "denoiser"):  # a model of your own may be of another class
            raise ValueError(f"model is {describe(model)}; give a loaded model, or use Inpainter.from_pretrained(PATH)")
        self.model, self.device = model, _device(device)
        self.precision: Precision = precision
        self.compile: CompileMode = compile
        self.noise_device: NoiseDevice = noise_device
        check_running(self.device, precision=precision, compile=compile, noise_device=noise_device)
        self._sampled = model if compile == "off" else model.compiled(compile)
        self._compiled_batches, self.size = set[int](), model.size

    def __repr__(self) -> str:
        (height, width), info = self.size, self.model.info
        adapter = None if info is None else info.process
        return (
            f"Inpainter({str(self.model.source)!r}, size={width}x{height}, device={str(self.device)!r}, "
            f"precision={self.precision!r}, adapter={adapter!r})"
        )

    def to(self, device: str | torch.device) -> "Inpainter":
        """Move the model in place, and return the inpainter. Raises ValueError for a device that cannot be used."""
        target = _device(device)
        check_running(target, compile=self.compile, noise_device=self.noise_device)
        self.model.to(target)
        self.device = target
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
        compile: CompileMode = "off",
        channels_last: bool = False,
        noise_device: NoiseDevice = "cpu",
        size: int | None = None,
        offload: Offload | None = None,
        quantize: Quantize | None = None,
        vae_tiling: bool = False,
        controlnet: str | Path | None = None,
        t2i_adapter: str | Path | None = None,
        ip_adapter: str | Path | None = None,
        loras: Sequence[tuple[str | Path, float]] = (),
    ) -> "Inpainter":
        """Load a base model, a fully trained RAD model, or an adapter with its base.

        Args:
            path: a folder, hub id, guided-diffusion .pt, or the name of a shipped checkpoint ("rad-nature32"). Adapters
                exist for pixel and latent models, and for Stable Diffusion 1, 2 and 3. For the folder of a training run: its
                newest model, see `rad.inpainting.runs.find_trained`.
            base: base model of an adapter, checked by its hash. None: the path or hub id in the adapter, or a folder of that
                name beside it.
            device: "auto" picks an accelerator if there is one; compile, noise_device: see `Inpainter`.
            precision: "bf16" runs the network in bfloat16. Flow models without an adapter are loaded in it too.
            channels_last: memory format of the network's convolutions, for models that have some.
            size: image side in pixels, for flow models and pixel models; a pixel model may see more than it was trained at. None:
                the checkpoint's setting, otherwise the model's own, or the one its adapter was trained at.
            offload, quantize: see `rad.models.memory.choices`; vae_tiling: encode and decode large images in tiles.
            controlnet, t2i_adapter, ip_adapter, loras: see `load_model`; `loras` cannot be combined with a RAD adapter.

        Raises FileNotFoundError for a missing file, ValueError for an unsuitable one or an unsuitable option.
        """
        parts, target = find_parts(path, base), _device(device)
        check_running(target, precision=precision, compile=compile, noise_device=noise_device)
        check_saving(offload, quantize, target, bf16=precision == "bf16", compiled=compile != "off")
        model = load_model(
            parts.source,
            device=target,
            revision=parts.revision,
            adapter=parts.adapter,
            info=parts.info,
            size=parts.info.sampling.size if size is None and parts.info is not None else size,
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            offload=offload,
            quantize=quantize,
            vae_tiling=vae_tiling,
            controlnet=controlnet,
            t2i_adapter=t2i_adapter,
            ip_adapter=ip_adapter,
            loras=loras,
        )
        if channels_last:
            model.convert_to_channels_last()
        return cls(model, device=target, precision=precision, compile=compile, noise_device=noise_device)

    @understood
    @plain_modes()
    @torch.no_grad()
    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        mask: MaskLike | Sequence[MaskLike] | None = None,
        *,
        method: str | Method = "rad",
        steps: int | None = None,
        eta: float | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        seed: int = 0,
        num_samples: int = 1,
        average: int | None = None,
        thin_steps: int | None = None,
        mask_polarity: Polarity = "white_is_fill",
        mask_channel: MaskChannel = "auto",
        mask_threshold: float | None = None,
        soft_mask: bool = False,
        mask_resize: MaskResize = "error",
        mask_dilate: int = 0,
        size_policy: SizePolicy | None = None,
        margin: int | None = None,
        pyramid: Pyramid | None = None,
        batch_size: int = 8,
        names: Sequence[Part] | Part | None = None,
        condition: Condition | Sequence[Condition] = PLAIN,
        grid: Grid | None = None,
        fill: Prefill = "smooth",
        feather: int = 0,
        extend: Extension | tuple[int, int, int, int] | None = None,
        strength: float = 1.0,
        on_step: Callable[[Progress], None] | None = None,
    ) -> Inpainted:
        """Fill the holes of one image or several. For method, steps, eta, solver, spacing and strength see `sampler`.

        The defaults of average, thin_steps, size_policy, margin and pyramid are the checkpoint's settings, otherwise 1, None,
        "error" and None. Its `average` and `thin_steps` are left out if you give steps, solver or spacing.

        Args:
            image: PIL image; path, bytes or binary file; array (H,W,3) or tensor (3,H,W), uint8 or float in [0,1], see
                `rad.inpainting.arrays.to_image`; a batch or a list of these.
            mask: one for each image or one for all; white / 1 = fill. As `image`, with arrays (H,W) and tensors (1,H,W); or
                a generator, such as "wide" or `Box()`, whose hole depends on the seed and on the image's name.
            seed: whole number; fixes the noise with `names`. Batch size and order change rounding only; `share` of VIPaint
                also depends on them.
            mask_polarity, mask_channel, mask_threshold, soft_mask, mask_resize, mask_dilate: see `MaskFormat`.
            num_samples: results per image; batch_size: windows per pass, halved when memory runs out.
            average: a result m is the mean of N samples, rounded once: of those that `num_samples` numbers N m to N m + N - 1.
            thin_steps: steps of the windows without a hole wider than 8 pixels, for the method "rad"; others take `steps`.
            size_policy: for images of another size: "error"; "resize" and back; "crop" windows around each hole; "zoom" one
                region around all holes, scaled to the model's size and back; "pyramid" windows at several scales, coarse to fine,
                for holes larger than a window.
            pyramid: settings of "pyramid"; None: the checkpoint's, otherwise the defaults.
            margin: context around a window's core in pixels, for "crop" and "pyramid"; None: an eighth of the model's size. For
                "zoom" around the holes; None: half of their longer side, or an eighth of the model's size if that is more.
            names: identity of each image's noise; None: equal noise for all, at any place in the list. Generated masks then
                take the file name of the image, which equals `rad sample`.
            condition: prompt and guidance images, one for each image or one for all.
            grid, fill: for latent models, see `Task.encoded`.
            feather: width in pixels of a blend into the known pixels; 0: they stay exact.
            extend: new pixels (left, top, right, bottom) around each image to fill; these alone if `mask` is None. Masks, and
                control and adapter images, belong to the image without them.
            on_step: called after each network call, in this thread; raise `Cancelled` in it to stop the run, see `Progress`.

        num_inference_steps, mask_image and num_images_per_prompt of diffusers are steps, mask and num_samples.
        Raises ValueError or FileNotFoundError for an unsuitable input or option, before any network call.
        Warns about a mask that is empty, full, not plain black and white, or grey without effect, and about options without
        effect: those of the sampler, `average`, `thin_steps`, `margin`, and those of mask files with a generated mask.
        """
        seed, extension = check_seed(seed), find_extension(extend, mask, strength=strength)
        check_numbers(
            num_samples=num_samples, average=average, thin_steps=thin_steps, batch_size=batch_size, feather=feather
        )
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
        sampler = self.sampler(method, steps=steps, eta=eta, solver=solver, spacing=spacing, strength=strength)
        check_conditions(sampler.method, inputs.conditions)
        content = check_strength(strength) < 1
        preferred = self.model.preferred.starting(refines=sampler.method.takes_strength and not content)
        given = Preferred(steps, solver, spacing, eta, average, thin_steps=thin_steps)
        chosen = self.model.preferred.complete(given, method=sampler.method.name, strength=strength)
        thin_steps = find_thin_steps(
            chosen.thin_steps, method=sampler.method.name, strength=sampler.strength, stacklevel=6
        )
        thin = thin_steps is not None
        layout = Layout.choose(self.size, preferred, size_policy, margin, pyramid, content=content, thin=thin)
        samplers = build_samplers(
            sampler, self.model, pyramid=layout.pyramid, thin_steps=thin_steps, spacing=chosen.spacing
        )
        warn_unused(inputs.masks, format, margin=margin, size_policy=layout.policy, stacklevel=6)
        inputs, holes = inputs.extended(extension, inputs.read(format, seed))
        _warn_of_greys(sampler.method, holes)
        average = _samples_of_mean(sampler.method, chosen.average or 1)
        rows = zip(inputs.images, holes, inputs.names, inputs.conditions, strict=True)
        canvases = [canvas for row in rows for canvas in layout.canvases(*row, samples=num_samples, average=average)]
        regions = [layout.region(hole) for hole in holes]
        finisher = Finisher(inputs.images, holes, num_samples, feather, regions, resize=_resize)
        filler = _filler(self, samplers, grid=grid, fill=fill, seed=seed, batch_size=batch_size)
        reset_peak_memory(self.device)
        with self.model.in_evaluation():
            cost, seconds = filler.run(canvases, on_step, finisher.preview)
        finished, raw = finisher.finish(canvases)
        return Inpainted(finished, raw, cost.nfe, cost.vjp, seconds, peak_memory(self.device))

    def check(self, conditions: Sequence[Condition], *, grid: Grid | None = None, fill: Prefill = "smooth") -> None:
        """Raises ValueError for a condition or setting that the model does not support, or that has no effect on it."""
        check_inputs(self.model, conditions, grid=grid, fill=fill)

    def sampler(
        self,
        method: str | Method,
        *,
        steps: int | None = None,
        eta: float | None = None,
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        strength: float = 1.0,
    ) -> Sampler:
        """The reverse loop of a method on this model. Warns about steps, a solver, a spacing or an eta without effect.

        Args:
            method: a name in `rad.methods.METHODS`; your own as "FILE.py:CLASS", whose code is run; or an instance such
                as `RePaint(resamplings=5)`.
            steps: number of noise levels, 1 to the method's number (1000).
            eta: 1 DDPM to 0 DDIM; with solver "dpm++2m" 0 (ODE) or 1 (SDE).
            solver: "ddpm", "ddim", or "dpm++2m" (second order, for few steps; for `rad`, `tdpaint` and `inpainting_model`).
            spacing: "even", "trailing", "quad", "logsnr" or "official", see `Spacing`.
            strength: in (0,1]; below 1 the last floor(steps strength) levels, from the noised content of the hole.

        None is the checkpoint's setting or the method's preset. With another solver, eta and spacing default to the solver's.
        Raises ValueError for a choice that the model or the method does not support.
        """
        method = load_networks(as_method(method), self.model, self.device)
        bf16 = self.precision == "bf16"
        check_method(method, self.model, bf16=bf16)
        return build_sampler(
            method, self.model, steps=steps, eta=eta, solver=solver, spacing=spacing, strength=strength, bf16=bf16
        )

    def count_windows(
        self,
        hole: Tensor,
        *,
        size_policy: SizePolicy | None = None,
        margin: int | None = None,
        pyramid: Pyramid | None = None,
        most: int | None = None,
    ) -> int:
        """Number of windows for a hole (1,H,W), at all scales. Each costs `sampler(...).cost` per sample at the coarsest scale,
        unless it is thin, see `thin_steps` of a call.

        `most`: the count of a scale stops at `most` + 1; None: never.
        """
        layout = Layout.choose(self.size, self.model.preferred, size_policy, margin, pyramid)
        return layout.count_windows(hole.numpy(), most=most).total()


def _filler(
    inpainter: Inpainter,
    samplers: Mapping[Kind, Sampler],
    *,
    grid: Grid | None,
    fill: Prefill,
    seed: int,
    batch_size: int,
) -> WindowFiller:
    return WindowFiller(
        inpainter._sampled,
        samplers,
        inpainter.device,
        grid,
        fill,
        seed,
        batch_size,
        bf16=inpainter.precision == "bf16",
        noise_on=inpainter.device if inpainter.noise_device == "device" else "cpu",
        compiled_batches=None if inpainter.compile == "off" else inpainter._compiled_batches,
    )


def _device(device: str | torch.device) -> torch.device:
    if not isinstance(device, str | torch.device):
        raise ValueError(f"device is {describe(device)}; give a name such as 'cuda', 'cpu' or 'auto'")
    return torch.device(find_device(str(device)))


def _warn_of_greys(method: Method, holes: Sequence[Floats]) -> None:
    if not method.soft and any(bool(((hole > 0) & (hole < 1)).any()) for hole in holes):
        message = f"method {method.name!r} fills grey pixels of a mask completely: use 'rad' to keep part of the image"
        warnings.warn(message, MaskWarning, stacklevel=6)


def _samples_of_mean(method: Method, average: int) -> int:
    """`average`, or 1 with a warning for a method whose samples are all equal."""
    if average > 1 and method.weights == "none":
        warnings.warn(f"average={average} has no effect on method {method.name!r}, which has no noise", stacklevel=6)
        return 1
    return average


def _resize(pixels: Floats, size: tuple[int, int]) -> Floats:
    """(C,H,W) to `size` (height, width), bicubic with antialiasing."""
    resized = F.interpolate(torch.from_numpy(pixels)[None], size, mode="bicubic", antialias=True)
    return resized[0].numpy()
