"""A training step with everything around it against a bare loop of the same network; and what the pictures cost.

    python benchmarks/training.py
    python benchmarks/training.py --pictures

The first trains an adapter on checkpoints/base-nature32 by `Trainer.fit`: pictures from the disk, Perlin masks, noise, both
losses, clipping, AdamW, EMA, guards, logging. After each of its steps comes a bare one on a copy of the network, timed by itself:
forward, squared error, backward, clipping, AdamW on ready tensors. The goal is at most 1.05 times. The second reads pictures for
256x256 (JPEG, and larger PNG) with several workers; a step that takes longer than a batch of them never waits.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import timing
from rad.callbacks import EMA, Throughput
from rad.data import PictureData
from rad.guards import FiniteGuard, StopOnSignal
from rad.lora import LoRA
from rad.module import Diffusion
from tests.conftest import random_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.pictures:
            read(Path(folder))
        else:
            train(Path(folder), options)


class Turns(L.Callback):
    """After each step of the trainer one of the bare loop; seconds of both."""

    def __init__(self, module: Diffusion, batch: int) -> None:
        self.network: Any = copy.deepcopy(module.network)
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        source = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, 3, 32, 32, generator=source)
        self.eps = torch.randn(batch, 3, 32, 32, generator=source)
        self.times = 1000 * torch.rand(batch, 2, generator=source)
        self.index = (torch.rand(batch, 32, 32, generator=source) > 0.5).long()
        self.seconds: dict[str, list[float]] = {"bare loop": [], "Trainer.fit": []}
        self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds["Trainer.fit"].append(time.perf_counter() - self._since)
        start = time.perf_counter()
        self.bare()
        self._since = time.perf_counter()
        self.seconds["bare loop"].append(self._since - start)

    def bare(self) -> Tensor:
        output = self.network(self.x, self.times, index=self.index).sample
        loss = (output[:, :3] - self.eps).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def train(folder: Path, options: argparse.Namespace) -> None:
    for number in range(64):
        random_picture(64, 64, seed=number).save(folder / f"{number}.png")
    module = Diffusion(
        base=str(ROOT / "checkpoints/base-nature32"), image_size=32, lora=LoRA(rank=32, alpha=32), learning_rate=1e-4
    )
    turns = Turns(module, options.batch)
    trainer = L.Trainer(
        max_steps=options.steps + 3,
        accelerator="cpu",
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[EMA(), Throughput(), StopOnSignal(), FiniteGuard(), turns],
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, datamodule=PictureData(str(folder), size=32, batch_size=options.batch, val_count=0))
    seconds = {name: timing.Seconds(values[3:], values[3:]) for name, values in turns.seconds.items()}
    timing.print_setting(f"32x32, batch {options.batch}, 3.2 M, LoRA of rank 32", repeats=options.steps)
    rows = [[name, *cells[:4]] for name, cells in timing.compare(seconds, to="bare loop").items()]
    timing.print_table(["a training step", *timing.COMPARED[:4]], rows)


def read(folder: Path) -> None:
    """Pictures a second of the loader, by workers, with nothing else to do."""
    for kind, size, suffix in (("JPEG of 256x256", 256, "jpg"), ("PNG of 1024x1024", 1024, "png")):
        place = folder / suffix
        place.mkdir()
        for number in range(64):
            smooth = random_picture(size // 8, size // 8, seed=number).resize((size, size))
            smooth.save(place / f"{number}.{suffix}")
        rows = []
        for workers in (0, 1, 2, 4):
            data = PictureData(str(place), size=256, batch_size=8, num_workers=workers, val_count=0, flip=True)
            data.setup("fit")
            loader = iter(data.train_dataloader())
            next(loader)
            times = []
            for _ in range(7):
                start = time.perf_counter()
                next(loader)
                times.append(time.perf_counter() - start)
            rows.append([str(workers), f"{8 / statistics.mean(times):.0f}"])
        timing.print_table([f"workers, {kind}", "pictures a second"], rows)


if __name__ == "__main__":
    main()
