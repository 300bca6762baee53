"""The commands and the Python code of README.md run as written, shortened to a few steps and images."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from rad.cli import main as cli
from rad.cli.names import METHODS
from tests.pages import words_of

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


INPUTS, FILL = blocks("python")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working folder with the photographs and masks that the page writes; the shipped models are found from any folder."""
    monkeypatch.chdir(tmp_path)
    exec(compile(INPUTS, "README.md", "exec"), {})
    return tmp_path


def commands(name):
    found = [words[1:] for block in blocks("bash") for words in words_of(block) if words[0] == name]
    assert found
    return found


def test_list_of_methods_is_printed():
    assert ["--list_methods"] in commands("sample")
    with pytest.raises(SystemExit) as stopped:
        cli.sample(["--list_methods"])
    assert stopped.value.code == 0


def assert_only_the_hole_changed(desk):
    truth, filled = (np.asarray(Image.open(desk / name)) for name in ("photo.png", "filled.png"))
    hole = np.asarray(Image.open(desk / "mask.png")) == 255
    assert (truth[~hole] == filled[~hole]).all()
    assert (truth[hole] != filled[hole]).any()


@pytest.mark.slow
def test_sampling_commands_fill_the_holes(desk):
    """On two images; `test_evaluation_commands_score_the_results` runs the command with `--report`."""
    for arguments in commands("sample"):
        if not {"--list_methods", "--report", "photos-onnx"} & set(arguments):
            budget = ["--budget_nfe", "3"] if "--budget_nfe" in arguments else ["--steps", "2"]
            assert cli.sample([*arguments, "--limit", "2", *budget]) == 0
    assert_only_the_hole_changed(desk)
    assert Image.open(desk / "larger.png").size == (648, 400)
    assert len(list((desk / "filled").iterdir())) == 4
    lettered, restored = (np.asarray(Image.open(desk / name), int) for name in ("lettered.png", "restored.png"))
    drawn = Image.open(desk / "lettered-mask.png")
    letters, grown = (np.asarray(mask) > 127 for mask in (drawn, drawn.filter(ImageFilter.MaxFilter(3))))
    assert (lettered[~grown] == restored[~grown]).all()
    assert restored[letters].mean() < lettered[letters].mean() - 20  # the white letters are gone
    assert {path.name for path in (desk / "compared").iterdir()} == {"rad", "ddnm", "pigdm", "mean", "methods.png"}


@pytest.mark.slow
def test_evaluation_commands_score_the_results(desk):
    from rad.evaluation import __main__ as evaluation
    from rad.masks import __main__ as masks

    (sample,) = (words for words in commands("sample") if "--report" in words)
    assert cli.sample([*(re.sub(r"@\d+", "@1", word) for word in sample), "--limit", "2"]) == 0
    report = (desk / "scored" / "report.html").read_bytes()
    (evaluate,) = commands("evaluate")
    (write_masks,) = commands("masks")
    assert evaluation.main(evaluate) == 0
    assert len(report) > 50_000
    assert len((desk / "scored" / "metrics.csv").read_text().splitlines()) == 1 + 2 * 3 * 2
    assert "perceptual-crop/nature64-resnet" in (desk / "scored" / "sets.csv").read_text()
    assert masks.main(write_masks) == 0
    assert len(list((desk / "masks_wide").glob("*.png"))) == 12


def test_the_commands_of_the_page_on_evaluation_are_valid():
    from rad.cli.sample import options as sampling
    from rad.evaluation import __main__ as evaluation
    from rad.masks import __main__ as masks

    parsers = {"sample": sampling.parser(), "evaluate": evaluation.parser(), "masks": masks.parser()}
    text = (ROOT / "docs" / "guides" / "evaluation.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 6
    for line in lines:
        rad, program, *words = shlex.split(line)
        assert rad == "rad"
        assert parsers[program].parse_args(words)


@pytest.mark.slow
def test_training_commands_write_adapters(desk):
    shorter = ["--data.batch_size", "2", "--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"]
    start, resume, tune, find_rate = commands("train")
    for steps, arguments, name in ((1, start, "mine"), (2, resume, "mine"), (1, tune, "tuned")):
        assert cli.train([*arguments, *shorter, "--trainer.max_steps", str(steps)]) == 0
        assert (desk / "runs" / name / "checkpoints" / f"step={steps}-ema" / "adapter_model.safetensors").is_file()
    assert cli.train([*find_rate, "20", "--data.batch_size", "2"]) == 0
    assert list((desk / "runs" / "rad_photos_lora" / "lr_find").iterdir())
    (export,) = (words for words in commands("export") if "--merge" in words)
    from rad.cli.hub.export import main

    assert main(export) == 0
    assert (desk / "merged" / "unet" / "config.json").is_file()


@pytest.mark.slow
def test_an_exported_folder_is_filled_without_torch(desk):
    (export,) = (words for words in commands("export") if "--onnx" in words)
    (sample,) = (words for words in commands("sample") if "photos-onnx" in words)
    from rad.cli.hub.export import main

    assert main(export) == 0
    assert cli.sample([*sample, "--steps", "2"]) == 0
    torch = [word.replace("photos-onnx", "checkpoints/photos-turbo").replace("-onnx", "") for word in sample]
    assert cli.sample([*torch, "--steps", "2"]) == 0
    ours, theirs = (np.asarray(Image.open(name), int) for name in ("filled-onnx.png", "filled.png"))
    assert np.abs(ours - theirs).max() <= 1


def test_python_code_fills_the_hole(desk):
    exec(compile(FILL, "README.md", "exec"), {})
    assert_only_the_hole_changed(desk)


def test_the_page_on_methods_names_every_method():
    page = (ROOT / "docs" / "start" / "which-method.md").read_text(encoding="utf-8")
    (families,) = re.findall(r"## All methods\n(.*?)\n## ", page, re.DOTALL)
    assert set(METHODS) - set(re.findall(r"`(\w+)`", families)) == set()


def test_files_and_headings_named_in_the_readme_exist():
    assert len(README.splitlines()) <= 250
    for name in re.findall(r"`((?:rad|configs|benchmarks|tests|checkpoints)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(\w+\.yaml)`", README):
        assert (ROOT / "configs" / name).is_file(), name
    for name, heading in re.findall(r"\]\((docs/[^)#]+)#?([^)]*)\)", README):
        assert (ROOT / name).is_file(), name
        titles = re.findall(r"^#+ (.+)$", (ROOT / name).read_text(), re.MULTILINE) if heading else [""]
        assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], heading
