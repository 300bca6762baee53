"""The runtime ONNX: RAD, and RePaint with base weights, on the CPU, for a folder of `rad export --onnx`. Loads no torch."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import Job, Label, parse_settings
from rad.cli.sample.request import text_hash
from rad.cli.sample.runtimes.base import (
    Model,
    Plan,
    Runtime,
    choose_steps,
    complete,
    costs_of_mean,
    sampling,
    warn_unused,
)
from rad.console import did_you_mean
from rad.diffusion.choices import most_count
from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.windows import Counts, Kind
from rad.resources import EXPORTED
from rad.runtime.folder import ExportedModel
from rad.runtime.sampling.methods import METHODS, Method

if TYPE_CHECKING:
    from PIL import Image

    from rad.inpainting.result import Inpainted
    from rad.masks.reading.hole import Hole
    from rad.models.loaded_model import Condition
    from rad.runtime.inpainter import OnnxInpainter

WITHOUT_EFFECT = (
    *("base", "precision", "compile", "channels_last", "noise_device", "offload", "quantize", "vae_tiling"),
    *("grid", "dilate", "encode_full", "strength", "adapt"),
    *("prompt", "prompts", "negative_prompt", "guidance", "control_image", "control_scale", "adapter_image"),
    *("adapter_scale", "style_image", "style_scale", "controlnet", "t2i_adapter", "ip_adapter", "lora"),
)
"""Options of other models, or of networks in PyTorch."""

HINTS = {
    "rad": "it was exported from a base model, without an adapter",
    "repaint": "export the checkpoint again with --base_weights",
}
OTHERS = "other methods need the checkpoint that it was exported from"
"""Advice on a method that a folder does not support, by method."""


@dataclass(frozen=True)
class Work:
    """Network calls per window; there are no backward passes."""

    nfe: int
    vjp: int = 0

    @property
    def units(self) -> int:
        return self.nfe

    def __mul__(self, samples: int) -> "Work":
        return Work(self.nfe * samples)


class OnnxRuntime(Runtime):
    """See `Runtime`. Raises ValueError for an unknown method or setting, or an option without effect."""

    name = "onnx"

    def __init__(self, options: SampleOptions) -> None:
        _check_options(options)
        self.model = ExportedModel.read(options.checkpoint).resized(options.size)
        self.options, labels, self.from_checkpoint = complete(options, self.model.preferred)
        self.precision = self.model.precision
        self.methods: Mapping[Label, Method] = _make_methods(self.options, labels, self.model)

    def hashes(self) -> dict[str, str]:
        """See `Runtime`: of a network's file with the settings of its process."""
        settings = json.loads((self.model.folder / EXPORTED).read_text(encoding="utf-8"))
        left_out = ("name", "networks", "source", "rad_version", "steps", "sampling")  # steps: the number of betas
        kept = {name: value for name, value in settings.items() if name not in left_out}
        return {
            name: text_hash(json.dumps([kept, settings["networks"][name]["sha256"]], sort_keys=True))
            for name in self.model.networks
        }

    def find_devices(self) -> list[str]:
        return ["cpu"] * self.options.devices

    def threads(self, devices: Sequence[str]) -> int:
        return max(1, _cores() // len(devices))

    def environment(self, devices: Sequence[str]) -> dict[str, object]:
        import rad

        versions = {"rad": rad.__version__, "python": platform.python_version()}
        onnxruntime = metadata.version("onnxruntime")
        return {**versions, "onnxruntime": onnxruntime, "device": "cpu", "threads": self.threads(devices)}

    def load(self, device: str, *, planning: bool = False, threads: int | None = None) -> "OnnxModel":
        from rad.runtime.inpainter import OnnxInpainter

        return OnnxModel(OnnxInpainter(self.model, threads=threads), self.options, self.methods, self.hashes())


class OnnxModel(Model):
    """See `Model`."""

    def __init__(
        self,
        inpainter: "OnnxInpainter",
        options: SampleOptions,
        methods: Mapping[Label, Method],
        hashes: Mapping[str, str],
    ) -> None:
        self.inpainter, self.options, self.methods, self.hashes = inpainter, options, methods, hashes
        self.size = inpainter.size

    def check(self, jobs: Sequence[Job]) -> None:
        """See `Model`: the options are checked with the runtime."""

    def prepare(self, label: Label) -> tuple[Plan, dict[Kind, Work]]:
        method, given, options = self.methods[label], label.given(self.options), self.options

        def cost(steps: int) -> Work:
            return Work(self.inpainter.sampler(method, steps=steps, **given).nfe)

        try:
            most = most_count(len(self.inpainter.model.betas), method.choose(**given).spacing)
            within = partial(self.inpainter.steps_within, method, **given)
            steps = choose_steps(label, options, within=within, cost=cost, most=most)
            plan = method.choose(steps=steps, **given)
            samplers = self.inpainter.samplers(
                self.inpainter.sampler(method, **vars(plan)),
                pyramid=options.pyramid,
                thin_steps=label.given_thin_steps(options),
                spacing=plan.spacing,
            )
        except ValueError as error:
            raise ValueError(f"{label.text}: {error}") from None
        warn_unused(label, ["thin_steps"] if label.ignores_thin_steps(options) else [])
        return plan, costs_of_mean(label, options, {kind: Work(each.nfe) for kind, each in samplers.items()})

    def count_windows(self, hole: "Hole", *, thin: bool) -> Counts:
        options, preferred = self.options, self.inpainter.model.preferred
        layout = Layout.choose(self.size, preferred, options.size_policy, options.margin, options.pyramid, thin=thin)
        return layout.count_windows(hole[None])

    def recorded(self) -> dict[str, str]:
        return {f"onnx_{name}_hash": value for name, value in self.hashes.items()}

    def conditions(self, label: Label, jobs: Sequence[Job]) -> None:
        return None

    def fill(
        self,
        label: Label,
        plan: Plan,
        images: "Sequence[Image.Image]",
        holes: "Sequence[Hole]",
        conditions: "Sequence[Condition] | Condition | None",
        names: Sequence[str],
        on_step: Callable[[int], None],
    ) -> "Inpainted":
        return self.inpainter(
            images,
            list(holes),
            method=self.methods[label],
            **vars(plan),
            average=label.given_average(self.options),
            thin_steps=label.given_thin_steps(self.options),
            **sampling(self.options),
            names=names,
            on_step=lambda progress: on_step(min(progress.done, progress.planned)),
        )


def _check_options(options: SampleOptions) -> None:
    """Raise ValueError for options without a meaning here."""
    defaults = {
        item.name: item.default if item.default_factory is MISSING else item.default_factory()
        for item in fields(options)
    }
    given = [f"--{name}" for name in WITHOUT_EFFECT if getattr(options, name) != defaults[name]]
    if given:
        raise ValueError(
            f"{', '.join(given)} has no effect with --runtime onnx ({options.checkpoint}): leave it out, or give the "
            "checkpoint that the folder was exported from"
        )
    if options.device not in ("auto", "cpu"):
        raise ValueError(f"--device {options.device}: --runtime onnx computes on the CPU; give auto or cpu")


def _make_methods(options: SampleOptions, labels: Sequence[Label], model: ExportedModel) -> dict[Label, Method]:
    """The methods of the labels with their settings. Raises ValueError for one that the folder does not support."""
    available = [name for name, kind in METHODS.items() if kind.weights in model.networks]
    for label in labels:
        if label.strength is not None:
            raise ValueError(f"{label.text}: a strength needs --runtime torch: leave it out")
        if label.adapt is not None:
            raise ValueError(f"{label.text}: an adaptation needs --runtime torch: leave it out")
        if label.method not in available:
            raise ValueError(
                f"method {label.method!r} is not available with --runtime onnx; {options.checkpoint} has "
                f"{', '.join(available)}: {HINTS.get(label.method, OTHERS)}"
            )
    settings = parse_settings(options.set, list(dict.fromkeys(label.method for label in labels)))
    return {label: _create(label.method, settings[label.method]) for label in labels}


def _create(name: str, settings: Mapping[str, str]) -> Method:
    known, values = [item.name for item in fields(METHODS[name])], {}
    for key, text in settings.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"method {name} has no setting {key!r}{hint}; it has {', '.join(known) or 'none'}")
        try:
            values[key] = int(text)
        except ValueError:
            raise ValueError(f"{name}.{key} is {text!r}; expected a whole number") from None
    try:
        return METHODS[name](**values)
    except ValueError as error:
        raise ValueError(f"method {name}: {error}") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
