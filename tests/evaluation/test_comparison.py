"""Comparisons by sample.py: folders of results, labels with steps and budgets, records, failures."""

import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from rad.cli import main as cli
from rad.cli.sample.plan import Label
from rad.evaluation.run_log import read_costs
from rad.inpainting.inpainter import Inpainter
from tests.conftest import SIZE, random_image


@pytest.fixture(autouse=True)
def images(tmp_path, monkeypatch):
    """Six images, one of them in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)
    (tmp_path / "in" / "more").mkdir(parents=True)
    for number, name in enumerate(["a", "b", "c", "d", "e", "more/f"]):
        random_image(SIZE, SIZE, seed=number).save(tmp_path / "in" / f"{name}.png")
    return tmp_path


@pytest.fixture
def sample(adapter, capsys):
    def call(words, **options):
        named = {"checkpoint": adapter, "image": "in", "output": "out", **options}
        code = cli.sample([*(w for n, v in named.items() for w in (f"--{n}", str(v))), *shlex.split(words)])
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err

    return call


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_label_is_a_method_with_steps_or_a_budget():
    assert Label.of("ddnm") == Label("ddnm", "ddnm")
    assert Label.of("ddnm@50") == Label("ddnm@50", "ddnm", steps=50)
    assert Label.of("ddnm@100nfe") == Label("ddnm@100nfe", "ddnm", budget=100)
    own = Label.of("rad@10,solver=ddim,spacing=quad,eta=0")
    assert own == Label(own.text, "rad", steps=10, solver="ddim", spacing="quad", eta=0.0)
    assert Label.of("rad,solver=ddpm") == Label("rad,solver=ddpm", "rad", solver="ddpm")
    assert Label.of("rad@5,average=4") == Label("rad@5,average=4", "rad", steps=5, average=4)
    for wrong in ("0", "-1", "2.5", "four", "", "10001"):
        with pytest.raises(ValueError, match="average is"):
            Label.of(f"rad@5,average={wrong}")
    for wrong in ("rad,", "rad,ddim", "rad,steps=5", "rad,solver=ddim,solver=ddpm"):
        with pytest.raises(
            ValueError, match="after a comma give solver=, spacing=, eta=, strength=, average=, adapt= or thin_steps="
        ):
            Label.of(wrong)
    with pytest.raises(ValueError, match="solver is 'euler'; allowed are ddpm, ddim"):
        Label.of("rad@5,solver=euler")
    with pytest.raises(ValueError, match="eta is 'much'"):
        Label.of("rad@5,eta=much")
    for wrong in ("ddnm@", "ddnm@0", "ddnm@-3", "ddnm@1.5", "ddnm@nfe", "ddnm@5steps", "ddnm@²"):
        with pytest.raises(ValueError, match="ddnm@50 for 50 steps"):
            Label.of(wrong)
    with pytest.raises(ValueError, match="method 'dddm' is not known"):
        Label.of("dddm@5")


def test_several_masks_make_a_tree_with_costs_and_a_record(sample, images):
    words = "--mask half box --method rad@2 pigdm@6nfe mean --batch_size 4 --num_samples 2 --raw"
    code, out, err = sample(words)
    assert code == 0, err
    expected = {f"{n}-{s}{r}.png" for n in ("a", "b", "c", "d", "e", "more/f") for s in (0, 1) for r in ("", "-raw")}
    for mask in ("half", "box"):
        assert set(files(images / "out" / mask / "masks")) == {f"{n}.png" for n in ("a", "b", "c", "d", "e", "more/f")}
        for label in ("rad@2", "pigdm@6nfe", "mean"):
            assert set(files(images / "out" / mask / label)) == {*expected, "costs.csv"}
    assert {"out/half/methods.png", "out/box/methods.png", "out/half/rad@2/more/f-1.png"} <= set(out)

    hole = np.asarray(Image.open("out/half/masks/a.png"))
    assert (hole[:, SIZE // 2 :] == 255).all()
    assert (hole[:, : SIZE // 2] == 0).all()
    image = np.asarray(Image.open("in/more/f.png"))
    hole = np.asarray(Image.open("out/box/masks/more/f.png")) > 0
    filled = np.asarray(Image.open("out/box/rad@2/more/f-0.png"))
    assert (filled[~hole] == image[~hole]).all()
    assert (filled[hole] != image[hole]).mean() > 0.9

    costs = read_costs(images / "out" / "half" / "rad@2" / "costs.csv")
    assert list(costs) == ["a", "b", "c", "d", "e", "more/f"]
    assert all(row["nfe"] == 4 and row["vjp"] == 0 and row["seconds"] > 0 for row in costs.values()), (
        "2 samples of 2 steps"
    )
    assert all(row["nfe"] == row["vjp"] == 4 for row in read_costs(images / "out/box/pigdm@6nfe/costs.csv").values())
    assert all(row["nfe"] == 0 for row in read_costs(images / "out/box/mean/costs.csv").values())

    run = json.loads((images / "out" / "run.json").read_text())
    assert (run["masks"], run["methods"]) == (["half", "box"], ["rad@2", "pigdm@6nfe", "mean"])
    assert run["settings"]["rad@2"] == {
        "run": 0,
        "method": "rad",
        "steps": 2,
        "eta": 0.0,
        "solver": "dpm++2m",
        "spacing": "logsnr",
        "precision": "32",
    }
    assert run["settings"]["pigdm@6nfe"]["steps"] == 2, "a VJP counts as two calls"
    assert run["options"]["seed"] == 0
    assert run["runs"][0]["options"]["batch_size"] == 4
    assert len(run["model"]["base_hash"]) == len(run["model"]["adapter_hash"]) == 64
    (only,) = run["runs"]
    assert only["environment"]["torch"] == torch.__version__
    assert only["created"].startswith("20")
    assert run["mask_sources"] == {name: {"mask": name, "mask_by": "name"} for name in ("half", "box")}


@pytest.mark.slow
def test_results_equal_those_of_single_runs(sample, images):
    sample("--mask half box --method rad@2 ddnm@2")
    sample("--mask box --method ddnm --steps 2", output="alone")
    for name in ("a", "more/f"):
        assert (images / f"out/box/ddnm@2/{name}.png").read_bytes() == (images / f"alone/{name}.png").read_bytes()


def test_methods_and_masks_are_added_and_existing_results_kept(sample, images):
    assert sample("--mask half box --method rad@2 mean")[0] == 0
    before = {name: (images / "out" / name).stat().st_mtime_ns for name in files(images / "out") if "rad@2" in name}
    code, _, err = sample("--mask half box lines --method rad@2 ddnm@2")
    assert code == 0
    assert "rad@2 on half: skipped 6 of 6 images" in err
    assert all((images / "out" / name).stat().st_mtime_ns == time for name, time in before.items())
    run = json.loads((images / "out" / "run.json").read_text())
    assert run["masks"] == ["half", "box", "lines"]
    assert run["methods"] == ["rad@2", "mean", "ddnm@2"]
    assert {label: each["run"] for label, each in run["settings"].items()} == {"rad@2": 1, "mean": 0, "ddnm@2": 1}
    assert len(run["runs"]) == 2
    assert (images / "out/lines/rad@2/a.png").exists()


def test_solvers_of_each_method_are_run_and_recorded(sample, images):
    words = "rad@3 rad@3,solver=ddim,spacing=quad rad@3,eta=1 ddrm@2 mean"
    code, _, err = sample(f"--mask half --method {words} --report --spacing logsnr")
    assert code == 0, err
    assert "warning: --spacing has no effect on mean" in err
    assert "rad@3 with 3 steps (dpm++2m, logsnr)" in err
    run = json.loads((images / "out" / "run.json").read_text())
    shown = {label: tuple(own.get(n) for n in ("solver", "spacing", "eta")) for label, own in run["settings"].items()}
    assert shown == {
        "rad@3": ("dpm++2m", "logsnr", 0.0),
        "rad@3,solver=ddim,spacing=quad": ("ddim", "quad", 0.0),
        "rad@3,eta=1": ("dpm++2m", "logsnr", 1.0),
        "ddrm@2": ("ddpm", "logsnr", 0.85),  # a setting of its own
        "mean": (None, None, None),
    }
    made = [(images / "out/half" / label / "a.png").read_bytes() for label in shown]
    assert len(set(made)) == 5
    assert "rad@3,solver=ddim,spacing=quad" in (images / "out" / "summary.md").read_text()
    code, _, err = sample("--mask half --method rad@3 --solver ddpm --report")
    assert code == 2
    assert "holds results of rad@3" in err


@pytest.mark.slow
def test_results_without_a_recorded_solver_are_those_of_ddpm(sample, images):
    assert sample("--mask half box --method rad@2 --solver ddpm")[0] == 0
    record = images / "out" / "run.json"
    run = json.loads(record.read_text())
    del run["settings"]["rad@2"]["solver"], run["settings"]["rad@2"]["spacing"]
    record.write_text(json.dumps(run))
    assert sample("--mask half box lines --method rad@2 --solver ddpm --spacing even")[0] == 0
    record.write_text(json.dumps(run))
    code, _, err = sample("--mask half box --method rad@2")
    assert code == 2
    assert "holds results of rad@2" in err


@pytest.mark.slow
def test_results_of_the_base_model_and_of_its_adapter_go_together(sample, base):
    assert sample("--mask half box --method ddnm@2", checkpoint=base)[0] == 0
    assert sample("--mask half box --method rad@2")[0] == 0
    assert sample("--mask half box --method mean", checkpoint=base)[0] == 0


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--method rad@2 --solver ddim", "holds results of rad@2"),
        ("--method rad@2 --seed 1", "results of --seed 0, this is 1"),
        ("--method rad@2 mean --num_samples 2", "results of --num_samples 1, this is 2"),
        ("--method ddnm@2 --set ddnm.eta=0.5", "holds results of ddnm@2"),
        ("--method ddnm@2 --precision bf16 --limit 3", "holds results of ddnm@2"),
        ("--method rad@2 --eta 0.5 --overwrite", "holds results of rad@2"),
        ("--method ddnm@2 --limit 2 --seed 1", "results of --seed 0, this is 1"),
        ("--method ddnm@2 --limit 2 --set ddnm.eta=0.5", "holds results of ddnm@2"),
        ("--method mean --image in/a.png", "--image"),
        ("--method mean --size_policy crop", "--size_policy error, this is crop"),
        ("--method mean --mask_polarity white_is_known", "--mask_polarity"),
        ("--method mean --mask_by order", "masks half"),
    ],
)
def test_incomparable_results_are_refused_in_one_folder(sample, images, words, part):
    sample("--mask half box --method rad@2 ddnm@2 --limit 2")
    before = (images / "out" / "run.json").read_bytes()
    code, _, err = sample(f"--mask half box {words}")
    assert code == 2
    assert part in err.splitlines()[-1]
    assert (images / "out" / "run.json").read_bytes() == before


def test_another_adapter_is_refused_in_one_folder(sample, models, base, tmp_path):
    from tests.conftest import make_adapter

    make_adapter(tmp_path / "other", base, seed=2)
    assert sample("--mask half box --method rad@2")[0] == 0
    code, _, err = sample("--mask half box --method tdpaint@2", checkpoint=tmp_path / "other")
    assert code == 2
    assert "adapter_hash" in err


@pytest.mark.slow
def test_a_limit_spreads_evenly_and_limits_are_nested(sample, images):
    assert sample("--mask half box --method rad@1 --limit 2")[0] == 0
    assert files(images / "out/half/masks") == ["a.png", "d.png"]
    assert sample("--mask half box --method rad@1 --limit 4")[0] == 0
    assert {"a.png", "d.png"} <= set(files(images / "out/half/masks"))
    assert sample("--mask half box --method rad@1 --limit 100")[0] == 0
    assert len(files(images / "out/half/masks")) == 6
    assert sample("--mask half --method rad@1 --limit 0")[0] == 2


@pytest.mark.slow
def test_masks_of_a_folder_by_order(sample, images):
    (images / "holes").mkdir()
    for number in range(7):
        pixels = np.zeros((SIZE, SIZE), np.uint8)
        pixels[number] = 255
        Image.fromarray(pixels).save(images / "holes" / f"{number:06}.png")
    code, _, err = sample("--mask holes --method rad@1 --limit 3")
    assert code == 2
    assert "--mask_by order" in err
    assert sample("--mask holes half --mask_by order --method rad@1 --limit 3")[0] == 0
    found = {name: np.asarray(Image.open(images / "out/holes/masks" / name)) for name in ("a.png", "c.png", "e.png")}
    assert [int(pixels[:, 0].argmax()) for pixels in found.values()] == [0, 2, 4], (
        "an image keeps its mask under a limit"
    )
    (images / "holes" / "000000.png").unlink()
    (images / "holes" / "000001.png").unlink()
    code, _, err = sample("--mask holes --mask_by order --method rad@1")
    assert code == 2
    assert "5 masks for 6 images" in err


def test_a_method_that_fails_does_not_lose_the_others(sample, images, monkeypatch):
    whole = Inpainter.__call__

    def fail(self, originals, masks, *, method, names, **options):
        if method.name == "ddnm" and "c.png" in names:
            raise RuntimeError("no such luck\nat all")
        return whole(self, originals, masks, method=method, names=names, **options)

    monkeypatch.setattr(Inpainter, "__call__", fail)
    code, _, err = sample("--mask half box --method ddnm@1 rad@1 --batch_size 2")
    assert code == 3
    assert files(images / "out/half/ddnm@1") == ["a.png", "b.png", "costs.csv", "e.png", "more/f.png"]
    assert len(files(images / "out/box/rad@1")) == 7
    failed = [line for line in err.splitlines() if line.startswith("failed:")]
    assert len(failed) == 4, "two images of a batch on two masks"
    assert "c.png by ddnm@1 on half: no such luck at all" in failed[0]
    monkeypatch.undo()
    monkeypatch.chdir(images)
    assert sample("--mask half box --method ddnm@1 rad@1 --batch_size 2")[0] == 0
    assert len(files(images / "out/half/ddnm@1")) == 7


def test_a_mistake_in_a_method_does_not_lose_the_others(sample, images, monkeypatch):
    whole = Inpainter.__call__

    def fail(self, *args, method, **options):
        if method.name == "ddnm":
            raise TypeError("can't do that")
        return whole(self, *args, method=method, **options)

    monkeypatch.setattr(Inpainter, "__call__", fail)
    code, out, err = sample("--mask half --method ddnm@1 rad@1 mean --report")
    assert code == 3
    assert len(files(images / "out/half/rad@1")) == len(files(images / "out/half/mean")) == 7
    assert "by ddnm@1 on half: TypeError: can't do that" in err
    assert out[-1] == "out/report.html"


def test_an_unreadable_image_loses_only_its_results(sample, images):
    (images / "in" / "b.png").write_bytes(b"no image")
    code, _, err = sample("--mask half box --method rad@1 mean")
    assert code == 3
    assert len(files(images / "out/half/rad@1")) == 6
    assert sum(line.startswith("failed:") for line in err.splitlines()) == 2, "once a mask, not once a method"
    code, _, err = sample("--mask half box --method rad@1 mean --report")
    assert code == 3, "the others are there"
    assert "1 of 6 images failed" in err
    assert "in/b.png" in (images / "out/summary.md").read_text().split("## Notes")[1]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--mask half box --method rad --output out.png", "give a folder"),
        ("--mask half nothing --method rad", "neither a file"),
        ("--mask half --method rad@0 --report", "rad@50 for 50 steps"),
        ("--mask half box --method rad@2000", "2000"),
        ("--mask half box --method pigdm@2nfe", "costs at least"),
    ],
)
def test_unusable_options_give_one_line(sample, images, words, part):
    code, _, err = sample(words)
    assert code == 2
    assert part in err.splitlines()[-1]
    assert not (images / "out").exists()


def test_two_masks_of_one_name_are_an_error(sample, images):
    (images / "x").mkdir()
    for path in ("x/half.png", "half"):
        Image.new("L", (SIZE, SIZE), 255).save(images / path, format="PNG")
    code, _, err = sample("--mask half x/half.png --method rad@1")
    assert code == 2
    assert "two masks of one name" in err


@pytest.mark.slow
def test_a_report_of_one_mask(sample, images):
    code, out, err = sample("--mask half --method rad@1 mean --limit 3 --report")
    assert code == 0, err
    assert out[-2:] == ["out/summary.md", "out/report.html"]
    lines = (images / "out" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 3
    provenance = json.loads((images / "out/provenance.json").read_text())["rows"]
    for name in ("summary.md", "report.html"):
        text = (images / "out" / name).read_text()
        assert provenance[0]["masks hash"] in text
        assert provenance[0]["references hash"] in text
    head = lines[0].split(",")
    row = dict(zip(head, lines[1].split(","), strict=True))
    assert (row["mask"], row["method"], row["image"], row["nfe"]) == ("half", "rad@1", "a", "1")
    hole, whole = float(row["psnr-hole"]), float(row["psnr"])
    assert whole - hole == pytest.approx(10 * np.log10(2), abs=1e-4), "half of the pixels are without error"
    before = {name: (images / "out" / name).stat().st_mtime_ns for name in files(images / "out") if "rad@1" in name}
    assert sample("--mask half --method rad@1 mean --limit 3 --report")[0] == 0, "scored again, not made again"
    assert all((images / "out" / name).stat().st_mtime_ns == time for name, time in before.items())


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--feature_net nothing", "nothing"),
        ("--baseline ddnm", "--baseline ddnm: give one of rad@1, mean"),
    ],
)
def test_a_mistake_of_the_report_stops_before_sampling(sample, images, words, part):
    code, _, err = sample(f"--mask half --method rad@1 mean --report {words}")
    assert code == 2
    assert part in err.splitlines()[-1]
    assert not (images / "out").exists()


def test_a_report_that_fails_loses_no_images(sample, images, monkeypatch):
    def fail(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr("rad.evaluation.report.write_report", fail)
    code, out, err = sample("--mask half --method mean --report")
    assert code == 3
    assert "the disk is full" in err
    assert "rad evaluate --results out" in err
    assert len([line for line in out if line.endswith(".png")]) == 6


def test_networks_without_a_report_are_reported(sample):
    code, _, err = sample("--mask half box --method mean --fid")
    assert code == 0
    assert "have no effect without --report" in err


@pytest.mark.slow
def test_a_mask_of_the_same_name_with_other_pixels_does_not_go_into_a_tree(sample, images):
    for folder, rows in (("m1", 4), ("m2", 9)):
        pixels = np.zeros((SIZE, SIZE), np.uint8)
        pixels[:rows] = 255
        (images / folder).mkdir()
        Image.fromarray(pixels).save(images / folder / "hole.png")
    assert sample("--mask m1/hole.png half --method mean")[0] == 0
    code, _, err = sample("--mask m2/hole.png half --method rad@1")
    assert code == 2
    assert "holds results of masks hole" in err
    (images / "m2" / "hole.png").replace(images / "m1" / "hole.png")
    code, _, err = sample("--mask m1/hole.png half --method rad@1")
    assert code == 2
    assert "hole/masks/a.png differs from the mask of in/a.png" in err
    assert not (images / "out" / "hole" / "rad@1").exists()
    assert not (images / "out" / "half" / "rad@1").exists(), "nothing is begun"


def test_a_run_without_results_leaves_no_record(sample, images):
    for name in ("a", "b"):
        random_image(SIZE + 4, SIZE + 4).save(images / "in" / f"{name}.png")
    for name in ("c", "d", "e", "more/f"):
        (images / "in" / f"{name}.png").unlink()
    code, _, err = sample("--mask half box --method rad@1")
    assert code == 2
    assert "size_policy" in err
    assert not (images / "out" / "run.json").exists()
    assert sample("--mask half box --method rad@1 --size_policy crop")[0] == 0


@pytest.mark.spread(1)
@pytest.mark.parametrize("content", ["{", "[]", "3", '{"runs": []}', '{"runs": {}, "options": []}'])
def test_a_broken_record_gives_one_line(sample, images, content):
    assert sample("--mask half box --method mean")[0] == 0
    (images / "out" / "run.json").write_text(content)
    code, _, err = sample("--mask half box --method rad@1")
    assert code == 2
    assert "run.json" in err.splitlines()[-1]


def test_a_broken_list_of_costs_is_reported_by_name(sample, images):
    assert sample("--mask half box --method mean --limit 2")[0] == 0
    (images / "out/half/mean/costs.csv").write_text("image,nfe\na,x\n")
    code, _, err = sample("--mask half box --method mean")
    assert code == 3
    assert "costs.csv cannot be read" in err
    assert len(files(images / "out/box/mean")) == 7


@pytest.mark.slow
def test_a_path_may_be_spelled_in_another_way(sample, images):
    assert sample("--mask half box --method mean")[0] == 0
    assert sample("--mask half box --method rad@1", image="in/")[0] == 0
    assert sample("--mask half box --method rad@2", image=images / "in")[0] == 0


def test_a_zip_with_one_top_folder_is_as_its_folder(sample, images):
    import zipfile

    (images / "holes" / "more").mkdir(parents=True)
    for name in ("a", "b", "c", "d", "e", "more/f"):
        Image.new("L", (SIZE, SIZE), 255).save(images / "holes" / f"{name}.png")
    with zipfile.ZipFile(images / "in.zip", "w") as archive:
        for path in sorted((images / "in").rglob("*.png")):
            archive.write(path, f"photos/{path.relative_to(images / 'in')}")
    code, _, err = sample("--mask holes half --method rad@1", image="in.zip")
    assert code == 0, err
    assert files(images / "out/holes/masks") == ["a.png", "b.png", "c.png", "d.png", "e.png", "more/f.png"]
    assert sample("--mask holes half --method rad@1", output="plain")[0] == 0
    assert (images / "out/half/rad@1/more/f.png").read_bytes() == (images / "plain/half/rad@1/more/f.png").read_bytes()


def test_costs_are_shared_out_by_windows(sample, images):
    for name in ("c", "d", "e", "more/f"):
        (images / "in" / f"{name}.png").unlink()
    random_image(SIZE, 3 * SIZE).save(images / "in" / "b.png")
    code, _, err = sample("--mask lines half --method rad@2 --size_policy crop --margin 0")
    assert code == 0, err
    costs = read_costs(images / "out/lines/rad@2/costs.csv")
    assert (costs["a"]["nfe"], costs["b"]["nfe"]) == (2, 6)
    assert costs["b"]["seconds"] == pytest.approx(3 * costs["a"]["seconds"], rel=1e-4)


def test_an_image_of_a_zip_that_cannot_be_read_is_reported_once_per_mask(sample, images):
    import zipfile

    with zipfile.ZipFile(images / "in.zip", "w") as archive:
        archive.write(images / "in" / "a.png", "a.png")
        archive.writestr("b.png", b"no image")
    code, _, err = sample("--mask half box --method rad@1 ddnm@1 mean", image="in.zip")
    assert code == 3
    assert sum(line.startswith("failed:") for line in err.splitlines()) == 2
    assert err.splitlines()[-1] == "1 of 2 images failed"
