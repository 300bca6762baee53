"""benchmarks/gpu.py: its counts, its timing beside failing variants, and its report after an interruption."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gpu
from benchmarks.gpu_numerics import relative_max, relative_rms
from benchmarks.gpu_report import Report, Row
from benchmarks.gpu_timing import OutOfTimeError, Timing, Work, alternate, time_limit
from benchmarks.gpu_waits import DEVICE, count_compilations, count_graphs, count_synchronisations, mark, mark_all
from benchmarks.gpu_work import Options, Setting, TrainingStep


def counted(call: Callable[[], object]) -> dict[str, int]:
    counts = count_synchronisations(call, "cpu")
    return {kind: sum(count for (each, _), count in counts.items() if each == kind) for kind in ("read", "upload")}


@pytest.mark.parametrize(
    ("call", "reads", "uploads"),
    [
        (lambda on, off: (on + off).sum().item(), 1, 0),
        (lambda on, off: off.sum().item(), 0, 0),
        (lambda on, off: bool((on > 0).any()) and float(on[0]) and on.tolist(), 3, 0),
        (lambda on, off: on[on > 0], 1, 0),
        (lambda on, off: (on > 0).nonzero(), 1, 0),
        (lambda on, off: on.cpu().sum().item(), 1, 0),  # the second value is on the host already
        (lambda on, off: on.to("cpu", torch.float64), 1, 0),
        (lambda on, off: on.to(torch.float64).to(on), 0, 0),
        (lambda on, off: off.to(on.device).sum().item(), 1, 1),
        (lambda on, off: off.to(on), 0, 1),
        (lambda on, off: torch.tensor([1.0], device=on.device), 0, 1),
        (lambda on, off: off.copy_(on).sum().item(), 1, 0),
        (lambda on, off: off.copy_(on, non_blocking=True).sum().item(), 0, 0),
        (lambda on, off: torch.zeros(3, device=on.device) + torch.rand(3, device=on.device), 0, 0),
        (lambda on, off: torch.rand(2, generator=torch.Generator(on.device).manual_seed(0), device=on.device).item, 0, 0),
    ],
)  # fmt: skip
def test_reads_and_uploads_of_marked_tensors_are_counted(call, reads, uploads):
    on, off = mark(torch.tensor([1.0, -1.0])), torch.tensor([1.0, 2.0])
    assert counted(lambda: call(on, off)) == {"read": reads, "upload": uploads}
    assert on.device.type == off.device.type == "cpu"


def test_marked_tensors_and_generators_name_the_accelerator():
    devices = []
    on = mark(torch.zeros(2))
    count_synchronisations(
        lambda: devices.extend([on.device, (on * 2).device, torch.Generator(on.device).device]), "cpu"
    )
    count_synchronisations(lambda: devices.append(torch.zeros(1).device), "cpu")
    assert devices == [DEVICE, DEVICE, DEVICE, torch.device("cpu")]


def test_gradients_and_moments_of_marked_weights_are_marked():
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    mark_all({"network": [layer], "optimizer": optimizer})
    moment = optimizer.state[layer.weight]["exp_avg"]
    assert counted(lambda: (layer.weight.grad.sum().item(), moment.sum().item())) == {"read": 2, "upload": 0}


@pytest.fixture(scope="module")
def step() -> TrainingStep:
    setting = Setting("nature32", 32, 3, "cpu", gpu.TINY)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TrainingStep(setting, setting.network(), "float32", Options())


def test_counting_does_not_change_a_training_step(step):
    batch = step.batch()
    expected = step.module.losses(batch, "train")[0].total
    mark_all(batch, step.module)
    result = []
    counts = count_synchronisations(lambda: result.append(step.module.losses(batch, "train")[0].total), "cpu")
    assert torch.equal(result[0], expected)
    assert all(place.startswith("rad/") for _, place in counts)


def test_training_step_updates_its_adapter_and_average(step):
    before = {name: weight.detach().clone() for name, weight in step.weights.items()}
    step.step()
    moved = [name for name, weight in step.weights.items() if not torch.equal(weight, before[name])]
    assert any(".lora_B." in name for name in moved)
    assert any(not torch.equal(step.ema.weights[name], before[name]) for name in moved)


def test_graphs_and_compilations_are_counted():
    def broken(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum().item() > 0 else x - 1

    assert count_graphs(lambda x: x + 1, torch.ones(2)) == (1, [])
    graphs, reasons = count_graphs(broken, torch.ones(2))
    assert graphs == 2
    assert reasons
    calls = [lambda f, n=n: f(torch.ones(n)) for n in (4, 3, 2)]
    assert count_compilations(lambda x: x + 1, calls, dynamic=True) == 1
    assert count_compilations(lambda x: x + 1, calls, dynamic=False) == 3


def work(call: Callable[[], object]) -> Work:
    return Work(call, nn.Linear(2, 3))


@pytest.mark.slow
def test_variants_that_fail_are_rows_and_leave_the_others():
    def exhausted() -> None:
        raise torch.OutOfMemoryError

    def unknown() -> Work:
        raise ValueError("no such backend")

    variants = {
        "fine": lambda: work(lambda: time.sleep(0.002)),
        "memory": lambda: work(exhausted),
        "backend": unknown,
        "slow": lambda: work(lambda: time.sleep(60)),
    }
    timings = alternate(variants, device="cpu", seconds=6, rounds=3, block_seconds=0.01)
    assert {name: timing.error for name, timing in timings.items()} == {
        "fine": "",
        "memory": "out of memory",
        "backend": "ValueError: no such backend",
        "slow": "not ready within the time limit",
    }
    assert timings["fine"].seconds
    assert timings["fine"].median >= 0.002
    assert gpu.shared_cells(timings["memory"], timings["fine"]) == {"remark": "out of memory"}


def test_ratio_is_of_each_round_and_the_spread_of_all():
    one, two = Timing([1.0, 2.0, 10.0]), Timing([2.0, 4.0, 10.0])
    assert (two.median, two.spread, two.ratio(one)) == (4.0, 2.0, 2.0)


def test_time_limits_nest():
    begin = time.perf_counter()

    def sleep_after_an_inner_limit() -> None:
        with time_limit(0.2):
            with time_limit(5):
                time.sleep(0.01)
            time.sleep(60)

    with pytest.raises(OutOfTimeError):
        sleep_after_an_inner_limit()
    assert time.perf_counter() - begin < 30


def test_resident_bytes_hold_weights_moments_and_others_once():
    layer = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    other = torch.zeros(5)
    assert Work(lambda: None, layer, optimizer, (other, other[:2])).resident_bytes() == 4 * (9 + 9 + 5)


def test_errors_are_relative():
    result, reference = torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])
    assert relative_rms(result, reference) == pytest.approx(1 / 5)
    assert relative_max(result, reference) == pytest.approx(1 / 4)


def test_report_is_complete_after_each_case(tmp_path, monkeypatch):
    written = []

    def table(name: str, value: float) -> Callable[[float], tuple[str, list[Row]]]:
        return lambda seconds: (name, [{"variant": "a|b", "ms": value}])

    def broken(seconds: float) -> tuple[str, list[Row]]:
        written.append(json.loads((tmp_path / "gpu.json").read_text()))
        raise ValueError("no kernel")

    listed = {"first": (1, table("A", 1.23456)), "second": (1, broken), "third": (1e9, table("B", 2.0))}
    monkeypatch.setattr(gpu, "cases", lambda bench: listed)
    report = Report(tmp_path, {"device": "CPU"})
    bench = gpu.Bench("cpu", size=32, batch=1, rounds=1, dry=True)
    gpu.measure(report, bench, list(listed), seconds=5)
    assert written[0]["tables"] == {"A": [{"variant": "a|b", "ms": 1.23456}]}
    final = json.loads((tmp_path / "gpu.json").read_text())
    assert final["unfinished"] == {"second": "ValueError: no kernel", "third": "the time was over"}
    assert "| a\\|b | 1.235 |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_dry_run_measures_every_case(tmp_path: Path):
    words = "--dry-run --device cpu --size 32 --batch 2 --seconds 3600"
    gpu.main([*words.split(), "--output", str(tmp_path)])
    content = json.loads((tmp_path / "gpu.json").read_text())
    tables = content["tables"]
    assert content["unfinished"] == {}
    rows = [row for title, table in tables.items() for row in table if "remark" in row]
    assert len(rows) >= 40
    assert all(row["remark"] == "" and row["ms"] > 0 for row in rows)
    methods = {row["variant"]: (row["calls"], row["VJPs"]) for row in tables["Sampling: methods"]}
    assert methods["rad"] == methods["ddnm"] == (4, 0)
    assert methods["dps"] == (4, 4)
    errors = {row["compared"]: row["output, rms error"] for row in tables["Relative errors of a small network"]}
    assert errors["float64: factorised and dense"] < 1e-13
    assert errors["float64: two equal levels and the unpatched network"] < 1e-13
    assert errors["float32 and float64"] < 1e-4 < errors["bf16-mixed and float64"] < 0.1
    assert tables["Graphs of torch.compile"][0]["graphs"] == 1
    waits = {row["work"]: row["count"] for row in tables["Waits for the device"] if row["kind"] == "all"}
    assert [waits[f"training step, {name}, batch 2"] for name in ("fused AdamW", "AdamW")] == [0, 1]
