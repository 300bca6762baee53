"""The code of docs/tutorials/add-a-method.md runs; its method passes the tests of a built-in method; links in docs/ are valid."""

import re
from pathlib import Path

import pytest
import torch

from rad.diffusion.processes import Uniform
from rad.diffusion.schedules import linear_betas
from rad.methods import METHODS
from rad.methods.registry import create, find, hooks, table
from rad.rng import KeyedNoise
from rad.sampling.sampler import Sampler
from rad.sampling.task import Task
from tests.gaussian import make_world

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("checkpoints/*/README.md")]
PAGE = (ROOT / "docs" / "tutorials" / "add-a-method.md").read_text()
EXAMPLE, REGISTER, MEASURE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def projection(forget_methods, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("projection.py").write_text(EXAMPLE)
    return find("projection.py:Projection")


def test_example_is_short_and_has_the_name_of_its_file(projection):
    assert len(EXAMPLE.splitlines()) <= 30
    assert create("projection", {"strength": "0.9"}) == projection(strength=0.9)
    assert hooks(projection) == "on_denoised"
    assert "  projection.strength=1.0: how far" in table()


def test_example_can_be_registered_with_another_name(projection):
    del METHODS["projection"]
    exec(compile(REGISTER, "docs/tutorials/add-a-method.md", "exec"), {"Projection": projection})
    assert projection().name == "my-projection"
    assert create("my-projection") == projection()


def test_example_keeps_known_pixels_and_equals_the_plain_sampler_at_strength_0(projection):
    world = make_world()
    task, results = Task.from_image(world.y, world.hole), {}
    for strength in (0.0, 1.0, None):
        with KeyedNoise(0, ["a"]) as noise:
            method = None if strength is None else projection(strength=strength)
            results[strength] = Sampler(projection().process(Uniform(linear_betas()), "adm"), method, steps=20)(
                world.denoiser, task, noise=noise
            )
    torch.testing.assert_close(results[1.0].raw[world.hole == 0], world.y[world.hole == 0], rtol=0, atol=1e-12)
    assert torch.equal(results[0.0].raw, results[None].raw)


def test_example_has_the_expected_distance_from_the_posterior(projection, capsys):
    exec(compile(MEASURE, "docs/tutorials/add-a-method.md", "exec"), {"Projection": projection})
    printed = re.fullmatch(r"mean (\S+) posterior deviations off, variance (\S+), KL (\S+)\n", capsys.readouterr().out)
    assert printed is not None
    # DDNM's posterior form has the mean of replacement in the hole: 1.12 deviations at 100 steps.
    assert float(printed[1]) == pytest.approx(1.12, abs=0.01)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    for name, heading in re.findall(r"\]\(([^):#]*)#?([^):]*)\)", page.read_text()):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), name
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], heading
