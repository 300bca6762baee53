"""Learning-rate schedules by name, as closed forms of the step, which a resumed run recomputes."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

ScheduleName = Literal[
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
    "piecewise_constant",
    "warmup_stable_decay",
]


@dataclass(frozen=True)
class Schedule:
    """Learning rate over a run of T = trainer.max_steps optimiser steps, as a factor of the optimiser's rate.

    A linear warm-up of W steps, step / W from 0, is followed by one of

        constant              1
        linear                1 - p                     p = (step - W) / (T - W)
        cosine                (1 + cos(pi p)) / 2
        cosine_with_restarts  (1 + cos(pi r)) / 2       r = (cycles p) mod 1, and 0 at the end (Loshchilov & Hutter 2017)
        polynomial            (1 - p)^power
        inverse_sqrt          sqrt(R / max(step, R))    R = reference_steps (EDM2, arXiv 2312.02696, eq. 67)
        piecewise_constant    factors by step, see `rules`
        warmup_stable_decay   1, then (1 + cos(pi q)) / 2 over the last `decay_share` of T, q from 0 to 1

    Args:
        name: one of these; all but the last and "inverse_sqrt" are of diffusers.optimization.
        warmup_steps: W, at least 0.
        decay_share: fraction of T in which "warmup_stable_decay" falls to zero, above 0 to 1.
        power: exponent of "polynomial", above 0.
        cycles: number of decays of "cosine_with_restarts", at least 1.
        reference_steps: R of "inverse_sqrt", the step at which the decay starts, at least 1; null: W.
        rules: of "piecewise_constant", as diffusers writes them: "1:1000,0.1:2000,0.01" is a factor of 1 before step 1000, 0.1
            before step 2000, then 0.01.
    """

    name: ScheduleName = "constant"
    warmup_steps: int = 0
    decay_share: float = 0.1
    power: float = 1.0
    cycles: int = 1
    reference_steps: int | None = None
    rules: str | None = None

    def __post_init__(self) -> None:
        require_choice("schedule.name", self.name, ScheduleName)
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps is {self.warmup_steps}; allowed are >= 0")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"schedule.decay_share is {self.decay_share}; allowed are fractions above 0, up to 1")
        if not (0 < self.power < math.inf and self.cycles >= 1):
            raise ValueError(
                f"schedule.power is {self.power} and schedule.cycles {self.cycles}; allowed are > 0 and >= 1"
            )
        for field, default, name in (
            ("power", 1.0, "polynomial"),
            ("cycles", 1, "cosine_with_restarts"),
            ("reference_steps", None, "inverse_sqrt"),
            ("rules", None, "piecewise_constant"),
        ):
            value = getattr(self, field)
            if value != default and self.name != name:
                raise ValueError(
                    f"schedule.{field} is {value!r}, which is for the schedule {name!r}: remove one of them"
                )
        if self.name == "inverse_sqrt" and self._reference < max(1, self.warmup_steps):
            raise ValueError(
                f"schedule.reference_steps is {self._reference}; 'inverse_sqrt' needs at least 1 and schedule.warmup_steps, "
                f"{self.warmup_steps}"
            )
        if self.name == "piecewise_constant":
            self._piecewise(0)

    def build(self, optimizer: Optimizer, total: int) -> LRScheduler:
        """The scheduler of a run of `total` optimiser steps, stepped after each of them."""
        from diffusers import optimization as library

        if self.name not in ("constant", "inverse_sqrt", "piecewise_constant") and total <= 0:
            raise ValueError(
                f"schedule.name is {self.name!r}, which needs the length of the run: set trainer.max_steps"
            )
        if self.name == "warmup_stable_decay":
            return LambdaLR(optimizer, lambda step: self._stable_decay(step, total))
        if self.name == "inverse_sqrt":
            return LambdaLR(optimizer, lambda step: self._warmup(step) * self._inverse_sqrt(step))
        if self.name == "piecewise_constant":
            return LambdaLR(optimizer, lambda step: self._warmup(step) * self._piecewise(step))
        if self.name == "polynomial":
            return library.get_polynomial_decay_schedule_with_warmup(
                optimizer, self.warmup_steps, total, lr_end=0.0, power=self.power
            )
        name = "constant_with_warmup" if self.name == "constant" else self.name
        return library.get_scheduler(
            name, optimizer, num_warmup_steps=self.warmup_steps, num_training_steps=total, num_cycles=self.cycles
        )

    @property
    def _reference(self) -> int:
        return self.warmup_steps if self.reference_steps is None else self.reference_steps

    def _warmup(self, step: int) -> float:
        return min(1.0, step / max(1, self.warmup_steps)) if self.warmup_steps else 1.0

    def _inverse_sqrt(self, step: int) -> float:
        return math.sqrt(self._reference / max(step, self._reference))

    def _piecewise(self, step: int) -> float:
        """The factor of `rules` at a step. Raises ValueError for other rules than those of the docstring."""
        *pieces, last = (self.rules or "").split(",")
        try:
            ends = [(int(end), float(factor)) for factor, end in (piece.split(":") for piece in pieces)]
            factors = [factor for _, factor in ends] + [float(last)]
        except ValueError:
            factors, ends = [math.nan], []
        increases = all(before < after for (before, _), (after, _) in pairwise(ends))
        if not all(0 <= factor < math.inf for factor in factors) or not increases:
            raise ValueError(
                f"schedule.rules is {self.rules!r}; give FACTOR:STEP pairs with increasing steps, then the last factor, such as "
                "1:1000,0.1:2000,0.01"
            )
        return next((factor for end, factor in ends if step < end), factors[-1])

    def _stable_decay(self, step: int, total: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        start = max(self.warmup_steps, round(total * (1 - self.decay_share)))
        progress = min(1.0, max(0, step - start) / max(1, total - start))
        return 0.5 * (1 + math.cos(math.pi * progress))


def require_choice(name: str, value: str, kind: object) -> None:
    """Raise ValueError unless `value` is one of the Literal `kind`; jsonargparse does so for YAML, this for Python."""
    if value not in get_args(kind):
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(get_args(kind))}")
