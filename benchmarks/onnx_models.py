"""Measures exported models: size on disk, time of a call, error of the estimated image, difference of filled images.

    python benchmarks/onnx_models.py --model checkpoints/rad-nature32 --data nature64_val.zip --calibration nature64_train.zip

Compares PyTorch with ONNX Runtime in fp32, fp16 and int8 (`rad export --onnx`). All see the same images, masks and noise. With
`--calibration`, a fifth graph has weights and activations in int8 (ONNX Runtime's static quantisation with QDQ nodes), calibrated
on noisy photographs of that source. `rad export` does not offer it; the table of errors shows why.

Prints three Markdown tables:
1. MB on disk, and median ms per call at batch 1 and 8, measured in turn (A B C A B C ...).
2. Squared error of x0 in the hole, range [-1, 1], against ONNX in fp32 and, in brackets, against the photograph.
3. Filled images against those of PyTorch, in grey levels 0..255 over the hole; and the mean error against the photograph.
"""

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader
from PIL import Image
from torch import Tensor

from benchmarks.image_set import spread, square
from benchmarks.timing import interleaved, print_setting
from rad.diffusion.levels import NoiseLevel, NoiseRegions
from rad.diffusion.processes import region_aware
from rad.diffusion.step import denoised, noised
from rad.images.sources import list_images
from rad.images.tensors import to_tensor
from rad.inpainting.inpainter import Inpainter
from rad.masks.shapes import make
from rad.models.unet_model import UNetModel
from rad.networks.unet import RegionAwareUNet
from rad.rng import generator
from rad.runtime.graph import INPUTS, random_inputs, trace
from rad.runtime.precision import PRECISIONS, convert

TIMES = (100, 300, 500, 700, 900)
CALIBRATION_TIMES = (20, 100, 300, 500, 700, 900, 999, 1300, 1700)


@dataclass(frozen=True)
class Variant:
    """A graph as bytes, and its session."""

    content: bytes
    session: onnxruntime.InferenceSession

    @classmethod
    def load(cls, content: bytes, threads: int) -> "Variant":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return cls(content, onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]))

    def __call__(self, sample: Tensor, timesteps: Tensor, levels: Tensor) -> Tensor:
        arrays = (value.to(torch.float32).numpy() for value in (sample, timesteps, levels))
        return torch.from_numpy(self.session.run(None, dict(zip(INPUTS, arrays, strict=True)))[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="folder or archive of photographs that the model never saw")
    parser.add_argument("--calibration", help="photographs for the static quantisation (default: without it)")
    parser.add_argument("--count", type=int, default=64, help="number of photographs")
    parser.add_argument("--steps", type=int, default=20, help="of the filled images")
    parser.add_argument("--masks", nargs="+", default=["wide", "half"], help="mask sets of the filled images")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each variant")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Inpainter.from_pretrained(options.model, device="cpu").model
    if not isinstance(model, UNetModel) or model.kind != "pixel" or not model.has_adapter:
        parser.error(f"{options.model} is no pixel model with RAD weights: give one, such as checkpoints/rad-nature32")
    images = [square(image, model.size) for image in spread(list_images(options.data), options.count)]
    variants = build(model, options)
    with torch.inference_mode():
        print_times(model, variants, options)
        print_errors(model, variants, images)
        print_fills(model, variants, images, options)


def build(model: UNetModel, options: argparse.Namespace) -> dict[str, Variant]:
    """The graphs in each precision, and the one of the static quantisation if there are photographs for it."""
    network = cast(RegionAwareUNet, model.sampled_network(adapter=True))
    graph = trace(network, side_multiple=model.side_multiple)
    contents = {name: convert(graph, name).SerializeToString() for name in PRECISIONS}
    if options.calibration is not None:
        photographs = spread(list_images(options.calibration), 32)
        images = [square(image, model.size) for image in photographs]
        contents["static int8"] = static(contents["fp32"], model, images)
    return {name: Variant.load(content, options.threads) for name, content in contents.items()}


def static(content: bytes, model: UNetModel, images: list[Image.Image]) -> bytes:
    """Weights and activations of convolutions in int8; the first and the last convolution stay in float32."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder, name) for name in ("a.onnx", "b.onnx", "c.onnx"))
        source.write_bytes(content)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        convolutions = [node.name for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
        quantize_static(
            prepared,
            target,
            _Reader(_calibration(model, images)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[convolutions[0], convolutions[-1]],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": 99.99},
        )
        return target.read_bytes()


class _Reader(CalibrationDataReader):
    def __init__(self, inputs: Iterator[dict[str, np.ndarray]]) -> None:
        self._inputs = inputs

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return next(self._inputs, None)


def _calibration(model: UNetModel, images: list[Image.Image]) -> Iterator[dict[str, np.ndarray]]:
    x0, hole = photographs(images), holes("photos", images)
    for t in CALIBRATION_TIMES:
        x, now = noisy(model, x0, hole, t)
        inputs = (x.numpy(), now.timesteps.float().numpy(), maps(now).numpy())
        for start in range(0, len(x), 8):
            yield dict(zip(INPUTS, (value[start : start + 8] for value in inputs), strict=True))


def photographs(images: list[Image.Image]) -> Tensor:
    """(N,3,H,W) in [-1,1]."""
    return torch.stack([to_tensor(image) for image in images]) * 2 - 1


def holes(name: str, images: list[Image.Image]) -> Tensor:
    """(N,1,H,W), 1 = fill."""
    keys = [generator(0, "mask", number) for number in range(len(images))]
    return make(name)(keys, images[0].height, images[0].width)


def noisy(model: UNetModel, x0: Tensor, hole: Tensor, t: int) -> tuple[Tensor, NoiseLevel]:
    """x_t (N,3,H,W) of RAD's process, and its noise level."""
    process = region_aware(model.base_process, time_origin="adm" if model.info is None else model.info.time_origin)
    now = process.noise(torch.full((len(x0),), t), NoiseRegions.from_mask(hole))
    return noised(x0, now, noise=torch.randn(x0.shape, generator=generator(0, "noise", t))), now


def maps(now: NoiseLevel) -> Tensor:
    """Indicator maps (N,K,H,W) of the levels."""
    levels = now.timesteps.shape[1]
    if now.index is None:
        raise ValueError("the process has one level an image, and RAD's has an index of levels")
    return torch.nn.functional.one_hot(now.index, levels).movedim(-1, 1).float()


def print_times(model: UNetModel, variants: dict[str, Variant], options: argparse.Namespace) -> None:
    print_setting("Time of one call", repeats=options.repeats)
    network = model.sampled_network(adapter=True)
    size = 4 * sum(parameter.numel() for parameter in network.parameters())
    rows = {"PyTorch": [f"{size / 1e6:.1f} (weights)"]}
    rows |= {name: [f"{len(variant.content) / 1e6:.1f}"] for name, variant in variants.items()}
    for batch in (1, 8):
        x, t, levels = random_inputs(3, batch=batch, levels=2, size=model.size, steps=1000, seed=0)
        runs: dict[str, Callable[[], object]] = {"PyTorch": partial(network, x, t, index=levels.argmax(1))}
        runs |= {name: partial(variant, x, t, levels) for name, variant in variants.items()}
        for name, seconds in interleaved(runs, repeats=options.repeats).items():
            rows[name].append(f"{1e3 * statistics.median(seconds.wall):.1f}")
    print("| | MB | ms, batch 1 | ms, batch 8 |\n|---|---|---|---|")
    print("".join(f"| {name} | {' | '.join(cells)} |\n" for name, cells in rows.items()), flush=True)


def print_errors(model: UNetModel, variants: dict[str, Variant], images: list[Image.Image]) -> None:
    x0, hole = photographs(images), holes("photos", images)
    print(f"Squared error of x0 in the hole over {len(x0)} photographs, masks `photos`\n")
    print("| | " + " | ".join(f"t={t}" for t in TIMES) + " |\n|---|" + "---|" * len(TIMES))
    exact: dict[int, Tensor] = {}
    for name, variant in variants.items():
        cells = []
        for t in TIMES:
            x, now = noisy(model, x0, hole, t)
            output = variant(x, now.timesteps, maps(now))[:, : x.shape[1]]
            estimate = denoised(x, output, now, model.prediction).clamp(-1, 1)
            reference = exact.setdefault(t, estimate)
            cells.append(f"{squared(estimate - reference, hole):.1e} ({squared(estimate - x0, hole):.4f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()


def squared(difference: Tensor, hole: Tensor) -> float:
    """Mean square of (N,C,H,W) over the pixels of all holes (N,1,H,W)."""
    return float((difference.square().mean(1, keepdim=True) * hole).sum() / hole.sum())


class _Network:
    """A session as the network of a `UNetDenoiser`."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant

    def __call__(self, x: Tensor, timesteps: Tensor, index: Tensor) -> SimpleNamespace:
        levels = torch.nn.functional.one_hot(index, timesteps.shape[1]).movedim(-1, 1)
        return SimpleNamespace(sample=self.variant(x, timesteps, levels))


def print_fills(
    model: UNetModel, variants: dict[str, Variant], images: list[Image.Image], options: argparse.Namespace
) -> None:
    names = [f"{number}.png" for number in range(len(images))]
    truth = np.stack([np.asarray(image.convert("RGB")) for image in images]).astype(np.float64)
    print(f"Fills of {len(images)} photographs, {options.steps} steps\n")
    print("| masks | | mean difference | pixels off by more than one level | largest | mean error in the hole |")
    print("|---|---|---|---|---|---|")
    for masks in options.masks:
        hole = holes(masks, images)
        inside = np.repeat(hole.numpy()[:, 0, :, :, None] > 0, 3, axis=-1)
        expected: np.ndarray | None = None
        for name in ("PyTorch", *variants):
            view = copy.copy(model)
            if name != "PyTorch":
                network = _Network(variants[name])
                view.sampled_network = lambda *, adapter, network=network: network  # pyright: ignore[reportAttributeAccessIssue]
            result = Inpainter(view)(images, list(hole), method="rad", steps=options.steps, names=names)
            filled = np.stack([np.asarray(image) for image in result.images]).astype(np.float64)
            expected = filled if expected is None else expected
            off = np.abs(filled - expected)
            wrong = (off.max(-1) > 1)[inside[..., 0]].mean()
            cells = (off[inside].mean(), off.max(), np.abs(filled - truth)[inside].mean())
            print(f"| {masks} | {name} | {cells[0]:.3f} | {wrong:.2%} | {cells[1]:.0f} | {cells[2]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
