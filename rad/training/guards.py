"""Callbacks that end a run safely: at a signal, or when a loss or gradient is not finite."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from rad.images.atomic import replacing_folder
from rad.images.tensors import to_uint8
from rad.training.diffusion import Diffusion
from rad.training.module import Batch, TrainingModule, unscales_in_step

CAUGHT = ("SIGTERM", "SIGUSR1")
REQUEUE = "SIGUSR1"


class StopOnSignal(Callback):
    """Ends the run after the current optimiser step when a process receives a signal; `Checkpoint` then saves that step.

    Under SLURM, SIGUSR1 (`#SBATCH --signal=USR1@300`, sent before the time limit) also puts the job back into the queue.
    Lightning's own handlers save in the middle of a step, and do not save for SIGTERM.

    Several processes compare their signals every few steps, and stop at the same step. One process checks after every step.

    Args:
        requeue: whether SIGUSR1 calls `scontrol requeue` in a SLURM job.
        every_n_steps: optimiser steps between two comparisons of several processes, at least 1. A signal has to come this many
            steps before the time limit, besides the time for the checkpoint.
    """

    def __init__(self, requeue: bool = True, every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; allowed are >= 1")
        self.requeue, self.every_n_steps = requeue, every_n_steps
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
        if trainer.world_size > 1 and trainer.global_step % self.every_n_steps:
            return  # all processes are at the same step
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

    On a GPU, a fused optimiser receives the result of the check as its `found_inf`, and skips the update itself. The host reads
    the result one step later, without waiting; warning, file and error come then. Other optimisers wait for the check at every
    step.

    Args:
        skip: number of updates that may be skipped in a run, at least 0; the next one ends it.
    """

    def __init__(self, skip: int = 0) -> None:
        if skip < 0:
            raise ValueError(f"skip is {skip}; allowed are >= 0")
        self.skip, self.skipped = skip, 0
        self._batches: list[Batch] = []
        self._finite: Tensor | None = None
        self._late: tuple[_LateFlag, _Step] | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._finite = [], None
        self._batches.append(batch)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach())
        self._finite = finite if self._finite is None else self._finite & finite

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._report_late()
        assert self._finite is not None
        finite, scaled = self._finite, getattr(trainer.precision_plugin, "scaler", None) is not None
        if not scaled:  # a loss scaler causes overflows on purpose
            finite = finite & torch.isfinite(_gradient_norm(pl_module))
        if trainer.world_size > 1:  # a loss is that of one process
            flag = finite.to(torch.uint8)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
            finite = flag > 0
        step = _Step(trainer, pl_module, self._batches, trainer.global_step)
        if not scaled and waits_for(finite.device) and unscales_in_step(optimizer):
            optimizer.found_inf = (~finite).to(torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
            self._late = _LateFlag(finite), step
        elif not bool(finite):
            self._report(step)
            optimizer.zero_grad(set_to_none=True)  # optimisers skip parameters without a gradient

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report_late()

    def _report_late(self) -> None:
        """Report the step before, if its check has not been read yet."""
        late, self._late = self._late, None
        if late is not None and not late[0].read():
            self._report(late[1])

    def _report(self, step: "_Step") -> None:
        """Write the batch of a step whose update was skipped. Raises FloatingPointError if it was one too many."""
        trainer = step.trainer
        folder = Path(trainer.default_root_dir) / "nonfinite" / f"step={step.number}-rank={trainer.global_rank}"
        if isinstance(step.module, Diffusion):
            with trainer.precision_plugin.train_step_context():
                self._write_batches(step.module, step.batches, folder)
        self.skipped += 1
        message = f"loss or gradient of step {step.number} is not finite"
        if folder.is_dir():
            message += f"; its batch is in {folder}"
        if self.skipped > self.skip:
            raise FloatingPointError(
                f"{message}. The weights are those before this step: continue from the last checkpoint with a lower learning "
                "rate, or let rad.training.FiniteGuard skip updates (skip)"
            )
        rank_zero_warn(f"{message}; update skipped, {self.skipped} of at most {self.skip}")

    @torch.no_grad()
    def _write_batches(self, module: Diffusion, batches: Sequence[Batch], folder: Path) -> None:
        with replacing_folder(folder) as place:
            samples = []
            for batch in batches:
                losses, t, hole = module.losses(batch, "train")
                for row, position in enumerate(batch["position"].tolist()):
                    image, name = place / f"{position}.png", batch.get("name")
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
            (place / "batch.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def state_dict(self) -> dict[str, int]:
        self._report_late()  # a checkpoint must know of its last step
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped = state_dict["skipped"]


@dataclass(frozen=True)
class _Step:
    """A step that may have to be reported."""

    trainer: L.Trainer
    module: L.LightningModule
    batches: list[Batch]
    number: int


class _LateFlag:
    """A flag on a device that the host reads a step later: the copy runs beside the next step."""

    def __init__(self, flag: Tensor) -> None:
        self._host = torch.empty((), dtype=flag.dtype, device="cpu", pin_memory=flag.is_cuda)
        self._host.copy_(flag, non_blocking=True)
        self._copied = torch.cuda.Event() if flag.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._host)


def waits_for(device: torch.device) -> bool:
    """Whether reading a value of `device` makes the host wait."""
    return device.type == "cuda"


def _gradient_norm(module: L.LightningModule) -> Tensor:
    if isinstance(module, TrainingModule):
        return module.gradient_norm()
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
