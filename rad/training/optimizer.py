"""The optimiser and the schedule of its learning rate."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

ScheduleName = Literal["constant", "linear", "cosine", "warmup_stable_decay"]


@dataclass(frozen=True)
class Schedule:
    """Learning rate over a run of T = trainer.max_steps optimiser steps, as a factor of the optimiser's own.

    A linear warm-up of W steps, step / W from 0, is followed by one of

        constant              1
        linear                1 - p                     p = (step - W) / (T - W)
        cosine                (1 + cos(pi p)) / 2
        warmup_stable_decay   1, then (1 + cos(pi q)) / 2 over the last `decay_share` of T, q from 0 to 1

    Args:
        name: "constant", "linear", "cosine" (of diffusers.optimization.get_scheduler), or "warmup_stable_decay".
        warmup_steps: W, at least 0.
        decay_share: fraction of T in which "warmup_stable_decay" falls to zero, above 0 to 1.
    """

    name: ScheduleName = "constant"
    warmup_steps: int = 0
    decay_share: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in get_args(ScheduleName):
            raise ValueError(f"schedule.name is {self.name!r}; allowed are {', '.join(get_args(ScheduleName))}")
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps is {self.warmup_steps}; allowed are >= 0")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"schedule.decay_share is {self.decay_share}; allowed are fractions above 0, up to 1")

    def build(self, optimizer: Optimizer, total: int) -> LRScheduler:
        """The scheduler of a run of `total` optimiser steps, stepped after each of them."""
        from diffusers.optimization import get_scheduler

        if self.name != "constant" and total <= 0:
            raise ValueError(
                f"schedule.name is {self.name!r}, which needs the length of the run: set trainer.max_steps"
            )
        if self.name == "warmup_stable_decay":
            return LambdaLR(optimizer, lambda step: self._stable_decay(step, total))
        name = "constant_with_warmup" if self.name == "constant" else self.name
        return get_scheduler(name, optimizer, num_warmup_steps=self.warmup_steps, num_training_steps=total)

    def _stable_decay(self, step: int, total: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        start = max(self.warmup_steps, round(total * (1 - self.decay_share)))
        progress = min(1.0, max(0, step - start) / max(1, total - start))
        return 0.5 * (1 + math.cos(math.pi * progress))


def sharded(optimizer: Callable[[Iterable], Optimizer], weights: Iterable) -> Optimizer:
    """ZeRO stage 1: each process keeps the optimiser state of a part of `weights`."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(list(weights), optimizer_class=optimizer)  # pyright: ignore[reportArgumentType]
