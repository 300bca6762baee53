"""Before anything is filled: checks of prompts and methods, the windows of each image, and previews of its hole."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from rad.cli.sample.fill import WindowCount, encoding, write_image
from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import Job, Label, MethodRun
from rad.cli.sample.run_log import Failures
from rad.console import counted, print_line, report
from rad.images.sources import ImageFile
from rad.images.tensors import to_tensor, to_uint8
from rad.inpainting.inpainter import Inpainter
from rad.inpainting.prepare import check_method
from rad.masks.files import LoadedMask, same_mask
from rad.methods.registry import cost, steps_within
from rad.models.loaded_model import Condition

if TYPE_CHECKING:
    from rad.diffusion.processes import Process
    from rad.sampling.method import Method, Schedule
    from rad.sampling.state import Cost

COLOUR, STRENGTH = (1.0, 0.0, 0.0), 0.6
"""Of the hole in a preview: red, and its share."""


@dataclass
class MaskMessages:
    """Messages about mask files; equal ones become one line."""

    masks: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)

    def add(self, name: str, mask: LoadedMask) -> None:
        for kind, messages in {"note": mask.notes, "warning": mask.warnings}.items():
            for message in messages:
                self.masks.setdefault((kind, message), {})[name] = None

    def report(self) -> None:
        for (kind, message), names in self.masks.items():
            first = next(iter(names))
            report(f"{kind}: {first if len(names) == 1 else f'{len(names)} masks, such as {first}'}: {message}")


def check_model(
    inpainter: Inpainter, options: SampleOptions, methods: Mapping[Label, "Method"], jobs: Sequence[Job]
) -> None:
    """Raise ValueError for prompts, latent options and a margin that the model cannot use."""
    prompts = dict.fromkeys(job.prompt for job in jobs)
    conditions = [Condition(prompt, options.negative_prompt, options.guidance) for prompt in prompts]
    if any(method.weights != "none" for method in methods.values()):
        inpainter.check(conditions, **encoding(options))
    elif conditions != [Condition()]:
        raise ValueError("a prompt has no effect on methods that use no network")
    most = (inpainter.size[0] - 1) // 2
    if options.size_policy == "crop" and options.margin is not None and options.margin > most:
        raise ValueError(f"--margin {options.margin}: allowed are 0 to {most} with this model")


def prepare_method(
    label: Label, method: "Method", options: SampleOptions, inpainter: Inpainter
) -> tuple["Schedule", "Cost"]:
    """Schedule of a method, and its cost per window; warns of options without effect.

    Raises ValueError for a method that cannot run on this model, or not within its budget.
    """
    check_method(method, inpainter.model, bf16=options.precision == "bf16")
    given = label.given(options)
    schedule = method.choose(steps=_choose_steps(label, method, options, inpainter.model.base_process), **given)
    try:
        result = inpainter.sampler(method, **vars(schedule)).cost
    except ValueError as error:
        preset = method.preset_solver if given["solver"] is None else "ddpm"
        hint = "" if preset == "ddpm" else f" ({preset!r} is its preset; {label.text},solver=ddpm takes another)"
        raise ValueError(f"{label.text}: {error}{hint}") from None
    unused = method.unused(**given) + (["steps"] if options.steps is not None and method.weights == "none" else [])
    for name in unused:
        report(f"warning: --{name} has no effect on {label.text}")
    return schedule, result


def _choose_steps(label: Label, method: "Method", options: SampleOptions, base_process: "Process") -> int | None:
    """Steps of the label or the options; as many as a budget allows; None: the method's preset."""
    fixed = label.steps is not None or label.budget is not None
    steps, budget = (label.steps, label.budget) if fixed else (options.steps, options.budget_nfe)
    if method.weights == "none":
        return None
    if budget is None:
        return steps
    spacing = method.choose(**label.given(options)).spacing
    steps = steps_within(method, budget, base_process=base_process, spacing=spacing)
    work, unused = cost(method, steps, base_process=base_process, spacing=spacing), ""
    if 2 * work.units < budget and steps < base_process.sampled_steps:
        more = cost(method, steps + 1, base_process=base_process, spacing=spacing).units
        unused = (
            f"; {counted(steps + 1, 'step')} would cost {more}, so much of the budget is unused: change its settings"
        )
    report(
        f"{label.text}: {counted(steps, 'step')} for a budget of {budget}: "
        f"{counted(work.nfe, 'network call')}, {work.vjp} VJP{unused}"
    )
    return steps


def count_windows(
    inpainter: Inpainter, jobs: Iterable[Job], options: SampleOptions, failures: Failures
) -> dict[ImageFile, WindowCount]:
    """Windows of each readable image; the others are added to `failures`. Reports what its mask file leaves open.

    Raises ValueError if the folder of a comparison holds results of another mask.
    """
    counts: dict[ImageFile, WindowCount] = {}
    messages = MaskMessages()
    for job in jobs:
        try:
            image = job.image.open()
            mask = job.load_mask(image, options)
            hole = mask.hole
            windows = inpainter.count_windows(hole, size_policy=options.size_policy, margin=options.margin)
            written = job.mask_output if options.tree and job.mask_output and job.mask_output.exists() else None
            same = written is None or same_mask(written, hole)
        except (ValueError, OSError) as error:
            failures.add(f"{job.image}: {error}", job.image)
            continue
        if not same:
            raise ValueError(
                f"{written} differs from the mask of {job.image}: give another --output, or delete the results"
            )
        messages.add(str(job.mask), mask)
        counts[job.image] = WindowCount(windows, image.width * image.height)
    messages.report()
    return counts


def preview(options: SampleOptions, runs: Sequence[MethodRun], failures: Failures) -> None:
    """For --preview_masks: write the overlay of each image and mask; print its path."""
    for run in {run.mask: run for run in runs}.values():
        messages = MaskMessages()
        for job in run.jobs:
            try:
                image = job.image.open()
                mask = job.load_mask(image, options)
                write_image(job.overlay, overlay(image, mask.hole))
            except (ValueError, OSError) as error:
                failures.add(f"{job.image}: {error}", job.image)
                continue
            messages.add(str(job.mask), mask)
            failures.written += 1
            print_line(job.overlay)
        messages.report()


def overlay(image: Image.Image, hole: Tensor) -> Image.Image:
    """The RGB image, tinted red where it is filled; grey parts of the hole (1,H,W) in [0,1] are tinted in part."""
    colour = torch.tensor(COLOUR).view(3, 1, 1)
    return to_uint8(torch.lerp(to_tensor(image), colour.expand(3, *hole.shape[1:]), STRENGTH * hole))
