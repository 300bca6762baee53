"""Options of `rad sample`: the command line and YAML files give the same dataclass, and wrong values are named."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from rad.cli.main import sample
from rad.cli.sample.options import SampleOptions, parser, read_options

LEAST = ["--checkpoint", "model", "--image", "in", "--output", "out", "--mask", "box"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAD_DEBUG", raising=False)


def test_words_and_repeated_options_extend_a_list():
    words = [
        "--mask",
        "half",
        "--method",
        "rad@20",
        "ddnm@100nfe",
        "--set",
        "m.x=1",
        "--method",
        "mean",
        "--set",
        "m.y=a=b",
        "--raw",
        "--eta",
        "0.5",
    ]
    options = read_options([*LEAST, *words])
    assert options.mask == ["box", "half"]
    assert options.method == ["rad@20", "ddnm@100nfe", "mean"]
    assert options.set == ["m.x=1", "m.y=a=b"]
    assert (options.raw, options.report, options.eta, options.steps) == (True, False, 0.5, None)
    assert read_options([*LEAST, "--prompt", "3", "--shard", "2/4"]).prompt == "3"
    assert read_options([*LEAST, "--shard", "2/4"]).part == (2, 4)
    assert read_options([*LEAST, "--lora", "a", "b=c=0.5"]).loras == [("a", 1.0), ("b=c", 0.5)]


def test_a_file_holds_options_and_later_words_override_it():
    Path("a.yaml").write_text("checkpoint: model\nimage: in\noutput: out\nmask: [box]\nsteps: 3\nraw: true\n")
    options = read_options(["--config", "a.yaml", "--steps", "5", "--mask", "half"])
    assert options == replace(read_options(LEAST), mask=["box", "half"], steps=5, raw=True)


def test_the_printed_configuration_is_read_again(capsys):
    words = [
        *LEAST,
        *[
            "--method",
            "rad@2",
            "--guidance",
            "2",
            "--precision",
            "bf16",
            "--shard",
            "1/2",
            "--lpips",
            "alex",
            "--negative_prompt",
            "x",
        ],
    ]
    with pytest.raises(SystemExit) as stopped:
        read_options([*words, "--print_config"])
    assert stopped.value.code == 0
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert read_options(["--config", "printed.yaml"]) == read_options(words)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("steps: many", ["--steps", "many"]),
        ("steps: 0", ["--steps 0", "1 to 100000"]),
        ("colour: blue", ["colour"]),
        ("mask: box", ["--mask 'box'", "list"]),
        ("raw: 7", ["--raw 7", "true and false"]),
        ("output: 3", ["--output", "3"]),
        ("size_policy: stretch", ["--size_policy", "stretch", "crop"]),
        ("mask: [box", ["parsing config"]),
    ],
)
def test_wrong_entries_of_a_file_give_one_line(content, parts, capsys):
    Path("a.yaml").write_text(f"{content}\n")
    words = LEAST[:-2] if content.startswith("mask") else LEAST
    assert sample([*words, "--config", "a.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts), line


@pytest.mark.spread(10)
@pytest.mark.parametrize("field", fields(SampleOptions), ids=lambda field: field.name)
def test_every_option_has_a_help_text_and_a_range_that_holds(field):
    (action,) = (action for action in parser()._actions if action.dest == field.name)
    assert action.option_strings == [f"--{field.name}"]
    assert action.help
    for wrong in (field.metadata["low"] - 1, field.metadata["high"] + 1):
        if abs(wrong) < float("inf"):
            value = int(wrong) if "int" in str(field.type) else wrong
            with pytest.raises(ValueError, match=rf"--{field.name} {value}: allowed are"):
                replace(read_options(LEAST), **{field.name: value})
