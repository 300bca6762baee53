"""Counts of gpu.py: waits for the device, and graphs of torch.compile, for training and sampling of a pixel model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DModel

from benchmarks.gpu_report import Row
from benchmarks.gpu_timing import describe
from benchmarks.gpu_waits import count_compilations, count_graphs, count_synchronisations, mark_all
from benchmarks.gpu_work import Options, Sampling, Setting, TrainingStep
from benchmarks.networks import forward, variant_of


def waits(setting: Setting, unet: UNet2DModel) -> list[Row]:
    """Rows of the places where a training step and a sampling run of rad wait for the device."""
    rows: list[Row] = []
    for name, fused in (("fused AdamW", True), ("AdamW", False)):
        training = TrainingStep(setting, unet, "float32", Options(fused=fused))
        training.step()
        batch = training.batch()
        mark_all(batch["image"], batch["draws"], training.module, training.optimizer, training.ema.weights)
        work = f"training step, {name}, batch {setting.batch}"
        rows += _rows(work, partial(training.optimise, batch), setting.device)
    sampling = Sampling(setting, unet, "rad", steps=10)
    sampling.run()
    mark_all(sampling.task, sampling.model.network)
    return rows + _rows(
        f"sampling run of rad, {sampling.steps} steps, batch {setting.batch}", sampling.run, setting.device
    )


def _rows(work: str, call: Callable[[], object], device: str) -> list[Row]:
    counts = count_synchronisations(call, device, before=1)
    rows: list[Row] = [{"work": work, "kind": "all", "place": "", "count": counts.total()}]
    return rows + [
        {"work": work, "kind": kind, "place": place, "count": count} for (kind, place), count in counts.most_common()
    ]


def graphs(setting: Setting) -> list[Row]:
    """Rows of the number of graphs of the network with an adapter, of the losses, and of several batch sizes.

    Graphs depend on the kinds and the number of layers, not on their width.
    """
    unet, rows = setting.network(), []
    for name, checkpointing in (("network, training", False), ("network, training with gradient checkpointing", True)):
        training = TrainingStep(setting, unet, "float32", Options(checkpointing=checkpointing))
        call = forward(training.module.network, "factorised", setting.inputs())
        rows.append(_counted(name, call))
    training = TrainingStep(setting, unet, "float32", Options())
    rows.append(_counted("noise, network and losses", training.module.losses, training.batch(), "train"))
    sampling = Sampling(setting, unet, "rad")
    call = forward(sampling.model.network, "factorised", setting.inputs())
    rows.append(_counted("network, sampling", torch.inference_mode()(call)))
    inputs = [{name: value[:batch].clone() for name, value in setting.inputs().items()} for batch in (4, 3, 2)]
    calls = [lambda compiled, x=x: compiled(x["x"], x["times"], index=x["hole"]) for x in inputs]
    count = count_compilations(training.module.network, calls, dynamic=True)
    rows.append({"call": "network, training, batches of 4, 3 and 2, dynamic=True", "graphs": count})
    return [*rows, _exported(setting, unet)]


def _exported(setting: Setting, unet: UNet2DModel) -> Row:
    """Whether torch.export keeps the batch dynamic."""
    inputs, batch = setting.inputs(), torch.export.Dim("batch", min=2, max=63)  # diffusers branches at 64
    shapes = {name: {0: batch} for name in ("sample", "timestep", "index")}
    network = variant_of(unet, "factorised").eval()
    arguments, named = (inputs["x"], inputs["times"].clone()), {"index": inputs["hole"]}
    row: Row = {"call": "torch.export of the network with a dynamic batch"}
    try:
        torch.export.export(network, arguments, named, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        return {**row, "reasons of breaks": describe(error)}
    return {**row, "graphs": 1}


def _counted(name: str, function: Callable[..., object], *args: Any) -> Row:
    try:
        count, reasons = count_graphs(function, *args)
    except Exception as error:
        return {"call": name, "reasons of breaks": describe(error)}
    return {"call": name, "graphs": count, "reasons of breaks": "; ".join(dict.fromkeys(reasons))}
