"""The tutorials for photographers and the notebook run as written, shortened to a few steps; known pixels stay exact."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rad.cli.main import find_config
from rad.cli.sample.options import read_options
from rad.evaluation.__main__ import parser as evaluation_parser
from tests.pages import code, commands, run_command, run_python, words_of

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
RESTORE, REMOVE, TUNE = (f"tutorials/{name}.md" for name in ("restore-a-photograph", "remove-an-object", "fine-tune"))


@pytest.mark.parametrize("page", [RESTORE, REMOVE, TUNE])
def test_commands_parse(page):
    kinds = set()
    for kind, *words in commands(page):
        kinds.add(kind)
        if kind == "sample":
            read_options(words)
        elif kind == "evaluate":
            evaluation_parser().parse_args(words)
        elif kind == "train":
            assert Path(find_config(words[words.index("--config") + 1])).is_file()
    assert "sample" in kinds


def run(page: str, shorter: Callable[[list[str]], list[str]], change: Callable[[str], str] = str) -> None:
    """Runs the code of a page in order, without programs that wait for a browser."""
    names: dict[str, object] = {}
    for language, block in code(page):
        if language == "python":
            names = run_python(page, change(block), names)
        else:
            for words in words_of(change(block)):
                if words[0] != "studio":
                    run_command(words, *shorter(words))


def few_steps(words: list[str]) -> list[str]:
    """Later options that shorten a command of `rad sample`."""
    return [] if "--preview_masks" in words or "--method" in words else ["--steps", "2"]


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(name))


def differs(name: str, other: str) -> np.ndarray:
    """Where two images differ (H,W)."""
    return (pixels(name) != pixels(other)).any(axis=-1)


def grown(hole: np.ndarray, by: int) -> np.ndarray:
    """The hole (H,W), grown by a square as `--mask_dilate` does."""
    padded, (height, width) = np.pad(hole, by), hole.shape
    shifts = [(y, x) for y in range(2 * by + 1) for x in range(2 * by + 1)]
    return np.any([padded[y : y + height, x : x + width] for y, x in shifts], axis=0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_restore_page_fills_the_damage_and_keeps_all_other_pixels(folder):
    run(RESTORE, few_steps)
    hole = grown(pixels("scan-mask.png") > 127, 2)
    assert (hole >= differs("scan.png", "original.png")).all()  # the grown mask covers all damage
    for name in ("filled", "mean", "one", "telea", "navier_stokes", "biharmonic"):
        changed = differs("scan.png", f"{name}.png")
        assert not changed[~hole].any(), name
        assert changed[hole].mean() > 0.9, name
    assert differs("mean.png", "filled.png")[hole].mean() > 0.5


@pytest.mark.slow
def test_remove_page_fills_the_tower_and_keeps_all_other_pixels(folder):
    run(REMOVE, few_steps)
    hole = pixels("photo-mask.png") > 0
    for name in ("first", "removed", "crop", "zoom", "telea"):
        assert not differs("photo.png", f"{name}.png")[~hole].any(), name
    assert differs("photo.png", "removed.png")[hole].mean() > 0.9


@pytest.mark.slow
def test_fine_tune_page_trains_resumes_and_compares(folder):
    def shorter(words: list[str]) -> list[str]:
        if words[0] == "train":
            steps = "2" if words[words.index("--name") + 1] == "bricks" else "3"  # the page resumes a finished run
            small = ["--data.batch_size", "2", "--every", "1", "--trainer.precision", "32-true"]
            return ["--trainer.max_steps", steps, *small]
        if words[0] == "sample":
            return ["--steps", "1", "--limit", "4"]
        return []

    run(TUNE, shorter, lambda text: text.replace("step=300", "step=2"))
    assert not {path.name for path in Path("train").iterdir()} & {path.name for path in Path("held-out").iterdir()}
    for run_folder, step in (("bricks", 2), ("bricks-longer", 3)):
        assert Path(f"runs/{run_folder}/checkpoints/step={step}-ema/adapter_model.safetensors").is_file()
        assert Path(f"runs/{run_folder}/panels/step={step}.png").is_file()
    assert len(list(Path("filled").glob("*.png"))) == 4
    assert Image.open("one.png").size == (64, 64)
    for mask in ("box", "thin"):  # both models fill the same holes
        masks = [
            {path.name: path.read_bytes() for path in Path(side, mask, "masks").glob("*.png")}
            for side in ("before", "after")
        ]
        assert masks[0] == masks[1]
        assert len(masks[0]) == 4
    assert Path("box/report.html").stat().st_size > 50_000


def kinds(book: dict) -> list[list[tuple[str, ...]]]:
    """For each code cell, the kinds of its outputs, such as `display_data image/jpeg text/plain`, without those to stderr."""
    cells = [cell["outputs"] for cell in book["cells"] if cell["cell_type"] == "code"]
    return [
        [
            (output["output_type"], *sorted(output.get("data", ())))
            for output in outputs
            if output.get("name") != "stderr"
        ]
        for outputs in cells
    ]


def test_notebook_keeps_small_outputs_of_a_run_without_errors():
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert len(text) < 400_000
    assert "stderr" not in text
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for outputs in kinds({"cells": cells}) for output in outputs]
    assert {output[0] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert sum("image/jpeg" in output for output in outputs) >= 5


@pytest.mark.slow
def test_notebook_runs_with_outputs_of_the_kept_kinds(folder, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernel is a process of its own
    book = nbformat.read(NOTEBOOK, as_version=4)
    kept = kinds(book)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    assert kinds(book) == kept
    assert Image.open("filled.png").size == (160, 160)
