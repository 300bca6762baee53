"""Options of all commands: hyphens, suggestions, ranges, empty values, and configuration files that cannot be read."""

from pathlib import Path

import pytest

from rad.__main__ import main
from rad.cli.sample.options import read_options
from rad.console import did_you_mean, with_underscores
from rad.methods.registry import create, find

LEAST = ["--checkpoint", "model", "--image", "in", "--output", "out", "--mask", "box"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)


@pytest.fixture
def error(capsys):
    """The one line of a refused command."""

    def call(*words):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    return call


def test_hyphens_in_names_of_options_are_underscores_and_values_stay():
    words = ["--num-samples=a-b", "--set", "a-b=c-d", "--data.val-path", "x-y", "--", "--a-b"]
    assert with_underscores(words) == ["--num_samples=a-b", "--set", "a-b=c-d", "--data.val_path", "x-y", "--", "--a-b"]
    options = read_options([*LEAST, "--num-samples", "3", "--budget-nfe=7", "--prompt", "up-to-date"])
    assert (options.num_samples, options.budget_nfe, options.prompt) == (3, 7, "up-to-date")


@pytest.mark.parametrize("command", ["sample", "ema", "evaluate", "masks", "doctor", "demo"])
def test_every_command_suggests_its_options(command, error):
    wrong, right = {
        "sample": ("--num-sampels", "--num_samples"),
        "ema": ("--sigma-rle", "--sigma_rel"),
        "evaluate": ("--refrence", "--reference"),
        "masks": ("--ouput", "--output"),
        "doctor": ("--no-prof", "--no_proof"),
        "demo": ("--sed", "--seed"),
    }[command]
    least = {
        "sample": LEAST,
        "ema": ["x"],
        "evaluate": ["--results", "x"],
        "masks": ["--list"],
        "demo": ["--adapter", "x"],
    }
    assert f"did you mean {right}?" in error(command, *least.get(command, []), wrong, "3")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--solver", "DDIM"], "did you mean ddim?"),
        (["--spacing", "log_snr"], "did you mean logsnr?"),
        (["--size-policy", "crops"], "did you mean crop?"),
        (["--lpips", "alx"], "did you mean alex?"),
    ],
)
def test_a_misspelt_choice_is_suggested(words, part, error):
    assert part in error("sample", *LEAST, *words)


def test_misspelt_names_are_suggested():
    for given, known in {"RePaint": "repaint", "repiant": "repaint", "blended-latent": "blended_latent"}.items():
        with pytest.raises(ValueError, match=rf"did you mean {known}\?"):
            find(given)
    with pytest.raises(ValueError, match=r"did you mean jump_length\?"):
        create("repaint", {"jumplength": "5"})
    with pytest.raises(ValueError, match=r"did you mean repaint\?"):
        create("grow", {"method": "RePaint"})
    assert did_you_mean("xyzzy", ["repaint"]) == ""


@pytest.mark.parametrize(
    "option",
    [
        "feather",
        "margin",
        "num_samples",
        "average",
        "thin_steps",
        "adapt",
        "batch_size",
        "steps",
        "limit",
        "dilate",
        "seed",
        "size",
        "devices",
        "budget_nfe",
    ],
)
def test_huge_numbers_are_refused_with_the_range(option, error):
    line = error("sample", *LEAST, f"--{option}", "9" * 400)
    assert f"--{option} 999" in line
    assert ": allowed are " in line


@pytest.mark.parametrize("option", ["image", "mask", "output", "checkpoint", "method", "base"])
def test_an_empty_value_as_of_an_unset_variable_is_refused(option, error):
    assert f"--{option}" in error("sample", *LEAST, f"--{option}", "")
    assert "empty" in error("masks", "--set", "box", "--output", "")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "holds no settings"),
        (b"- steps\n", "holds no settings"),
        ("prompt: café\n".encode("latin-1"), "not UTF-8"),
        ("steps: 1\n".encode("utf-16"), "not UTF-8"),
        (b"a: " + b"[" * 5000, "parsing config"),
        (b"steps: 1\n---\nsteps: 2\n", "parsing config"),
        (b"num-sample: 2\n", "did you mean num_samples?"),
        (b"solver: DDIM\n", "did you mean ddim?"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_or_its_entry(content, part, error):
    Path("a.yaml").write_bytes(content)
    assert part in error("sample", *LEAST, "--config", "a.yaml")


def test_a_configuration_by_name_is_suggested(error):
    assert "did you mean rad_demo.yaml?" in error("train", "--config", "rad_dmo")
