"""Runs of the train command: their names and folders, one configuration a start, resumes, and errors of Lightning in one line."""

import os
import pickle
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from rad.cli.train.errors import explain
from rad.training import AutoencoderTraining, Diffusion


def error(err):
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line


def names(folder):
    return {path.name for path in Path(folder).glob("config*")}


@pytest.mark.slow
def test_each_start_has_its_configuration_and_any_of_them_starts_a_new_run(train):
    assert train("--name", "a")[0] == 0
    first = Path("runs/a/config.yaml").read_bytes()
    assert train("--name", "a", "--ckpt_path", "last", "--trainer.max_steps", 2, "--model.optimizer.lr", 1e-6)[0] == 0
    assert train("--name", "a", "--ckpt_path", "auto", "--trainer.max_steps", 2)[0] == 0
    assert train("--name", "a", "--ckpt_path", "auto", "--trainer.max_steps", 3)[0] == 0
    assert train("--name", "a", "--ckpt_path", "runs/a/checkpoints/step=1.ckpt", "--trainer.max_steps", 3)[0] == 0
    assert names("runs/a") == {"config.yaml", "config-step=1.yaml", "config-step=2.yaml", "config-step=1-2.yaml"}
    assert Path("runs/a/config.yaml").read_bytes() == first
    text = Path("runs/a/config-step=1.yaml").read_text()
    assert text.startswith("# Resumed at step 1 from runs/a/checkpoints/step=1.ckpt\n")
    assert yaml.safe_load(text)["ckpt_path"] is None
    assert yaml.safe_load(text)["model"]["optimizer"]["init_args"]["lr"] == 1e-6
    before = {path: path.stat().st_mtime_ns for path in Path("runs/a").rglob("*")}
    assert train("--name", "b", config="runs/a/config-step=1.yaml")[0] == 0
    assert names("runs/b") == {"config.yaml"}
    assert Path("runs/b/checkpoints/step=2.ckpt").exists()
    assert {path: path.stat().st_mtime_ns for path in Path("runs/a").rglob("*")} == before


@pytest.mark.slow
def test_a_refused_resume_writes_no_configuration(train):
    assert train("--name", "a")[0] == 0
    code, err = train("--name", "a", "--ckpt_path", "last", "--model.optimizer", "torch.optim.SGD")
    assert code == 2
    assert "SGD" in error(err)
    assert names("runs/a") == {"config.yaml"}


CSV = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs")
KEEP = ("--trainer.callbacks", "rad.training.Checkpoint", "--trainer.callbacks.dirpath", "kept")


@pytest.mark.spread(1)
@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (CSV, "runs/c/checkpoints"),
        (("--trainer.logger", "false"), "runs/c/checkpoints"),
        ((*CSV, "--trainer.callbacks", "ModelCheckpoint"), "runs/c/checkpoints"),
        (KEEP, "kept"),
        (("--trainer.default_root_dir", "elsewhere"), "elsewhere/c/checkpoints"),
        (("--trainer.logger", "CSVLogger"), "runs/c/checkpoints"),
        (("--trainer.logger", "[CSVLogger, TensorBoardLogger]"), "runs/c/checkpoints"),
        (("--trainer.logger", "TensorBoardLogger"), "runs/c/checkpoints"),
    ],
    ids=["csv", "none", "lightning", "dirpath", "root", "csv by name", "several", "tensorboard"],
)
def test_a_run_goes_on_wherever_it_logs_and_keeps_its_checkpoints(train, words, folder):
    assert train(*words)[0] == 0
    assert len(list(Path(folder).glob("*step=1.ckpt"))) == 1
    code, err = train(*words, "--ckpt_path", "auto", "--trainer.max_steps", 2)
    assert code == 0, err
    assert "resumed at step 1" in err
    assert "earlier run" in error(train(*words)[1])


@pytest.mark.slow
def test_going_back_to_an_older_checkpoint_warns(train):
    callbacks = ("--trainer.callbacks", "rad.training.Checkpoint", "--trainer.callbacks.every_n_train_steps", 1)
    assert train("--trainer.max_steps", 2, *callbacks)[0] == 0
    with pytest.warns(UserWarning, match=r"later checkpoints, up to step=2\.ckpt"):
        assert train("--ckpt_path", "runs/c/checkpoints/step=1.ckpt", *callbacks)[0] == 0
    code, err = train("--ckpt_path", "runs/c/checkpoints")
    assert code == 2
    assert "is a folder" in error(err)


@pytest.mark.spread(5)
@pytest.mark.parametrize(
    "name",
    ["../../x", "/x", "a/b", "a\\b", ".", "..", ".x", "-x", "~", "x ", "x.", "a\nb", "", "a:b", "x" * 201, "é" * 101],
)
def test_the_name_of_a_run_is_that_of_one_folder(train, tmp_path, name):
    code, err = train("--name=" + name)
    assert code == 2
    assert "--name" in error(err)
    assert len(err.splitlines()[-1]) < 300
    assert not Path("runs").exists()
    Path("d.yaml").write_text(yaml.safe_dump({"name": name}))
    assert train("--config", "d.yaml")[0] == 2


@pytest.mark.spread(1)
@pytest.mark.parametrize("name", ["a b", "mine-2.1_(x)=3", "ünïcode", "x" * 200])
def test_other_names_are_allowed(train, name):
    assert train("--name", name)[0] == 0
    assert Path("runs", name, "config.yaml").is_file()


@pytest.mark.spread(8)
@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "nothing"), ["`nothing`"]),
        (("--trainer.callbacks", "WeightAveraging"), ["rad.training.EMA"]),
        (("--trainer.callbacks", "Foo"), ["no class is called Foo"]),
        (("--trainer.devices", "0"), ["devices"]),
        (("--trainer.precision", "8"), ["precision", "bf16-mixed"]),
        (("--trainer.overfit_batches", "1"), ["overfit_batches"]),
        (("--model.lr_schedule", "cosine"), ["--model.lr_schedule", "--model.lr_scheduler"]),
        (("--trainer.strategy", "foo"), ["foo"]),
        (("--trainer.max_steps", "-1"), ["the training has no end", "--trainer.max_steps"]),
        (("--trainer.max_steps", "-1", "--trainer.max_time", "00:00:01:00"), ["no end", "trainer.max_time"]),
        (("--every", "0"), ["--every is 0", "1 or more"]),
        (("--adapter", "nowhere"), ["--adapter nowhere", "runs/NAME"]),
        (("--adapter", "in"), ["rad_config.json is missing"]),
        (("--trainer.accumulate_grad_batches", "0"), ["accumulate_grad_batches is 0", ">= 1"]),
        (("--model.learning_rate", "1e-6"), ["did you mean --model.optimizer.lr?"]),
        (("--model.optimizer", "SGD", "--model.optimizer.lr", "nan"), ["Expected a number, not nan"]),
        (("--model.optimizer", "SparseAdam"), ["SparseAdam does not support dense gradients"]),
        (("--model.lr", "1e-6"), ["did you mean --model.optimizer.lr?"]),
        (("--model.base", ""), ["model.base is ''"]),
        (("--data.path", ""), ["path=''", "names no source"]),
        (("--ckpt_path", ""), ["--ckpt_path is ''", "last, auto or a .ckpt file"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_errors_of_lightning_are_one_line(train, words, parts):
    code, err = train(*words)
    assert code == 2
    assert all(part in error(err) for part in parts), err


def test_an_unknown_key_of_a_group_in_a_file_names_a_similar_one(train):
    Path("unknown.yaml").write_text("data: {batchsize: 7}\n")
    code, err = train("--config", "unknown.yaml")
    assert code == 2
    assert "did you mean data.batch_size?" in error(err)


@pytest.mark.filterwarnings("ignore")
def test_a_trial_run_works_and_writes_nothing(train):
    code, err = train("--trainer.fast_dev_run", "true")
    assert code == 0, err
    assert not list(Path(".").rglob("*.ckpt"))
    assert not list(Path(".").rglob("config.yaml"))


class Killed(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


class Broken(Killed):
    def __getitem__(self, index):
        raise ValueError("image 3 is damaged")


class Faulty(Killed):
    def __getitem__(self, index):
        raise KeyError("a bug")


@pytest.mark.slow
def test_a_lost_worker_and_errors_inside_it_are_explained():
    def failure(dataset):
        with pytest.raises((RuntimeError, ValueError, KeyError)) as raised:
            next(iter(DataLoader(dataset, num_workers=1)))
        return explain(raised.value)

    assert "lower data.num_workers" in failure(Killed())
    assert failure(Broken()) == "image 3 is damaged"
    assert failure(Faulty()) is None, "a bug keeps its traceback"


def test_errors_are_explained_only_if_lightning_raised_them():
    with pytest.raises(Exception) as raised:  # noqa: PT011
        L.Trainer(accelerator="cpu", devices=0)
    assert "devices" in explain(raised.value)
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2) @ torch.zeros(3)
    assert explain(raised.value) is None


def test_default_modules_can_be_sent_to_other_processes(base):
    fields = {
        "block_out_channels": [32],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
    }
    for module in (Diffusion(str(base)), AutoencoderTraining(fields)):
        copied = pickle.loads(pickle.dumps(module))
        groups = [m.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0] for m in (module, copied)]
        assert groups[0]["lr"] == groups[1]["lr"] == 1e-4
