"""Logs of runs: loggers in the run folder, curves over a resume, the lines on stderr, and the short options."""

import csv
import json
import logging
import types
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlow
from lightning.pytorch.loggers import WandbLogger as LightningWandb
from lightning.pytorch.loggers.logger import Logger
from safetensors.torch import load_file

from rad.cli.train import errors
from rad.cli.train.options import set_intervals, with_save_dir, without_average
from rad.cli.train.status import duration, quiet, shows_bar

CSV = ("--trainer.logger", "CSVLogger")


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def curve(path, name):
    return [(int(row["step"]), row[name]) for row in rows(path) if row.get(name)]


@pytest.mark.slow
def test_a_resumed_run_logs_the_curves_of_an_uninterrupted_one(train):
    """Intervals of 3 steps, and checkpoints every 2: the resume at step 4 cuts an interval, and repeats steps 5 to 7."""
    words = (*CSV, "--trainer.log_every_n_steps", 3, "--trainer.callbacks", "rad.training.Checkpoint")
    words = (*words, "--every", 2, "--data.val_count", 1)
    assert train(*words, "--name", "whole", "--trainer.max_steps", 9)[0] == 0
    assert train(*words, "--name", "cut", "--trainer.max_steps", 7)[0] == 0
    again = ("--ckpt_path", "runs/cut/checkpoints/step=4.ckpt", "--trainer.max_steps", 9)
    with pytest.warns(UserWarning, match="later checkpoints"):
        assert train(*words, "--name", "cut", *again)[0] == 0
    names = set(rows("runs/whole/metrics.csv")[0])
    assert {"train/loss", "train/hole_fraction", "train/gradient_norm", "val/loss"} <= names
    for name in names - {"step", "epoch"}:
        assert curve("runs/cut/metrics.csv", name) == curve("runs/whole/metrics.csv", name), name
    assert [step for step, _ in curve("runs/whole/metrics.csv", "train/loss")] == [2, 5, 8]
    assert [step for step, _ in curve("runs/whole/metrics.csv", "val/loss")] == [1, 3, 5, 7]


class Remote(Logger):
    """A logger without its package, which writes its calls to `log.jsonl` in the working folder."""

    def write(self, **entry):
        with Path("log.jsonl").open("a") as file:
            file.write(json.dumps({"logger": type(self).__name__, "run": self.version, **entry}) + "\n")

    def log_metrics(self, metrics, step=None):
        self.write(metrics=sorted(metrics), step=step)

    def log_hyperparams(self, params):
        self.write(settings=params)


class WandbLogger(Remote, LightningWandb):
    def __init__(self, name: str | None = None, save_dir: str = ".", version: str | None = None, id: str | None = None):
        self._name, self._save_dir, self._id = name, save_dir, version or id or "w1"
        self._experiment, self._checkpoint_callbacks = None, {}

    @property
    def version(self):
        return self._id

    @property
    def experiment(self):
        return None

    def log_image(self, key, images, step=None):
        self.write(image=key, size=images[0].size, step=step)

    def after_save_checkpoint(self, checkpoint_callback): ...

    def finalize(self, status): ...


class MLFlowLogger(Remote, LightningMLFlow):
    def __init__(self, run_name: str | None = None, save_dir: str = "./mlruns", run_id: str | None = None):
        self._tracking_uri, self._run_id, self._log_model = f"file:{save_dir}", run_id or "m1", False
        self.folder = save_dir

    @property
    def run_id(self):
        return self._run_id

    @property
    def version(self):
        return self._run_id

    @property
    def experiment(self):
        log = Path("log.jsonl")
        known = {"data.size": "16"} if log.exists() and '"logger": "MLFlow' in log.read_text() else {}
        run = types.SimpleNamespace(data=types.SimpleNamespace(params=known))
        return types.SimpleNamespace(
            get_run=lambda run_id: run,
            log_image=lambda run_id, image, artifact_file: self.write(image=artifact_file, size=image.size),
        )

    def finalize(self, status): ...


@pytest.mark.slow
def test_several_loggers_get_everything_and_continue_their_run(train):
    here = __name__
    loggers = ("--trainer.logger", f"[{here}.WandbLogger, {here}.MLFlowLogger, CSVLogger, TensorBoardLogger]")
    panel = ("--trainer.callbacks", "rad.training.Panel", "--trainer.callbacks.steps", 2, "--every", 1)
    words = (*loggers, *panel, "--trainer.log_every_n_steps", 1, "--data.val_count", 1)
    code, err = train(*words)
    assert code == 0, err
    log = Path("log.jsonl")
    first = [json.loads(line) for line in log.read_text().splitlines()]
    for name, run, panel_name in (("WandbLogger", "w1", "panel"), ("MLFlowLogger", "m1", "panel/step=0.png")):
        entries = [entry for entry in first if entry["logger"] == name]
        assert {entry["run"] for entry in entries} == {run}
        (settings,) = [entry["settings"] for entry in entries if "settings" in entry]
        assert settings["data.size"] == 16
        assert settings["model.optimizer.lr"] == 1e-4
        assert [entry["image"] for entry in entries if "image" in entry] == [panel_name]
        assert any("train/loss" in entry.get("metrics", ()) for entry in entries)
    assert yaml.safe_load(Path("runs/c/hparams.yaml").read_text())["data.size"] == 16
    assert len(rows("runs/c/metrics.csv")) >= 2
    assert list(Path("runs/c").glob("events.*"))
    assert sorted(path.name for path in Path("runs/c/panels").iterdir()) == ["step=1.png"]
    ids = json.loads(Path("runs/c/loggers.json").read_text())
    assert ids == {"WandbLogger": "w1", "MLFlowLogger": "m1"}
    Path("runs/c/loggers.json").write_text(json.dumps({"WandbLogger": "w7", "MLFlowLogger": "m7"}))
    assert train(*words, "--ckpt_path", "auto", "--trainer.max_steps", 2)[0] == 0
    later = [json.loads(line) for line in log.read_text().splitlines()][len(first) :]
    assert {entry["run"] for entry in later} == {"w7", "m7"}
    (again,) = [entry["settings"] for entry in later if entry["logger"] == "MLFlowLogger" and "settings" in entry]
    assert "data.size" not in again, "MLflow refuses a parameter that it has"
    assert "trainer.max_steps" in again
    assert [int(row["step"]) for row in rows("runs/c/metrics.csv") if row["train/loss"]] == [0, 1]
    assert train(*words, "--name", "new")[0] == 0
    assert json.loads(Path("runs/new/loggers.json").read_text())["WandbLogger"] == "w1", "a new run has its own id"


@pytest.mark.slow
def test_a_logger_of_a_configuration_moves_with_the_run(train):
    content = yaml.safe_load(Path("c.yaml").read_text())
    content["trainer"]["logger"] = {"class_path": "CSVLogger"}
    Path("d.yaml").write_text(yaml.safe_dump(content))
    assert train("--name", "a", "--trainer.log_every_n_steps", 1, config="d.yaml")[0] == 0
    saved = yaml.safe_load(Path("runs/a/config.yaml").read_text())["trainer"]["logger"]
    assert saved["init_args"]["save_dir"] == "RUN_FOLDER"
    before = Path("runs/a/metrics.csv").read_bytes()
    assert train("--name", "b", config="runs/a/config.yaml")[0] == 0
    assert Path("runs/b/metrics.csv").is_file()
    assert Path("runs/a/metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--trainer.logger", "CSVLogger"], "{class_path: CSVLogger, init_args: {save_dir: RUN_FOLDER}}"),
        (["--trainer.logger=x.CSVLogger"], "{class_path: x.CSVLogger, init_args: {save_dir: RUN_FOLDER}}"),
        (["--trainer.logger", "{class_path: CSVLogger, init_args: {save_dir: logs}}"], None),
        (["--trainer.logger", "CometLogger"], None),
        (["--trainer.logger", "false"], None),
        (["--trainer.logger", "{"], None),
        (["--trainer.logger"], None),
        (["--config", "nowhere.yaml"], None),
    ],
)
def test_a_logger_without_a_place_gets_the_run_folder(words, expected):
    result = with_save_dir(["--name", "a", *words, "--trainer.max_steps", "1"])
    assert result[:2] == ["--name", "a"]
    assert result[-2:] == ["--trainer.max_steps", "1"]
    changed = result[2:-2]
    if expected is None:
        assert changed == words
    else:
        assert yaml.safe_load(changed[-1].removeprefix("--trainer.logger=")) == yaml.safe_load(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interval", "steps"),
    [(6, ["step 6/14", "step 12/14"]), pytest.param(12, ["step 12/14"], marks=pytest.mark.slow)],
)
def test_the_start_is_one_block_and_the_progress_a_line_each_interval(train, interval, steps):
    words = ("--trainer.max_steps", 14, "--trainer.log_every_n_steps", interval, "--trainer.accumulate_grad_batches", 3)
    code, err = train(*words)
    assert code == 0
    block = dict(line.split(maxsplit=1) for line in err.splitlines() if line.startswith(("images", "batch", "devices")))
    assert block["images"] == "3 for training, 0 for validation"
    assert block["batch"] == "2 images x 3 accumulated = 6 a step"
    assert block["devices"] == "1 x cpu"
    assert any(line.startswith("run folder runs/c") for line in err.splitlines())
    assert any(line.startswith("parameters ") and " trained of " in line for line in err.splitlines())
    lines = [line for line in err.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == steps
    assert all(part in lines[0] for part in ("loss ", "images/s", " left", "GiB"))
    assert ("3 steps left: about " in err) == (interval == 12), "the first line comes later"
    assert err.splitlines()[-1] == "finished at step 14: runs/c/checkpoints/step=14.ckpt"
    assert "no training curves" not in err
    assert not any(
        word in err
        for word in ("Tip:", "GPU available", "TPU available", "LeafSpec", "many workers", "Seed", "Trainer")
    )


def test_a_run_without_curves_warns_and_needs_no_logger_for_its_monitor(train):
    monitor = ("--trainer.logger", "false", "--trainer.callbacks", "lightning.pytorch.callbacks.LearningRateMonitor")
    code, err = train(
        *monitor,
        "--trainer.max_steps",
        2,
        "--trainer.log_every_n_steps",
        3,
        "--data.val_count",
        2,
        "--data.val_limit",
        1,
    )
    assert code == 0, err
    assert "warning: no training curves: the run ends before a multiple of trainer.log_every_n_steps 3" in err
    assert "1 of 2 for validation" in err


@pytest.mark.parametrize(
    ("rank", "parents", "raised"), [("0", [1, 2], ValueError), ("1", [1, 1, 2], SystemExit), ("1", [1], ValueError)]
)
def test_an_error_of_all_processes_is_reported_once(monkeypatch, rank, parents, raised):
    """Process 1 is silent if its parent, process 0, ends as well; an error of its own is raised."""
    monkeypatch.setattr(errors, "PATIENCE", 0.2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("os.getppid", lambda: parents.pop(0) if len(parents) > 1 else parents[0])
    with pytest.raises(raised), errors.reported_once():
        raise ValueError("no images")


def test_other_messages_are_printed(capsys):
    logger, handler = logging.getLogger("lightning.pytorch"), logging.StreamHandler()
    logger.addHandler(handler)
    try:
        with quiet():
            logger.info("GPU available: False, used: False")
            logger.info("Restored all states from the checkpoint at x.ckpt")
            logger.info("[rank: 1] Seed set to 0")
            logger.info(f"{'-' * 9}\ndistributed_backend=gloo\nAll distributed processes registered.\n{'-' * 9}\n")
            logger.info("Time limit reached")
        logger.info("GPU available: after")
    finally:
        logger.removeHandler(handler)
    assert [line for line in capsys.readouterr().err.splitlines() if line] == [
        "Time limit reached",
        "GPU available: after",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (7199, "2 h 0 min"), (3 * 86400 + 7200, "3 d 2 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.slow
def test_one_option_sets_all_intervals(train):
    callbacks = "[rad.training.EMA, {class_path: rad.training.Panel, init_args: {steps: 2}}, rad.training.Checkpoint]"
    words = (
        "--trainer.callbacks",
        callbacks,
        "--every",
        2,
        "--trainer.accumulate_grad_batches",
        2,
        "--data.val_count",
        1,
    )
    assert train(*words, "--trainer.max_steps", 5)[0] == 0
    saved = yaml.safe_load(Path("runs/c/config.yaml").read_text())
    assert saved["every"] is None
    assert saved["trainer"]["val_check_interval"] == 4, "Lightning counts batches"
    assert saved["trainer"]["check_val_every_n_epoch"] is None
    ema, panel, checkpoint = (entry["init_args"] for entry in saved["trainer"]["callbacks"])
    assert panel["every_n_steps"] == checkpoint["every_n_train_steps"] == 2
    assert "every_n_steps" not in ema
    assert sorted(path.stem for path in Path("runs/c/checkpoints").glob("step=*.ckpt")) == [
        "step=2",
        "step=4",
        "step=5",
    ]
    assert sorted(path.stem for path in Path("runs/c/panels").iterdir()) == ["step=2", "step=4"]


def test_an_interval_above_the_length_of_the_run_saves_its_end(train):
    off = "{class_path: rad.training.Panel, init_args: {every_n_steps: 0}}"
    assert train("--every", 100, "--trainer.max_steps", 2, "--trainer.callbacks", off)[0] == 0
    assert [path.name for path in Path("runs/c/checkpoints").glob("step=*.ckpt")] == ["step=2.ckpt"]
    panel, checkpoint = yaml.safe_load(Path("runs/c/config.yaml").read_text())["trainer"]["callbacks"]
    assert panel["init_args"]["every_n_steps"] == 0, "a panel that is off stays off"
    assert checkpoint["init_args"]["every_n_train_steps"] == 100


@pytest.mark.spread(1)
@pytest.mark.parametrize("base_given", [True, False])
def test_an_adapter_is_trained_further(train, adapter, base, base_given):
    words = ("--adapter", adapter, "--model.optimizer.lr", 0) + (() if base_given else ("--model.base", "null"))
    assert train("--model.optimizer", "AdamW", *words)[0] == 0
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file("runs/c/checkpoints/step=1/adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    model = yaml.safe_load(Path("runs/c/config.yaml").read_text())["model"]
    assert (model["adapter"], model["lora"], model["base"]) == (str(adapter), None, str(base))
    assert train("--adapter", "runs/c", "--name", "d", *words[2:])[0] == 0
    assert yaml.safe_load(Path("runs/d/config.yaml").read_text())["model"]["adapter"] == "runs/c/checkpoints/step=1"


def test_every_keeps_the_latency_of_signals():
    """Otherwise a job would miss the signal before its time limit."""
    stop = Namespace(class_path="rad.training.StopOnSignal", init_args=Namespace(every_n_steps=10))
    save = Namespace(class_path="rad.training.Checkpoint", init_args=Namespace(every_n_train_steps=10))
    set_intervals(Namespace(every=2000, trainer=Namespace(callbacks=[stop, save], accumulate_grad_batches=1)))
    assert (stop.init_args.every_n_steps, save.init_args.every_n_train_steps) == (10, 2000)


def test_a_run_of_the_official_recipe_averages_no_weights(caplog):
    """Other callbacks stay; without model.official the average stays, too."""
    caplog.set_level("INFO")
    entries = [
        Namespace(class_path=name) for name in ("rad.training.EMA", "rad.training.ema.EMA", "rad.training.Panel")
    ]
    for official, kept in ((True, ["rad.training.Panel"]), (False, [entry.class_path for entry in entries])):
        trainer = Namespace(callbacks=list(entries))
        config = Namespace(trains="diffusion", model=Namespace(official=official), trainer=trainer)
        without_average(config)
        assert [entry.class_path for entry in config.trainer.callbacks] == kept
        assert ("rad.training.EMA is removed" in caplog.text) == official
        caplog.clear()


@pytest.mark.parametrize(("columns", "lines", "bar"), [(100, 30, True), (0, 30, False), (100, 0, False)])
def test_a_terminal_without_size_has_no_bar(monkeypatch, columns, lines, bar):
    stream = types.SimpleNamespace(isatty=lambda: True, fileno=lambda: 2)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("os.get_terminal_size", lambda number: types.SimpleNamespace(columns=columns, lines=lines))
    assert shows_bar() is bar
