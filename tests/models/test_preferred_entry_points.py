"""Preferred settings of a checkpoint at the command line, in the studio, and in exported folders."""

import csv
import json
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rad.cli.main import sample
from rad.cli.sample.request import read_request
from rad.inpainting.canvas.layout import Layout
from rad.inpainting.canvas.windows import Counts
from rad.inpainting.inpainter import Inpainter
from rad.models.settings.preferred import Preferred
from tests.conftest import SIZE, box_hole, random_image
from tests.inpainting.test_thin import BOTH, IMAGE, SCRATCH, kinds
from tests.models.test_preferred import DDIM, THIN, WIDE


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.slow
def test_rad_sample_names_and_records_the_settings_of_the_checkpoint(
    carrying, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    random_image(20, 24).save("a.png")
    words = ["--image", "a.png", "--mask", "box", "--device", "cpu"]
    assert sample([*words, "--checkpoint", str(carrying(DDIM.content())), "--output", "short.png"]) == 0
    assert "settings of the checkpoint: size_policy crop, margin 3; rad with steps 3, " in capsys.readouterr().err
    given = [f"--{name}={value}" for name, value in DDIM.content().items()]
    assert sample([*words, *given, "--checkpoint", str(adapter), "--output", "long.png"]) == 0
    assert "settings of the checkpoint" not in capsys.readouterr().err
    np.testing.assert_array_equal(pixels_of(Path("short.png")), pixels_of(Path("long.png")))
    requests = [read_request(Path(name)) for name in ("short.png", "long.png")]
    assert requests[0] is not None
    assert requests[1] is not None
    assert {**requests[0], "model": 0} == {**requests[1], "model": 0}
    assert (requests[0]["steps"], requests[0]["mean_of"], requests[0]["size_policy"]) == (3, 2, "crop")


@pytest.mark.slow
def test_rad_sample_plans_and_records_thin_windows(
    carrying, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, hole in {"a": BOTH, "b": SCRATCH}.items():
        Path("in").mkdir(exist_ok=True)
        Path("masks").mkdir(exist_ok=True)
        IMAGE.save(f"in/{name}.png")
        Image.fromarray(np.uint8(255 * hole[0].numpy())).save(f"masks/{name}.png")
    carried = str(carrying(replace(THIN, steps=3, size_policy="crop").content()))
    counts = {"a": kinds(BOTH), "b": kinds(SCRATCH)}
    calls = {name: 3 * count["first"] + count["thin"] for name, count in counts.items()}

    def run(*more: str, checkpoint: str = carried, output: str = "out") -> tuple[int, str]:
        words = ["--checkpoint", checkpoint, "--image", "in", "--mask", "masks", "--output", output, "--device", "cpu"]
        return sample([*words, *more]), capsys.readouterr().err

    code, err = run("--report")
    assert code == 0, err
    total = sum(calls.values())
    assert f"rad with 3 steps (1 in thin windows) (ddim, trailing): {total} network calls" in err
    assert f"rad: {total} NFE" in err
    (costs,) = Path("out").glob("**/costs.csv")
    assert {row["image"]: int(row["nfe"]) for row in csv.DictReader(costs.open())} == calls
    assert json.loads(Path("out/run.json").read_text())["settings"]["rad"]["thin_steps"] == 1
    (result,) = Path("out").glob("**/rad/a.png")
    assert read_request(result)["thin_steps"] == 1
    code, err = run("--report", "--thin_steps", "2")
    assert code == 2
    assert "thin_steps" in err
    given = ["--steps", "3", "--size_policy", "crop", "--solver", "ddim", "--spacing", "trailing"]
    code, err = run(*given, "--thin_steps", "1", checkpoint=str(adapter), output="given")
    assert code == 0, err
    with Image.open(result) as one, Image.open("given/a.png") as other:
        assert np.array_equal(one, other)
    code, err = run(*given, "--thin_steps", "2", checkpoint=str(adapter), output="given")
    assert code == 2
    assert "thin_steps 1, now 2" in err
    labels = ["rad", "rad@3", "rad@3,thin_steps=2", "rad@20,strength=0.1", "mean,thin_steps=1"]
    code, err = run("--method", *labels, output="several")
    assert code == 0, err
    wide, thin = (sum(count[kind] for count in counts.values()) for kind in ("first", "thin"))
    for label, nfe in zip(
        labels, (3 * wide + thin, 3 * (wide + thin), 3 * wide + 2 * thin, 2 * (wide + thin), 0), strict=True
    ):
        assert f"{label}: {nfe} NFE" in err
    assert "warning: --thin_steps has no effect on mean,thin_steps=1" in err
    assert err.count("has no effect") == 1
    code, err = run("--budget_nfe", "3", "--thin_steps", "4", output="budget")
    assert code == 2
    assert "a thin window costs 4 network calls, above the budget of 3: give fewer --thin_steps" in err
    code, err = run("--budget_nfe", "3", output="budget")
    assert f"{3 * (wide + thin)} network calls" in err


@pytest.mark.slow
def test_the_studio_begins_with_the_settings_of_the_checkpoint(carrying, adapter: Path) -> None:
    pytest.importorskip("fastapi")
    from rad.studio.schema import InpaintFields
    from tests.studio.server import box, make_service, photo

    preferring, plain = make_service(carrying(DDIM.content())), make_service(adapter)
    try:
        views = preferring.fillers["tiny"].methods
        view = views["rad"]
        assert (view.steps, view.solver, view.spacing, view.eta, view.nfe) == (3, "ddim", "trailing", 0, 3 * 2)
        assert preferring.fillers["tiny"].view.size_policy == "crop"
        assert views["ddnm"] == plain.fillers["tiny"].methods["ddnm"]
        given = InpaintFields(**DDIM.content())  # pyright: ignore[reportArgumentType]
        jobs = [preferring.submit(InpaintFields(), photo(), box()), plain.submit(given, photo(), box())]
        while any(job.state in ("queued", "running") for job in jobs):
            time.sleep(0.05)
        first, second = (job.files for job in jobs)
        assert first is not None
        assert second is not None
        assert jobs[0].nfe == jobs[0].planned == jobs[1].planned
        settings = [json.loads(files.settings) for files in (first, second)]
        assert {**settings[0], "checkpoint": 0} == {**settings[1], "checkpoint": 0}
        assert settings[0]["average"] == 2
        assert "pyramid_steps" not in settings[0]
        with Image.open(BytesIO(first.images[0])) as one, Image.open(BytesIO(second.images[0])) as other:
            np.testing.assert_array_equal(np.array(one), np.array(other))
    finally:
        preferring.queue.close()
        plain.queue.close()


def assert_budgets_count_all_windows(filler, hole: np.ndarray, counts: Counts) -> None:
    """`counts`: windows of the hole, with a finer scale of two calls a window."""
    from rad.studio.fillers.filler import complete
    from rad.studio.schema import InpaintFields

    def plan(hole: np.ndarray, **fields: float):
        given = InpaintFields(**fields)  # pyright: ignore[reportArgumentType]
        return filler.plan(complete(given, filler.preferred), hole, rate=lambda: 0.5, most_windows=1000)

    for samples in (1, 2):
        seconds = 0.5 * samples * (5 * counts["first"] + 2 * counts["finer"])
        exact = plan(hole, budget_seconds=seconds, num_samples=samples)
        assert (exact.steps, exact.nfe) == (5, seconds / 0.5)
        assert plan(hole, budget_seconds=seconds - 0.01, num_samples=samples).steps == 4
    least = 0.5 * (counts["first"] + 2 * counts["finer"])
    assert plan(hole, budget_seconds=least).steps == 1
    with pytest.raises(ValueError, match=rf"rad takes about {least:.2g} seconds or more here"):
        plan(hole, budget_seconds=least - 0.01)
    scratch = np.zeros_like(hole)
    scratch[20:26, 20:40] = 1
    assert plan(scratch, budget_nfe=1).nfe == 1, "no finer scale is needed, so its cost does not count"
    thin = plan(scratch, budget_seconds=1.0, thin_steps=2)
    assert thin.nfe == 2
    with pytest.raises(ValueError, match="rad takes about 1 seconds or more here"):
        plan(scratch, budget_seconds=0.9, thin_steps=2)


def test_budgets_of_the_studio_count_all_windows(carrying) -> None:
    pytest.importorskip("fastapi")
    from tests.studio.server import make_service

    content = WIDE.content() | {"pyramid_coarsest": 12, "solver": "ddim", "spacing": "trailing"}
    filler = make_service(carrying(content)).fillers["tiny"]
    hole = box_hole(100, 80, 10, 12, 34, 36, 85, 70, 96, 73)
    counts = Layout.choose((32, 32), filler.preferred, None, None).count_windows(hole.numpy())
    assert_budgets_count_all_windows(filler, hole[0].numpy(), counts)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_the_studio_plans_windows_scales_and_means(carrying, runtime: str, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from rad.studio.schema import InpaintFields
    from tests.studio.server import make_service, png

    content = WIDE.content() | {
        "average": 2,
        "thin_steps": 1,
        "pyramid_coarsest": 12,
        "solver": "ddim",
        "spacing": "trailing",
    }
    folder = carrying(content)
    if runtime == "torch":
        service = make_service(folder)
    else:
        pytest.importorskip("onnxruntime")
        from rad.cli.hub.export import main as export
        from rad.runtime import OnnxInpainter
        from rad.studio.fillers.onnx_filler import OnnxFiller
        from rad.studio.options import StudioOptions
        from rad.studio.service import Service

        place = str(tmp_path / "onnx")
        assert export([str(folder), "--onnx", place]) == 0
        service = Service({"tiny": OnnxFiller("tiny", place, OnnxInpainter.from_pretrained(place))}, StudioOptions())
    image, hole = random_image(100, 80), box_hole(100, 80, 10, 12, 34, 36, 85, 70, 96, 73)
    inpainter = Inpainter.from_pretrained(folder, device="cpu")
    preferred = inpainter.model.preferred
    counts, plain = (
        Layout.choose((32, 32), preferred, None, None, thin=thin).count_windows(hole.numpy()) for thin in (True, False)
    )
    assert min(counts[kind] for kind in ("first", "finer", "thin")) > 0
    try:
        sent = png(image), png(Image.fromarray(np.uint8(255 * hole[0].numpy())))
        job = service.submit(InpaintFields(), *sent)
        short = service.submit(InpaintFields(steps=4), *sent)
        while any(each.state in ("queued", "running") for each in (job, short)):
            time.sleep(0.05)
        assert job.nfe == job.planned == 2 * (3 * counts["first"] + 2 * counts["finer"] + counts["thin"]), job.error
        assert short.nfe == short.planned == 4 * plain["first"] + 2 * plain["finer"]
        assert job.files is not None
        settings = json.loads(job.files.settings)
        assert (settings["size"], settings["average"], settings["pyramid_steps"]) == (32, 2, 2)
        assert settings["thin_steps"] == 1
        with pytest.raises(
            Exception, match="budget_nfe is 3; a window at a finer scale of size_policy 'pyramid' costs 4"
        ):
            service.submit(InpaintFields(budget_nfe=3, average=2), *sent)
        with pytest.raises(Exception, match="budget_nfe is 6; a thin window costs 8 network calls: give at least that"):
            service.submit(InpaintFields(budget_nfe=6, average=2, thin_steps=4, size_policy="crop"), *sent)
        assert_budgets_count_all_windows(service.fillers["tiny"], hole[0].numpy(), plain)
        if runtime == "torch":
            other = service.submit(InpaintFields(method="mean", thin_steps=2, size_policy="crop"), *sent)
            assert other.warnings == ["thin_steps has no effect on mean"]
            expected = inpainter(image, hole, names="image.png").images[0]
            with Image.open(BytesIO(job.files.images[0])) as filled:
                np.testing.assert_array_equal(np.array(filled), np.array(expected))
    finally:
        service.queue.close()


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "side"), [(DDIM, SIZE), (WIDE, 32)])
def test_an_exported_folder_carries_the_settings(carrying, settings: Preferred, side: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from rad.cli.hub.export import main as export
    from rad.runtime import OnnxInpainter

    folder = carrying(settings.content())
    assert export([str(folder), "--onnx", str(tmp_path / "onnx")]) == 0
    written = json.loads((tmp_path / "onnx" / "runtime.json").read_text())
    assert (written["sampling"], written["size"]) == (settings.content(), [SIZE, SIZE])
    exported = OnnxInpainter.from_pretrained(tmp_path / "onnx")
    assert exported.size == (side, side)
    image, hole = random_image(20, 24), box_hole(20, 24, 4, 5, 14, 16)
    result = exported(image, hole.numpy())
    expected = Inpainter.from_pretrained(folder, device="cpu")(image, hole)
    assert result.nfe == expected.nfe
    close, other = (np.asarray(each.images[0]).astype(np.int16) for each in (result, expected))
    assert np.abs(close - other).max() <= 1
