"""Finite values from the network to the image: the first network call of a run after which they are not, and its cause."""

from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rad.diffusion.levels import NoiseLevel
from rad.diffusion.step import Denoised
from rad.errors import NotFiniteError

if TYPE_CHECKING:
    from rad.sampling.method import Method

INPUT, OUTPUT = 1, 2


def finite(values: Tensor) -> Tensor:
    """(B,) whether all values of an image are finite."""
    values = values.detach()
    return (values - values).flatten(1).sum(1) == 0  # NaN - NaN and inf - inf are NaN; five times as fast as isfinite


def require_finite(values: Tensor, reason: str) -> None:
    """Raise NotFiniteError for images (B,...) that are not finite. Waits for the device."""
    if rows := [row for row, good in enumerate(finite(values).tolist()) if not good]:
        raise NotFiniteError(reason, rows)


class FiniteRecord:
    """The first network call of each image whose input or output is not finite, kept on the device without waiting for it.

    Args:
        images: number of images B of the run; planned: its number of network calls.
    """

    def __init__(self, images: int, planned: int) -> None:
        self.images, self.planned = images, planned
        self._first: Tensor | None = None
        """(B,) 4 * call number + INPUT or OUTPUT; 0 where all was finite."""
        self._timestep: Tensor | None = None

    def add(self, call: int, x: Tensor, noise: NoiseLevel, output: Denoised) -> None:
        """Record call number `call` on x. A batch of another size than the run's counts for all images."""
        with torch.no_grad():
            good_output, fraction = finite(output.x0), output.variance_fraction
            if fraction is not None:
                good_output = good_output & finite(fraction)
            good_input = finite(x)
            code = torch.where(good_input, OUTPUT, INPUT) + 4 * call
            code, timestep = torch.where(good_input & good_output, 0, code), noise.timesteps.amax(1)
            if len(code) != self.images:
                code, timestep = code.amax().expand(self.images), timestep.amax().expand(self.images)
            if self._first is None or self._timestep is None:
                self._first, self._timestep = code, timestep
            else:
                self._timestep = torch.where(self._first == 0, timestep, self._timestep)
                self._first = torch.where(self._first == 0, code, self._first)

    def check(self, x: Tensor, known: Tensor, method: "Method") -> None:
        """Raise NotFiniteError for the result x (B,C,H,W) of `method`, with the first cause. Waits for the device."""
        good = finite(x)
        first = torch.where(good, 0, INPUT) if self._first is None else self._first
        codes, bad = torch.stack([first, (~good | (first > 0)).to(first.dtype)]).tolist()  # one read of the device
        rows = [row for row, each in enumerate(bad) if each]
        if not rows:
            return
        if not bool(finite(known).all()):
            raise NotFiniteError("the image is not finite before the first step: check the image", rows)
        row = min(rows, key=lambda row: codes[row] or 4 * (self.planned + 1))
        call, kind = divmod(codes[row], 4)
        where = "after the last network call"
        if call and self._timestep is not None:
            total = f" of {self.planned}" if call <= self.planned else ""
            where = f"at network call {call}{total}, timestep {self._timestep[row].item():g}"
        if kind == OUTPUT:
            half = torch.is_autocast_enabled(x.device.type)
            advice = "use precision '32', or check the model's weights" if half else "check the model's weights"
            raise NotFiniteError(f"the network's output is not finite {where}: {advice}", rows)
        values = {item.name: getattr(method, item.name) for item in fields(method)}
        settings = [f"{name}={value:g}" for name, value in values.items() if isinstance(value, float)]
        advice = (
            f"lower the settings of {method.name!r} ({', '.join(settings)})"
            if settings
            else f"check method {method.name!r}"
        )
        raise NotFiniteError(f"x is not finite {where}, after finite outputs of the network: {advice}", rows)
