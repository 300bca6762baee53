"""`rad evaluate` on comparisons with one mask and on plain outputs; names that cannot be printed."""

import shutil
from pathlib import Path

import pytest

from rad.evaluation import __main__ as command
from rad.evaluation.compare import evaluate_folders
from rad.evaluation.report import write_report
from rad.evaluation.run_log import Costs, Usage, read_costs
from rad.streams import from_cell
from tests.evaluation.test_compare import NAMES, few_resamples, make_tree, read

__all__ = ["few_resamples"]
"""A fixture, for all tests here."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_tree(tmp_path_factory.mktemp("tree"), methods={"repaint": 0.02, "rad": 0.05})


def one_mask(tree: tuple[Path, Path], folder: Path, *, masks: bool) -> Path:
    """The folder of rad sample with two methods and one mask, without a record; `masks`: with --save_mask."""
    for method in ("rad", "repaint"):
        shutil.copytree(tree[0] / "wide" / method, folder / method)
        for file in (folder / method).glob("*.csv"):
            file.unlink()
        for name in NAMES if masks else ():
            shutil.copy(tree[0] / "wide/masks" / f"{name}.png", folder / method / f"{name}-mask.png")
    return folder


def psnr_of(folder: Path) -> dict[str, str]:
    return {line["method"]: line["psnr-hole"] for line in read(folder / "sets.csv")}


def test_a_comparison_with_one_mask_is_scored_from_its_folder(tree: tuple[Path, Path], tmp_path: Path, capsys):
    folder, evaluated = one_mask(tree, tmp_path / "out", masks=True), tmp_path / "evaluated"
    words = ["--results", str(folder), "--reference", str(tree[1]), "--output", str(evaluated)]
    assert command.main(words) == 0
    expected = evaluate_folders(
        {method: folder / method for method in ("rad", "repaint")},
        references=tree[1],
        mask=tree[0] / "wide/masks",
        output=tmp_path / "expected",
    )
    assert len(expected.rows) == 2
    assert psnr_of(evaluated) == psnr_of(tmp_path / "expected")
    assert (
        command.main(["--results", str(tree[0] / "wide"), "--reference", str(tree[1]), "--output", str(evaluated)]) == 0
    )
    assert psnr_of(evaluated).items() >= psnr_of(tmp_path / "expected").items(), "the folder of a mask set"
    assert command.main(["--results", f"old={folder / 'rad'}", str(folder), *words[2:]]) == 0
    assert psnr_of(evaluated).keys() == {"old", "out-rad", "out-repaint"}


def test_a_comparison_takes_no_other_masks(tree: tuple[Path, Path]):
    with pytest.raises(ValueError, match="masks of its own: leave out --mask"):
        command.main(["--results", str(tree[0]), "--mask", str(tree[0] / "wide/masks")])


def test_what_plain_outputs_lack_is_named(tree: tuple[Path, Path], tmp_path: Path):
    folder = one_mask(tree, tmp_path / "out", masks=False)
    with pytest.raises(ValueError, match="give --reference and --mask too"):
        command.main(["--results", str(folder)])
    with pytest.raises(ValueError, match="holds no masks: give --mask, or call rad sample with --save_mask"):
        command.main(["--results", str(folder), "--reference", str(tree[1])])


STRANGE = ("caf\udce9", "a\nb", "\x1b[2J", "=cmd()", "<b>|`x`", 'q",')


def test_names_that_cannot_be_printed_are_scored_and_written(tree: tuple[Path, Path], tmp_path: Path):
    folders = {part: tmp_path / part for part in ("in", "rad", "masks")}
    sources = {"in": tree[1], "rad": tree[0] / "wide/rad", "masks": tree[0] / "wide/masks"}
    for part, folder in folders.items():
        folder.mkdir()
        for name, strange in zip(NAMES, STRANGE, strict=False):
            shutil.copy(
                next(path for path in sources[part].rglob("*.png") if path.stem == Path(name).name),
                folder / f"{strange}.png",
            )
    output = tmp_path / "out"
    found = evaluate_folders({"rad": folders["rad"]}, references=folders["in"], mask=folders["masks"], output=output)
    assert {result.image for result in found.results} == set(STRANGE)
    assert {from_cell(line["image"]) for line in read(output / "metrics.csv")} == set(STRANGE)
    summary, page = (path.read_text(encoding="utf-8") for path in write_report(found, output))
    assert "caf\\xe9" in page
    assert "&lt;b&gt;|`x`" in page
    assert "<b>|" not in page
    assert "\x1b" not in summary + page
    costs = Costs(output)
    costs.add(STRANGE, Usage(nfe=len(STRANGE)), [1] * len(STRANGE))
    costs.add(STRANGE[:1], Usage(nfe=5), [1])
    assert {name: cost["nfe"] for name, cost in read_costs(costs.path).items()} == dict.fromkeys(STRANGE, 1) | {
        STRANGE[0]: 5
    }
