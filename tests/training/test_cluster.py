"""Several processes, as a cluster starts them: the run of one process with the whole batch, written once, and survived."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rad.cli import main as cli
from tests.conftest import SIZE, random_image

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


@pytest.fixture
def config(base, tmp_path, monkeypatch):
    """c.yaml in the working folder: a batch of 4 for each of two processes."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number in range(13):
        random_image(SIZE, SIZE, seed=number).save(f"in/{number}.png")
    content = {
        "model": {"base": str(base), "lora": {"rank": 2, "alpha": 2}, "optimizer": {"init_args": {"lr": 1e-3}}},
        "data": {"path": "in", "val_count": 3, "size": SIZE, "batch_size": 4},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "precision": "64-true",
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "rad.training.EMA"},
                {"class_path": "rad.training.Checkpoint", "init_args": {"every_n_train_steps": 2}},
                {"class_path": "rad.training.Throughput"},
            ],
        },
    }
    Path("c.yaml").write_text(yaml.safe_dump(content))


def start(*words, torchrun=()):
    """`train.py` by itself, or by torchrun with these options."""
    launcher = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
    command = [sys.executable, *launcher, str(ROOT / "train.py"), "--config", "c.yaml", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(*running):
    for process in running:
        err = process.communicate(timeout=240)[1]
        assert process.returncode == 0, err[-3000:]


def one_process(name, *words):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    code = cli.train(["--config", "c.yaml", "--name", name, "--data.batch_size", "8", *map(str, words)])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert code == 0


def checkpoint(name, step=STEPS):
    return torch.load(f"runs/{name}/checkpoints/step={step}.ckpt", weights_only=True)


def losses(name):
    events = EventAccumulator(f"runs/{name}").Reload()
    tags = ["train/loss", "val/loss", *(tag for tag in events.Tags()["scalars"] if tag.startswith("inpainting/"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags if "seconds" not in tag}


def assert_equal_runs(one, several, step=STEPS):
    """In float64 to rounding: gradients are summed in another order, and Adam divides by their size."""
    ours, theirs = checkpoint(one, step), checkpoint(several, step)
    assert theirs["ImageDataModule"]["position"] == ours["ImageDataModule"]["position"] == 8 * step
    for weights, others in (
        (ours["state_dict"], theirs["state_dict"]),
        (ours["callbacks"]["EMA"]["weights"], theirs["callbacks"]["EMA"]["weights"]),
    ):
        assert weights.keys() == others.keys()
        for name, weight in weights.items():
            assert weight.dtype == torch.float64
            torch.testing.assert_close(
                others[name], weight, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_are_one_process(config):
    """Two torchrun nodes on the loopback interface, a process each."""
    port = free_port()
    metrics = ("--trainer.callbacks+=rad.training.InpaintingMetrics", "--trainer.callbacks.every_n_steps=2")
    metrics += ("--trainer.callbacks.images=3", "--trainer.callbacks.batch_size=2", "--trainer.callbacks.steps=3")
    nodes = [
        start(
            *metrics,
            *("--trainer.num_nodes", 2, "--trainer.devices", 1, "--trainer.strategy", "ddp"),
            torchrun=(
                *("--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank)),
                *("--master_addr", "127.0.0.1", "--master_port", str(port)),
            ),
        )
        for rank in range(2)
    ]
    one_process("one", *metrics)
    finish(*nodes)
    assert_equal_runs("one", "c")
    ours, theirs = losses("one"), losses("c")
    for name in ("train/loss", "val/loss"):  # means over all images of both processes
        for (step, value), (other_step, other) in zip(ours[name], theirs[name], strict=True):
            assert step == other_step
            assert other == pytest.approx(value, rel=1e-6)
    measured = [tag for tag in ours if tag.startswith("inpainting/")]
    assert len(measured) == 4
    for tag in measured:
        assert [step for step, _ in theirs[tag]] == [step for step, _ in ours[tag]] == [1, 3]
        for (_, value), (_, other) in zip(ours[tag], theirs[tag], strict=True):
            assert other == pytest.approx(value, rel=1e-2), "the weights differ by rounding, and 8 bits enlarge it"
    assert [step for step, _ in theirs["train/loss"]] == list(range(STEPS)), "one writer"
    assert len(list(Path("runs/c").glob("events.*"))) == 1
    names = {path.name for path in Path("runs/c/checkpoints").iterdir()}
    assert names == {f"step={step}{end}" for step in (2, 4) for end in ("", "-ema", ".ckpt")} | {"last.ckpt", "best"}


@pytest.mark.slow
def test_two_devices_draw_the_dropout_and_record_the_losses_of_one(config):
    """Dropout masks and the history of `loss_second_moment` depend on the sample, not on its process."""
    words = ("--model.lora.dropout", 0.3, "--model.lora.use_dora", "true", "--model.process.noise_offset", 0.1)
    words += ("--model.process.density.name", "loss_second_moment")
    running = start("--trainer.devices", 2, "--trainer.strategy", "ddp", *words)
    one_process("one", *words)
    finish(running)
    assert_equal_runs("one", "c")
    ours, theirs = (checkpoint(name)["rad"]["timesteps"] for name in ("one", "c"))
    assert int(ours["counts"].sum()) == 8 * STEPS
    assert torch.equal(theirs["counts"], ours["counts"])
    torch.testing.assert_close(theirs["history"], ours["history"], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_one_process_goes_on(config):
    """With a sharded optimiser and a static graph, whose checkpoints are those of a plain one."""
    strategy = "lightning.pytorch.strategies.DDPStrategy"
    words = [
        "--model.execution.shard_optimizer",
        "true",
        "--trainer.strategy",
        strategy,
        "--trainer.strategy.static_graph",
        "true",
    ]
    running = start("--trainer.devices", 2, *words, "--trainer.max_steps", 100000)
    try:
        first = Path("runs/c/checkpoints/step=2.ckpt")
        deadline = time.monotonic() + 240
        while not first.exists() and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        ranks = [pid for pid in children if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert len(ranks) == 1
        os.kill(int(ranks[0]), signal.SIGKILL)
        running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode != 0, "a run without one of its processes is not a success"
    last = max(int(path.stem.removeprefix("step=")) for path in Path("runs/c/checkpoints").glob("step=*.ckpt"))
    assert_equal_optimizers(last)
    assert " AdamW " in Path(f"runs/c/checkpoints/step={last}/README.md").read_text(), (
        "the optimiser itself, not ZeRO's"
    )
    one_process("c", "--ckpt_path", "last", "--trainer.max_steps", last + 2)
    one_process("one", "--trainer.max_steps", last + 2)
    assert_equal_runs("one", "c", last + 2)


def assert_equal_optimizers(step):
    states = checkpoint("c", step)["optimizer_states"][0]["state"]
    weights = checkpoint("c", step)["state_dict"]
    assert len(states) == len(weights), "the state of all weights, though each process holds a part"


def test_the_sbatch_file_starts_the_documented_command(tmp_path):
    """With stand-ins for srun and the environment: the job's size goes to the trainer, the user's words come last."""
    for name, text in {".venv/bin/activate": "", "bin/srun": '#!/bin/sh\nprintf "%s\\n" "$@" > told\n'}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "bin/srun").chmod(0o755)
    script = ROOT / "examples/slurm/train.sbatch"
    job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_NNODES": "4", "SLURM_NTASKS_PER_NODE": "8"}
    environment = {**os.environ, **job, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    words = ["rad_ffhq.yaml", "--data.path", "/a b"]
    subprocess.run(["bash", str(script), *words], env=environment, check=True)
    told = (tmp_path / "told").read_text().splitlines()
    assert told[1:3] == ["python", "train.py"]
    options = dict(zip(told[3::2], told[4::2], strict=True))
    assert options == {
        "--config": "rad_ffhq.yaml",
        "--ckpt_path": "auto",
        "--trainer.num_nodes": "4",
        "--trainer.devices": "8",
        "--trainer.strategy": "ddp",
        "--trainer.enable_progress_bar": "false",
        "--data.path": "/a b",
    }
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "rad_ffhq.yaml" in done.stderr
    header = [line.split("#")[1].split() for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert ["SBATCH", "--signal=USR1@300"] in header
    assert ["SBATCH", "--requeue"] in header
