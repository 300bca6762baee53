"""Checkpoints of a run: always whole, found again after whatever stopped it."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from rad.images.atomic import replacing

ENTRIES = {"pytorch-lightning_version", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "rad"}
"""What a checkpoint must hold to be resumed from."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a hidden name in its own folder, and renames it when it is on the disk.

    Raises OSError, with the files as they were before, when it cannot be written.

    Lightning writes to the system's temporary folder and moves the file, which on another file system is a copy: a run that
    is killed meanwhile leaves part of a file under the name of a whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with replacing(Path(path), durable=True) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # the second is what torch's writer makes of a full disk
            raise OSError(
                f"checkpoint {path} cannot be written: {error}; make room and go on with --ckpt_path last"
            ) from error


def find_checkpoint(ckpt_path: str | None, folder: Path) -> str | None:
    """The checkpoint to resume from; None: start anew.

    Args:
        ckpt_path: a file; "last": the newest whole one of `folder`/checkpoints; "auto": that, or None where there is none;
            None: a new run.
        folder: of the run.

    Raises:
        FileNotFoundError: there is none. ValueError: all are damaged, or a new run would run into an earlier one.
    """
    checkpoints = folder / "checkpoints"
    found = sorted(checkpoints.glob("step=*.ckpt"), key=_step, reverse=True)
    found = found or [path for path in (checkpoints / "last.ckpt",) if path.exists()]
    if ckpt_path is None:
        if found:
            raise ValueError(
                f"{checkpoints} holds an earlier run: continue it with --ckpt_path last, or give this one another --name"
            )
        return None
    if ckpt_path not in ("last", "auto"):
        path = Path(ckpt_path)
        if not path.exists():
            raise FileNotFoundError(f"checkpoint {path} does not exist: without --ckpt_path a new run is started")
        if damage := find_damage(path):
            raise ValueError(f"checkpoint {path} is damaged ({damage}): resume from an older one of {path.parent}")
        return str(path)
    for path in found:
        damage = find_damage(path)
        if damage is None:
            return str(path)
        rank_zero_warn(f"checkpoint {path} is damaged ({damage}): the one before it is used")
    if found:
        raise ValueError(f"all {len(found)} checkpoints of {checkpoints} are damaged: start anew with another --name")
    if ckpt_path == "last":
        raise FileNotFoundError(
            f"{checkpoints} holds no checkpoint: without --ckpt_path a new run is started, with --ckpt_path auto whenever "
            "there is none"
        )
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint that training should have written, None if nothing is; no pickled code is run.

    A file of torch.save is a zip, whose checksums torch itself does not look at. A folder (a sharded checkpoint) is taken as it
    is.
    """
    if path.is_dir():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
        if member is not None:
            return f"the checksum of {member} is wrong"
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # damaged zips and pickles raise almost anything
        return f"cut short, changed, or more than weights and numbers: {type(error).__name__}"
    whole = isinstance(content, dict) and content.keys() >= ENTRIES
    return None if whole else "not written by rad, whose are runs/NAME/checkpoints/step=N.ckpt"


def _step(path: Path) -> int:
    number = path.stem.removeprefix("step=")
    return int(number) if number.isdecimal() else -1
