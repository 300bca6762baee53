"""The runtime PyTorch: every method, on models of every kind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from rad.adaptation.crops import find_places
from rad.adaptation.run import adapt, check_adaptable, crop_size
from rad.adaptation.settings import SCALED
from rad.cli.sample.options import GUIDES, SampleOptions
from rad.cli.sample.plan import Job, Label, parse_settings
from rad.cli.sample.request import source_hash
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
from rad.device import find_devices, kind_of, threads_of_each
from rad.diffusion.choices import most_count
from rad.images.sources import ImageFile, by_stem, holds_one, list_images, match_names
from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.windows import Counts, Kind
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.prepare import build_samplers, check_method, check_running, load_networks
from rad.inpainting.runs import find_base
from rad.methods.own import file_of, loaded_from
from rad.methods.registry import cost, create, most_steps, steps_within
from rad.models.adapter import AdapterInfo
from rad.models.latent_mask import Grid
from rad.models.loaded_model import PLAIN, Condition
from rad.models.settings.preferred import NOTHING, Preferred
from rad.resources import located
from rad.sampling.method import paths_of
from rad.sampling.state import Cost

if TYPE_CHECKING:
    from rad.inpainting.result import Inpainted
    from rad.masks.reading.hole import Hole
    from rad.sampling.method import Method

Guides = Mapping[str, ImageFile | Mapping[str, ImageFile]]
"""Guiding images by kind, see `GUIDES`: one for all images, or one for each by name."""


class TorchRuntime(Runtime):
    """See `Runtime`. Raises ValueError for an unknown method or setting."""

    name = "torch"

    def __init__(self, options: SampleOptions) -> None:
        methods = make_methods(options, Label.all_of(options))
        refines = all(each.takes_strength and label.given_strength(options) == 1 for label, each in methods.items())
        preferred = _preferred(options).starting(refines=refines)
        self.options, labels, self.from_checkpoint = complete(options, preferred)
        self.precision = options.precision
        self.methods: Mapping[Label, Method] = dict(zip(labels, methods.values(), strict=True))

    def hashes(self) -> dict[str, str]:
        base = source_hash(_base(self.options))
        return {"adapter": source_hash(self.options.checkpoint), "base": base, "inpainting": base}

    def find_devices(self) -> list[str]:
        options = self.options
        devices = find_devices(options.device, options.devices)
        check_running(torch.device(devices[0]), compile=options.compile, noise_device=options.noise_device)
        return devices

    def threads(self, devices: Sequence[str]) -> int:
        return threads_of_each(devices)

    def environment(self, devices: Sequence[str]) -> dict[str, object]:
        from rad.evaluation.provenance import versions

        return {**versions(), "device": kind_of(devices[0]), "threads": threads_of_each(devices)}

    def load(self, device: str, *, planning: bool = False, threads: int | None = None) -> "TorchModel":
        if threads is not None:
            torch.set_num_threads(threads)
        return TorchModel(load_inpainter(self.options, device, planning=planning), self.options, self.methods)

    def method_files(self) -> list[tuple[str, str]]:
        return [file for method in self.methods.values() if (file := loaded_from(type(method)))]

    def paths(self, label: Label) -> list[str]:
        return paths_of(type(self.methods[label]))

    def method_file(self, label: Label) -> dict[str, object]:
        file = file_of(type(self.methods[label]))
        return {} if file is None else {"method_file": str(file.path), "method_sha256": file.sha256}


class TorchModel(Model):
    """See `Model`."""

    def __init__(self, inpainter: Inpainter, options: SampleOptions, methods: Mapping[Label, "Method"]) -> None:
        self.inpainter, self.options, self.size = inpainter, options, inpainter.size
        self.methods = {
            label: load_networks(method, inpainter.model, inpainter.device) for label, method in methods.items()
        }

    def check(self, jobs: Sequence[Job]) -> None:
        options, prompts = self.options, dict.fromkeys(job.prompt for job in jobs)
        conditions = [Condition(prompt, options.negative_prompt, options.guidance) for prompt in prompts]
        if any(method.weights != "none" for method in self.methods.values()):
            scales = {f"{kind}_scale": getattr(options, f"{kind}_scale") for kind in GUIDES}
            self.inpainter.check([replace(each, **scales) for each in conditions], **encoding(options))
        elif conditions != [Condition()]:
            raise ValueError("a prompt has no effect on methods that use no network")

    def prepare(self, label: Label) -> "tuple[Plan, dict[Kind, Cost]]":
        method, options, base_process = self.methods[label], self.options, self.inpainter.model.base_process
        check_method(method, self.inpainter.model, bf16=options.precision == "bf16")
        if label.given_adapt(options):
            _check_adapt(label, method, self.inpainter, options.policy)
        given, strength, steps = label.given(options), label.given_strength(options), None
        if method.weights != "none":
            spacing = method.choose(**given).spacing
            steps = choose_steps(
                label,
                options,
                within=partial(steps_within, method, base_process=base_process, spacing=spacing, strength=strength),
                cost=partial(cost, method, base_process=base_process, spacing=spacing, strength=strength),
                most=most_count(most_steps(method, base_process), spacing),
            )
        schedule = method.choose(steps=steps, **given)
        try:
            sampler = self.inpainter.sampler(method, **vars(schedule), strength=strength)
        except ValueError as error:
            preset = method.preset_solver if given["solver"] is None else "ddpm"
            hint = "" if preset == "ddpm" else f" ({preset!r} is its preset; {label.text},solver=ddpm takes another)"
            raise ValueError(f"{label.text}: {error}{hint}") from None
        others = ["steps"] if label.length(options)[0] is not None and method.weights == "none" else []
        others += ["soft_mask"] if options.soft_mask and not method.soft else []
        others += ["average"] if label.given_average(options) > 1 and method.weights == "none" else []
        others += ["thin_steps"] if label.ignores_thin_steps(options) else []
        warn_unused(label, method.unused(**given) + others)
        try:
            samplers = build_samplers(
                sampler,
                self.inpainter.model,
                pyramid=options.pyramid,
                thin_steps=label.given_thin_steps(options),
                spacing=schedule.spacing,
            )
        except ValueError as error:
            raise ValueError(f"{label.text}: {error}") from None
        return schedule, costs_of_mean(label, options, {kind: each.cost for kind, each in samplers.items()})

    def count_windows(self, hole: "Hole", *, thin: bool) -> Counts:
        options, preferred = self.options, self.inpainter.model.preferred
        if hole.any() and any(label.given_adapt(options) for label in self.methods):
            find_places(hole[None], crop_size(self.inpainter))  # an image that cannot be adapted to fails here
        layout = Layout.choose(self.size, preferred, options.size_policy, options.margin, options.pyramid, thin=thin)
        return layout.count_windows(hole[None])

    def recorded(self) -> dict[str, str]:
        return {"base": self.inpainter.model.source, "base_hash": self.inpainter.model.hash}

    def conditions(self, label: Label, jobs: Sequence[Job]) -> Sequence[Condition] | Condition:
        """See `Model`. Raises ValueError for a missing image."""
        unguided = self.methods[label].weights == "none"
        return PLAIN if unguided else [condition_of(self.options, job, self._guides) for job in jobs]

    @cached_property
    def _guides(self) -> Guides:
        return find_guides(self.options)

    def fill(
        self,
        label: Label,
        plan: Plan,
        images: "Sequence[Image.Image]",
        holes: "Sequence[Hole]",
        conditions: Sequence[Condition] | Condition | None,
        names: Sequence[str],
        on_step: Callable[[int], None],
    ) -> "Inpainted":
        assert conditions is not None
        steps, adapted, passes = label.given_adapt(self.options), None, 0
        if steps and holes[0].any():
            (image,), (hole,), (name,) = images, holes, names  # batches of one image, see `make_batches`
            adapted = adapt(
                self.inpainter, image, hole, steps=steps, seed=self.options.seed, name=name, on_step=on_step
            )
            passes = adapted.passes
        result = (self.inpainter if adapted is None else adapted.inpainter)(
            images,
            [_tensor(hole) for hole in holes],
            method=self.methods[label],
            **vars(plan),
            strength=label.given_strength(self.options),
            average=1 if self.methods[label].weights == "none" else label.given_average(self.options),
            thin_steps=label.given_thin_steps(self.options),
            **sampling(self.options),
            **encoding(self.options),
            names=names,
            condition=conditions,
            on_step=lambda progress: on_step(passes + min(progress.done, progress.planned)),
        )
        return result if adapted is None else replace(result, seconds=result.seconds + adapted.seconds, training=passes)


def _check_adapt(label: Label, method: "Method", inpainter: Inpainter, size_policy: str) -> None:
    """Raise ValueError for a method, model or size policy that --adapt does not support."""
    if method.weights != "adapter":
        raise ValueError(
            f"{label.text}: --adapt trains RAD's network, which method {method.name!r} does not use: leave it out, or give it "
            "to one method, as in rad@4,adapt=200"
        )
    if size_policy in SCALED:
        raise ValueError(
            f"{label.text}: --adapt trains on windows at the image's own scale, and --size_policy {size_policy} scales it: "
            "give --size_policy crop"
        )
    try:
        check_adaptable(inpainter)
    except ValueError as error:
        raise ValueError(f"{label.text}: {error}") from None


def _check_strength(label: Label, method: "Method", strength: float) -> None:
    try:
        method.check_strength(strength)
    except ValueError as error:
        raise ValueError(f"{label.text}: {error}") from None


def make_methods(options: SampleOptions, labels: Sequence[Label]) -> "dict[Label, Method]":
    """The methods of the labels with their settings. Raises ValueError for an unknown one."""
    settings = parse_settings(options.set, list(dict.fromkeys(label.method for label in labels)))
    methods = {label: create(label.method, settings[label.method]) for label in labels}
    for label, method in methods.items():
        strength = label.given_strength(options)
        if strength < 1 and options.size_policy == "pyramid":
            raise ValueError(
                f"{label.text}: --size_policy pyramid starts from noise: leave out the strength {strength}, or give "
                "another --size_policy, such as crop"
            )
        _check_strength(label, method, strength)
    return methods


def load_inpainter(options: SampleOptions, device: str, *, planning: bool = False) -> Inpainter:
    """The model of the options; only to plan the run if `planning`. Raises ValueError or FileNotFoundError."""
    names = ("base", "precision", "channels_last", "size", "controlnet", "t2i_adapter", "ip_adapter", "vae_tiling")
    names += () if planning else ("compile", "noise_device", "offload", "quantize")
    given = {name: getattr(options, name) for name in names}
    return Inpainter.from_pretrained(options.checkpoint, device=device, loras=options.loras, **given)


def find_guides(options: SampleOptions) -> Guides:
    """The guiding images of a run, by kind and name. Raises ValueError for two images of one name."""
    guides: dict[str, ImageFile | dict[str, ImageFile]] = {}
    for kind in GUIDES:
        source = getattr(options, f"{kind}_image")
        if source is not None:
            files = list_images(source)
            where = f"--{kind}_image {source}"
            guides[kind] = files[0] if holds_one(source) else by_stem(files, where=where, what="images")
    return guides


def condition_of(options: SampleOptions, job: Job, guides: Guides) -> Condition:
    """Text and guiding images of a job; `guides`: of `find_guides`. Raises ValueError for a missing image."""
    images = {f"{kind}_image": _guide(kind, files, job.identity, options) for kind, files in guides.items()}
    scales = {f"{kind}_scale": getattr(options, f"{kind}_scale") for kind in GUIDES}
    return Condition(job.prompt, options.negative_prompt, options.guidance, **images, **scales)


def _guide(kind: str, files: ImageFile | Mapping[str, ImageFile], name: str, options: SampleOptions) -> Image.Image:
    if isinstance(files, ImageFile):
        return files.open()
    (image,) = match_names(files, [name])
    if image is None:
        source = getattr(options, f"{kind}_image")
        raise ValueError(f"--{kind}_image {source} has no image for {name}: expected one of the same name")
    return image.open()


def encoding(options: SampleOptions) -> dict[str, Any]:
    """The arguments `grid` and `fill` of `Inpainter.__call__`, from --grid, --dilate and --encode_full."""
    chosen = options.grid is not None or options.dilate > 0
    grid = Grid(options.grid or "average", dilate=options.dilate) if chosen else None
    return {"grid": grid, "fill": "none" if options.encode_full else "smooth"}


def _preferred(options: SampleOptions) -> Preferred:
    """The settings that the checkpoint carries, for --size. Raises ValueError for a damaged file."""
    folder = located(options.checkpoint)
    if not (folder / "rad_config.json").is_file():
        return NOTHING
    return AdapterInfo.read(folder).preferred(None if options.size is None else (options.size, options.size))


def _base(options: SampleOptions) -> str:
    """The base model of an adapter, otherwise the model itself."""
    folder = located(options.checkpoint)
    if options.base is not None or not (folder / "adapter_model.safetensors").is_file():
        return options.base or options.checkpoint
    try:
        return find_base(folder, AdapterInfo.read(folder))
    except (ValueError, OSError):  # loading reports it
        return options.checkpoint


def _tensor(hole: "Hole") -> torch.Tensor:
    return torch.from_numpy(hole)[None]
