"""LaMa: Resolution-robust Large Mask Inpainting with Fourier Convolutions (Suvorov et al. 2022, arXiv 2109.07161).

One pass of a feed-forward network fills the hole. The network is a TorchScript file, such as the widely used `big-lama.pt`:

    (image (1,3,H,W) in [0,1], mask (1,1,H,W) of 0 and 1, 1 = fill) -> image (1,3,H,W) in [0,1],  H and W multiples of 8.
"""

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.methods.mean import Mean
from rad.sampling.state import RunContext

MULTIPLE = 8
"""The sides of the network's input are multiples of it."""

TOLERANCE = 0.01
"""How far values of the output may lie outside [0,1]."""


@dataclass(frozen=True)
class LaMa(Mean):
    """A baseline: its network is not the model of the run, and its calls do not count as NFE. Latent models encode the result.

    As in the official code, an image is padded by reflection at its right and bottom. The hole's content is black in the input,
    so it has no effect. Loading the file runs code from it.
    """

    paper = "Suvorov et al. 2022, arXiv 2109.07161"
    soft = False

    file: torch.jit.ScriptModule | str | None = field(
        default=None,
        metadata={
            "help": "TorchScript file of the network, such as big-lama.pt; loading it runs code from the file: use files "
            "that you trust",
            "path": True,
        },
    )

    def check(self) -> torch.jit.ScriptModule:
        """The network. Raises ValueError if there is none."""
        if isinstance(self.file, torch.jit.ScriptModule):
            return self.file
        if self.file is not None:
            raise ValueError(f"lama.file {str(self.file)!r} is not loaded: give the Sampler method.load(device)")
        raise ValueError(
            "lama needs its network, a TorchScript file: --set lama.file=big-lama.pt, in Python LaMa(file=PATH)"
        )

    def load(self, device: torch.device) -> "LaMa":
        """The method with its network on `device`. Raises FileNotFoundError, or ValueError for another kind of file."""
        if self.file is None or isinstance(self.file, torch.jit.ScriptModule):
            return self
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"lama.file: there is no file {path}: give a TorchScript file such as big-lama.pt")
        try:
            with warnings.catch_warnings():
                # TorchScript is deprecated, and the format of LaMa's weights.
                warnings.simplefilter("ignore", FutureWarning)
                network = torch.jit.load(path, map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0].partition(". ")[0]
            raise ValueError(
                f"lama.file: {path} is not a TorchScript file ({reason}): give an exported network such as big-lama.pt, not "
                "a training checkpoint"
            ) from None
        return replace(self, file=network)

    def run(self, run: RunContext) -> Tensor:
        task, network = run.task, self.check()
        pairs = zip(task.image.split(1), (task.image_hole > 0).split(1), strict=True)
        with torch.autocast(task.image.device.type, enabled=False):
            images = torch.cat([filled(network, *pair) for pair in pairs]).to(task.known)
        return torch.lerp(task.known, task.autoencoder.encode(images), task.hole)


def filled(network: torch.jit.ScriptModule, image: Tensor, hole: Tensor) -> Tensor:
    """The image (1,3,H,W) in [-1,1], filled where hole (1,1,H,W) is true. Raises ValueError for an unsuitable output."""
    height, width = image.shape[2:]
    black = torch.where(hole, 0.0, (image.float() + 1) / 2)
    inputs = [_padded(black), _padded(hole.float())]
    try:
        output = network(*inputs)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"the network of lama.file failed on an image of {width}x{height}: {lines[-1].strip()}"
        ) from error
    if not isinstance(output, Tensor) or output.shape != inputs[0].shape:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the network of lama.file returned {shape}; expected an image {tuple(inputs[0].shape)}")
    low, high = output.min().item(), output.max().item()
    if not -TOLERANCE <= low <= high <= 1 + TOLERANCE:
        raise ValueError(
            f"the network of lama.file returned values from {low:.3g} to {high:.3g}; expected 0 to 1: give a network that was "
            "exported without scaling to 255"
        )
    return torch.where(hole, output[:, :, :height, :width].clamp(0, 1) * 2 - 1, image)


def _padded(image: Tensor) -> Tensor:
    """Padded at the right and the bottom by reflection; sides too short for a reflection repeat their edge."""
    below, right = (-side % MULTIPLE for side in image.shape[2:])
    mirrored = below < image.shape[2] and right < image.shape[3]
    return F.pad(image, (0, right, 0, below), mode="reflect" if mirrored else "replicate")
