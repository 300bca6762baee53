"""Means of the training curves: over images, processes and accumulated batches; intervals that a resume cuts."""

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from rad.training.diffusion import timestep_buckets
from rad.training.logs.curves import Curves
from rad.training.logs.loggers import drop_steps, flatten, keep_log, log_image, log_settings


def same(tensor):
    return tensor


def test_a_mean_is_over_images_not_over_batches():
    curves = Curves()
    curves.add("loss", torch.tensor([1.0, 2.0, 3.0]))
    curves.add("loss", torch.tensor([10.0]))
    assert curves.take(same) == {"loss": 4.0}
    assert curves.take(same) == {}, "the next interval starts at zero"


def test_processes_are_summed_in_one_call():
    processes = [Curves(), Curves()]
    for curves, values in zip(processes, ([1.0, 2.0, 3.0], [10.0]), strict=True):
        curves.add("loss", torch.tensor(values))
        curves.add("simple", torch.tensor(values), where=torch.tensor(values) < 2)
    tensors = []
    processes[1].totals(lambda tensor: tensors.append(tensor) or tensor)
    calls = []
    means = processes[0].take(lambda tensor: calls.append(1) or tensor + tensors[0])
    assert means == {"loss": 4.0, "simple": 1.0}
    assert len(calls) == 1


def test_a_bucket_without_samples_has_no_value_and_no_nan():
    curves, t = Curves(), torch.tensor([0, 249, 250, 999])
    values = torch.tensor([1.0, 3.0, 5.0, float("nan")])
    for name, inside in timestep_buckets(t, 1000).items():
        curves.add(name, values, where=inside)
    means = curves.take(same)
    assert means.pop("t750-999") != 0, "NaN stays visible in its own bucket"
    assert means == {"t0-249": 2.0, "t250-499": 5.0}


@pytest.mark.parametrize("steps", [1000, 1001, 7])
def test_each_timestep_is_in_the_bucket_of_its_name(steps):
    t = torch.arange(steps)
    for name, inside in timestep_buckets(t, steps).items():
        first, last = map(int, name[1:].split("-"))
        assert t[inside].tolist() == list(range(first, last + 1))
    assert sum(inside.int() for inside in timestep_buckets(t, steps).values()).eq(1).all()


def test_an_interval_goes_on_from_the_totals_of_a_checkpoint():
    values = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    whole, first = Curves(), Curves()
    for row in values:
        whole.add("loss", row)
    first.add("loss", values[0])
    saved = first.totals(same)
    resumed = [Curves(), Curves()]
    for number, curves in enumerate(resumed):  # now of two processes
        curves.restore(saved, counted=number == 0)
        curves.add("loss", values[1 + number])
    other = []
    resumed[1].totals(lambda tensor: other.append(tensor) or tensor)
    assert resumed[0].take(lambda tensor: tensor + other[0]) == pytest.approx(whole.take(same), rel=1e-15)


def test_nothing_is_read_from_the_device_before_the_end_of_an_interval():
    """Tensors on "meta" have no values to read."""
    curves = Curves()
    for _ in range(2):
        curves.add("loss", torch.ones(4, device="meta"))
        curves.add("simple", torch.ones(4, device="meta"), where=torch.ones(4, dtype=torch.bool, device="meta"))


def test_settings_have_dotted_names():
    given = {"a": {"b": 1, "c": [1, 2]}, "callbacks": [{"class_path": "X", "init_args": {"n": 3}}], "d": None}
    expected = {"a.b": 1, "a.c": [1, 2], "callbacks.0.class_path": "X", "callbacks.0.n": 3, "d": None}
    assert flatten(given) == expected


def test_loggers_get_urls_without_secrets(tmp_path):
    paths = ["https://me:hidden@host/a.tar?X-Signature=hidden", "s3://bucket/a.zip", "photos?"]
    log_settings(logger := CSVLogger(tmp_path, name="", version=""), {"path": paths, "val_path": paths[0], "n": 1})
    logger.save()
    text = (tmp_path / "hparams.yaml").read_text()
    expected = {"path": ["https://host/a.tar", *paths[1:]], "val_path": "https://host/a.tar", "n": 1}
    assert yaml.safe_load(text) == expected


def test_a_resume_keeps_the_rows_before_its_step(tmp_path):
    for start, stop in ((0, 7), (4, 9)):
        logger = CSVLogger(tmp_path, name="", version="")
        if start:
            keep_log(logger)
            drop_steps(logger, start)
        for step in range(start, stop):
            logger.log_metrics({f"loss{step % 2}": step + start / 100}, step=step)
        logger.save()
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert rows[0] == ["loss0", "loss1", "step"]
    assert [int(row[2]) for row in rows[1:]] == list(range(9))
    assert [float(row[0] or row[1]) for row in rows[1:]] == [0, 1, 2, 3, 4.04, 5.04, 6.04, 7.04, 8.04]


@pytest.mark.parametrize("end", ["1.0", "1.0,0", "1.0,0,", "\0\0\0\0"])
def test_a_resume_drops_a_row_that_a_killed_process_has_cut(tmp_path, end):
    path = tmp_path / "metrics.csv"
    path.write_text(f"loss,epoch,step\n0.5,0,1\n0.6,0,3\n{end}")
    logger = CSVLogger(tmp_path, name="", version="")
    keep_log(logger)
    drop_steps(logger, 5)
    assert path.read_text().splitlines() == ["loss,epoch,step", "0.5,0,1", "0.6,0,3"]


def test_a_refused_resume_keeps_all_rows(tmp_path):
    first = CSVLogger(tmp_path, name="", version="")
    for step in range(4):
        first.log_metrics({"loss": step}, step=step)
    first.save()
    before = (tmp_path / "metrics.csv").read_bytes()
    keep_log(CSVLogger(tmp_path, name="", version=""))
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, stop in ((0, 7), (4, 9)):
        monkeypatch.setattr("time.time", lambda now=1e9 + start: now)  # TensorBoard orders files by the second
        logger = TensorBoardLogger(tmp_path, name="", version="")
        if start:
            keep_log(logger)
            drop_steps(logger, start)
        for step in range(start, stop):
            logger.log_metrics({"loss": step + start / 100}, step=step)
        log_image(logger, "panel", torch.zeros(3, 4, 4), start)
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(9))


class Recorded(WandbLogger):
    def __init__(self):
        self.images = []

    def log_image(self, key, images, step=None):
        self.images.append((key, images[0].getpixel((0, 0)), step))


def test_wandb_gets_images():
    logger = Recorded()
    log_image(logger, "panel", torch.ones(3, 4, 4), 5)
    assert logger.images == [("panel", (255, 255, 255), 5)]
    log_image(CSVLogger("nowhere"), "panel", torch.ones(3, 4, 4), 5)


def test_a_run_logs_means_over_the_interval_with_accumulation(tmp_path):
    from rad.training.module import TrainingModule
    from rad.training.schedules import Schedule

    class Simple(TrainingModule):
        """The loss of an image is its value plus 0 * weight."""

        def __init__(self):
            super().__init__(lambda weights: torch.optim.SGD(weights, lr=0.1), Schedule(), None, seed=0, means=())
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def identity(self):
            return {}

        def training_step(self, batch, batch_idx):
            losses = batch + 0 * self.weight
            self.curves.add("train/loss", losses)
            return losses.mean()

    batches = torch.arange(24.0).view(12, 2)
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = L.Trainer(
        accelerator="cpu", max_steps=6, accumulate_grad_batches=2, log_every_n_steps=3, logger=logger,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Simple(), torch.utils.data.DataLoader(batches, batch_size=None))
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    wanted = [(int(row["step"]), float(row["train/loss"])) for row in rows if row["train/loss"]]
    assert wanted == [(2, batches[:6].mean()), (5, batches[6:].mean())]
    assert float(trainer.callback_metrics["train/loss"]) == batches[6:].mean()
