"""Callbacks that end a run in good order: at a signal, or when a loss or gradient is not finite."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import FrameType

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from rad.images.codecs import to_uint8
from rad.training.diffusion import Diffusion
from rad.training.module import Batch

CAUGHT = ("SIGTERM", "SIGUSR1")
REQUEUE = "SIGUSR1"


class StopOnSignal(Callback):
    """Ends the run after the current optimiser step when a process receives a signal; `Checkpoint` then saves that step.

    Under SLURM, SIGUSR1 (`#SBATCH --signal=USR1@300`, sent before the time limit) also puts the job back into the queue.
    Lightning's own handlers save in the middle of a step, and do not save for SIGTERM.

    Args:
        requeue: whether SIGUSR1 calls `scontrol requeue` in a SLURM job.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self.received: str | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name in CAUGHT:
            signal.signal(getattr(signal, name), self._note)  # the trainer restores all handlers when it is done

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.should_stop:
            return
        code = 0 if self.received is None else 1 + CAUGHT.index(self.received)
        if trainer.world_size > 1:
            codes = trainer.strategy.all_gather(torch.tensor(code, device=trainer.strategy.root_device))
            code = int(codes.max())
        if code:
            self.received = CAUGHT[code - 1]
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # a validation would take the time that is left for the checkpoint

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the stop and requeue the job; the checkpoint is complete by now."""
        if self.received is not None:
            rank_zero_info(
                f"stopped by {self.received} after step {trainer.global_step}: continue with --ckpt_path last"
            )
            if self.received == REQUEUE and self.requeue and trainer.is_global_zero:
                requeue_job()


def requeue_job() -> None:
    """Put the SLURM job of this process back into the queue, if there is one."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("scontrol") is None:
        return
    name = job if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    result = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
    if result.returncode:
        rank_zero_warn(f"scontrol requeue {name} failed: {result.stderr.strip()}; submit the job again")


class FiniteGuard(Callback):
    """Checks after every step that loss and gradients are finite; if not, skips the update or ends the run (FloatingPointError).

    The batch is written to `RUN/nonfinite/step=N-rank=R/`: images and holes (white = fill) as PNG files, and `batch.json` with
    the seed, and the name, position, t and loss of each sample.

    Args:
        skip: number of updates that may be skipped in a run, at least 0; the next one ends it.
    """

    def __init__(self, skip: int = 0) -> None:
        if skip < 0:
            raise ValueError(f"skip is {skip}; allowed are >= 0")
        self.skip, self.skipped = skip, 0
        self._batches: list[Batch] = []
        self._finite = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._finite = [], True
        self._batches.append(batch)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self._finite = self._finite and bool(torch.isfinite(loss))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        finite = self._finite
        if getattr(trainer.precision_plugin, "scaler", None) is None:  # a loss scaler causes overflows on purpose
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            finite = finite and bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
        if trainer.world_size > 1:
            finite = trainer.strategy.reduce_boolean_decision(finite, all=True)
        if finite:
            return
        folder = Path(trainer.default_root_dir) / "nonfinite" / f"step={trainer.global_step}-rank={trainer.global_rank}"
        if isinstance(pl_module, Diffusion):
            with trainer.precision_plugin.train_step_context():
                self._write_batches(pl_module, folder)
        self.skipped += 1
        message = f"loss or gradient of step {trainer.global_step} is not finite"
        if folder.is_dir():
            message += f"; its batch is in {folder}"
        if self.skipped > self.skip:
            raise FloatingPointError(
                f"{message}. The weights are those before this step: continue from the last checkpoint with a lower learning "
                "rate, or let rad.training.FiniteGuard skip updates (skip)"
            )
        rank_zero_warn(f"{message}; update skipped, {self.skipped} of at most {self.skip}")
        optimizer.zero_grad(set_to_none=True)  # optimisers skip parameters without a gradient

    @torch.no_grad()
    def _write_batches(self, module: Diffusion, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        samples = []
        for batch in self._batches:
            losses, t, hole = module.losses(batch, "train")
            for row, position in enumerate(batch["position"].tolist()):
                image, name = folder / f"{position}.png", batch.get("name")
                to_uint8(batch["image"][row].nan_to_num() / 2 + 0.5).save(image)
                to_uint8(hole[row].expand(3, -1, -1)).save(image.with_name(f"{position}-hole.png"))
                samples.append(
                    {
                        "position": position,
                        "name": None if name is None else name[row],
                        "t": int(t[row]),
                        "loss": float(losses.total[row]),
                        "image": [float(batch["image"][row].min()), float(batch["image"][row].max())],
                    }
                )
        content = {"seed": module.seed, "samples": samples}
        (folder / "batch.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]
