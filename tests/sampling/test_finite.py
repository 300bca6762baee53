"""NaN and infinity between the network and the image are errors that name images, call and cause."""

import math
import pickle
from dataclasses import dataclass, fields, make_dataclass

import numpy as np
import pytest
import torch

from rad.diffusion.denoiser import UNetDenoiser
from rad.diffusion.levels import NoiseLevel
from rad.diffusion.processes import RegionAware, Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.step import Denoised
from rad.methods import METHODS
from rad.methods.copaint import CoPaint
from rad.methods.dps import DPS
from rad.methods.repaint import RePaint
from rad.rng import KeyedNoise
from rad.sampling.finite import FiniteRecord, NotFiniteError, finite, require_finite
from rad.sampling.method import SamplingMethod, setting
from rad.sampling.sampler import Sampler
from rad.sampling.state import CountedDenoiser
from rad.sampling.task import Task

PROCESS = Uniform(linear_betas())
IMAGE = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
HOLE = torch.zeros(3, 1, 8, 8)
HOLE[:, :, 2:6, 2:6] = 1


class Broken:
    """A denoiser that spoils one value of image `row` from call `call` on."""

    channels = 3

    def __init__(self, call, *, row=1, value=math.nan, where="x0"):
        self.call, self.row, self.value, self.where, self.calls = call, row, value, where, 0

    def denoise(self, x, noise):
        self.calls += 1
        x0, fraction = 0.5 * x.clamp(-1, 1), torch.full_like(x, 0.5)
        if self.calls >= self.call:
            spoiled = x0.clone() if self.where == "x0" else fraction
            spoiled[self.row % len(x), 0, 3, 3] = self.value
            x0, fraction = (spoiled, fraction) if self.where == "x0" else (x0, spoiled)
        return Denoised(x0, fraction)


def run(denoiser, method=None, *, process=PROCESS, steps=10):
    process = process if method is None else method.process(process, "adm")
    with KeyedNoise(0, range(3)) as noise:
        return Sampler(process, method, steps=steps)(denoiser, Task.from_image(IMAGE, HOLE), noise=noise)


@pytest.mark.parametrize("process", [PROCESS, RegionAware(linear_betas())])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x0", "fraction"])
def test_the_first_call_and_the_image_are_named(process, value, where):
    run(Broken(100), process=process)
    with pytest.raises(NotFiniteError, match=r"^image 2 of the batch: the network's output is not finite at") as caught:
        run(Broken(4, value=value, where=where), process=process)
    assert caught.value.rows == [1]
    assert "at network call 4 of 10, timestep 6" in str(caught.value)
    assert "\n" not in str(caught.value)


class BrokenLate:
    """NaN in the second half of the process."""

    channels = 3

    def denoise(self, x, noise):
        late = noise.spread((noise.timesteps[:, :1] < 500).to(x.dtype)) if noise.index is None else 1
        return Denoised(0.5 * x * torch.where(late * torch.ones_like(x) == 1, math.nan, 1.0))


@pytest.mark.parametrize(
    "name", [n for n in METHODS if METHODS[n].weights in ("base", "adapter") and n not in ("m2s", "pilot")]
)
def test_no_method_hides_an_output_that_is_not_finite(name):
    """Not even one that replaces it afterwards, or divides a batch in another way."""
    method = METHODS[name](
        **{"mcgdiff": {"particles": 2}, "vipaint": {"iterations": 2}, "grow": {"budget": "full"}}.get(name, {})
    )
    with pytest.raises(NotFiniteError, match="the network's output is not finite"):
        run(BrokenLate(), method, steps=5)


def test_a_method_that_replaces_the_estimate_does_not_hide_it():
    @dataclass(frozen=True)
    class Hides(SamplingMethod):
        def on_denoised(self, state, denoised):
            return Denoised(denoised.x0.nan_to_num(0, 0, 0))

    with pytest.raises(
        NotFiniteError, match="image 2 of the batch: the network's output is not finite at network call 10"
    ):
        run(Broken(10), Hides())


def test_the_last_step_and_a_batch_of_another_size_are_seen():
    with pytest.raises(NotFiniteError, match="call 10 of 10, timestep 0"):
        run(Broken(10))
    record = FiniteRecord(3, 5)
    record.add(2, torch.zeros(6, 1, 2, 2), level(6), Denoised(torch.full((6, 1, 2, 2), math.inf)))
    with pytest.raises(NotFiniteError) as caught:
        record.check(torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), RePaint())
    assert caught.value.rows == [0, 1, 2]


def level(count):
    return NoiseLevel(*(torch.full((count, 1), 0.5, dtype=torch.float64) for _ in range(3)))


def test_a_method_that_diverges_is_told_from_a_broken_network():
    with pytest.raises(NotFiniteError, match=r"x is not finite .* after finite outputs of the network") as caught:
        run(Wild(), DPS(zeta=1e38))
    assert "lower the settings of 'dps' (zeta=1e+38" in str(caught.value)

    @dataclass(frozen=True)
    class Explodes(SamplingMethod):
        def after_step(self, state, denoised, x_next):
            return x_next / 0 if state.next_timestep < 0 else x_next

    with pytest.raises(NotFiniteError, match="x is not finite after the last network call"):
        run(Broken(100), Explodes())


class Wild:
    channels = 3

    def denoise(self, x, noise):
        return Denoised(3e3 * x.tanh())


def test_a_rejected_trial_of_a_line_search_may_be_infinite():
    assert run(Wild(), CoPaint(rate=1e38), steps=3).image.isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_with_infinite_output_is_not_clipped_to_black_and_white(value):
    class Network(torch.nn.Module):
        def forward(self, x, times, index=None):
            return Output(torch.full_like(x, value))

    @dataclass
    class Output:
        sample: torch.Tensor

    with pytest.raises(NotFiniteError, match="output is not finite at network call 1 of 10"):
        run(UNetDenoiser(Network()))


def test_an_image_that_is_not_finite_is_no_fault_of_the_method():
    task = Task.from_image(torch.where(HOLE == 1, IMAGE, math.nan), HOLE)
    with KeyedNoise(0, range(3)) as noise, pytest.raises(NotFiniteError, match="not finite before the first step"):
        Sampler(PROCESS, RePaint(), steps=4)(Broken(100), task, noise=noise)


def test_counts_and_records_of_denoisers_within_each_other():
    record = FiniteRecord(1, 9)
    outer = CountedDenoiser(Broken(2, row=0), record=record)
    inner = CountedDenoiser(Broken(1, row=0), within=outer)
    x = torch.zeros(1, 3, 4, 4)
    outer.denoise(x, level(1))
    inner.denoise(x, level(1), trial=True)
    record.check(x, x, RePaint())
    inner.denoise(x, level(1))
    with pytest.raises(NotFiniteError, match="network call 3 of 9"):
        record.check(x, x, RePaint())


def test_the_error_keeps_its_text_in_a_pickle_and_names_images():
    error = NotFiniteError("broken", [0, 2], ["a.png", "b.png", ""])
    assert str(error) == "a.png, image 3 of the batch: broken"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert isinstance(error, ValueError)
    with pytest.raises(NotFiniteError, match=r"^image 2 of the batch: broken$"):
        require_finite(torch.tensor([[1.0], [math.inf]]), "broken")
    assert finite(torch.tensor([[1e38, 1e38], [0, math.nan], [-math.inf, math.inf]])).tolist() == [True, False, False]


# ---- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_method_may_be_nan_or_infinite(name, value):
    kind = METHODS[name]
    for item in fields(kind):
        if isinstance(item.default, float):
            with pytest.raises(ValueError, match=f"^{item.name} is {value}; give a finite number$"):
                kind(**{item.name: value})
        elif type(item.default) is int:
            with pytest.raises(ValueError, match=f"^{item.name} is {value}; expected a whole number"):
                kind(**{item.name: value})


def test_settings_of_a_wrong_type_and_numpy_numbers():
    assert DPS(zeta=np.float32(0.5)).zeta == 0.5
    assert RePaint(jump_length=np.int64(5)).jump_length == 5
    for wrong in (True, "1", None, [1.0]):
        with pytest.raises(ValueError, match=r"^zeta is .*; expected a number$"):
            DPS(zeta=wrong)
    with pytest.raises(ValueError, match=r"^jump_length is 2\.5; expected a whole number$"):
        RePaint(jump_length=2.5)


def test_own_methods_without_ranges():
    kind = make_dataclass(
        "Own", [("plain", float, 1.0), ("free", float, setting(1.0, "free"))], bases=(SamplingMethod,), frozen=True
    )
    assert kind(plain=-3.0).plain == -3
    for name in ("plain", "free"):
        with pytest.raises(ValueError, match=f"^{name} is nan; give a finite number$"):
            kind(**{name: math.nan})
