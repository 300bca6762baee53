"""The examples in the docstrings of the central classes run."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import rad
from rad import rng
from rad.diffusion import Denoised, Denoiser, Flow, NoiseLevel, NoiseRegions, RegionAware, Uniform
from rad.sampling import Sampler, SamplingMethod, Task

ROOT = Path(rad.__file__).parent
MODULES = [
    f"rad.{package}.{file.stem}"
    for package in ("diffusion", "sampling")
    for file in sorted((ROOT / package).glob("[a-z]*.py"))
]


@pytest.mark.parametrize("name", [*MODULES, rng.__name__])
def test_examples_run(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


@pytest.mark.parametrize(
    "kind",
    [Denoised, Denoiser, Flow, NoiseLevel, NoiseRegions, RegionAware, Sampler, SamplingMethod, Task, Uniform],
)
def test_central_classes_have_an_example(kind: type) -> None:
    assert doctest.DocTestParser().get_examples(str(kind.__doc__))
