"""The interface of a runtime, and the choice of a method's steps. Loads no torch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from rad.cli.sample.options import RECORDED
from rad.cli.sample.plan import Label
from rad.console import counted, report
from rad.inpainting.canvas.layout import WITH_MARGIN
from rad.inpainting.canvas.pyramid import Pyramid
from rad.inpainting.canvas.windows import Counts, Kind
from rad.models.settings.preferred import OF_EVERY_METHOD, OF_SAMPLER, Preferred

if TYPE_CHECKING:
    from PIL import Image

    from rad.cli.sample.options import SampleOptions
    from rad.cli.sample.plan import Job
    from rad.cli.sample.runtimes.onnx import Work
    from rad.inpainting.result import Inpainted
    from rad.masks.reading.hole import Hole
    from rad.models.loaded_model import Condition
    from rad.runtime.sampling import methods as onnx
    from rad.sampling.method import Method, Schedule
    from rad.sampling.state import Cost

Chosen: TypeAlias = "Method | onnx.Method"
"""A method with its settings, a dataclass."""

CostT = TypeVar("CostT", "Cost", "Work")

Plan: TypeAlias = "Schedule | onnx.Schedule"
"""Steps, solver, spacing and eta of a run."""

SAMPLING = ("seed", "num_samples", "size_policy", "margin", "pyramid", "batch_size", "feather")
"""Options that the inpainters take under the same names."""


OF_KIND: dict[Kind, tuple[str, str]] = {
    "finer": ("a window at a finer scale", "pyramid_steps"),
    "thin": ("a thin window", "thin_steps"),
}
"""Kinds of windows with steps of their own, which a budget does not set: what messages call one, and its option."""


class Model(ABC):
    """A loaded model with the methods of the run."""

    size: tuple[int, int]
    """Height and width of a window."""

    @abstractmethod
    def check(self, jobs: "Sequence[Job]") -> None:
        """Raise ValueError for prompts and options that the model cannot use."""

    @abstractmethod
    def prepare(self, label: "Label") -> "tuple[Plan, Mapping[Kind, Cost | Work]]":
        """Schedule of a method, and the cost of a result per window of each kind; warns of options without effect.

        Raises ValueError for a method that cannot run on this model, with this size policy, or within its budget.
        """

    @abstractmethod
    def count_windows(self, hole: "Hole", *, thin: bool) -> Counts:
        """Number of windows of each kind for a hole (H,W); `thin`: thin ones are counted apart."""

    @abstractmethod
    def recorded(self) -> dict[str, str]:
        """Entries of the model in run.json; those whose names end in "hash" are compared."""

    @abstractmethod
    def conditions(self, label: "Label", jobs: "Sequence[Job]") -> "Sequence[Condition] | Condition | None":
        """Prompts and guiding images of a batch."""

    @abstractmethod
    def fill(
        self,
        label: "Label",
        plan: Plan,
        images: "Sequence[Image.Image]",
        holes: "Sequence[Hole]",
        conditions: "Sequence[Condition] | Condition | None",
        names: Sequence[str],
        on_step: Callable[[int], None],
    ) -> "Inpainted":
        """Fill the holes of images; `on_step` receives the number of finished network calls, at most the planned ones."""


class Runtime(ABC):
    """The methods of a run, and where its models are.

    Args:
        options: of the run, with the folder of the model as checkpoint, and its settings for every method.

    Attributes:
        precision: of the networks, as it is recorded.
        methods: with their settings, by label; labels have the checkpoint's settings of the sampler.
        from_checkpoint: one line with all settings that come from the checkpoint; empty without any.
    """

    name: Literal["torch", "onnx"]
    options: "SampleOptions"
    precision: str
    methods: Mapping["Label", Chosen]
    from_checkpoint: str

    @abstractmethod
    def hashes(self) -> dict[str, str]:
        """Hash of the weights of each kind, the `weights` of the methods."""

    @abstractmethod
    def find_devices(self) -> list[str]:
        """A device for each process. Raises ValueError for one that cannot be used."""

    @abstractmethod
    def threads(self, devices: Sequence[str]) -> int:
        """CPU threads of each process."""

    @abstractmethod
    def environment(self, devices: Sequence[str]) -> dict[str, object]:
        """Versions and devices, for run.json."""

    @abstractmethod
    def load(self, device: str, *, planning: bool = False, threads: int | None = None) -> Model:
        """Load the model; only to plan the run if `planning`. Raises ValueError or FileNotFoundError.

        `threads`: of the CPU, for this process; None: all.
        """

    def method_files(self) -> list[tuple[str, str]]:
        """Files of your own methods, and their hashes, as arguments of `rad.methods.own.load`."""
        return []

    def paths(self, label: "Label") -> list[str]:
        """Settings of a method that are paths."""
        return []

    def method_file(self, label: "Label") -> dict[str, object]:
        """Entries of a method's settings for its file; empty if it comes with rad."""
        return {}


def complete(options: "SampleOptions", preferred: Preferred) -> "tuple[SampleOptions, list[Label], str]":
    """Options and labels with the settings of the checkpoint, and a line that names these; idempotent."""
    given = {name: getattr(options, name) for name in OF_EVERY_METHOD}
    chosen = preferred.complete(Preferred(**given), method="")
    filled = {name: getattr(chosen, name) for name, value in given.items() if value is None}
    parts = [_named(filled)]
    labels = []
    for label in Label.all_of(options):
        labels.append(label.completed(options, preferred))
        values = {name: getattr(labels[-1], name) for name in OF_SAMPLER if getattr(label, name) is None}
        parts.append(f"{label.text} with {words}" if (words := _named(values)) else "")
    if chosen.size_policy == "pyramid":
        filled |= {f"pyramid_{name}": value for name, value in asdict(Pyramid.chosen(chosen)).items()}
    size_policy = chosen.size_policy or RECORDED["size_policy"]
    average = RECORDED["average"] if preferred.average is None else None
    options = replace(options, **filled | {"size_policy": size_policy, "average": options.average or average})
    return options, labels, "; ".join(filter(None, parts))


def _named(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def choose_steps(
    label: "Label",
    options: "SampleOptions",
    *,
    within: Callable[[int], int],
    cost: "Callable[[int], Cost | Work]",
    most: int,
) -> int | None:
    """Steps of the label or the options; as many as a budget allows; None: the method's preset.

    Args:
        within: the most steps of one sample for a budget of network calls; cost: of a number of steps, for one sample.
        most: the largest number of steps.
    """
    average = label.given_average(options)
    steps, budget = label.length(options)
    if budget is None:
        return steps
    if budget < average:
        raise ValueError(
            f"{label.method} with average={average} needs a budget of at least {average} network calls, not {budget}: raise it"
        )
    steps = within(budget // average)
    work, unused = cost(steps) * average, ""
    if 2 * work.units < budget and steps < most:
        more = (cost(steps + 1) * average).units
        unused = (
            f"; {counted(steps + 1, 'step')} would cost {more}, so much of the budget is unused: change its settings"
        )
    report(
        f"{label.text}: {counted(steps, 'step')} for a budget of {budget}: "
        f"{counted(work.nfe, 'network call')}, {work.vjp} VJP{unused}"
    )
    return steps


def costs_of_mean(label: "Label", options: "SampleOptions", costs: "Mapping[Kind, CostT]") -> "dict[Kind, CostT]":
    """The cost of a result per window of each kind, from that of a sample. Raises ValueError for one above the budget."""
    _, budget = label.length(options)
    costs = {kind: cost * label.given_average(options) for kind, cost in costs.items()}
    for kind, (window, option) in OF_KIND.items():
        if budget is not None and kind in costs and costs[kind].units > budget:
            raise ValueError(
                f"{label.text}: {window} costs {costs[kind].units} network calls, above the budget of {budget}: give fewer "
                f"--{option}"
            )
    return costs


def sampling(options: "SampleOptions") -> dict[str, Any]:
    """The options of `SAMPLING` by name; a margin without effect, of which the run warns, is left out."""
    values = {name: getattr(options, name) for name in SAMPLING}
    return values if options.size_policy in WITH_MARGIN else values | {"margin": None}


def warn_unused(label: "Label", names: Sequence[str]) -> None:
    """Report the options `names` without their dashes, such as "eta", as having no effect on a label."""
    for name in names:
        report(f"warning: --{name} has no effect on {label.text}")
