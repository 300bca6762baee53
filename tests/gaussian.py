"""A Gaussian world where everything is known: data, exact posterior, exact law of an affine sampler (propagated, not sampled)."""

import itertools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.diffusion.gaussian import GaussianDenoiser
from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import Process, Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.solvers import Solver
from rad.diffusion.spacings import Spacing
from rad.diffusion.step import Denoised, reverse_step, step_levels
from rad.methods.m2s import M2S, Coarse
from rad.rng import KeyedNoise
from rad.sampling.method import CustomSampler, Method, SamplingMethod, Schedule
from rad.sampling.sampler import Sampler
from rad.sampling.state import State
from rad.sampling.task import Task

DOUBLE = torch.float64


@dataclass(frozen=True)
class World:
    """An 8x8 grey image of smooth Gaussian data with a 4x4 hole; y is one draw of it."""

    denoiser: GaussianDenoiser
    hole: Tensor
    y: Tensor

    @property
    def inside(self) -> Tensor:
        return self.hole.flatten().bool()

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the hole given the known pixels."""
        inside, covariance, mean = self.inside, self.denoiser.covariance, self.denoiser.mean.flatten()
        gain = torch.linalg.solve(covariance[~inside][:, ~inside], covariance[~inside][:, inside]).T
        residual = (self.y.flatten() - mean)[~inside]
        return mean[inside] + gain @ residual, covariance[inside][:, inside] - gain @ covariance[~inside][:, inside]


def make_world(size: int = 8) -> World:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    points = torch.stack([rows.flatten(), columns.flatten()], 1).to(DOUBLE)
    covariance = 0.25 * torch.exp(-torch.cdist(points, points).square() / 8) + 0.01 * torch.eye(
        size * size, dtype=DOUBLE
    )
    mean = (0.2 * torch.sin(columns / 2).to(DOUBLE))[None]
    draw = torch.randn(size * size, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    y = mean + (torch.linalg.cholesky(covariance) @ draw).view(1, size, size)
    hole = torch.zeros(1, 1, size, size, dtype=DOUBLE)
    hole[..., 2:6, 3:7] = 1
    return World(GaussianDenoiser(mean, covariance), hole, y[None])


def make_pair(correlation: float = 0.8) -> World:
    """Two pixels of variance 1, the first known to be 1: the second has mean `correlation`, variance 1 - correlation^2."""
    covariance = torch.tensor([[1, correlation], [correlation, 1]], dtype=DOUBLE)
    hole, y = (torch.tensor([[[row]]], dtype=DOUBLE) for row in ([0, 1], [1, 0]))
    return World(GaussianDenoiser(torch.zeros(1, 1, 2, dtype=DOUBLE), covariance), hole, y)


def propagate(
    world: World,
    chain: list[NoiseLevel],
    *,
    mean: Tensor,
    covariance: Tensor,
    eta: float = 1.0,
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """The law of x after the reverse steps between neighbours of `chain`, from N(mean, covariance) at chain[0].

    The affine map of each step is read off the code itself: rows of `basis` go through prior and step like images.
    `exact` adds the variance of x0 given x to each step, which makes it the true reverse kernel of Gaussian data.
    """
    shape = world.denoiser.mean.shape
    d = mean.numel()
    basis = torch.cat([torch.zeros(1, d, dtype=DOUBLE), torch.eye(d, dtype=DOUBLE)]).view(-1, *shape)
    zero = torch.zeros_like(basis)

    def step(x: Tensor, x0: Tensor, now: NoiseLevel, nxt: NoiseLevel, noise: Tensor) -> Tensor:
        return reverse_step(x, Denoised(x0), now, nxt, eta=eta, noise=noise).flatten(1)

    for now, nxt in itertools.pairwise(chain):
        estimate = world.denoiser.denoise(basis, now).x0
        images = step(basis, estimate, now, nxt, zero)
        offset, matrix = images[0], (images[1:] - images[0]).T
        deviation = step(zero[:1], zero[:1], now, nxt, torch.ones_like(zero[:1]))[0]
        covariance = matrix @ covariance @ matrix.T + torch.diag(deviation.square())
        if exact:
            assert eta == 1
            on_x0 = step(zero[:1], torch.ones_like(zero[:1]), now, nxt, zero[:1])[0]
            left = world.denoiser.posterior_covariance(now)[0]
            covariance = covariance + on_x0[:, None] * left * on_x0
            assert bool((step_levels(now, nxt).posterior >= 0).all())
        mean = matrix @ mean + offset
    return mean, covariance


def kl(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """KL( N(mean, covariance) || N(other) ), in nats."""
    solved = torch.linalg.solve(other_covariance, covariance)
    off = other_mean - mean
    distance = off @ torch.linalg.solve(other_covariance, off)
    logs = torch.logdet(other_covariance) - torch.logdet(covariance)
    return 0.5 * float(torch.trace(solved) - len(mean) + distance + logs)


class _Watched:
    """A method followed by a probe."""

    def __init__(self, method: SamplingMethod, probe: "_Probe") -> None:
        self.method, self.probe = method, probe

    def __getattr__(self, name: str) -> object:
        return getattr(self.method, name)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        return self.probe.after_step(state, denoised, self.method.after_step(state, denoised, x_next))


class _Probe:
    """Reads the affine map of each step from the rows of the batch, and sends new rows out.

    Row 0 is zero, rows 1 to d are a basis of x, and d rows follow for each draw of the step, a basis of that draw.
    """

    def __init__(self, dimensions: int, draws: int) -> None:
        self.d, self.slots = dimensions, draws
        self.drawn = 0
        self.mean: Tensor | None = None
        self.covariance = torch.zeros(dimensions, dimensions, dtype=DOUBLE)

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        assert self.drawn < self.slots, "more draws between two steps than the probe has rows for"
        rows = torch.zeros(1 + self.d + self.slots * self.d, self.d, dtype=DOUBLE)
        start = 1 + self.d + self.drawn * self.d
        rows[start : start + self.d] = torch.eye(self.d, dtype=DOUBLE)
        self.drawn += 1
        return rows.view(-1, *shape)

    def after_step(self, state: State, denoised: Denoised, x_next: Tensor) -> Tensor:
        flat = x_next.detach().flatten(1)
        offset, matrix = flat[0], (flat[1:] - flat[0]).T  # (d, d + slots d)
        before = torch.zeros(self.d, dtype=DOUBLE) if self.mean is None else self.mean
        noise = matrix[:, self.d :]
        # The first step starts from noise that is drawn: its x does not come from these rows.
        on_x = torch.zeros(self.d, self.d, dtype=DOUBLE) if self.mean is None else matrix[:, : self.d]
        self.mean = offset + on_x @ before
        self.covariance = on_x @ self.covariance @ on_x.T + noise @ noise.T
        self.drawn = 0
        rows = torch.zeros_like(flat)
        rows[1 : 1 + self.d] = torch.eye(self.d, dtype=DOUBLE)
        return rows.view(x_next.shape)


class _ProbeTape:
    def __init__(self, probe: _Probe) -> None:
        self.probe = probe

    def randn(self, number: int, shape: tuple[int, ...]) -> Tensor:
        return self.probe.randn(tuple(shape))


def law(
    world: World,
    method: SamplingMethod,
    *,
    steps: int,
    solver: Solver | None = None,
    spacing: Spacing | None = None,
    eta: float | None = None,
    draws: int = 4,
    base_process: Process | None = None,
) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of the whole image that a method makes of the world, for methods that are affine in x.

    The sampler and the method run as they are, on rows that probe them; nothing is drawn at random.

    Args:
        solver, spacing, eta: None: the method's preset, or the solver's own.
        draws: the most draws between two reverse steps.
        base_process: of the model; None: DDPM's.
    """
    chosen = method.choose(steps=steps, solver=solver, spacing=spacing, eta=eta)
    if chosen.solver == "dpm++2m":
        return law_of_draws(world, method, chosen, base_process=base_process)
    d = world.denoiser.mean.numel()
    probe = _Probe(d, draws)
    rows = 1 + d + draws * d
    task = Task.from_image(world.y.expand(rows, *world.y.shape[1:]), world.hole.expand(rows, *world.hole.shape[1:]))
    process = method.process(base_process or Uniform(linear_betas()), "adm")
    sampler = Sampler(process, _Watched(method, probe), **vars(chosen))  # pyright: ignore[reportArgumentType]
    sampler(world.denoiser, task, noise=_ProbeTape(probe))  # pyright: ignore[reportArgumentType]
    assert probe.mean is not None
    return probe.mean, probe.covariance


class _UnitTape:
    """Draw k is zero but for a unit vector in each of the rows 1 + k d to (k + 1) d."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def randn(self, number: int, shape: tuple[int, ...]) -> Tensor:
        d = math.prod(shape)
        rows = torch.zeros(self.rows, d, dtype=DOUBLE)
        rows[1 + number * d : 1 + (number + 1) * d] = torch.eye(d, dtype=DOUBLE)
        return rows.view(-1, *shape)


def law_of_draws(
    world: World,
    method: SamplingMethod,
    chosen: Schedule,
    *,
    base_process: Process | None = None,
    times: list[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `law`, for samplers whose steps have a memory: the result is affine in all draws together.

    Args:
        times: other ones than `chosen.spacing` gives; also those that the sampler refuses.
    """
    draws = chosen.steps if chosen.eta else 1
    d = world.denoiser.mean.numel()
    rows = 1 + draws * d
    task = Task.from_image(world.y.expand(rows, *world.y.shape[1:]), world.hole.expand(rows, *world.hole.shape[1:]))
    process = method.process(base_process or Uniform(linear_betas()), "adm")
    sampler = Sampler(process, method, **vars(chosen))
    sampler.timesteps = sampler.timesteps if times is None else times
    made = sampler(world.denoiser, task, noise=_UnitTape(rows)).raw.flatten(1)
    on_draws = made[1:] - made[0]
    return made[0], on_draws.T @ on_draws


@dataclass(frozen=True)
class Distance:
    """How far a law lies from the exact posterior of the hole.

    Args:
        mean_error: root mean square error of the mean, in posterior standard deviations.
        variance_ratio: trace of the covariance over the posterior's.
        kl: to the posterior, in nats.
    """

    mean_error: float
    variance_ratio: float
    kl: float


def distance(world: World, mean: Tensor, covariance: Tensor) -> Distance:
    """Of the law of the whole image (d,), (d,d)."""
    inside = world.inside
    mean, covariance = mean[inside], covariance[inside][:, inside]
    exact_mean, exact_covariance = world.posterior()
    error = ((mean - exact_mean).square() / exact_covariance.diagonal()).mean().sqrt()
    ratio = covariance.trace() / exact_covariance.trace()
    return Distance(float(error), float(ratio), kl(mean, covariance, exact_mean, exact_covariance))


def sampled(
    world: World,
    method: Method,
    *,
    steps: int,
    rows: int,
    eta: float | None = None,
    seed: int = 0,
    base_process: Process | None = None,
) -> Tensor:
    """(rows,C,H,W) samples of a method, for those that are not affine in x; `raw`, nothing put back."""
    task = Task.from_image(world.y.expand(rows, *world.y.shape[1:]), world.hole.expand(rows, *world.hole.shape[1:]))
    process = method.process(base_process or Uniform(linear_betas()), "adm")
    assert isinstance(method, CustomSampler | SamplingMethod)
    sampler = Sampler(process, method, **vars(method.choose(steps=steps, eta=eta)))
    with KeyedNoise(seed, range(rows)) as noise:
        return sampler(world.denoiser, task, noise=noise).raw


def moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d,d) of samples (N,C,H,W)."""
    flat = samples.flatten(1)
    return flat.mean(0), flat.T.cov()


def with_needs(method: Method) -> Method:
    """The method with what it needs besides the prior: M2S gets the law of 2x2 means of the world as its coarse model."""
    if not isinstance(method, M2S):
        return method
    world = make_world()
    pool = F.avg_pool2d(torch.eye(64, dtype=DOUBLE).view(64, 1, 8, 8), 2).flatten(1).T
    small = GaussianDenoiser(
        (pool @ world.denoiser.mean.flatten()).view(1, 4, 4), pool @ world.denoiser.covariance @ pool.T
    )
    return replace(method, coarse=Coarse(small, Uniform(linear_betas()), 4))
