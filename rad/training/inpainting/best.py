"""The best measurement of a run, and when to stop for want of a better one."""

import math
from dataclasses import asdict, dataclass
from typing import Literal, cast

Monitor = Literal["distance", "psnr", "texture", "frechet"]
"""Perceptual distance and Frechet distance: lower is better. PSNR: higher. Texture: nearer to 1, as a ratio."""

Record = dict[str, int | float | str | None]


def loss(monitor: Monitor, value: float) -> float:
    """A number that is lower for a better value."""
    if monitor == "psnr":
        return -value
    if monitor == "texture":
        return abs(math.log(value)) if value > 0 else math.inf
    return value


@dataclass
class Best:
    """The best value of a run.

    Args:
        definition: of the measurement; values of another one are not comparable.
        value, step: the best value and its step; None before the first measurement.
        waited: measurements since.
    """

    definition: str = ""
    value: float | None = None
    step: int = 0
    waited: int = 0

    def update(self, monitor: Monitor, value: float, step: int) -> bool:
        """Whether `value` is better than all before it."""
        if self.value is None or loss(monitor, value) < loss(monitor, self.value):
            self.value, self.step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    def has_ended(self, patience: int | None) -> bool:
        return patience is not None and self.waited >= patience

    def record(self) -> Record:
        return asdict(self)

    @classmethod
    def from_record(cls, record: Record) -> "Best":
        definition, value = cast(str, record["definition"]), cast(float | None, record["value"])
        return cls(definition, value, cast(int, record["step"]), cast(int, record["waited"]))
