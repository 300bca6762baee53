"""The interface of a loaded model, and the measured time of its network calls."""

import statistics
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from rad.arguments import describe
from rad.inpainting.canvas.layout import WITH_MARGIN
from rad.inpainting.canvas.outpaint import Extension
from rad.inpainting.canvas.pyramid import Pyramid
from rad.inpainting.canvas.windows import Counts, Kind, total_calls
from rad.inpainting.result import Inpainted, Progress
from rad.masks.reading.hole import Hole
from rad.models.settings.preferred import KEYS, Preferred, SizePolicy, takes_thin_steps
from rad.studio.schema import InpaintFields, MethodView, ModelView, Solver, Spacing

SIZE_POLICY: SizePolicy = "crop"
"""Of a request without one, on a model without one."""

MOST_COUNT = 1000
"""Largest whole number in the settings of a method, such as RePaint's passes or MCGDiff's particles."""


@dataclass(frozen=True)
class Plan:
    """A request with all values explicit.

    Args:
        steps, solver, spacing, eta: of the sampler; steps is None for methods without a network.
        settings: of the method, as text.
        nfe: network calls over all windows and samples, each of which may be a mean of several; windows: of one sample.
        pyramid: settings of size policy "pyramid"; None for others.
        thin_steps: steps of thin windows; None: as of others.
        warnings: about values without effect.
    """

    steps: int | None
    solver: Solver
    spacing: Spacing
    eta: float
    settings: dict[str, str]
    nfe: int
    windows: int
    pyramid: Pyramid | None = None
    thin_steps: int | None = None
    warnings: list[str] = field(default_factory=list)


class Filler(Protocol):
    """A loaded model, shared by all threads.

    Attributes:
        view: for clients; methods: those that the model supports, by name.
        checkpoint: its options for `rad sample`, such as {"checkpoint": "rad-nature32", "device": "cpu"}.
        preferred: its own settings for sampling.
    """

    view: ModelView
    methods: dict[str, MethodView]
    checkpoint: dict[str, object]
    preferred: Preferred

    def refines(self, fields: InpaintFields) -> bool:
        """Whether the method of a request can start finer scales from coarser results, as size policy "pyramid" does."""
        ...

    def plan(self, fields: InpaintFields, hole: Hole, *, rate: Callable[[], float], most_windows: int) -> Plan:
        """Check a request and fix its values.

        Args:
            fields: with the model's settings, see `complete`.
            hole: extended; rate: seconds per network call; most_windows: their count stops at this number + 1.

        Raises ValueError for a choice that the model does not support.
        """
        ...

    def fill(
        self,
        fields: InpaintFields,
        plan: Plan,
        image: Image.Image,
        hole: Hole | None,
        on_step: Callable[[Progress], None],
    ) -> Inpainted:
        """Fill a hole in the size of the image. `on_step` is called after each network call."""
        ...

    def probe(self) -> Inpainted:
        """Fill one window with a few network calls, to measure them."""
        ...


class Speed:
    """Seconds per network call of a model: the median of its last runs. A backward pass counts as two calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates: deque[float] = deque(maxlen=31)

    def add(self, result: Inpainted, seconds: float) -> None:
        calls = result.nfe + 2 * result.vjp
        if calls:
            with self._lock:
                self._rates.append(seconds / calls)

    @property
    def rate(self) -> float | None:
        """None before the first run."""
        with self._lock:
            return statistics.median(self._rates) if self._rates else None


def setting_text(value: bool | int | float | str) -> str:
    """A JSON value as the text of a setting."""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else repr(value)


def complete(fields: InpaintFields, preferred: Preferred, *, refines: bool = True) -> InpaintFields:
    """A request with the settings of its model, where it has none; a budget sets the steps.

    `refines`: see `Preferred.starting`.
    """
    preferred = preferred.starting(refines=refines)
    given = {name: getattr(fields, name) for name in KEYS if name in InpaintFields.model_fields}
    budget = fields.budget_nfe is not None or fields.budget_seconds is not None
    chosen = preferred.complete(Preferred(**given), method=fields.method, budget=budget)
    values = {name: getattr(chosen, name) for name in given}
    size_policy, average = chosen.size_policy or SIZE_POLICY, chosen.average or 1
    return fields.model_copy(update={**values, "size_policy": size_policy, "average": average})


def arguments(fields: InpaintFields, plan: Plan) -> dict[str, Any]:
    """The arguments of a call that both runtimes take: all but image, hole, method and condition."""
    names = ("seed", "num_samples", "average", "size_policy", "feather", "batch_size")
    return {
        **{name: getattr(plan, name) for name in ("steps", "solver", "spacing", "eta", "pyramid", "thin_steps")},
        **{name: getattr(fields, name) for name in names},
        "margin": margin_of(fields)[0],
        "names": fields.name,
        "extend": None if fields.extend is None else Extension.parse(fields.extend),
    }


def window_of(preferred: Preferred) -> dict[str, object]:
    """The option of `rad sample` for the window that a checkpoint prefers."""
    return {} if preferred.size is None else {"size": preferred.size}


def sampler_fields(fields: InpaintFields) -> dict[str, Any]:
    """Solver, spacing and eta of a request."""
    return {"solver": fields.solver, "spacing": fields.spacing, "eta": fields.eta}


def probe(inpainter: Callable[..., Inpainted], size: tuple[int, int], method: str) -> Inpainted:
    """Fill one window of (height, width) with three steps; the first call of a process is slower and does not count."""
    image, hole = Image.new("RGB", (size[1], size[0])), np.ones(size, np.float32)
    inpainter(image, hole, method=method, steps=1)
    return inpainter(image, hole, method=method, steps=3)


def steps_of(
    fields: InpaintFields,
    method: str,
    *,
    counts: Counts,
    units: Mapping[Kind, int],
    rate: Callable[[], float],
    within: Callable[[int], int],
    least: Callable[[], int],
) -> int | None:
    """Steps of the first windows; as many as the budget of a request allows; None: the preset.

    Args:
        counts: windows of one sample; rate: seconds per network call.
        units: network calls of one sample for a window of each kind with steps of its own, which a budget does not set.
        within: the most steps for a number of network calls per window; least: network calls of one step.

    Raises ValueError if more than one field sets the steps, or for a budget that is too small.
    """
    check_amounts(fields)
    average, first = fields.average or 1, counts["first"]
    if fields.budget_nfe is not None:
        _check_kinds(fields.budget_nfe, counts, {kind: calls * average for kind, calls in units.items()})
        return within(fields.budget_nfe // average)
    if fields.budget_seconds is None:
        return fields.steps
    each = rate() * fields.num_samples * average  # seconds of a network call in one window
    others = total_calls(counts, {"first": 0, **units})
    left = fields.budget_seconds / each - others
    if first == 0 and left >= 0:
        return None
    try:
        return within(int(left / max(1, first)))
    except ValueError:
        raise too_little(fields.budget_seconds, method, (others + least() * first) * each) from None


def check_method(fields: InpaintFields, view: ModelView, methods: Mapping[str, MethodView]) -> None:
    """Raise ValueError for a method that the model does not have. Files of clients are never run: only names are compared."""
    if fields.method not in methods:
        raise ValueError(f"method {fields.method!r} is not available on {view.id}; allowed are {', '.join(methods)}")


def check_amounts(fields: InpaintFields) -> None:
    """Raise ValueError if more than one field sets the number of steps."""
    given = [name for name in ("steps", "budget_nfe", "budget_seconds") if getattr(fields, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} both set the number of steps: give one of them")


def thin_steps_of(fields: InpaintFields) -> tuple[int | None, list[str]]:
    """Steps of thin windows, and a warning if they have no effect."""
    if fields.thin_steps is None or takes_thin_steps(fields.method, 1):
        return fields.thin_steps, []
    return None, [f"thin_steps has no effect on {fields.method}"]


def margin_of(fields: InpaintFields) -> tuple[int | None, list[str]]:
    """The margin of a request, and a warning if it has no effect."""
    if fields.margin is None or fields.size_policy in WITH_MARGIN:
        return fields.margin, []
    return None, [f"margin has no effect with size_policy {fields.size_policy}"]


def _check_kinds(budget: int, counts: Counts, calls: Mapping[Kind, int]) -> None:
    """Raise ValueError for a budget below the network calls of a window with steps of its own."""
    names = {"finer": "a window at a finer scale of size_policy 'pyramid'", "thin": "a thin window"}
    for kind, most in calls.items():
        if counts[kind] and most > budget:
            raise ValueError(f"budget_nfe is {budget}; {names[kind]} costs {most} network calls: give at least that")


def check_text(fields: InpaintFields, view: ModelView) -> None:
    """Raise ValueError for a prompt or guidance if the model takes no text."""
    given = [name for name in ("prompt", "negative_prompt", "guidance") if getattr(fields, name) not in ("", None)]
    if given and not view.text:
        raise ValueError(f"{given[0]} has no effect, since {view.id} takes no text: leave it out")


def check_counts(method: object) -> None:
    """Raise ValueError for a setting of a method, a dataclass, that asks for endless work or memory between two steps."""
    for name, value in vars(method).items():
        if isinstance(value, int) and value > MOST_COUNT:
            raise ValueError(f"{name} is {describe(value)}; this server takes up to {MOST_COUNT}")


def too_little(budget: float, method: str, least: float) -> ValueError:
    """The error for a budget in seconds that is below the `least` of a method."""
    return ValueError(
        f"budget_seconds is {budget:g}; {method} takes about {least:.2g} seconds or more here: give more seconds, or a "
        "smaller hole"
    )
