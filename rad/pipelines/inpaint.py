"""The pipeline: loading, moving, saving, and the call."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from os import PathLike
from pathlib import Path
from typing import cast

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from rad.arguments import describe
from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.inpainting.arrays import ImageLike, MaskLike, to_list
from rad.inpainting.canvas.layout import SizePolicy
from rad.inpainting.canvas.pyramid import Pyramid
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.prepare import NoiseDevice, Precision, check_running
from rad.inpainting.result import Cancelled, Progress
from rad.inpainting.runs import find_parts
from rad.models.memory.choices import Offload, Quantize
from rad.networks.compiled import CompileMode
from rad.pipelines.inputs import at_revision, explained, renamed, to_conditions, to_precision, to_seed
from rad.pipelines.output import Images, OutputType, RADInpaintPipelineOutput, check_output, converted
from rad.pipelines.saving import save
from rad.rng import Part
from rad.sampling.method import Method

StepEnd = Callable[["RADInpaintPipeline", int, None, dict[str, Progress]], Mapping[str, object] | None]
"""(pipeline, number of earlier calls, None, {"progress": Progress}) -> anything: called after each network call of a batch."""


class RADInpaintPipeline(DiffusionPipeline):
    """Inpainting with RAD and zero-shot methods, under the names of diffusers' pipelines.

    `inpainter` has all other options. The model is not split into diffusers' components, so `components` is empty.
    `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=...)` loads the model of a local FOLDER on the CPU in float32.

    Args:
        inpainter: None: it is loaded from the folder that diffusers registers.
    """

    def __init__(self, inpainter: Inpainter | None = None) -> None:
        super().__init__()
        if not isinstance(inpainter, Inpainter | None):
            raise ValueError(f"inpainter is {describe(inpainter)}; give an Inpainter, or use from_pretrained(PATH)")
        self._inpainter, self._interrupt = inpainter, False
        self._precision: Precision | None = None
        self._source: str | PathLike[str] | None = None
        self._base: str | Path | None = None
        self._unsaved: list[str] = []
        super().register_to_config()

    @classmethod
    @explained
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *,
        base: str | Path | None = None,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str = "cpu",
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
    ) -> "RADInpaintPipeline":
        """Load a saved pipeline, a base model, a RAD model, or an adapter with its base.

        Args:
            pretrained_model_name_or_path: as `path` of `Inpainter.from_pretrained`, or a folder of `save_pretrained`.
            revision: branch, tag or commit of a hub id.
            dtype, torch_dtype: float32 or bfloat16, the `precision` of `Inpainter`; give one of them.
            all others: see `Inpainter.from_pretrained`.

        Raises FileNotFoundError for a missing file, ValueError for an unsuitable one or an unsuitable option.
        """
        if dtype is not None and torch_dtype is not None:
            raise ValueError("dtype and torch_dtype are two names of one option: give one of them")
        source = at_revision(pretrained_model_name_or_path, revision)
        inpainter = Inpainter.from_pretrained(
            source,
            base=base,
            device=device,
            precision=to_precision(dtype or torch_dtype),
            compile=compile,
            channels_last=channels_last,
            noise_device=noise_device,
            size=size,
            offload=offload,
            quantize=quantize,
            vae_tiling=vae_tiling,
            controlnet=controlnet,
            t2i_adapter=t2i_adapter,
            ip_adapter=ip_adapter,
            loras=loras,
        )
        pipeline = cls(inpainter)
        pipeline._source, pipeline._base = source, base
        extras = {"controlnet": controlnet, "t2i_adapter": t2i_adapter, "ip_adapter": ip_adapter, "loras": loras}
        pipeline._unsaved = [name for name, value in extras.items() if value]
        pipeline.register_to_config(_name_or_path=str(source))
        return pipeline

    def register_to_config(self, **kwargs: object) -> None:
        """As of diffusers, whose loader registers the folder last: then the model is loaded from it."""
        super().register_to_config(**kwargs)
        path = kwargs.get("_name_or_path")
        if path is None or self._inpainter is not None:
            return
        if not Path(str(path)).exists():
            raise ValueError(f"{path} is not a local folder: use RADInpaintPipeline.from_pretrained for the hub")
        self._source, self._inpainter = str(path), Inpainter.from_pretrained(str(path), device="cpu")

    @property
    def inpainter(self) -> Inpainter:
        """The inpainter with the model; after `to(dtype)` a copy with this precision, which shares the model.

        Raises ValueError for a pipeline without one.
        """
        given = self._given()
        if self._precision is None:
            return given
        inpainter = copy.copy(given)
        inpainter.precision = self._precision
        return inpainter

    def _given(self) -> Inpainter:
        if self._inpainter is None:
            raise ValueError("this pipeline has no model: use RADInpaintPipeline.from_pretrained, or give an Inpainter")
        return self._inpainter

    @property
    def device(self) -> torch.device:
        return self.inpainter.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the network runs."""
        return torch.bfloat16 if self.inpainter.precision == "bf16" else torch.float32

    def to(
        self,
        device: str | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> "RADInpaintPipeline":
        """Move the model in place. A dtype, float32 or bfloat16, sets the precision in which this pipeline runs the network.

        Raises ValueError for an unsuitable device or dtype.
        """
        if isinstance(device, torch.dtype):
            if dtype is not None:
                raise ValueError(f"to({device}, {dtype!r}) has a dtype first: give the device first")
            device, dtype = None, device
        inpainter = self._given()
        if dtype is not None:
            precision = to_precision(dtype)
            if precision == "32" and inpainter.model.network.dtype != torch.float32:
                raise ValueError(f"the weights are {inpainter.model.network.dtype}: load the model again for {dtype}")
            check_running(inpainter.device, precision=precision)
            self._precision = precision
        if device is not None:
            inpainter.to(device)
        return self

    def save_pretrained(self, save_directory: str | PathLike[str]) -> None:
        """Copy the model's files, with the base of an adapter, and write a pipeline.py for `DiffusionPipeline.from_pretrained`.

        Other files of the folder stay. Guidance models and LoRAs are not saved: a warning names them. Raises ValueError for a
        model that `from_pretrained` did not load, whose files have changed since, or whose own folder is given.
        """
        if self._source is None:
            raise ValueError("only a model of RADInpaintPipeline.from_pretrained can be saved: load it that way")
        for name in self._unsaved:
            warnings.warn(f"{name} is not saved: give it to from_pretrained again", stacklevel=2)
        save(self.inpainter.model, find_parts(self._source, self._base), Path(save_directory), source=str(self._source))

    @explained
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        image: ImageLike | Sequence[ImageLike] | None = None,
        mask_image: MaskLike | Sequence[MaskLike] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        strength: float = 1.0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        generator: torch.Generator | None = None,
        control_image: Image.Image | Sequence[Image.Image] | None = None,
        controlnet_conditioning_scale: float = 1.0,
        adapter_image: Image.Image | Sequence[Image.Image] | None = None,
        adapter_conditioning_scale: float = 1.0,
        ip_adapter_image: Image.Image | Sequence[Image.Image] | None = None,
        ip_adapter_scale: float = 1.0,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEnd | None = None,
        method: str | Method = "rad",
        solver: Solver | None = None,
        spacing: Spacing | None = None,
        size_policy: SizePolicy | None = None,
        margin: int | None = None,
        pyramid: Pyramid | None = None,
        soft_mask: bool = False,
        feather: int = 0,
        average: int | None = None,
        thin_steps: int | None = None,
        batch_size: int = 8,
        names: Sequence[Part] | Part | None = None,
    ) -> RADInpaintPipelineOutput | tuple[Images]:
        """Fill the holes of one image or several. Results equal those of `Inpainter` with `seed=generator.initial_seed()`.

        Args:
            prompt, negative_prompt, guidance_scale: for text-to-image models; None: no text, and the model's own scale. A list
                has an entry for each image; a list with a single image fills this image once for each prompt.
            image, mask_image: see `Inpainter.__call__`; white / 1 = fill.
            strength, num_inference_steps: see `Inpainter.sampler`, whose steps are num_inference_steps.
                None: the checkpoint's or the method's own.
            generator: its initial seed is the seed; its state is neither read nor changed. None: seed 0.
            control_image, adapter_image, ip_adapter_image and their scales: see `Condition`.
            output_type: see `RADInpaintPipelineOutput`; return_dict: False returns a tuple with the images alone.
            callback_on_step_end: see `StepEnd`. Set `pipeline._interrupt = True` in it to raise `rad.inpainting.Cancelled`.
            method, solver, spacing, size_policy, margin, pyramid, soft_mask, feather, average, thin_steps, batch_size, names,
                eta: see `Inpainter.__call__`.

        Raises ValueError for an unsuitable input or option, before any network call.
        """
        if image is None or mask_image is None:
            raise ValueError("image or mask_image is missing: give both by name, as prompt comes first")
        images, condition = to_conditions(
            to_list(image, "image"),
            prompt=prompt,
            negative=negative_prompt,
            guidance=guidance_scale,
            control_image=control_image,
            control_scale=controlnet_conditioning_scale,
            adapter_image=adapter_image,
            adapter_scale=adapter_conditioning_scale,
            style_image=ip_adapter_image,
            style_scale=ip_adapter_scale,
        )
        check_output(output_type, images)
        with renamed(), ExitStack() as stack:
            result = self.inpainter(
                images,
                mask_image,
                method=method,
                steps=num_inference_steps,
                strength=strength,
                eta=eta,
                solver=solver,
                spacing=spacing,
                seed=to_seed(generator),
                num_samples=num_images_per_prompt,
                average=average,
                thin_steps=thin_steps,
                soft_mask=soft_mask,
                size_policy=size_policy,
                margin=margin,
                pyramid=pyramid,
                batch_size=batch_size,
                names=names,
                condition=condition,
                feather=feather,
                on_step=self._on_step(stack, callback_on_step_end),
            )
        output = converted(result.images, output_type)
        return RADInpaintPipelineOutput(output, result.nfe, result.seconds) if return_dict else (output,)

    def _on_step(self, stack: ExitStack, callback: StepEnd | None) -> Callable[[Progress], None]:
        """Advances the progress bar, which `stack` closes, and calls `callback`."""
        self._interrupt = False
        bars, calls = list[tqdm](), count()

        def on_step(progress: Progress) -> None:
            if not bars:
                bar = cast("Callable[..., tqdm]", self.progress_bar)  # diffusers' decorator hides its type
                bars.append(stack.enter_context(bar(total=progress.planned)))
            bars[0].update(progress.done - bars[0].n)
            given = {"progress": progress}
            if callback is not None and (callback(self, next(calls), None, given) or given) != given:
                raise ValueError("callback_on_step_end returned a change, which has no effect: return None")
            if self._interrupt:
                raise Cancelled

        return on_step

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: object) -> "RADInpaintPipeline":
        raise NotImplementedError("RADInpaintPipeline takes no components: give the folder to from_pretrained")

    def enable_model_cpu_offload(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            "offload is chosen when loading: from_pretrained(..., device='cuda', offload='model')"
        )

    def enable_sequential_cpu_offload(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            "offload is chosen when loading: from_pretrained(..., device='cuda', offload='sequential')"
        )

    def enable_group_offload(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("RADInpaintPipeline has no group offload: load it with offload='sequential'")

    def push_to_hub(self, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("RADInpaintPipeline is not published as a whole: publish its model with `rad push`")
