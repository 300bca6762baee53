"""The reverse loop without torch: `rad.sampling.Sampler` for the methods of the runtime."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rad.diffusion.choices import Solver, Spacing, check_solver, check_strength, last_part
from rad.errors import NotFiniteError
from rad.runtime.sampling.denoiser import Denoiser
from rad.runtime.sampling.methods import Method
from rad.runtime.sampling.process import Floats, NoiseLevel, Regions, Uniform, sampling_timesteps
from rad.runtime.sampling.steps import History, multistep, noised, renoise, reverse_step

OnCall = Callable[[int, Floats], None]
"""(network calls of this run, estimate (B,C,H,W) of the clean images), after each call."""


class NoiseSource(Protocol):
    """Source of a run's noise, such as `KeyedNoise`: draw `number` is (B, *shape), standard normal."""

    def randn(self, number: int, shape: Sequence[int]) -> Floats: ...


class Sampler:
    """The reverse loop.

    Args:
        process: `RegionAware` for RAD, `Uniform` for methods on the base weights.
        steps: number of noise levels, 1 to process.sampled_steps; solver, eta, spacing, strength: see `rad.sampling.Sampler`.

    Raises ValueError if a number is outside its range, or the solver does not support the spacing or the method.
    """

    def __init__(
        self,
        process: Uniform,
        method: Method,
        *,
        steps: int,
        solver: Solver,
        spacing: Spacing,
        eta: float,
        strength: float = 1.0,
    ) -> None:
        if solver == "dpm++2m" and not method.multistep:
            raise ValueError(
                f"solver 'dpm++2m' extrapolates from the previous step; method {method.name!r} changes x or x0 between "
                "steps or has its own loop: use solver 'ddpm' or 'ddim'"
            )
        check_solver(solver, eta, spacing)
        self.process, self.method, self.eta = process, method, eta
        self.solver: Solver = solver
        self.strength = check_strength(strength)
        timesteps = sampling_timesteps(process, steps, spacing=spacing, fractional=method.fractional)
        self.timesteps = method.plan(last_part(timesteps, strength))
        self.nfe = sum(nxt < now for now, nxt in pairwise(self.timesteps))

    def __call__(
        self, denoiser: Denoiser, image: Floats, hole: Floats, *, noise: NoiseSource, on_call: OnCall | None = None
    ) -> Floats:
        """Fill the holes of images (B,C,H,W) in [-1,1], hole (B,1,H,W) in [0,1]. Known pixels are not restored.

        With a strength below 1, the run starts from the images' content in the hole.
        Raises NotFiniteError, with the network call, if the network's output or x is not finite.
        """
        known, regions = np.where(hole == 1, np.float32(0), image), Regions.from_mask(hole)
        draws = 0

        def randn() -> Floats:
            nonlocal draws
            draws += 1
            return noise.randn(draws - 1, known.shape[1:])

        now = self.process.noise(self.timesteps[0], regions)
        levels = now.indicators(known.shape[2:])
        x = noised(known if self.strength == 1 else image, now, noise=randn())
        calls = 0
        before: History | None = None
        for t, t_next in pairwise(self.timesteps):
            nxt = self.process.noise(t_next, regions)
            if t_next > t:
                x, now = renoise(x, now, nxt, noise=randn()), nxt
                continue
            if self.method.known_noise:
                x = replace_known(x, known, hole, now, noise=randn())
            calls += 1
            estimate, output = denoiser(x, now, levels)
            self._require_finite(x, output, calls, now)
            if on_call is not None:
                on_call(calls, np.where(hole == 0, known, estimate.x0))
            fresh = randn() if self.eta > 0 and t_next >= 0 else None
            eta = 0.0 if fresh is None else self.eta  # a step to the clean level is equal for every eta
            if self.solver == "dpm++2m":
                x, before = multistep(x, estimate.x0, now, nxt, before=before, eta=eta, noise=fresh)
            else:
                x = reverse_step(x, estimate, now, nxt, eta=eta, noise=fresh)
            now = nxt
        if self.method.known_noise:
            x = _lerp(known, x, hole)
        if rows := np.flatnonzero(~_finite(x)).tolist():
            reason = f"x is not finite after the last network call: check method {self.method.name!r}"
            raise NotFiniteError(reason, rows)
        return x

    def _require_finite(self, x: Floats, output: Floats, call: int, now: NoiseLevel) -> None:
        good_input, good_output = _finite(x), _finite(output)
        if rows := np.flatnonzero(~(good_input & good_output)).tolist():
            where = f"at network call {call} of {self.nfe}, timestep {now.timesteps[rows[0]].max():g}"
            if good_input[rows[0]]:
                raise NotFiniteError(f"the network's output is not finite {where}: check the model's weights", rows)
            raise NotFiniteError(
                f"x is not finite {where}, after finite outputs of the network: check method {self.method.name!r}", rows
            )


def replace_known(x: Floats, known: Floats, hole: Floats, level: NoiseLevel, *, noise: Floats) -> Floats:
    """hole x + known (a y + s n), for x (B,C,H,W) at `level`; n is `noise`."""
    return _lerp(noised(known, level, noise=noise), x, hole)


def _lerp(start: Floats, end: Floats, weight: Floats) -> Floats:
    """start + weight (end - start), exact at both ends, as torch.lerp."""
    return np.where(weight < 0.5, start + weight * (end - start), end - (end - start) * (1 - weight))


def _finite(values: Floats) -> NDArray[np.bool_]:
    """(B,) whether all values of an image are finite."""
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))
