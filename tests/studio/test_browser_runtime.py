"""The runtime of the static demo in Chromium, part by part, against the values of Python."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rad.diffusion.levels import NoiseRegions
from rad.diffusion.processes import Process, RegionAware, Uniform
from rad.diffusion.schedules import linear_betas
from rad.diffusion.solvers import multistep
from rad.diffusion.spacings import sampling_timesteps, time_travel
from rad.diffusion.step import Denoised, renoise, reverse_step
from rad.inpainting.canvas.windows import next_wave, plan_windows
from rad.keys import key
from rad.methods import METHODS
from rad.methods.registry import cost
from rad.rng import generator
from tests.browser import chromium, needs_chromium
from tests.studio.site_server import evaluate, serving

pytestmark = [*needs_chromium, pytest.mark.slow]

STATIC = Path(__file__).resolve().parents[2] / "rad" / "studio" / "static"
BETAS = linear_betas()
ORIGINS = ("adm", "official", "image")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A driver on a page of the static files, whose modules are imported from /js/runtime/."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver, serving(STATIC) as url:
        driver.get(f"{url}icon.svg")
        yield driver


def test_keys_equal_those_of_python(page: Any) -> None:
    parts = [[0, "image.png", 0, 3], ["a"], [-5, 'it\'s "x" é \u0001 \u200b \U0001f600\n\\', 7], ["it's"], ["x" * 300]]
    body = 'const { key } = await import("/js/runtime/keys.js"); return parts.map((each) => String(key(...each)));'
    assert evaluate(page, body, parts=parts) == [str(key(*each)) for each in parts]


def test_noise_equals_torch(page: Any) -> None:
    """Uniform draws are exact; normal ones agree to 4 ulp of float32."""
    body = """
      const { Mt19937, randn } = await import("/js/runtime/noise.js");
      const rng = new Mt19937(BigInt(seed));
      return [Array.from({ length: 1500 }, () => rng.uniform()), counts.map((count) => [...randn(BigInt(seed), count)])];
    """
    for seed in (0, key(1, "image.png", 2, 3)):
        counts = [16, 17, 31, 48, 3072]
        uniform, normal = evaluate(page, body, seed=str(seed), counts=counts)
        assert uniform == torch.rand(1500, generator=torch.Generator().manual_seed(seed)).tolist()
        for count, values in zip(counts, normal, strict=True):
            expected = torch.randn(count, generator=torch.Generator().manual_seed(seed))
            np.testing.assert_array_max_ulp(np.array(values, np.float32), expected.numpy(), maxulp=4)


def test_a_draw_depends_on_seed_image_sample_and_number(page: Any) -> None:
    body = """
      const { KeyedNoise } = await import("/js/runtime/noise.js");
      return [...new KeyedNoise(5, ["a.png", "a.png@3,4"], [0, 2]).randn(7, 48)];
    """
    rows = [torch.randn(48, generator=generator(5, *part, 7)) for part in (("a.png", 0), ("a.png@3,4", 2))]
    np.testing.assert_allclose(evaluate(page, body), torch.cat(rows).numpy(), rtol=1e-6)


def test_levels_equal_those_of_python(page: Any) -> None:
    """Coefficients of the processes agree to 1e-12, for whole and fractional t, several levels, and a padded batch."""
    hole = torch.tensor([[0.0, 0.25, 1.0, 0.75], [0.0, 1.0, 1.0, 0.0]])[:, None, None]
    times = [-1, 0, 1, 500, 999, 0.3, 499.75, 998.5]
    body = """
      const { RegionAware, Uniform, regionsOf } = await import("/js/runtime/process.js");
      const regions = regionsOf(Float32Array.from(hole), 2);
      const processes = [new Uniform(betas), ...origins.map((origin) => new RegionAware(betas, origin))];
      const plain = ({ alpha, sigma, timesteps, index }) => [[...alpha], [...sigma], [...timesteps], index && [...index]];
      return processes.map((process) => times.map((t) => plain(process.noise(t, regions))));
    """
    levels = evaluate(page, body, hole=hole.flatten().tolist(), betas=BETAS.tolist(), times=times, origins=ORIGINS)
    regions = NoiseRegions.from_mask(hole)
    processes: list[Process] = [Uniform(BETAS), *(RegionAware(BETAS, time_origin=origin) for origin in ORIGINS)]
    for process, rows in zip(processes, levels, strict=True):
        for t, (alpha, sigma, timesteps, index) in zip(times, rows, strict=True):
            kind = torch.int64 if isinstance(t, int) else torch.float64
            expected = process.noise(torch.tensor([t, t], dtype=kind), regions)
            np.testing.assert_allclose(alpha, expected.alpha.flatten(), rtol=1e-12)
            np.testing.assert_allclose(sigma, expected.sigma.flatten(), rtol=1e-12)
            np.testing.assert_allclose(timesteps, expected.timesteps.flatten(), rtol=1e-12, atol=1e-9)
            assert index == (None if expected.index is None else expected.index.flatten().tolist())


def test_timesteps_equal_those_of_python(page: Any) -> None:
    cases = [
        (spacing, count, fractional)
        for spacing in ("even", "trailing", "quad", "logsnr", "official")
        for count in (1, 2, 7, 20, 250)
        for fractional in (False, True)
    ]
    body = """
      const { RegionAware } = await import("/js/runtime/process.js");
      const { samplingTimesteps, timeTravel } = await import("/js/runtime/spacings.js");
      const process = new RegionAware(betas, "adm");
      const paths = cases.map(([spacing, count, fractional]) => samplingTimesteps(process, count, spacing, fractional));
      return [paths, timeTravel(samplingTimesteps(process, 25, "even", false), { length: 4, visits: 3 })];
    """
    paths, travel = evaluate(page, body, betas=BETAS.tolist(), cases=cases)
    process = RegionAware(BETAS)
    for (spacing, count, fractional), path in zip(cases, paths, strict=True):
        expected = sampling_timesteps(process, count, spacing=spacing, fractional=fractional)
        np.testing.assert_allclose(path, expected, rtol=1e-12, atol=1e-9, err_msg=f"{spacing} {count}")
    assert travel == time_travel(sampling_timesteps(process, 25), length=4, visits=3)


def test_steps_equal_those_of_python(page: Any) -> None:
    """DDPM with a learned variance, DDIM, two steps of DPM-Solver++(2M), and a forward step, to rounding of float32."""
    rng = torch.Generator().manual_seed(1)
    x, x0, before, noise = torch.randn(4, 2, 3, 2, 2, generator=rng)
    fraction = torch.rand(2, 3, 2, 2, generator=rng)
    hole = torch.tensor([[0.0, 0.5, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]]).view(2, 1, 2, 2)
    body = """
      const { RegionAware, regionsOf } = await import("/js/runtime/process.js");
      const { multistep, renoise, reverseStep } = await import("/js/runtime/solvers.js");
      const f = (values) => Float32Array.from(values);
      const [process, shape] = [new RegionAware(betas, "adm"), { count: 2, channels: 3, pixels: 4 }];
      const regions = regionsOf(f(hole), 2);
      const [first, now, next, clean] = [700, 500, 300, -1].map((t) => process.noise(t, regions));
      const estimate = { x0: f(x0), fraction: f(fraction) };
      const plain = { x0: f(x0), fraction: null };
      const one = multistep(f(x), f(before), first, now, { before: null, eta: 0, noise: null }, shape);
      return [
        reverseStep(f(x), estimate, now, next, { eta: 1, noise: f(noise) }, shape),
        reverseStep(f(x), plain, now, next, { eta: 0.5, noise: f(noise) }, shape),
        reverseStep(f(x), plain, now, clean, { eta: 0, noise: null }, shape),
        multistep(one.x, f(x0), now, next, { before: one.history, eta: 0, noise: null }, shape).x,
        multistep(one.x, f(x0), now, next, { before: one.history, eta: 1, noise: f(noise) }, shape).x,
        renoise(f(x), next, now, f(noise), shape),
      ].map((values) => [...values]);
    """
    given = {"x": x, "x0": x0, "before": before, "noise": noise, "fraction": fraction, "hole": hole}
    results = evaluate(page, body, betas=BETAS.tolist(), **{k: v.flatten().tolist() for k, v in given.items()})
    regions, process = NoiseRegions.from_mask(hole), RegionAware(BETAS)
    first, now, nxt, clean = (process.noise(torch.tensor([t, t]), regions) for t in (700, 500, 300, -1))
    one, history = multistep(x, before, first, now, before=None)
    expected = [
        reverse_step(x, Denoised(x0, fraction), now, nxt, eta=1, noise=noise),
        reverse_step(x, Denoised(x0), now, nxt, eta=0.5, noise=noise),
        reverse_step(x, Denoised(x0), now, clean, eta=0),
        multistep(one, x0, now, nxt, before=history)[0],
        multistep(one, x0, now, nxt, before=history, eta=1, noise=noise)[0],
        renoise(x, nxt, now, noise=noise),
    ]
    for number, (result, values) in enumerate(zip(results, expected, strict=True)):
        np.testing.assert_allclose(result, values.flatten(), rtol=1e-5, atol=1e-6, err_msg=str(number))


def test_windows_equal_those_of_python(page: Any) -> None:
    """The same windows in the same order, and the same waves."""
    body = """
      const { nextWave, planWindows } = await import("/js/runtime/windows.js");
      const windows = planWindows(Uint8Array.from(hole), width, { size: 16, margin });
      const wave = nextWave(Uint8Array.from(hole), width, windows);
      return [windows, wave].map((list) => list.map(({ window, core }) => [window, core].map(
        ({ top, left, bottom, right }) => [top, left, bottom, right])));
    """
    rng = np.random.default_rng(0)
    for number in range(12):
        height, width = (int(side) for side in rng.integers(16, 70, 2))
        hole = rng.random((height, width)) < (0.01, 0.05, 0.4)[number % 3]
        hole[5:9, 2:15] |= number % 2 == 0
        margin = int(rng.integers(0, 8))
        results = evaluate(page, body, hole=hole.astype(int).flatten().tolist(), width=width, margin=margin)
        windows = plan_windows(hole, size=16, margin=margin)
        for result, expected in zip(results, (windows, next_wave(hole, windows)), strict=True):
            assert [tuple(map(tuple, pair)) for pair in result] == [(each.window, each.core) for each in expected]


def test_resizing_equals_torch(page: Any) -> None:
    body = """
      const { areaPool, bicubic, maxPool } = await import("/js/runtime/resample.js");
      const f = Float32Array.from(values);
      const [from, small, large] = [{ width: 29, height: 21 }, { width: 8, height: 8 }, { width: 61, height: 13 }];
      const area = areaPool(f, from, small, (value) => 2 * value);
      return [area, maxPool(f, from, small), bicubic(f, from, large)].map((values) => [...values]);
    """
    values = torch.rand(3, 21, 29, generator=torch.Generator().manual_seed(0))
    area, most, large = evaluate(page, body, values=values.flatten().tolist())
    np.testing.assert_allclose(area, F.adaptive_avg_pool2d(2 * values, (8, 8)).flatten(), rtol=1e-6)
    np.testing.assert_array_equal(most, F.adaptive_max_pool2d(values, (8, 8)).flatten())
    expected = F.interpolate(values[None], (13, 61), mode="bicubic", antialias=True)
    np.testing.assert_allclose(large, expected.flatten(), atol=2e-6)


def test_methods_have_the_presets_and_settings_of_python(page: Any) -> None:
    model = {
        "betas": BETAS.tolist(),
        "time_origin": "adm",
        "process": "region_aware",
        "networks": {"rad": {}, "base": {}},
    }
    body = """
      const { methodsOf, planRun } = await import("/js/runtime/methods.js");
      return [methodsOf(model), planRun(model, { method: "repaint", budget_nfe: 500 }).steps];
    """
    views, steps = evaluate(page, body, model=model)
    assert [view["name"] for view in views] == ["rad", "repaint"]
    for view in views:
        method = METHODS[view["name"]]()
        schedule = method.choose()
        preset = schedule.steps, schedule.solver, schedule.spacing, schedule.eta
        assert (view["steps"], view["solver"], view["spacing"], view["eta"]) == preset
        assert (view["nfe"], view["paper"]) == (cost(method, schedule.steps).nfe, method.paper)
        fields = {each.name: each.default for each in dataclasses.fields(method)}
        assert {item["name"]: item["default"] for item in view["settings"]} == fields
    repaint = METHODS["repaint"]()
    assert cost(repaint, steps).nfe <= 500 < cost(repaint, steps + 1).nfe
