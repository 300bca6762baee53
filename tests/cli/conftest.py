"""A run of one training step by the command line."""

import signal
from pathlib import Path

import pytest
import yaml

from rad.cli import main as cli
from tests.conftest import SIZE, random_image


@pytest.fixture
def train(base, tmp_path, monkeypatch, capsys):
    """`train(*words)` with c.yaml, a run of one step: exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number in range(3):
        random_image(SIZE, SIZE, seed=number).save(f"in/{number}.png")
    content = {
        "model": {"base": str(base), "lora": {"rank": 2, "alpha": 2}},
        "data": {"path": "in", "val_count": 0, "size": SIZE, "batch_size": 2},
        "trainer": {"accelerator": "cpu", "max_steps": 1, "enable_progress_bar": False},
    }
    Path("c.yaml").write_text(yaml.safe_dump(content))

    def call(*words, config="c.yaml"):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        code = cli.train(["--config", config, *map(str, words)])
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return code, capsys.readouterr().err

    return call
