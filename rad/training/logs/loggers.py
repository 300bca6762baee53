"""Values, images and settings for every logger of a run, and loggers that continue after a resume."""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from rad.images.atomic import replacing, write_text
from rad.images.remote import without_query
from rad.images.tensors import to_uint8

SHOWN = {"train/loss": 0, "val/loss": 0}
"""Curves that TensorBoard's table of hyperparameters shows."""

IDS = "loggers.json"
"""File of the run folder with the ids of remote runs."""


def log_values(trainer: L.Trainer, values: Mapping[str, float]) -> None:
    """Send `values` to all loggers, at the optimiser step that ends now. Callbacks can monitor them too."""
    if not values:
        return
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=log_step(trainer))
        logger.save()


def log_step(trainer: L.Trainer) -> int:
    """Number of the present optimiser step, from 0: Lightning's axis of curves."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def flatten(settings: object, name: str = "") -> dict[str, object]:
    """Nested settings by dotted name; the elements of a list by their number, those of a class without "init_args"."""
    if isinstance(settings, Mapping):
        entries = [("" if key == "init_args" else str(key), value) for key, value in settings.items()]
    elif isinstance(settings, list) and any(isinstance(value, Mapping) for value in settings):
        entries = [(str(number), value) for number, value in enumerate(settings)]
    else:
        return {name: settings}
    flat: dict[str, object] = {}
    for key, value in entries:
        flat |= flatten(value, ".".join(filter(None, (name, key))))
    return flat


def log_image(logger: Logger, name: str, image: Tensor, step: int) -> None:
    """Show an image (3,H,W) in [0,1] in TensorBoard, W&B, MLflow or Comet; other loggers have no images."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, image, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [to_uint8(image)], step=step)
    elif isinstance(logger, MLFlowLogger):
        run = logger.run_id
        logger.experiment.log_image(run, to_uint8(image), artifact_file=f"{name}/step={step}.png")
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(to_uint8(image), name=name, step=step)


def log_settings(logger: Logger, settings: Mapping[str, object]) -> None:
    """Send the resolved settings, by dotted name, to a logger: URLs without credentials and queries."""
    settings = {name: _without_secrets(value) for name, value in settings.items()}
    if isinstance(logger, MLFlowLogger) and logger.run_id is not None:  # MLflow refuses to change a parameter
        known = logger.experiment.get_run(logger.run_id).data.params
        settings = {name: value for name, value in settings.items() if name not in known}
    if not isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(dict(settings))
        return
    from torch.utils.tensorboard.summary import hparams

    logger.log_hyperparams(dict(settings), metrics={})  # no curve "hp_metric"
    Path(logger.log_dir, logger.NAME_HPARAMS_FILE).unlink(missing_ok=True)  # Lightning wrote it without settings
    logger.save()
    plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in settings.items()}
    for summary in hparams(plain, SHOWN):
        logger.experiment._get_file_writer().add_summary(summary)


def _without_secrets(value: object) -> object:
    if isinstance(value, list):
        return [_without_secrets(element) for element in value]
    return without_query(value) if isinstance(value, str) else value


def keep_log(logger: Logger) -> None:
    """Open the metrics.csv of a run that resumes; `CSVLogger` itself would delete it."""
    path = _metrics_file(logger)
    if path is not None and path.is_file() and isinstance(logger, CSVLogger):
        content = path.read_bytes()
        writer = logger.experiment
        path.write_bytes(content)
        writer.metrics_keys = _read_rows(path)[0]


def drop_steps(logger: Logger, step: int) -> None:
    """Remove the values from `step` on, which a resumed run logs again.

    W&B, MLflow and Comet cannot remove values. They get the steps since the checkpoint a second time.
    """
    path = _metrics_file(logger)
    if isinstance(logger, TensorBoardLogger):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        start = Event(step=step, session_log=SessionLog(status=SessionLog.START))  # as purge_step of SummaryWriter
        logger.experiment._get_file_writer().add_event(start, step)
    elif path is not None and path.is_file():
        names, rows = _read_rows(path)
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(row for row in rows if int(row["step"]) < step)


def _metrics_file(logger: Logger) -> Path | None:
    return Path(logger.log_dir, "metrics.csv") if isinstance(logger, CSVLogger) else None


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Names and complete rows of a metrics.csv; a process that is killed may cut the last one."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    rows = [row for row in reader if None not in row.values() and row["step"].isdecimal()]
    return list(reader.fieldnames or ()), rows


def read_ids(folder: Path) -> dict[str, str]:
    """Ids of the remote runs of a run folder, by class of the logger."""
    path = folder / IDS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_ids(loggers: list[Logger], folder: Path) -> None:
    """Keep the ids of the W&B and MLflow runs, for resumes."""
    ids = {
        type(logger).__name__: str(logger.version)
        for logger in loggers
        if isinstance(logger, WandbLogger | MLFlowLogger) and logger.version is not None
    }
    if ids and ids != read_ids(folder):
        os.makedirs(folder, exist_ok=True)
        write_text(folder / IDS, json.dumps(ids, indent=2) + "\n")
