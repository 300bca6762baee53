"""Power-function averages during training, their snapshots, and averages of other lengths from snapshots; see `profiles`."""

import json
import shutil
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors.torch import load_file, save_file
from torch import Tensor

from rad.images.atomic import replacing_folder, write_text
from rad.training.checkpoint import export_diffusion
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA, replaced
from rad.training.module import get_setting
from rad.training.posthoc.profiles import LONGEST, Profile, gamma_of, power_decay, solve_weights

SNAPSHOT = "snapshot.json"


class PowerEMA(EMA):
    """Average of the trained weights with a power-function profile, for a choice of the length after training.

    Its length is a fraction of all steps so far. Use two, with `sigma_rel` 0.05 and 0.1. Each writes snapshots to `ema/` in the
    run folder. `rad ema` combines them into an average of any length. As for `EMA`, each average is also exported beside the
    checkpoints, and validation and panels use the first one of a run.

    Args:
        sigma_rel: length, the standard deviation of the profile as a fraction of the run, above 0 and up to 0.2886.
        every_n_train_steps: interval of the snapshots in optimiser steps; the last step of a run is always saved. A run should
            have at least ten.
        suffix: of the exports; null: "sigma" and the length.
    """

    def __init__(self, sigma_rel: float = 0.05, every_n_train_steps: int = 1000, suffix: str | None = None) -> None:
        if not 0 < sigma_rel <= LONGEST or every_n_train_steps < 1:
            raise ValueError(
                f"PowerEMA has sigma_rel {sigma_rel}, every_n_train_steps {every_n_train_steps}; allowed are above 0 and up to "
                f"{LONGEST:.4f}, and >= 1"
            )
        super().__init__(suffix=f"sigma{sigma_rel:g}".replace("-", "_") if suffix is None else suffix)
        self.sigma_rel, self.every_n_train_steps, self.gamma = sigma_rel, every_n_train_steps, gamma_of(sigma_rel)
        self.start: int | None = None
        """Step at which the average began; above 0 if it was added at a resume."""
        self._saved = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Diffusion):
            raise ValueError("PowerEMA averages diffusion models and adapters: use rad.training.EMA for this training")

    def decay_at(self, step: int) -> float:
        return power_decay(step - (self.start or 0), self.gamma)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.start is None:
            self.start = self.step = trainer.global_step
        if trainer.is_global_zero:
            _remove_later(self._folder(trainer), self.suffix, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        before = self.step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.step > before and self.step % self.every_n_train_steps == 0:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.step > (self.start or 0):
            self._save(trainer, pl_module)

    def settings(self) -> dict[str, object]:
        return {"sigma_rel": self.sigma_rel}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.start = state_dict["start"]

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "ema"

    def _save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.is_global_zero or self._saved == self.step or get_setting(trainer, "fast_dev_run"):
            return
        assert isinstance(module, Diffusion)
        folder = self._folder(trainer) / f"step={self.step}-{self.suffix}"
        content = {"step": self.step, "start": self.start, "sigma_rel": self.sigma_rel}
        with replacing_folder(folder) as place, replaced(module, self.weights):
            export_diffusion(module, trainer, place, ema=True)
            write_text(place / SNAPSHOT, json.dumps(content) + "\n")
        self._saved = self.step


def _remove_later(folder: Path, suffix: str, step: int) -> None:
    """Remove snapshots of steps that this run trains again; another trajectory must not mix with theirs."""
    later = [path for path in folder.glob(f"step=*-{suffix}") if _step(path) > step]
    if later:
        rank_zero_warn(
            f"{folder}: {len(later)} snapshots of {suffix} after step {step} are removed; training repeats them"
        )
    for path in later:
        shutil.rmtree(path)


def _step(path: Path) -> int:
    number = path.name.removeprefix("step=").partition("-")[0]
    return int(number) if number.isdecimal() else -1


@dataclass(frozen=True)
class Snapshot:
    """A saved average: its optimiser step, the step at which it began, its length and its folder."""

    folder: Path
    step: int
    start: int
    sigma_rel: float

    @property
    def profile(self) -> Profile:
        return Profile(self.step - self.start, self.sigma_rel)

    @classmethod
    def read(cls, folder: Path) -> "Snapshot":
        try:
            content = json.loads((folder / SNAPSHOT).read_text())
            step, start, sigma_rel = int(content["step"]), int(content["start"]), float(content["sigma_rel"])
            gamma_of(sigma_rel)
            if not 0 <= start < step:
                raise ValueError(f"step {step}, start {start}")
        except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
            raise ValueError(f"{folder / SNAPSHOT} cannot be read ({error}): remove the folder") from None
        return cls(folder, step, start, sigma_rel)


@dataclass(frozen=True)
class Reconstruction:
    """A combination of snapshots, with its weights; `error`: of the profile, as a fraction of its norm."""

    sigma_rel: float
    snapshots: Sequence[Snapshot]
    weights: Sequence[float]
    error: float

    @property
    def last(self) -> Snapshot:
        return self.snapshots[-1]

    def write(self, folder: Path) -> None:
        """Write the model with the combined weights. Raises ValueError for damaged or different snapshots."""
        with replacing_folder(folder) as place:
            for path in sorted(self.last.folder.rglob("*")):
                relative = path.relative_to(self.last.folder)
                if path.is_file() and path.suffix == ".safetensors":
                    (place / relative).parent.mkdir(parents=True, exist_ok=True)
                    save_file(self._combine(relative), place / relative, metadata={"format": "pt"})
                elif path.is_file() and path.name != SNAPSHOT:
                    (place / relative).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place / relative)
            card = place / "README.md"
            lines = card.read_text(encoding="utf-8") if card.exists() else ""
            write_text(card, f"{lines}- Weights: {self.describe()}.\n")

    def describe(self) -> str:
        return (
            f"average of sigma_rel {self.sigma_rel:g} at step {self.last.step}, from {len(self.snapshots)} snapshots; error of "
            f"the profile {self.error:.1%}"
        )

    def _combine(self, file: Path) -> dict[str, Tensor]:
        """The tensors of a file of all snapshots, summed in float64; whole numbers are those of the last."""
        last = _load(self.last.folder / file)
        shapes = {name: w.shape for name, w in last.items()}
        sums = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in last.items() if w.is_floating_point()}
        for snapshot, weight in zip(self.snapshots, self.weights, strict=True):
            tensors = _load(snapshot.folder / file)
            if {name: w.shape for name, w in tensors.items()} != shapes:
                raise ValueError(
                    f"{snapshot.folder / file} has other tensors than {self.last.folder}: remove one of them"
                )
            for name, total in sums.items():
                total.add_(tensors[name].double(), alpha=weight)
        if not all(bool(total.isfinite().all()) for total in sums.values()):
            raise ValueError(f"the snapshots of {self.last.folder.parent} have weights that are not finite")
        return {**last, **{name: total.to(last[name].dtype) for name, total in sums.items()}}


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # a damaged header can raise almost anything
        raise ValueError(f"{path} cannot be read ({error}): remove its snapshot, or copy it again") from None


def find_snapshots(run: Path) -> list[Snapshot]:
    """Snapshots of a run, by step and length. `run`: its folder, or the folder `ema` in it.

    Raises FileNotFoundError without any, ValueError for a damaged one.
    """
    folder = run if any(run.glob(f"step=*/{SNAPSHOT}")) else run / "ema"
    snapshots = [Snapshot.read(path.parent) for path in folder.glob(f"step=*/{SNAPSHOT}")]
    if not snapshots:
        raise FileNotFoundError(
            f"{folder} holds no snapshots: give the folder of a run that had rad.training.PowerEMA among trainer.callbacks"
        )
    return sorted(snapshots, key=lambda snapshot: (snapshot.step, snapshot.sigma_rel))


def reconstruct(snapshots: Sequence[Snapshot], sigma_rel: float, *, step: int | None = None) -> Reconstruction:
    """The average of length `sigma_rel` at `step`, a step with snapshots; None: the last. Raises ValueError for others."""
    gamma_of(sigma_rel)
    steps = sorted({snapshot.step for snapshot in snapshots})
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"step {step} has no snapshot; those of the run are {', '.join(map(str, steps))}")
    start = max(snapshot.start for snapshot in snapshots if snapshot.step == step)
    used = [snapshot for snapshot in snapshots if snapshot.step <= step and snapshot.start == start]
    weights, error = solve_weights([snapshot.profile for snapshot in used], Profile(step - start, sigma_rel))
    return Reconstruction(sigma_rel, used, weights.tolist(), error)


def reachable(snapshots: Sequence[Snapshot], error: float, *, step: int | None = None) -> tuple[float, float]:
    """Shortest and longest `sigma_rel`, in steps of 0.001, whose profile has at most this error."""
    lengths = [number / 1000 for number in range(1, int(1000 * LONGEST) + 1)]
    last = reconstruct(snapshots, lengths[0], step=step).last

    def fits(length: float) -> bool:
        return reconstruct(snapshots, length, step=step).error <= error

    middle = min(range(len(lengths)), key=lambda number: abs(lengths[number] - last.sigma_rel))
    shortest = bisect_left(lengths, True, hi=middle, key=fits)
    beyond = bisect_left(lengths, True, lo=middle + 1, key=lambda length: not fits(length))
    return lengths[shortest], lengths[beyond - 1]
