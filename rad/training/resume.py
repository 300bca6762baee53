"""Checkpoint files: written whole, and found again after a run was stopped."""

import errno
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from rad.console import report
from rad.images.atomic import replacing

ENTRIES = {"pytorch-lightning_version", "state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "rad"}
"""Entries that a checkpoint needs for a resumed run."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a hidden name in its own folder, and renames it once it is on the disk.

    Lightning's way, a move from the temporary folder, can leave a partial file under the final name on another file system.
    Raises OSError if the checkpoint cannot be written; existing files are unchanged.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with replacing(Path(path), durable=True) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
            full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            advice = "make room and continue" if full else "correct this and continue"
            raise OSError(f"checkpoint {path} cannot be written: {error}; {advice} with --ckpt_path last") from error


def find_checkpoint(ckpt_path: str | None, folder: Path, *, elsewhere: Sequence[Path] = ()) -> str | None:
    """Checkpoint to resume from; None for a new run.

    Args:
        ckpt_path: a file; "last": the newest intact one in `folder`/checkpoints; "auto": the same, or None if there is none;
            None: a new run.
        folder: run folder.
        elsewhere: other folders that the run keeps checkpoints in.

    Raises FileNotFoundError without a checkpoint, ValueError if all are damaged or a new run would overwrite an earlier one.
    """
    if ckpt_path is not None and not ckpt_path.strip():
        raise ValueError(f"--ckpt_path is {ckpt_path!r}: give last, auto or a .ckpt file, or leave it out")
    folders = [folder / "checkpoints", *(path for path in elsewhere if path != folder / "checkpoints")]
    checkpoints = " or ".join(map(str, folders))
    found = [path for place in folders for path in place.glob("*step=*.ckpt") if not path.name.startswith(".")]
    paths = sorted(found, key=_step, reverse=True)
    if not paths:
        paths = [place / "last.ckpt" for place in folders if (place / "last.ckpt").exists()]
    if ckpt_path is None:
        if paths:
            raise ValueError(
                f"{paths[0].parent} holds an earlier run: continue it with --ckpt_path last, or give this one another --name"
            )
        return None
    if ckpt_path not in ("last", "auto"):
        return _require_file(Path(ckpt_path), paths)
    for path in paths:
        damage = find_damage(path)
        if damage is None:
            return str(path)
        rank_zero_warn(f"checkpoint {path} is damaged ({damage}): trying the one before it")
    if paths:
        raise ValueError(
            f"all {len(paths)} checkpoints of {checkpoints} are damaged: start a new run with another --name"
        )
    if ckpt_path == "last":
        raise FileNotFoundError(
            f"{checkpoints} holds no checkpoint: leave out --ckpt_path to start a new run, or give --ckpt_path auto to start one "
            "only if there is none"
        )
    return None


def _require_file(path: Path, others: Sequence[Path]) -> str:
    """The checkpoint `path`, with a warning if its run has later ones. Raises FileNotFoundError or ValueError."""
    if path.is_dir():
        raise ValueError(f"--ckpt_path {path} is a folder: give a checkpoint, runs/NAME/checkpoints/step=N.ckpt")
    if not path.exists():
        raise FileNotFoundError(f"--ckpt_path {path} does not exist: give last, auto or a .ckpt file, or leave it out")
    if damage := find_damage(path):
        raise ValueError(f"checkpoint {path} is damaged ({damage}): resume from an older one of {path.parent}")
    later = [other for other in others if other.parent.samefile(path.parent) and _step(other) > _step(path.resolve())]
    if later:
        rank_zero_warn(
            f"{path.parent} also holds later checkpoints, up to {later[0].name}: rad.training.Checkpoint moves them to "
            "superseded/ as training starts; give another --name to leave them in place"
        )
    return str(path)


def set_aside(folder: Path, step: int) -> None:
    """Move later checkpoints than `step` to `folder`/superseded/N, N = 1, 2, ..., and report it; see `Checkpoint`.

    A run that continues from an older checkpoint trains other weights. The newest checkpoint must then be one of its own. The
    models beside the checkpoints and a `best` of a later step move too. `last.ckpt` links to the newest checkpoint that is left.
    """
    later = sorted((path for path in folder.glob("step=*") if _step(path) > step), key=_step)
    if not any(path.suffix == ".ckpt" for path in later):  # a killed run may leave a model; this run repeats its step
        return
    best = folder / "best" / "best.json"
    if best.is_file() and json.loads(best.read_text(encoding="utf-8"))["step"] > step:
        later.insert(0, best.parent)
    numbers = [int(path.name) for path in (folder / "superseded").glob("*") if path.name.isdecimal()]
    place = folder / "superseded" / str(max(numbers, default=0) + 1)
    place.mkdir(parents=True)
    for path in later:
        path.rename(place / path.name)
    last, left = folder / "last.ckpt", sorted(folder.glob("step=*.ckpt"), key=_step)
    if last.is_symlink() and not last.exists():
        last.unlink()
        if left:
            last.symlink_to(left[-1].name)
    report(f"later checkpoints, up to step={_step(later[-1])}, are now in {place}")


def find_damage(path: Path) -> str | None:
    """Describe the damage of a checkpoint, None if it is intact; no pickled code is run. Folders (sharded) are not checked.

    Files of torch.save are zip archives, whose checksums torch does not verify.
    """
    if path.is_dir():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
        if member is not None:
            return f"the checksum of {member} is wrong"
        content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # damaged archives raise errors of many kinds
        return f"truncated, changed, or more than weights and numbers: {type(error).__name__}"
    intact = isinstance(content, dict) and content.keys() >= ENTRIES
    return None if intact else "not written by rad; its checkpoints are runs/NAME/checkpoints/step=N.ckpt"


def _step(path: Path) -> int:
    number = re.search(r"step=(\d+)", path.stem)  # Lightning's names begin with the epoch
    return int(number[1]) if number else -1
