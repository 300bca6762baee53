"""The model card of a checkpoint: metadata for the hub, measured values, the newest panel, no local path."""

import re
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import yaml

from rad.data.module import ImageDataModule
from rad.models.hub.card import Metadata, shown, with_metadata, without_paths
from rad.models.lora import LoRA
from rad.training.checkpoint import Checkpoint
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.export.card import newest_panel
from rad.training.panel import Panel
from rad.training.settings import TrainingProcess
from tests.conftest import SIZE, random_image


@pytest.fixture
def train(base, tmp_path):
    """`train(**settings of Diffusion)` trains two steps and returns the folder of the checkpoints."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        random_image(SIZE, SIZE, seed=number).save(tmp_path / "photos" / f"{number}.png")

    def call(**settings) -> Path:
        module = Diffusion(base=str(base), image_size=SIZE, **settings)
        trainer = L.Trainer(
            max_steps=2,
            accelerator="cpu",
            use_distributed_sampler=False,
            callbacks=[EMA(), Panel(every_n_steps=1, images=1, steps=1), Checkpoint(1)],
            default_root_dir=str(tmp_path / "run"),
            val_check_interval=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=ImageDataModule(str(tmp_path / "photos"), size=SIZE, batch_size=2, val_count=2))
        return tmp_path / "run" / "checkpoints"

    return call


def test_the_panel_of_a_card_is_not_later_than_its_weights(tmp_path):
    (tmp_path / "panels").mkdir()
    for step in (9, 10, 100):
        (tmp_path / "panels" / f"step={step}.png").touch()
    newest = {
        step: newest_panel(SimpleNamespace(default_root_dir=tmp_path, global_step=step)) for step in (8, 10, 99, 100)
    }
    names = {step: None if path is None else path.name for step, path in newest.items()}
    assert names == {8: None, 10: "step=10.png", 99: "step=10.png", 100: "step=100.png"}


def parts(folder: Path) -> tuple[dict, str]:
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_of_an_adapter(train, base, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    folder = train(lora=LoRA(rank=2))
    metadata, text = parts(folder / "step=2-ema")
    assert metadata["model-index"][0]["name"] == "run"
    assert re.search(r"\n\n!\[Panel, step=\d\.png\]", text)
    assert metadata["library_name"] == "peft"
    assert metadata["pipeline_tag"] == "image-to-image"
    assert metadata["tags"] == ["region-aware-diffusion", "inpainting", "diffusion", "lora"]
    assert not {"base_model", "license", "datasets"} & metadata.keys(), "not known"
    (result,) = metadata["model-index"][0]["results"]
    values = {entry["name"]: entry["value"] for entry in result["metrics"]}
    assert result["dataset"]["name"] == "photos"
    assert values["val/loss"] == pytest.approx(float(re.search(r"- val/loss: (.*)", text)[1]), abs=1e-5)
    image = metadata["widget"][0]["output"]["url"]
    panel = (tmp_path / "run" / "panels" / image).read_bytes()
    assert (folder / "step=2-ema" / image).read_bytes() == panel
    assert "widget" not in parts(folder / "step=2")[0], "a panel shows averaged weights"
    assert f"\n![Panel, {image}]({image})" in text
    assert "\\n" not in text
    assert "- Base: `base`, hash `" in text
    assert str(tmp_path) not in text
    assert str(base.parent) not in text


def test_a_model_trained_with_holes_alone_is_no_ddpm_pipeline(train):
    folder = train(lora=None, process=TrainingProcess(kind="region_aware")) / "step=2-ema"
    assert parts(folder)[0]["library_name"] == "diffusers"
    assert not (folder / "model_index.json").exists()
    assert '"region_aware": true' in (folder / "unet" / "config.json").read_text()


def test_a_model_trained_with_whole_images_too_is_a_ddpm_pipeline(train):
    folder = train(lora=None, process=TrainingProcess(kind="region_aware", unconditional_share=0.5)) / "step=2-ema"
    assert (folder / "model_index.json").exists()
    assert "region_aware" not in (folder / "unet" / "config.json").read_text()


def test_metadata_keeps_text_and_other_entries():
    card = "---\nlicense: mit\nmine: [1, 2]\n---\n\n# Title\n\nText.\n"
    entries = Metadata("stable", adapter=False, region_aware=False, base="runs/mine").entries("name")
    metadata, text = parts_of(with_metadata(card, {**entries, "mine": None, "tags": ["a"]}))
    assert metadata == {"license": "mit", "library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["a"]}
    assert text == "\n# Title\n\nText.\n"
    assert with_metadata("# Title\n\n---\n\nText.\n", {"a": 1}) == "---\na: 1\n---\n\n# Title\n\n---\n\nText.\n"
    with pytest.raises(ValueError, match=r"is no YAML mapping .*: correct README\.md"):
        with_metadata("---\n[1\n---\n# Title\n", {})


def parts_of(card: str) -> tuple[dict, str]:
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`/home/me/base`", "`base`"),
        ("data.path /a/b c/d -> ~/e", "data.path d -> e"),
        (r"C:\Users\me\base", "base"),
        ("1/16 and 10 / 100 / 400", "1/16 and 10 / 100 / 400"),
        ("checkpoints/base, https://a.org/b/c, [x](docs/a.md)", "checkpoints/base, https://a.org/b/c, [x](docs/a.md)"),
    ],
)
def test_absolute_paths_are_shortened_and_nothing_else(text, expected):
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("/home/me/base/", "base"),
        ("../runs/a", "a"),
        ("/data", "data"),
        ("checkpoints/a", "checkpoints/a"),
        ("a/b", "a/b"),
    ],
)
def test_bases_are_shown_without_folders_of_this_machine(source, expected):
    assert shown(source, None) == expected
    assert shown("/odd", "commit") == "/odd"
