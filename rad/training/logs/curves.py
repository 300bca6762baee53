"""Means of the training curves: over the images of an interval, over processes and over accumulated batches."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Totals = dict[str, tuple[float, float]]
"""Sum and number of values of each curve, or two sums."""


class Curves:
    """Sums and counts of values, kept on their device. Nothing is read from it before `take` or `totals`.

    All processes add the same names.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, *, where: Tensor | None = None, over: Tensor | None = None) -> None:
        """Add `values` of any shape.

        Args:
            where: boolean of that shape, the values that count.
            over: of that shape; the curve is then the sum of the values over the sum of these, in place of their number.
        """
        values = values.detach().reshape(-1)
        values = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
        counts = where if over is None else over.detach()
        chosen = torch.ones_like(values) if counts is None else counts.reshape(-1).to(values)
        if where is not None:
            values = torch.where(where.reshape(-1), values, 0.0)
        total = torch.stack([values.sum(), chosen.sum()])
        self._totals[name] = self._totals[name].to(total) + total if name in self._totals else total

    def totals(self, reduce: Callable[[Tensor], Tensor]) -> Totals:
        """The present sums and counts; `reduce` sums a tensor (names, 2) over processes, and is called once."""
        if not self._totals:
            return {}
        names = sorted(self._totals)
        device = max(self._totals.values(), key=lambda total: total.device.type != "cpu").device
        rows = reduce(torch.stack([self._totals[name].to(device) for name in names])).tolist()
        return {name: (row[0], row[1]) for name, row in zip(names, rows, strict=True)}

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The means since the last call, without the curves that have no value. The next interval begins."""
        totals = self.totals(reduce)
        self._totals = {}
        return {name: total / count for name, (total, count) in totals.items() if count > 0}

    def restore(self, totals: Mapping[str, tuple[float, float]], *, counted: bool) -> None:
        """Go on from the `totals` of a checkpoint; of several processes, exactly one has `counted`."""
        self._totals = {
            name: torch.tensor(total, dtype=torch.float64) * float(counted) for name, total in totals.items()
        }
