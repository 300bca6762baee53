"""Comparison of small folders of results, with a network that only averages, and the command line."""

import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rad.console import guarded
from rad.evaluation import __main__ as command
from rad.evaluation import rows, statistics
from rad.evaluation.compare import evaluate, evaluate_folders
from rad.evaluation.features import Extractor
from rad.evaluation.layout import find_results
from rad.evaluation.metrics import pixels, sets
from rad.evaluation.results import Comparison, Interval, Row
from rad.evaluation.statistics import set_interval
from rad.images.tensors import to_tensor, to_uint8
from rad.lock import EVALUATION, InUse, locked, one_at_a_time
from rad.masks.files import write_mask
from rad.masks.reading.format import MaskFormat
from tests.cli.test_import import loaded_by
from tests.conftest import box_hole

SIDE = 24
NAMES = [f"people/{n}" if n % 2 else f"{n}" for n in range(8)]


class Averages(Extractor):
    """A perceptual distance and features without a network."""

    def __init__(self, name: str = "means", weights: str = "00") -> None:
        self.provenance = {"extractor": name, "weights": weights}
        self.distance_name, self.frechet_name, self.kernel_name = f"perceptual/{name}", f"fd/{name}", f"kd/{name}"

    def features(self, images: Tensor) -> Tensor:
        return torch.cat([images.mean((2, 3)), images.var((2, 3))], 1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().mean((1, 2, 3))


def assert_same_values(found: Mapping[str, Interval], wanted: Mapping[str, Interval]) -> None:
    """Numbers of the same images, computed in batches of others: equal but for the rounding of float32.

    SSIM divides errors of E[x^2], some ten eps (1e-6), by its constant 0.0009 where an image is flat.
    """
    assert found.keys() == wanted.keys()
    for name, one in found.items():
        bound = {"abs": 1e-3} if name.startswith("ssim") else {"rel": 1e-5, "abs": 1e-6}
        other = wanted[name]
        assert [one.value, one.low, one.high] == pytest.approx(
            [other.value, other.low, other.high], nan_ok=True, **bound
        )


def smooth(seed: int, side: int = SIDE) -> Tensor:
    """A reference: (3,H,W) in [0.2,0.7], as it is after its file has been read."""
    few = np.random.default_rng(seed).integers(50, 180, (4, 4, 3), dtype=np.uint8)
    return to_tensor(Image.fromarray(few).resize((side, side), Image.Resampling.BICUBIC))


def hole_of(mask: str, number: int) -> Tensor:
    return (
        box_hole(SIDE, SIDE, 2, 3, 14, 16 + number % 3) if mask == "wide" else box_hole(SIDE, SIDE, 0, 12, SIDE, SIDE)
    )


def save(path: Path, image: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_uint8(image).save(path)


def filled(image: Tensor, hole: Tensor, *, error: float, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return image + hole * error * torch.randn(image.shape, generator=random).clamp(-2, 2)


def make_tree(
    folder: Path,
    *,
    methods: dict[str, float],
    masks: tuple[str, ...] = ("wide", "half"),
    samples: int = 1,
    images: int = len(NAMES),
) -> tuple[Path, Path]:
    """A tree as sample.py writes it, with methods of the given error; returns (results, references)."""
    results, references = folder / "results", folder / "references"
    for number, name in enumerate(NAMES[:images]):
        image = smooth(number)
        save(references / f"{name}.png", image)
        for mask in masks:
            hole = hole_of(mask, number)
            path = results / mask / "masks" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path, hole)
            for label, error in methods.items():
                for sample in range(samples):
                    end = f"-{sample}" if samples > 1 else ""
                    made = filled(image, hole, error=error, seed=100 * sample + number)
                    save(results / mask / label / f"{name}{end}.png", made)
    for mask in masks:
        for place, label in enumerate(methods):
            lines = [f"{name},{100 * (place + 1)},{place},0.5,{10 + n}" for n, name in enumerate(NAMES)]
            text = "\n".join(["image,nfe,vjp,seconds,peak_mib", *lines, ""])
            (results / mask / label / "costs.csv").write_text(text)
    run = {
        "masks": list(masks),
        "methods": list(methods),
        "options": {"image": str(references), "num_samples": samples},
    }
    (results / "run.json").write_text(json.dumps(run))
    return results, references


@pytest.fixture(scope="module", autouse=True)
def few_resamples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "set_interval", partial(set_interval, resamples=10))
        patch.setattr(statistics, "RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Copy it before changing it."""
    methods = {"repaint": 0.02, "rad": 0.05, "copy": 0.02, "bad": 0.2}
    return make_tree(tmp_path_factory.mktemp("tree"), methods=methods)


@pytest.fixture(scope="module")
def compared(tree: tuple[Path, Path]) -> Comparison:
    return evaluate(tree[0], references=tree[1], extractors=[Averages()])


def row(comparison: Comparison, mask: str, method: str) -> Row:
    return next(one for one in comparison.rows if (one.mask, one.method) == (mask, method))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def copied(tree: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    return shutil.copytree(tree[0], folder / "results"), shutil.copytree(tree[1], folder / "references")


def test_rows_are_in_the_order_of_the_run(compared: Comparison):
    expected = [(mask, label) for mask in ("wide", "half") for label in ("repaint", "rad", "copy", "bad")]
    assert [(one.mask, one.method) for one in compared.rows] == expected
    assert (compared.baseline, compared.rank_by) == ("rad", "perceptual-crop/means")
    assert len(compared.results) == 8 * len(NAMES)
    assert {one.images for one in compared.rows} == {len(NAMES)}
    assert {one.missing for one in compared.rows} == {0}


def test_scores_equal_the_metrics_on_the_files(compared: Comparison, tree: tuple[Path, Path]):
    result = next(one for one in compared.results if (one.mask, one.method, one.image) == ("wide", "bad", "people/3"))
    hole, reference = hole_of("wide", 3), smooth(3)
    image = to_tensor(Image.open(tree[0] / "wide/bad/people/3.png"))
    assert result.file == tree[0] / "wide/bad/people/3.png"
    assert result.reference == tree[1] / "people/3.png"
    assert result.hole == tree[0] / "wide/masks/people/3.png"
    error = (image - reference).double().square()[:, hole[0] > 0].mean()
    assert result.values["psnr-hole"] == pytest.approx(-10 * torch.log10(error).item(), abs=1e-4)
    inside = (image - reference)[:, 2:14, 3:16].abs().mean().item()
    assert result.values["perceptual-crop/means"] == pytest.approx(inside, abs=1e-6)
    whole = (image - reference).abs().mean().item()
    assert result.values["perceptual/means"] == pytest.approx(whole, abs=1e-6)
    assert result.values["psnr-crop"] > result.values["psnr-hole"] - 1e-9
    assert result.values["psnr"] > result.values["psnr-crop"] > 0


def test_means_intervals_and_set_metrics_are_there(compared: Comparison):
    names = {metric.name for metric in compared.metrics}
    kinds = ("fd", "kd", "precision", "recall", "perceptual")
    assert {f"{kind}{crop}/means" for kind in kinds for crop in ("", "-crop")} < names
    for one in compared.rows:
        assert set(one.values) == names
        for value in one.values.values():
            assert value.low <= value.value <= value.high or (math.isnan(value.low) and math.isnan(value.high))
    assert row(compared, "half", "copy").values["fd/means"].low == 0  # nor less, however far resamples reach
    psnr = [r.values["psnr"] for r in compared.results if (r.mask, r.method) == ("half", "bad")]
    assert row(compared, "half", "bad").values["psnr"].value == pytest.approx(sum(psnr) / len(psnr))


def test_distances_between_sets_equal_those_of_the_features(compared: Comparison, tree: tuple[Path, Path]):
    net = Averages()
    originals = torch.stack([smooth(n) for n in range(8)])
    some = sorted((one for one in compared.results if (one.mask, one.method) == ("half", "bad")), key=lambda r: r.image)
    images = torch.stack([to_tensor(Image.open(one.file)) for one in some])
    for name, crop in (("fd/means", slice(None)), ("fd-crop/means", slice(12, None))):
        reference = sets.ReferenceFeatures(net.features(originals[..., crop]))
        expected = sets.frechet_distance(net.features(images[..., crop]), reference)
        assert row(compared, "half", "bad").values[name].value == pytest.approx(expected, rel=1e-6)


def test_references_beyond_the_results_count_in_every_distance_between_sets(tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    for number in range(8, 20):
        save(references / f"z{number}.png", smooth(number))
    found = evaluate(results, references=references, extractors=[Averages()])
    net, names = Averages(), [*NAMES, *(f"z{number}" for number in range(8, 20))]
    originals = sets.ReferenceFeatures(net.features(torch.stack([smooth(n) for n in range(20)])), names)
    made = net.features(torch.stack([to_tensor(Image.open(results / f"half/bad/{name}.png")) for name in NAMES]))
    values = {name: one.value for name, one in row(found, "half", "bad").values.items()}
    assert values["fd/means"] == pytest.approx(sets.frechet_distance(made, originals), rel=1e-5)
    assert values["kd/means"] == pytest.approx(sets.kernel_distance(made, originals, NAMES), rel=1e-5)
    precision, recall = (some(made, originals, NAMES).mean().item() for some in (sets.precise, sets.recalled))
    assert (values["precision/means"], values["recall/means"]) == pytest.approx((precision, recall))
    assert precision != recall
    provenance = {metric.name: metric.provenance for metric in found.metrics}
    assert provenance["fd/means"]["references"] == "20, the originals of these results among them"
    assert provenance["fd-crop/means"]["references"] == "crops of the originals of the images of the row"
    assert any("references include the originals of these results" in note for note in found.notes)


def test_better_methods_score_better(compared: Comparison):
    for mask in ("wide", "half"):
        good, middle, bad = (row(compared, mask, label).values for label in ("repaint", "rad", "bad"))
        for metric in compared.metrics:
            if metric.name.split("/")[0].removesuffix("-crop") in ("psnr", "psnr-hole", "ssim", "seam", "perceptual"):
                numbers = [one[metric.name].value for one in (good, middle, bad)]
                assert numbers == sorted(numbers, reverse=metric.better == "higher"), metric.name


def test_differences_are_against_the_baseline_and_adjusted(compared: Comparison):
    assert row(compared, "wide", "rad").against == {}
    good, bad = (row(compared, "wide", label).against["psnr-hole"] for label in ("repaint", "bad"))
    assert bad.value < 0 < good.value
    assert good.images == len(NAMES)
    assert good.p == bad.p == pytest.approx(3 * 2 / 2**8)  # the least p of eight images, times three methods
    assert not good.is_noise


def test_p_values_are_adjusted_step_by_step(tmp_path: Path):
    results, references = make_tree(
        tmp_path, methods={"rad": 0.05, "bad": 0.2, "alike": 0.05, "near": 0.05}, masks=("half",)
    )
    for number, name in enumerate(NAMES):
        for label, errors in (("alike", (0.1, 0.02)), ("near", (0.03, 0.03, 0.03, 0.055))):
            error = errors[number % len(errors)]
            save(
                results / f"half/{label}/{name}.png",
                filled(smooth(number), hole_of("half", number), error=error, seed=number),
            )
    found = evaluate(results, references=references)
    values = {
        label: [one.values["psnr"] for one in found.results if one.method == label]
        for label in ("rad", "bad", "alike", "near")
    }
    raw = [statistics.sign_flip(np.subtract(values[n], values["rad"]), seed=0) for n in ("bad", "alike", "near")]
    assert len(set(raw)) == 3
    adjusted = [row(found, "half", label).against["psnr"].p for label in ("bad", "alike", "near")]
    assert adjusted == pytest.approx(statistics.holm(raw))
    assert adjusted != pytest.approx([min(1, 3 * p) for p in raw])


def test_no_method_changes_the_numbers_of_another(compared: Comparison, tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    for mask in ("wide", "half"):
        shutil.rmtree(results / mask / "bad")
    fewer = evaluate(results, references=references, extractors=[Averages()])
    for one in fewer.rows:
        other = row(compared, one.mask, one.method)
        assert_same_values(one.values, other.values)
        assert (one.group, one.cost) == (other.group, other.cost)
    assert "wide: there are no results of bad" in fewer.notes


def test_numbers_do_not_depend_on_the_size_of_batches(compared: Comparison, tree: tuple[Path, Path], tmp_path: Path):
    for batch_size in (1, 7):
        other = evaluate(tree[0], references=tree[1], extractors=[Averages()], batch_size=batch_size, tables=tmp_path)
        for one, same in zip(compared.results, other.results, strict=True):
            assert (one.file, one.image) == (same.file, same.image)
            assert one.values.keys() == same.values.keys()
            for name, value in one.values.items():
                bound = {"abs": 1e-3} if name.startswith("ssim") else {"rel": 1e-5, "abs": 1e-6}
                assert value == pytest.approx(same.values[name], **bound), name
        for one, same in zip(compared.rows, other.rows, strict=True):
            assert one.group == same.group
            assert_same_values(one.values, same.values)


def test_the_seed_moves_intervals_and_no_values(compared: Comparison, tree: tuple[Path, Path], tmp_path: Path):
    other = evaluate(tree[0], references=tree[1], extractors=[Averages()], seed=1, tables=tmp_path)
    first, second = (row(one, "wide", "bad").values["psnr"] for one in (compared, other))
    assert first.value == second.value
    assert first.low != second.low


def test_costs_are_means_over_images_and_the_largest_peak(compared: Comparison):
    cost = row(compared, "wide", "copy").cost
    assert (cost.nfe, cost.vjp, cost.seconds, cost.peak_mib) == (300, 2, 0.5, 17)


def test_tables_have_the_values_of_the_comparison(compared: Comparison, tree: tuple[Path, Path]):
    lines = read(tree[0] / "metrics.csv")
    assert len(lines) == len(compared.results)
    for line, result in zip(lines, compared.results, strict=True):
        assert (line["mask"], line["method"], line["image"]) == (result.mask, result.method, result.image)
        assert {name: float(line[name]) for name in result.values} == pytest.approx(result.values, rel=1e-6)
    assert float(lines[0]["nfe"]) == 100
    lines = read(tree[0] / "sets.csv")
    for line, one in zip(lines, compared.rows, strict=True):
        assert (line["mask"], line["method"], line["group"]) == (one.mask, one.method, one.group)
        for name, value in one.values.items():
            found = [float(line[key] or "nan") for key in (name, f"{name}_low", f"{name}_high")]
            assert found == pytest.approx([value.value, value.low, value.high], rel=1e-6, nan_ok=True)
    provenance = json.loads((tree[0] / "provenance.json").read_text())
    assert set(provenance["metrics"]) == {metric.name for metric in compared.metrics}
    assert (
        provenance["metrics"]["fd/means"]["provenance"]["references"] == "8, the originals of these results among them"
    )
    assert provenance["rows"][0]["references"] == "8"
    assert provenance["rows"][0]["masks hash"] != provenance["rows"][-1]["masks hash"]
    assert not list(tree[0].rglob("*.tmp"))


# groups


def test_incomparable_rows_are_in_different_groups(compared: Comparison, tree: tuple[Path, Path], tmp_path: Path):
    groups = {mask: {one.group for one in compared.rows if one.mask == mask} for mask in ("wide", "half")}
    assert [len(some) for some in groups.values()] == [1, 1]
    assert groups["wide"] != groups["half"]
    results, references = make_tree(tmp_path, methods={"rad": 0.1}, images=3)

    def group(*extractors: Extractor, method: str = "rad") -> str:
        return row(evaluate(results, references=references, extractors=extractors), "wide", method).group

    before = group(Averages())
    assert before == group(Averages())
    assert before not in groups["wide"]
    assert group(Averages(weights="01")) != before
    assert group() != before
    write_mask(results / "half/masks/0.png", box_hole(SIDE, SIDE, 0, 0, 12, 12))
    assert group(Averages()) == before
    write_mask(results / "wide/masks/0.png", box_hole(SIDE, SIDE, 2, 3, 14, 17))
    changed, pixels = group(Averages()), group()
    assert changed != before
    save(references / "another.png", smooth(99))  # of account for distances between sets alone
    assert group(Averages()) != changed
    assert group() == pixels
    shutil.copytree(results / "wide/rad", results / "wide/copy")
    assert group(method="copy") == pixels
    (results / "wide/copy/0.png").unlink()
    assert group(method="copy") != pixels == group()


@pytest.mark.parametrize("top", ["", "photos/"])
def test_lists_and_zips_of_references_are_as_good_as_folders(
    compared: Comparison, tree: tuple[Path, Path], tmp_path: Path, top: str
):
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(tree[1].rglob("*.png")):
            archive.write(path, f"{top}{path.relative_to(tree[1])}")
    other = evaluate(tree[0], references=tmp_path / "all.zip", extractors=[Averages()], tables=tmp_path)
    assert [one.values for one in other.rows] == [one.values for one in compared.rows]
    assert [one.group for one in other.rows] == [one.group for one in compared.rows]
    assert str(other.results[0].reference).endswith(f"all.zip:{top}0.png")


# what is broken


def test_a_broken_or_missing_file_loses_only_its_scores(compared: Comparison, tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    (results / "wide/rad/2.png").write_bytes((results / "wide/rad/2.png").read_bytes()[:60])
    (results / "wide/bad/people/1.png").unlink()
    save(results / "half/rad/4.png", smooth(4, side=30))
    other = evaluate(results, references=references, extractors=[Averages()])
    assert [one.missing for one in other.rows] == [0, 1, 0, 1, 0, 1, 0, 0]
    assert [one.images for one in other.rows] == [8, 7, 8, 7, 8, 7, 8, 8]
    assert len(other.results) == len(compared.results) - 3
    assert_same_values(row(other, "wide", "copy").values, row(compared, "wide", "copy").values)
    assert row(other, "wide", "copy").against["psnr"].images == 7
    assert row(other, "wide", "rad").group != row(other, "wide", "copy").group
    text = "\n".join(other.notes)
    assert "wide/rad/2.png" in text
    assert "wide: bad lacks 1 of 8 images, such as people/1" in text
    assert "30x30" in text
    assert "24x24" in text


def test_a_reference_that_is_missing_or_an_empty_hole_leaves_a_note(tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    (references / "0.png").unlink()
    write_mask(results / "wide/masks/2.png", torch.zeros(1, SIDE, SIDE))
    other = evaluate(results, references=references)
    assert {one.images for one in other.rows if one.mask == "wide"} == {6}
    assert {one.missing for one in other.rows} == {0}
    assert any("image 0 is left out: there is no reference" in note for note in other.notes)
    assert any("image 2 is left out: the mask is empty" in note for note in other.notes)


def test_a_mask_set_without_readable_results_leaves_notes(tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    for name in NAMES:
        write_mask(results / f"wide/masks/{name}.png", torch.zeros(1, SIDE, SIDE))
    other = evaluate(results, references=references, extractors=[Averages()])
    assert {one.mask for one in other.rows} == {"half"}
    assert any("wide: none of the files of rad can be scored" in note for note in other.notes)


def test_broken_costs_leave_a_note(tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    (results / "wide/rad/costs.csv").write_text("image,nfe,vjp,seconds,peak_mib\n0,many,,,\n")
    (results / "wide/bad/costs.csv").unlink()
    other = evaluate(results, references=references)
    assert row(other, "wide", "rad").cost.nfe is row(other, "wide", "bad").cost.nfe is None
    assert row(other, "half", "rad").cost.nfe == 200
    assert [note for note in other.notes if "wide/rad/costs.csv" in note and "left out" in note] != []


def test_two_files_with_one_name_exclude_only_that_image(tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    Image.open(results / "wide/bad/0.png").save(results / "wide/bad/0.jpg")
    found = evaluate(results, references=references)
    assert [one.missing for one in found.rows] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert any("0.jpg and " in note and "wide/bad/0.png; remove one" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"torch": "3"}, None),
        ({"device": "cuda"}, "seconds are not comparable: runs differ in device cpu and cuda"),
        ({"cpu": "b", "threads": 2}, "seconds are not comparable: runs differ in cpu a and b, threads 1 and 2"),
        ({"processes": 1}, None),
        ({"processes": 2}, "seconds are not comparable: runs differ in processes 1 and 2"),
    ],
)
def test_runs_on_different_machines_are_reported(
    tree: tuple[Path, Path], tmp_path: Path, changes: dict[str, object], message: str | None
):
    results, references = copied(tree, tmp_path)
    run = json.loads((results / "run.json").read_text())
    environment = {"device": "cpu", "cpu": "a", "threads": 1, "torch": "2"}
    run["runs"] = [{"environment": one} for one in (environment, environment, environment | changes)]
    (results / "run.json").write_text(json.dumps(run))
    assert evaluate(results, references=references).notes == ([message] if message else [])


def test_a_hole_without_border_has_no_seam(tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    write_mask(results / "wide/masks/0.png", torch.ones(1, SIDE, SIDE))
    other = evaluate(results, references=references)
    assert "seam" not in next(one for one in other.results if (one.mask, one.image) == ("wide", "0")).values
    assert "seam" in row(other, "wide", "rad").values
    assert read(results / "metrics.csv")[0]["seam"] == ""


@pytest.mark.parametrize(("count", "known"), [(1, set()), (3, {"fd", "kd"}), (4, {"fd", "kd", "precision", "recall"})])
def test_few_images_have_few_set_metrics(tree: tuple[Path, Path], tmp_path: Path, count: int, known: set[str]):
    results, references = copied(tree, tmp_path)
    for path in (results / "wide").glob("*/**/*.png"):
        if path.relative_to(results / "wide" / path.relative_to(results / "wide").parts[0]).as_posix() not in {
            f"{name}.png" for name in NAMES[:count]
        }:
            path.unlink()
    other = evaluate(results, references=references, extractors=[Averages()])
    found = {name.split("/")[0] for name in row(other, "wide", "rad").values if "/" in name}
    assert {name for name in found if not name.startswith("perceptual") and "-crop" not in name} == known
    assert row(other, "wide", "bad").against["psnr"].p is None
    assert "nan" not in (results / "sets.csv").read_text()
    assert any("no distances between sets" in note or "no precision and recall" in note for note in other.notes) == (
        count < 4
    )


def test_errors_of_the_whole(tree: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(ValueError, match="baseline ddnm has no results: choose one of repaint, rad, copy, bad"):
        evaluate(tree[0], references=tree[1], baseline="ddnm")
    with pytest.raises(ValueError, match="holds no results"):
        evaluate(tmp_path, references=tree[1])
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is broken"):
        evaluate(tmp_path, references=tree[1])
    for content in (
        {"options": []},
        {"options": {"num_samples": "two"}},
        {"masks": 3},
        {"methods": [["rad"]]},
        {"settings": {"rad": 1}},
        {"runs": {}},
        {"runs": ["python"]},
        {"runs": [{"environment": 1}]},
    ):
        (tmp_path / "wide/masks").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"run\.json is broken"):
            evaluate(tmp_path, references=tree[1])
    save(tmp_path / "others/elsewhere.png", smooth(0))
    with pytest.raises(ValueError, match="nothing can be scored"):
        evaluate(tree[0], references=tmp_path / "others")


def test_without_rad_the_first_method_is_the_baseline(tmp_path: Path):
    results, references = make_tree(tmp_path, methods={"zeta": 0.1, "alpha": 0.1}, masks=("wide",))
    assert evaluate(results, references=references).baseline == "zeta"
    assert evaluate(results, references=references, baseline="alpha").baseline == "alpha"
    (results / "run.json").unlink()
    other = evaluate(results, references=references)
    assert other.baseline == "alpha"
    assert other.rank_by == "psnr-hole"


# samples and raw outputs


def test_samples_are_averaged_and_their_diversity_is_measured(tmp_path: Path):
    results, references = make_tree(tmp_path, methods={"rad": 0.05, "bad": 0.2}, masks=("wide",), samples=3)
    found = evaluate(results, references=references, extractors=[Averages()])
    good, bad = row(found, "wide", "rad"), row(found, "wide", "bad")
    assert (good.images, good.samples) == (len(NAMES), 3)
    assert good.against == {}
    assert bad.against["psnr"].images == len(NAMES)
    some = [one for one in found.results if (one.method, one.image) == ("rad", "0")]
    assert [one.sample for one in some] == [0, 1, 2]
    images = [to_tensor(Image.open(one.file)) for one in some]
    pairs = [(images[a] - images[b]).abs().mean().item() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert some[0].values["diversity/means"] == pytest.approx(sum(pairs) / 3, abs=1e-6)
    assert bad.values["diversity/means"].value > 2 * good.values["diversity/means"].value
    (results / "wide/rad/0-1.png").unlink()
    fewer = row(evaluate(results, references=references), "wide", "rad")
    assert (fewer.images, fewer.samples, fewer.missing) == (len(NAMES), 3, 0)
    assert fewer.group != row(evaluate(results, references=references), "wide", "bad").group


def test_distances_between_sets_of_several_samples_by_hand(tmp_path: Path):
    """All samples together, without pairs of one image; recall is that of each sample's set on average."""
    results, references = make_tree(tmp_path, methods={"rad": 0.1}, masks=("half",), samples=3)
    for number, name in enumerate(NAMES):
        for sample in range(3):
            image = filled(smooth(number), hole_of("half", number), error=0.1 * (sample + 1), seed=10 * number + sample)
            save(results / f"half/rad/{name}-{sample}.png", image)
    found = evaluate(results, references=references, extractors=[Averages()])
    net = Averages()
    by_sample = [
        net.features(
            torch.stack([to_tensor(Image.open(results / f"half/rad/{name}-{n}.png")) for name in NAMES])
        ).double()
        for n in range(3)
    ]
    features = net.features(torch.stack([smooth(n) for n in range(8)]))
    originals = sets.ReferenceFeatures(features, NAMES)
    values = {name: one.value for name, one in row(found, "half", "rad").values.items()}
    together = torch.cat(by_sample)
    assert values["fd/means"] == pytest.approx(sets.frechet_distance(together, originals), rel=1e-5)
    assert values["kd/means"] == pytest.approx(sets.kernel_distance(together, originals, 3 * NAMES), rel=1e-5)
    recalls = [sets.recalled(some, originals, NAMES).mean().item() for some in by_sample]
    precisions = [sets.precise(some, originals, NAMES).mean().item() for some in by_sample]
    assert values["recall/means"] == pytest.approx(sum(recalls) / 3)
    assert values["precision/means"] == pytest.approx(sum(precisions) / 3)
    assert (sum(recalls), sum(precisions)) == (1.625, 1.75), "neither is the other, nor that of the first samples"
    assert recalls[0] == precisions[0] == 0.75
    psnr = [one.values["psnr"] for one in found.results]
    assert values["psnr"] == pytest.approx(sum(psnr) / 24)


def test_intervals_are_over_images_and_not_over_samples(tmp_path: Path):
    """Three equal samples of each image are no more images."""
    found = []
    for samples in (1, 3):
        results, references = make_tree(tmp_path / str(samples), methods={"rad": 0.1}, masks=("half",), samples=samples)
        for number, name in enumerate(NAMES):
            image = filled(smooth(number), hole_of("half", number), error=0.02 * (number + 1), seed=number)
            for sample in range(samples):
                save(results / f"half/rad/{name}{f'-{sample}' if samples > 1 else ''}.png", image)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "set_interval", partial(set_interval, resamples=200))
            patch.setattr(statistics, "RESAMPLES", 1000)
            found.append(row(evaluate(results, references=references, extractors=[Averages()]), "half", "rad").values)
    for name in ("psnr", "fd/means", "kd/means", "precision/means", "recall/means"):
        one, three = (values[name] for values in found)
        if name != "fd/means":  # the covariance of a sample is that of n / (n - 1) images
            assert three.value == pytest.approx(one.value)
        assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.2), name


def test_costs_are_per_sample(tmp_path: Path):
    results, references = make_tree(tmp_path, methods={"rad": 0.1, "bad": 0.1}, masks=("wide",), samples=2)
    for _ in range(2):
        found = evaluate(results, references=references)
        cost = row(found, "wide", "bad").cost
        assert (cost.nfe, cost.vjp, cost.seconds, cost.peak_mib) == (100, 0.5, 0.25, 17)
        assert {line["nfe"] for line in read(results / "metrics.csv") if line["method"] == "bad"} == {"100"}
        (results / "run.json").unlink(missing_ok=True)


def test_an_image_called_raw_is_no_raw_output(tmp_path: Path):
    results, references = make_tree(tmp_path, methods={"rad": 0.1}, masks=("wide",))
    for folder in (references, results / "wide/masks", results / "wide/rad"):
        shutil.copy(folder / "2.png", folder / "0-raw.png")
    found = evaluate(results, references=references)
    assert row(found, "wide", "rad").images == len(NAMES) + 1
    assert "known-raw" not in row(found, "wide", "rad").values


def test_raw_outputs_are_scored_where_they_are(tmp_path: Path):
    results, references = make_tree(tmp_path, methods={"rad": 0.05, "bad": 0.2}, masks=("wide",))
    for number, name in enumerate(NAMES):
        hole = hole_of("wide", number)
        save(results / "wide/rad" / f"{name}-raw.png", smooth(number) + 5 / 255 * (1 - hole) + 0.2 * hole)
    found = evaluate(results, references=references)
    assert row(found, "wide", "rad").values["known-raw"].value == pytest.approx(5, abs=1e-3)
    assert "known-raw" not in row(found, "wide", "bad").values
    assert len(found.results) == 2 * len(NAMES)


def test_samples_are_separated_from_images_whose_names_end_in_numbers(tmp_path: Path):
    for name in ("a", "a-0", "b-0", "b-1", "c-7", "c-x"):
        save(tmp_path / f"{name}.png", smooth(0))
    find = partial(find_results, tmp_path, notes=[])
    found, unknown = find({"a", "a-0", "b", "c", "d"})
    numbers = {name: {n: path.stem for n, path in some.items()} for name, some in found.items()}
    assert numbers == {"a": {0: "a"}, "a-0": {0: "a-0"}, "b": {0: "b-0", 1: "b-1"}, "c": {7: "c-7"}}
    assert unknown == 1, "c-x"
    assert set(find({"a", "b"}, samples=1)[0]) == {"a"}
    assert {name: sorted(some) for name, some in find({"a", "b"}, samples=2)[0].items()} == {"a": [0], "b": [0, 1]}


def test_files_beside_results_are_recognised(tmp_path: Path):
    for name in ("a", "a-raw", "a-mask", "b-0", "b-1", "b-0-raw", "b-1-raw", "b-mask"):
        save(tmp_path / f"{name}.png", smooth(0))
    notes: list[str] = []
    assert find_results(tmp_path, {"a", "b"}, notes=notes)[1] == 0
    assert notes == []


def test_files_without_an_original_are_reported(
    tree: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results, references = copied(tree, tmp_path)
    (references / "0.png").unlink()
    words = ["--reference", str(references), "--mask", str(results / "wide/masks"), "--output", str(tmp_path / "out")]
    assert command.main(["--results", str(results / "wide/bad"), *words]) == 3
    assert "bad: 1 file without a matching original and mask: 0" in capsys.readouterr().err
    (results / "wide/masks/1.png").unlink(missing_ok=True)
    (results / "wide/masks/2.png").unlink()
    found = evaluate(results, references=tree[1])
    assert found.unknown == 4, "one file of each method"
    assert any("wide/copy: 1 file without" in note for note in found.notes)


def test_crops_of_a_row_are_compared_with_its_own_originals(
    compared: Comparison, tree: tuple[Path, Path], tmp_path: Path
):
    results, references = copied(tree, tmp_path)
    some = NAMES[:5]
    for name in NAMES[5:]:
        (results / f"wide/bad/{name}.png").unlink()
    found = row(evaluate(results, references=references, extractors=[Averages()]), "wide", "bad")
    assert found.images == 5
    for label in ("repaint", "rad", "copy"):
        shutil.rmtree(results / "wide" / label)
    for name in NAMES[5:]:
        (results / f"wide/masks/{name}.png").unlink()
    alone = row(evaluate(results, references=references, extractors=[Averages()]), "wide", "bad")
    assert alone.group == found.group
    assert_same_values(alone.values, found.values)  # whatever other methods have
    boxes = [pixels.crop_box(hole_of("wide", NAMES.index(name))) for name in some]
    net, crops = Averages(), []
    for path in (references, results / "wide/bad"):
        images = [to_tensor(Image.open(path / f"{name}.png")) for name in some]
        crops.append(torch.cat([net.features(pixels.crop(i, b)[None]) for i, b in zip(images, boxes, strict=True)]))
    expected = sets.frechet_distance(crops[1], sets.ReferenceFeatures(crops[0]))
    assert found.values["fd-crop/means"].value == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(row(compared, "wide", "bad").values["fd-crop/means"].value, rel=1e-3)


def test_a_baseline_that_is_asked_for_has_to_be_there(tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    for mask in ("wide", "half"):
        shutil.rmtree(results / mask / "rad")
    assert evaluate(results, references=references).baseline == "repaint", "the first"
    with pytest.raises(ValueError, match=r"baseline rad has no results.*: choose one of repaint, copy, bad"):
        evaluate(results, references=references, baseline="rad")


def test_a_metric_that_some_images_have_not_is_reported(tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    write_mask(results / "wide/masks/0.png", torch.ones(1, SIDE, SIDE))
    notes = evaluate(results, references=references).notes
    assert any(note == "wide: seam (grey levels) is known for only 7 of 8 images" for note in notes)


# other systems


def test_folders_of_others_are_scored_alike(compared: Comparison, tree: tuple[Path, Path], tmp_path: Path):
    folders = {label: tree[0] / "wide" / label for label in ("repaint", "rad", "copy", "bad")}
    found = evaluate_folders(
        folders, references=tree[1], mask=tree[0] / "wide/masks", output=tmp_path, extractors=[Averages()]
    )
    assert [one.mask for one in found.rows] == ["wide"] * 4
    for one in found.rows:
        assert one.values == row(compared, "wide", one.method).values
        assert one.group == row(compared, "wide", one.method).group
    assert found.run == {}
    assert found.results[0].hole == tmp_path / "wide/masks/0.png"
    assert (tmp_path / "metrics.csv").is_file()


def test_polarity_of_others_masks(tree: tuple[Path, Path], tmp_path: Path):
    for number, name in enumerate(NAMES):
        path = tmp_path / "known" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(path, 1 - hole_of("wide", number))
    folders = {"rad": tree[0] / "wide/rad"}
    right = evaluate_folders(
        folders,
        references=tree[1],
        mask=tmp_path / "known",
        mask_format=MaskFormat(polarity="white_is_known"),
        output=tmp_path / "right",
    )
    wrong = evaluate_folders(folders, references=tree[1], mask=tmp_path / "known", output=tmp_path / "wrong")
    plain = evaluate_folders(folders, references=tree[1], mask=tree[0] / "wide/masks", output=tmp_path / "plain")
    numbers = [one.rows[0].values["psnr-hole"].value for one in (right, wrong, plain)]
    assert numbers[0] == numbers[2] < 40
    assert numbers[1] == pytest.approx(pixels.PSNR_LIMIT)
    assert right.notes == plain.notes == []
    message = "\n".join(wrong.notes)
    assert "known: ARE THE MASKS INVERTED? Known pixels of rad differ" in message
    assert "and 0 grey levels): check --mask_polarity" in message
    assert "known: 8 of 8 masks, such as 0: it looks inverted" in message
    written = (tmp_path / "right/known/masks/0.png").read_bytes()
    assert written == (tree[0] / "wide/masks/0.png").read_bytes()


def test_changed_known_pixels_are_reported_with_their_size(tree: tuple[Path, Path], tmp_path: Path):
    results, references = copied(tree, tmp_path)
    for number in (0, 2):
        path = results / f"wide/bad/{number}.png"
        save(path, to_tensor(Image.open(path)) + 3 / 255 * (1 - hole_of("wide", number)))
    found = evaluate(results, references=references)
    assert found.notes == [
        "wide: known pixels of 2 of 8 results of bad differ from the original, by 3 grey levels on average"
    ]


def test_one_mask_for_all_and_results_of_any_format(tree: tuple[Path, Path], tmp_path: Path):
    write_mask(tmp_path / "right.png", hole_of("half", 0))
    for name in NAMES[:3]:
        path = tmp_path / "other" / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(tree[0] / "half/bad" / f"{name}.png").save(path)
    found = evaluate_folders(
        {"other": tmp_path / "other"}, references=tree[1], mask=tmp_path / "right.png", output=tmp_path / "out"
    )
    assert (found.rows[0].mask, found.rows[0].images, found.rows[0].missing) == ("right", 3, 0)
    assert found.baseline == "other"


def test_errors_of_others_folders(tree: tuple[Path, Path], tmp_path: Path):
    folders, mask = {"rad": tree[0] / "wide/rad"}, tree[0] / "wide/masks"
    save(tmp_path / "empty/elsewhere.png", smooth(0))
    with pytest.raises(ValueError, match="no image named like a reference"):
        evaluate_folders({"x": tmp_path / "empty"}, references=tree[1], mask=mask, output=tmp_path)
    with pytest.raises(ValueError, match="no mask in"):
        evaluate_folders(folders, references=tree[1], mask=tmp_path / "empty", output=tmp_path / "out")
    with pytest.raises(ValueError, match="write into the masks"):
        evaluate_folders(folders, references=tree[1], mask=mask, output=tree[0])


# the command line


def test_help_loads_no_torch():
    program = "from rad.__main__ import main\ntry:\n    main(['evaluate', '--help'])\nexcept SystemExit:\n    pass"
    loaded = loaded_by(program)
    assert "rad.evaluation.__main__" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "matplotlib", "scipy"}


def test_command_on_a_tree(tree: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results, _ = copied(tree, tmp_path)
    assert command.main(["--results", str(results)]) == 0
    output = capsys.readouterr()
    names = ("metrics.csv", "sets.csv", "provenance.json", "summary.md", "report.html")
    assert output.out.split() == [str(results / name) for name in names]
    assert all((results / name).is_file() for name in names)
    assert "pixel metrics only" in output.err
    assert "64 of 64 files scored" in output.err
    assert not list(results.glob(".rad*"))
    with locked(results):
        assert command.main(["--results", str(results)]) == 0
    note = f"note: {results} is being written by process {os.getpid()}"
    assert note in capsys.readouterr().err
    with one_at_a_time(results / EVALUATION), pytest.raises(InUse, match="in use by process"):
        command.main(["--results", str(results)])
    (results / "wide/rad/0.png").write_bytes(b"")
    assert command.main(["--results", str(results), "--output", str(tmp_path / "tables")]) == 3
    assert (tmp_path / "tables/report.html").is_file()


def test_command_on_folders_of_others(tree: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["score.py", "--mask_polarity", "white_is_fill"])
    arguments = ["--results", f"ours={tree[0] / 'wide/rad'}", str(tree[0] / "wide/bad"), "--reference", str(tree[1])]
    arguments += ["--mask", str(tree[0] / "wide/masks"), "--output", str(tmp_path), "--baseline", "bad"]
    assert command.main(arguments) == 0
    assert [line["method"] for line in read(tmp_path / "sets.csv")] == ["ours", "bad"]
    for name in ("summary.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "bad" in text
        assert "the settings behind these results are unknown" in text
        for part in ("python score.py --mask_polarity", str(tree[1]), torch.__version__):
            assert part in text, "how they were scored is"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "nowhere"], "no folder nowhere"),
        (["--results", "TREE/wide/rad"], "give --reference and --mask too"),
        (["--results", "TREE", "--baseline", "best"], "baseline best has no results"),
        (["--results", "TREE", "--reference", "nowhere"], "no such file or folder"),
        (["--results", "TREE", "--device", "abacus"], "cannot be used"),
        (["--results", "TREE", "--batch_size", "0"], "batch_size=0"),
        (["--results", "TREE", "--feature_net", "nowhere.safetensors"], "nowhere"),
        (["--results", "TREE/wide/rad", "TREE/half/rad"], "two folders are called rad"),
        (["--result", "TREE", "--metric", "x"], "--help"),
    ],
)
def test_the_command_reports_errors_in_one_line(
    tree: tuple[Path, Path], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    filled_in = [argument.replace("TREE", str(tree[0])) for argument in arguments]
    assert guarded(lambda: command.main(filled_in)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
