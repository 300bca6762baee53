"""The report shows the comparison: order, marks, groups, images. It opens no connection."""

import math
import re
import zipfile
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rad.evaluation.report import images as report_images
from rad.evaluation.report import open_reference, write_report
from rad.evaluation.report import page as report_page
from rad.evaluation.report.plots import plot_quality
from rad.evaluation.results import Comparison, Cost, Difference, Interval, Metric, Result, Row
from rad.images.sources import list_images

PSNR = Metric("psnr", "PSNR", "higher", 2, {"library": "torchmetrics 1.9", "range": "[0, 1]"})
LPIPS = Metric("lpips/small", "LPIPS small", "lower", 3, {"extractor": "small", "weights": "sha256 0123abcd"})
FRECHET = Metric("fd/small", "Fréchet small", "lower", 1, {"extractor": "small", "weights": "sha256 0123abcd"})
METHODS = {"slow": (20.0, 100, 4.0), "good@50": (25.0, 50, 0.5), "good@20": (22.0, 20, 0.2), "mean": (15.0, 0, 0.001)}


class Page(HTMLParser):
    """The elements of a page in order, as (tag, attributes), and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data

    def find(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [has for name, has in self.elements if name == tag and attributes.items() <= has.items()]

    def methods(self) -> list[str]:
        """First cells of rows that have values, in order."""
        return [row["data-value"] for row in self.find("th", scope="row") if "data-value" in row]


def example(
    folder: Path, *, masks: Sequence[str] = ("wide",), images: int = 4, size: int = 8, **methods: Any
) -> Comparison:
    """Noise as images; PSNR of image i is the method's value plus i, its LPIPS falls likewise."""
    random = np.random.default_rng(0)
    chosen = methods or METHODS
    rows, results = [], []
    for mask in masks:
        for index in range(images):
            name = f"part/image{index}"
            files = {kind: folder / kind / f"{name}.png" for kind in ("reference", "hole", *chosen)}
            for kind, file in files.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
                if kind == "hole":
                    pixels = np.zeros((size, size), np.uint8)
                    pixels[:, : size // 4] = 255
                Image.fromarray(pixels).save(file)
            for method, (value, _, _) in chosen.items():
                values = {"psnr": value + index, "lpips/small": (40 - value - index) / 100}
                where = files[method], files["reference"], files["hole"]
                results.append(Result(mask, method, name, 0, *where, values))
        for method, (value, nfe, seconds) in chosen.items():
            values = {
                PSNR.name: Interval(value, value - 1, value + 1),
                LPIPS.name: Interval((40 - value) / 100, 0.1, 0.3),
            }
            cost = Cost(nfe, 0, seconds)
            rows.append(Row(mask, method, "0123456789abcdef", images, 1, values, cost=cost))
    environment = {"torch": "2.6.0", "cpu": "one"}
    run = {
        "runs": [
            {"command": "python sample.py --image 'my photos'", "commit": "0a1ed04", "environment": environment},
            {"command": "python sample.py --method mean", "commit": "1b2c3d4", "environment": environment},
        ],
        "options": {"seed": 7},
        "model": {"base_hash": "5be1c0e2"},
        "mask_sources": {"half": {"mask": "half", "mask_by": "name"}},
    }
    return Comparison([PSNR, LPIPS], rows, results, next(iter(chosen)), "psnr", run, ["FID was left out."])


def written(comparison: Comparison, output: Path) -> tuple[str, Page]:
    summary, page = write_report(comparison, output)
    return summary.read_text(encoding="utf-8"), Page(page.read_text(encoding="utf-8"))


def table(summary: str) -> list[list[str]]:
    """Cells of the rows of all tables."""
    lines = [line for line in summary.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def images(page: Page, alt: str) -> list[bytes]:
    return [b64decode(image["src"].split(",", 1)[1]) for image in page.find("img", alt=alt)]


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time of a report."""
    monkeypatch.setattr(report_page, "plot_quality", lambda *_, **__: None)


def change(comparison: Comparison, method: str, **changes: Any) -> Comparison:
    rows = [replace(row, **changes) if row.method == method else row for row in comparison.rows]
    return replace(comparison, rows=rows)


@pytest.mark.usefixtures("no_plots")
def test_rows_are_sorted_by_the_ranking_metric(tmp_path: Path) -> None:
    comparison = example(tmp_path / "data")
    summary, page = written(comparison, tmp_path)
    order = ["good@50", "good@20", "slow (baseline)", "mean"]
    assert [row[0] for row in table(summary)][1:] == order
    assert page.methods() == ["good@50", "good@20", "slow", "mean"]
    rows = [
        replace(row, values={"lpips/small": Interval(value, 0.1, 0.9)})
        for row, value in zip(comparison.rows, (0.3, 0.5, 0.2, 0.4), strict=True)
    ]
    summary, page = written(replace(comparison, rows=rows, rank_by="lpips/small"), tmp_path)
    assert page.methods() == ["good@20", "slow", "mean", "good@50"]
    assert [row[0] for row in table(summary)][1:] == ["good@20", "slow (baseline)", "mean", "good@50"]


@pytest.mark.usefixtures("no_plots")
def test_best_is_bold_in_the_sense_of_each_metric(tmp_path: Path) -> None:
    comparison = change(
        example(tmp_path / "data"),
        "mean",
        values={"psnr": Interval(15, 14, 16), "lpips/small": Interval(0.01, 0, 0.05)},
    )
    rows = {row[0]: row[-2:] for row in table(written(comparison, tmp_path)[0])}
    assert rows["good@50"] == ["**25.00** [24.00, 26.00]", "0.150 [0.100, 0.300]"]
    assert rows["mean"] == ["15.00 [14.00, 16.00]", "**0.010** [0.000, 0.050]"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>25.00</b>" in text
    assert "<b>0.010</b>" in text
    assert "<b>15.00</b> part" in text  # in the captions of cases only
    assert text.count("><b>") - text.count("<figcaption><b>") - text.count("<li><b>") == 2


@pytest.mark.usefixtures("no_plots")
def test_indistinguishable_from_the_best_is_bold_too(tmp_path: Path) -> None:
    def bold(**changes: dict[str, Any]) -> list[str]:
        comparison = example(tmp_path / "data")
        for method, change_of in changes.items():
            comparison = change(comparison, {"half": "good@50", "fifth": "good@20"}.get(method, method), **change_of)
        return sorted(row[0] for row in table(written(comparison, tmp_path)[0]) if row[-2].startswith("**"))

    def has(value: float, low: float, high: float) -> dict[str, Any]:
        return {"values": {"psnr": Interval(value, low, high)}}

    assert bold() == ["good@50"]  # 25 [24, 26], 22 [21, 23], 20 of the baseline, 15
    assert bold(fifth=has(22, 20, 24.5)) == ["good@20", "good@50"]
    assert bold(fifth=has(22, 20, 24.5), half=has(25, 24.6, 26)) == ["good@50"]
    assert bold(fifth=has(22, 0, 50), slow=has(20, 0, 50), mean=has(15, 0, 50)) == [], (
        "all are statistically indistinguishable"
    )
    # Where one of the two is the baseline, the paired test decides, whether intervals overlap or not.
    noise, sure = ({"against": {"psnr": Difference(5, -1, 9, p, 8)}} for p in (0.2, 0.001))
    assert bold(half=noise) == ["good@50", "slow (baseline)"]
    assert bold(half=sure, slow=has(20, 10, 30)) == ["good@50"]
    assert bold(slow=has(30, 29, 31), half=has(25, 20, 30) | noise, fifth=sure) == ["good@50", "slow (baseline)"]
    # Without an interval, nothing is known of a value.
    assert bold(half=has(25, math.nan, math.nan)) == []
    assert bold(mean=has(15, math.nan, math.nan)) == ["good@50"]


@pytest.mark.usefixtures("no_plots")
def test_how_to_read_the_tables_is_on_both_pages(tmp_path: Path) -> None:
    summary, page = written(example(tmp_path / "data"), tmp_path)
    for words in (
        "paired sign-flip permutation test compares the mean over the common images with the baseline",
        "Distances between sets, precision and recall are not tested",
        "otherwise their intervals must overlap",
    ):
        assert words in summary
        assert words in unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.find("th", title="network evaluations for one sample of an image")


@pytest.mark.usefixtures("no_plots")
def test_noise_is_marked_and_directions_are_named(tmp_path: Path) -> None:
    against = {"psnr": Difference(5, 4, 6, 0.0001, 4), "lpips/small": Difference(-0.05, -0.06, -0.04, 0.012, 4)}
    comparison = change(example(tmp_path / "data"), "good@50", against=against)
    comparison = change(comparison, "good@20", against={"psnr": Difference(2, -1, 5, 0.05, 4)})
    comparison = change(
        comparison,
        "mean",
        against={
            "psnr": Difference(-5, math.nan, math.nan, None, 2),
            "lpips/small": Difference(0.05, 0.04, 0.06, 0.04, 4),
        },
    )
    summary, page = written(comparison, tmp_path)
    rows = {row[0]: row[-2:] for row in table(summary)}
    assert rows["good@50"][0].endswith("(better, p < 0.001)")
    assert rows["good@50"][1].endswith("(better, p = 0.012)")
    assert rows["good@20"][0].endswith("≈")
    assert rows["mean"][0].endswith("≈")
    assert rows["mean"][1].endswith("(worse, p = 0.040)")
    assert "≈" not in rows["slow (baseline)"][0]
    hints = [mark["title"] for mark in page.find("span", **{"class": "mark noise"}) if "title" in mark]
    assert len(hints) == 2
    assert (
        "statistically indistinguishable: +2.000 [-1.000, +5.000] against slow on 4 images; paired test, p = 0.050"
        in hints[0]
    )
    assert "not tested: -5.000 against slow on 2 images, too few" in hints[1]


@pytest.mark.usefixtures("no_plots")
def test_groups_are_ranked_apart(tmp_path: Path) -> None:
    comparison = change(example(tmp_path / "data"), "slow", group="fedcba9876543210")
    comparison = change(comparison, "mean", group="fedcba9876543210")
    summary, page = written(comparison, tmp_path)
    assert "not ranked together" in summary
    assert [row[0] for row in table(summary)] == ["method", "slow (baseline)", "mean", "method", "good@50", "good@20"]
    assert [row[-2].startswith("**") for row in table(summary)] == [False, True, False, False, True, False]
    assert page.methods() == ["slow", "mean", "good@50", "good@20"]
    assert len(page.find("tr", **{"class": "group"})) == 2
    assert "not ranked together" not in written(example(tmp_path / "data"), tmp_path)[0]


@pytest.mark.usefixtures("no_plots")
def test_a_single_row_is_not_best_and_unknown_values_come_last(tmp_path: Path) -> None:
    comparison = example(tmp_path / "data", only=(20.0, 10, 1.0))
    assert table(written(comparison, tmp_path)[0])[1][-2] == "20.00 [19.00, 21.00]"
    comparison = change(example(tmp_path / "data"), "good@50", values={"psnr": Interval(math.nan, math.nan, math.nan)})
    summary, page = written(comparison, tmp_path)
    assert page.methods()[-1] == "good@50"
    assert table(summary)[-1][-2:] == ["–", "–"]
    perfect = change(comparison, "mean", values={"psnr": Interval(math.inf, math.nan, math.nan)})
    summary, page = written(perfect, tmp_path)
    assert table(summary)[1][-2] == "∞"
    assert page.find("td", **{"data-value": "Infinity"})


@pytest.mark.usefixtures("no_plots")
def test_images_are_the_files_and_holes_are_grey(tmp_path: Path) -> None:
    comparison = example(tmp_path / "data")
    page = written(comparison, tmp_path)[1]
    for result in comparison.results:
        shown = images(page, f"{result.image}, filled by {result.method}")
        assert shown
        assert all(data == result.file.read_bytes() for data in shown)
    result = comparison.results[0]
    truth = np.asarray(Image.open(result.reference))
    assert np.array_equal(np.asarray(Image.open(BytesIO(images(page, f"{result.image}, original")[0]))), truth)
    given = np.asarray(Image.open(BytesIO(images(page, f"{result.image}, hole in grey")[0])))
    assert (given[:, :2] == 128).all()  # the hole is the left quarter
    assert np.array_equal(given[:, 2:], truth[:, 2:])
    image = page.find("img")[0]
    assert image["width"] == image["height"]
    assert int(image["width"]) % 8 == 0
    assert image["class"] == "tiny"


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    written(example(tmp_path / "data", masks=["wide", "half"]), tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for tag, attributes in Page(text).elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value.startswith(("data:", "#")), (tag, name, value)
            assert name.startswith("xmlns") or "http:" not in value
    assert re.sub(r'xmlns(:\w+)?="[^"]*"', "", text).count("://") == 0
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)", text))
    assert "@import" not in text
    identifiers = re.findall(r'\bid="([^"]*)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["report.html", "summary.md"]


def test_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'|`$x^2$"
    comparison = example(tmp_path / "data")
    results = [replace(result, image=evil, method=evil, mask=evil) for result in comparison.results[:1]]
    rows = [replace(comparison.rows[0], method=evil, mask=evil)]
    run = {"runs": [{"command": evil, "environment": {evil: evil}}], evil: {evil: [evil]}}
    metrics = [replace(PSNR, title=evil, provenance={evil: evil})]
    comparison = Comparison(metrics, rows, results, evil, "psnr", run, [evil])
    summary, page = written(comparison, tmp_path)
    assert len(page.find("script")) == 1
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.find("img"))
    assert page.find("img", alt=f"{evil}, original")
    assert page.methods() == [evil]
    prose = re.sub(r"(?m)^    .*$", "", summary)  # the command is a block of code
    assert not re.search(r"(?<!\\)<script", prose.replace("`psnr`", ""))
    assert {len(row) for row in table(summary)} == {6}


@pytest.mark.usefixtures("no_plots")
def test_large_images_are_reduced_and_the_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = example(tmp_path / "data", images=1, size=300, only=(20.0, 10, 1.0))
    page = written(comparison, tmp_path)[1]
    shown = Image.open(BytesIO(images(page, "part/image0, filled by only")[0]))
    assert shown.format == "WEBP"
    assert shown.size == (256, 256)
    assert not page.find("img", **{"class": "tiny"})
    before = (tmp_path / "report.html").stat().st_size
    monkeypatch.setattr(report_images, "PAGE_BYTES", 100_000)
    page = written(comparison, tmp_path)[1]
    shown = Image.open(BytesIO(images(page, "part/image0, filled by only")[0]))
    assert max(shown.size) < 256
    assert (tmp_path / "report.html").stat().st_size < before
    assert f"at most {max(shown.size)} pixels" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_sheet_shows_the_same_images_for_all_methods(tmp_path: Path) -> None:
    comparison = example(tmp_path / "data", images=20)
    chosen = report_page._mask_set(comparison, "wide").sheet
    numbers = [int(name.removeprefix("part/image")) for name, _ in chosen]
    names = sorted(f"part/image{index}" for index in range(20))
    assert [name for name, _ in chosen] == [names[round(19 * index / 7)] for index in range(8)]
    assert len(set(numbers)) == 8
    assert all(row.keys() == METHODS.keys() for _, row in chosen)
    first = names[0]
    results = [result for result in comparison.results if (result.method, result.image) != ("mean", first)]
    chosen = report_page._mask_set(replace(comparison, results=results), "wide").sheet
    assert first not in [name for name, _ in chosen]  # an image that one method failed at
    reordered = report_page._mask_set(replace(comparison, results=comparison.results[::-1]), "wide").sheet
    assert [name for name, _ in reordered] == [names[round(19 * index / 7)] for index in range(8)]


@pytest.mark.usefixtures("no_plots")
def test_images_that_no_two_methods_share_leave_gaps(tmp_path: Path) -> None:
    comparison = example(tmp_path / "data", images=2)
    kept = {"slow": "part/image0", "mean": "part/image1"}
    results = [result for result in comparison.results if kept.get(result.method) == result.image]
    rows = [row for row in comparison.rows if row.method in kept]
    written(replace(comparison, results=results, rows=rows), tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("no result") == 2


def test_best_and_worst_cases(tmp_path: Path) -> None:
    comparison = example(tmp_path / "data", images=10)
    best, worst = report_page._mask_set(comparison, "wide").cases["slow"]
    assert [case.result.image[-1] for case in best] == ["9", "8", "7"]
    assert [case.result.image[-1] for case in worst] == ["0", "1", "2"]
    assert [case.value for case in best] == ["29.00", "28.00", "27.00"]
    by_lpips = report_page._mask_set(replace(comparison, rank_by="lpips/small"), "wide").cases["slow"]
    assert [case.result.image[-1] for case in by_lpips[0]] == ["9", "8", "7"]  # lower is better
    whole_set = replace(comparison, metrics=[FRECHET, LPIPS, PSNR], rank_by="fd/small")
    assert report_page._mask_set(whole_set, "wide").case_metric == LPIPS
    few = replace(comparison, results=[result for result in comparison.results if result.image < "part/image3"])
    best, worst = report_page._mask_set(few, "wide").cases["slow"]
    assert [[case.result.image[-1] for case in some] for some in (best, worst)] == [["2", "1"], ["0"]]


@pytest.mark.usefixtures("no_plots")
def test_samples_and_missing_images_are_named(tmp_path: Path) -> None:
    comparison = change(example(tmp_path / "data"), "slow", samples=2, missing=1)
    second = [replace(result, sample=1) for result in comparison.results if result.method == "slow"]
    comparison = replace(comparison, results=second + comparison.results)
    summary, page = written(comparison, tmp_path)
    assert {row[0]: row[4] for row in table(summary)}["slow (baseline)"] == "4 × 2 (1 missing)"
    assert images(page, "part/image0, sample 1, filled by slow")
    assert {
        case.result.sample for _, row in report_page._mask_set(comparison, "wide").sheet for case in row.values()
    } == {0}


@pytest.mark.usefixtures("no_plots")
def test_missing_images_and_runs_do_not_stop_the_report(tmp_path: Path) -> None:
    comparison = replace(example(tmp_path / "data"), run={}, notes=[])
    comparison.results[0].file.unlink()
    comparison.results[0].hole.unlink()
    Image.new("L", (5, 5)).save(comparison.results[-1].hole)
    summary, page = written(comparison, tmp_path)
    assert "no run.json" in summary
    missing = [gap["title"] for gap in page.find("span", **{"class": "missing"})]
    assert any(str(comparison.results[0].file) in reason for reason in missing)
    assert any("5x5" in reason for reason in missing)
    bare = replace(comparison, metrics=[], rows=[Row("wide", "slow", "0", 4, 1, {})], rank_by="psnr")
    assert table(written(bare, tmp_path)[0])[1][:5] == ["slow (baseline)", "–", "–", "–", "4"]


def test_the_run_is_described(tmp_path: Path) -> None:
    summary, page = written(example(tmp_path / "data"), tmp_path)
    assert "\n    python sample.py --image 'my photos'\n    python sample.py --method mean\n" in summary
    for fact in (
        "commit: run 0: 0a1ed04; run 1: 1b2c3d4",
        "seed: 7",
        "environment cpu: one",
        "environment torch: 2.6.0",
        "model base_hash: 5be1c0e2",
    ):
        assert f"- {fact}\n" in summary
    assert "- FID was left out.\n" in summary
    assert "- LPIPS small (`lpips/small`, lower is better): extractor small; weights sha256 0123abcd\n" in summary
    assert ["LPIPS small", "lpips/small", "lower", "–", "–", "small", "sha256 0123abcd"] in page.rows
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "sample.py --image &#39;my photos&#39;" in html
    assert "<summary>mask sources</summary>" in html


@pytest.mark.usefixtures("no_plots")
def test_a_failed_write_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = example(tmp_path / "data", images=1)
    old = written(comparison, tmp_path)[0]

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("rad.images.atomic.os.replace", fail)
    with pytest.raises(OSError, match="full"):
        write_report(replace(comparison, notes=["new"]), tmp_path)
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == old
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["report.html", "summary.md"]


@pytest.mark.usefixtures("no_plots")
def test_references_out_of_a_zip(tmp_path: Path) -> None:
    comparison = example(tmp_path / "data", images=1)
    result = comparison.results[0]
    with zipfile.ZipFile(tmp_path / "all.ZIP", "w") as archive:
        archive.write(str(result.reference), "a/one.png")
        archive.writestr("a/two.png", b"no image")
    one, two = list_images(tmp_path / "all.ZIP")
    assert np.array_equal(open_reference(replace(result, reference=one)), open_reference(result))
    for wrong in (two, tmp_path / "none.png"):
        with pytest.raises(ValueError, match=r"cannot read image .*(two|none)"):
            open_reference(replace(result, reference=wrong))
    white = Image.new("RGB", (8, 8), "white")
    write_report(comparison, tmp_path, open_reference=lambda _: white)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (np.asarray(Image.open(BytesIO(images(page, "part/image0, original")[0]))) == 255).all()


def test_the_plot_has_a_point_or_a_line_for_each_method(tmp_path: Path) -> None:
    rows = example(tmp_path, images=0).rows
    image = plot_quality(rows, PSNR, families=["slow", "good", "mean"], prefix="p")
    assert image is not None
    assert image.startswith("<svg")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", image)
    for name in ("slow", "good", "mean", "PSNR (higher is better)"):
        assert texts.count(name) == 1  # in the legend, and at the axis
    steps = re.findall(r"font-size: 7.5px[^>]*>([^<]+)<", image)
    assert sorted(steps) == ["20", "20", "50", "50"], "the steps of good@20 and good@50 in both panels"
    assert "stroke-dasharray" in image
    calls = ["20", "50", "100"]
    assert [text for text in texts if text in calls][:3] == calls
    assert plot_quality(rows, PSNR, families=["slow", "good", "mean"], prefix="p") == image
    unknown = [replace(row, cost=Cost()) for row in rows]
    assert plot_quality(unknown, PSNR, families=["slow", "good", "mean"], prefix="p") is None
    assert plot_quality(rows, FRECHET, families=["slow", "good", "mean"], prefix="p") is None


def test_costs_that_hardly_differ_have_ticks(tmp_path: Path) -> None:
    rows = [
        Row("wide", name, "0", 4, 1, {"psnr": Interval(20, 12, 21)}, cost=Cost(n)) for name, n in (("a", 6), ("b", 8))
    ]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plot_quality(rows, PSNR, families=["a", "b"], prefix="p") or "")
    assert [text for text in texts if text in "56789"][:5] == ["5", "6", "7", "8", "9"]


def test_intervals_of_the_plot_reach_as_far_as_they_do(tmp_path: Path) -> None:
    """The bar of an interval that is long below its value is as long below its marker."""
    row = Row("wide", "slow", "0", 4, 1, {"psnr": Interval(20, 12, 21)}, cost=Cost(100))
    image = plot_quality([row], PSNR, families=["slow"], prefix="p")
    assert image is not None
    bars = re.search(r'id="p-LineCollection_1">.*?d="M [\d.]+ ([\d.]+) \s*L [\d.]+ ([\d.]+)', image, re.DOTALL)
    assert bars is not None
    lowest, highest = sorted(map(float, bars.groups()), reverse=True)  # y of SVG points down
    marker = re.findall(r'<use xlink:href="#p-[^"]*" x="[\d.]+" y="([\d.]+)" style="fill: #1f5f8b', image)
    assert lowest - highest > 0
    inside = [float(y) for y in marker if highest + 0.1 < float(y) < lowest - 0.1]
    assert inside != []
    assert inside[0] - highest == pytest.approx((lowest - highest) / 9, rel=1e-3)
