"""Measures the overhead of `Trainer.fit` over a bare training loop, the speed of precisions, and the speed of reading images.

    python benchmarks/training.py --threads 1
    python benchmarks/training.py --threads 1 --config photos --precision bf16-mixed
    python benchmarks/training.py --threads 1 --precisions
    python benchmarks/training.py --images

Each command prints a table.

1. Trains an adapter on checkpoints/base-nature32 with `Trainer.fit`: images from the disk, Perlin masks, noise, both losses,
   clipping, AdamW, EMA, guards, logging. After each step runs a bare step on a copy of the network: forward, squared error,
   backward, clipping and AdamW on ready tensors. Goal: at most 1.05 times the bare step.
2. `--config photos`: the same with the model, masks, crops and averages of configs/photos.yaml.
3. `--precisions`: the bare step of that network in float32, bfloat16, and bfloat16 with torch.compile, and of the stock
   network in bfloat16, in turn.
4. `--images`: images per second of the loader for 256x256, from JPEG and from larger PNG, by number of workers.
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
import yaml
from diffusers import UNet2DModel
from lightning.pytorch.cli import instantiate_module

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import timing
from rad.data.module import ImageDataModule
from rad.masks.shapes import make
from rad.models.lora import LoRA
from rad.networks.unet import patch
from rad.training.diffusion import Diffusion
from rad.training.ema import EMA
from rad.training.guards import FiniteGuard, StopOnSignal
from rad.training.panel import Throughput
from tests.conftest import random_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", action="store_true", help="time the loader only")
    parser.add_argument("--precisions", action="store_true", help="time float32, bfloat16 and torch.compile in turn")
    parser.add_argument("--config", choices=["lora", "photos"], default="lora", help="model to train")
    parser.add_argument("--precision", choices=["32", "bf16-mixed"], default="32")
    parser.add_argument("--batch", type=int, help="default: 16, or 32 with --config photos")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.precisions:
        precisions(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.images:
            read(Path(folder))
        else:
            train(Path(folder), options)


class Bare:
    """A minimal training step: forward, squared error, backward, clipping and AdamW, on ready tensors."""

    def __init__(self, network: Any, *, batch: int, precision: str, region_aware: bool = True) -> None:
        self.network, self.precision, self.region_aware = network, precision, region_aware
        self.trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        source = torch.Generator().manual_seed(0)
        self.x = torch.randn(batch, 3, 32, 32, generator=source)
        self.eps = torch.randn(batch, 3, 32, 32, generator=source)
        self.times = 1000 * torch.rand(batch, 2, generator=source)
        self.index = (torch.rand(batch, 32, 32, generator=source) > 0.5).long()

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            times, index = (self.times, {"index": self.index}) if self.region_aware else (self.times[:, 0], {})
            output = self.network(self.x, times, **index).sample
            loss = (output[:, :3] - self.eps).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Turns(L.Callback):
    """Run one bare step after each step of the trainer; record wall and CPU seconds of both."""

    def __init__(self, bare: Bare) -> None:
        self.bare = bare
        self.seconds = {"bare loop": timing.Seconds(), "Trainer.fit": timing.Seconds()}
        self._since = (0.0, 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = (time.perf_counter(), time.process_time())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._record("Trainer.fit")
        self.bare.step()
        self._record("bare loop")

    def _record(self, name: str) -> None:
        now = (time.perf_counter(), time.process_time())
        if self.bare.optimizer.state:  # skip the first step, which sets up
            self.seconds[name].wall.append(now[0] - self._since[0])
            self.seconds[name].cpu.append(now[1] - self._since[1])
        self._since = now


def train(folder: Path, options: argparse.Namespace) -> None:
    photos = options.config == "photos"
    batch = options.batch or (32 if photos else 16)
    for number in range(64):
        if photos:
            random_image(60, 80, seed=number).resize((533, 400)).save(folder / f"{number}.jpg")
        else:
            random_image(64, 64, seed=number).save(folder / f"{number}.png")
    averages = [EMA()]
    if photos:
        config = yaml.safe_load((ROOT / "configs/photos.yaml").read_text())["model"]
        module = instantiate_module(Diffusion, {**config, "image_size": 32})
        data = ImageDataModule(
            str(folder),
            size=32,
            batch_size=batch,
            val_count=0,
            crop="random_scale",
            side_range=(32, None),
            scale_draw="log_uniform",
            flip=True,
            in_memory=True,
            masks=make("photos"),
        )
        averages.append(EMA(suffix="ema_long"))
    else:
        base = str(ROOT / "checkpoints/base-nature32")
        module = Diffusion(base=base, image_size=32, lora=LoRA(rank=32, alpha=32))
        data = ImageDataModule(str(folder), size=32, batch_size=batch, val_count=0)
    module.configure_model()
    turns = Turns(Bare(copy.deepcopy(module.network), batch=batch, precision=options.precision))
    trainer = L.Trainer(
        max_steps=options.steps + 3,
        accelerator="cpu",
        precision=options.precision,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[*averages, Throughput(), StopOnSignal(), FiniteGuard(), turns],
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=10,
    )
    trainer.fit(module, datamodule=data)
    model = "3.2 M, all weights, configs/photos.yaml" if photos else "3.2 M, LoRA of rank 32"
    timing.print_setting(f"32x32, batch {batch}, {model}, {options.precision}", repeats=options.steps)
    rows = [[name, *cells] for name, cells in timing.compare(turns.seconds, to="bare loop").items()]
    timing.print_table(["a training step", *timing.COMPARED], rows)


def precisions(options: argparse.Namespace) -> None:
    """Images per second of the bare step, for the network of configs/photos.yaml."""
    fields = yaml.safe_load((ROOT / "configs/photos.yaml").read_text())["model"]["unet"]
    batch = options.batch or 64
    patched = [patch(UNet2DModel(**fields, sample_size=32)) for _ in range(3)]
    steps = {
        "float32": Bare(patched[0], batch=batch, precision="32"),
        "bfloat16": Bare(patched[1], batch=batch, precision="bf16-mixed"),
        "bfloat16, torch.compile": Bare(torch.compile(patched[2]), batch=batch, precision="bf16-mixed"),
        "bfloat16, stock network": Bare(
            UNet2DModel(**fields, sample_size=32), batch=batch, precision="bf16-mixed", region_aware=False
        ),
    }
    seconds = timing.interleaved({name: bare.step for name, bare in steps.items()}, repeats=options.steps)
    timing.print_setting(f"32x32, batch {batch}, 3.2 M, all weights", repeats=options.steps)
    cells = timing.compare(seconds, to="float32")
    rows = [[n, f"{batch / statistics.median(seconds[n].cpu):.0f}", *cells[n]] for n in steps]
    timing.print_table(["a bare training step", "images/s of CPU time", *timing.COMPARED], rows)


def read(folder: Path) -> None:
    """Images per second of the loader, by number of workers, without training."""
    for kind, size, suffix in (("JPEG of 256x256", 256, "jpg"), ("PNG of 1024x1024", 1024, "png")):
        place = folder / suffix
        place.mkdir()
        for number in range(64):
            smooth = random_image(size // 8, size // 8, seed=number).resize((size, size))
            smooth.save(place / f"{number}.{suffix}")
        rows = []
        for workers in (0, 1, 2, 4):
            data = ImageDataModule(str(place), size=256, batch_size=8, num_workers=workers, val_count=0, flip=True)
            data.setup("fit")
            loader = iter(data.train_dataloader())
            next(loader)
            times = []
            for _ in range(7):
                start = time.perf_counter()
                next(loader)
                times.append(time.perf_counter() - start)
            rows.append([str(workers), f"{8 / statistics.mean(times):.0f}"])
        timing.print_table([f"workers, {kind}", "images a second"], rows)


if __name__ == "__main__":
    main()
