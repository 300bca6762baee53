"""The Python code of docs/guides/hub.md runs on the shipped models; peft and a merged network predict as rad's network does."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from rad.__main__ import main
from rad.models.load import load_model
from tests.adm_reference import Adm, random_state

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "guides" / "hub.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TINY = Adm(width=32, multipliers=(1, 2), blocks=1, attention=(1,), head_channels=32)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str) -> dict[str, object]:
    names: dict[str, object] = {}
    with torch.no_grad():
        exec(compile(code, "docs/guides/hub.md", "exec"), names)
    return names


def test_the_code_of_the_page_gives_the_results_of_rad(desk):
    _, pipeline, merged, peft = BLOCKS
    assert run(pipeline.replace("num_inference_steps=50", "num_inference_steps=2"))["image"].size == (32, 32)
    command = re.search(r"# rad (export .*)$", merged, re.MULTILINE)
    assert command is not None
    assert main(command[1].split()) == 0
    model = load_model("checkpoints/base-nature32", adapter=desk / "checkpoints" / "rad-nature32")
    for code in (merged, peft):
        names = run(code)
        with torch.no_grad():
            expected = model.adapted(names["x"], names["timesteps"]).sample[:, :3]
        torch.testing.assert_close(names["noise"], expected, rtol=0, atol=1e-4)
        with torch.no_grad():
            other = model.network(names["x"], names["timesteps"]).sample[:, :3]
        assert (names["noise"] - other).abs().max() > 1e-2, "the adapter matters"


def test_guided_diffusion_files_are_converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(random_state(TINY, seed=0), "model.pt")
    code = BLOCKS[0]
    assert "image_size=512, head_channels=64" in code
    base = run(code.replace("512", "16").replace("=64", "=32"))["base"]
    loaded = load_model(tmp_path / "adm")
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (each.sample for each in (base.unet(x, 500), loaded.network(x, torch.full((1, 16, 16), 500))))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_commands_of_the_page_have_known_options(desk, capsys):
    shutil.copytree(ROOT / "checkpoints" / "rad-nature32", "runs/mine")
    lines = [
        line.split("#")[0] for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
    ]
    for line in lines:
        words = line.split()[1:]
        if words[0] == "push":
            assert main([*words, "--dry_run"]) == 0
        elif words[0] == "export":
            assert main(words) == 0
