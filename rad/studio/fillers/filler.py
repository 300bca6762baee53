"""The interface of a loaded model, and the measured time of its network calls."""

import statistics
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rad.inpainting.result import Inpainted, Progress
from rad.studio.schema import InpaintFields, MethodView, ModelView

Hole = NDArray[np.float32]
"""(H,W) in [0,1], 1 = fill."""


@dataclass(frozen=True)
class Plan:
    """A request with all values explicit.

    Args:
        steps, solver, spacing, eta: of the sampler; steps is None for methods without a network.
        settings: of the method, as text.
        nfe: network calls over all windows and samples.
        warnings: about values without effect.
    """

    steps: int | None
    solver: str
    spacing: str
    eta: float
    settings: dict[str, str]
    nfe: int
    warnings: list[str] = field(default_factory=list)


class Filler(Protocol):
    """A loaded model, shared by all threads.

    Attributes:
        view: for clients; methods: those that the model supports, by name.
        checkpoint: its options for `rad sample`, such as {"checkpoint": "rad-nature32", "device": "cpu"}.
    """

    view: ModelView
    methods: dict[str, MethodView]
    checkpoint: dict[str, object]

    def plan(self, fields: InpaintFields, hole: Hole, *, rate: Callable[[], float]) -> Plan:
        """Check a request and fix its values. `hole` is extended; `rate`: seconds per network call.

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


def setting_text(name: str, value: bool | int | float | str) -> str:
    """A JSON value as the text of a setting."""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else repr(value)
