"""The precision of float32 matrix products during a training."""

from typing import Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

MatmulPrecision = Literal["highest", "high", "medium"]


class MatmulPrecisionOfRun(Callback):
    """Sets torch.set_float32_matmul_precision while the Trainer runs, and then the precision of before."""

    def __init__(self, precision: MatmulPrecision) -> None:
        self.precision: MatmulPrecision = precision
        self._before: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._before is None:
            self._before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        before, self._before = self._before, None
        if before is not None:
            torch.set_float32_matmul_precision(before)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
