"""`rad sample --preview_masks`: each image with its hole in red, to check masks before anything is computed."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from rad.cli.sample.fill import write_image
from rad.cli.sample.options import SampleOptions
from rad.cli.sample.plan import MethodRun
from rad.cli.sample.prepare import MaskMessages
from rad.cli.sample.run_log import Failures
from rad.images.codecs import to_tensor, to_uint8

COLOUR, STRENGTH = (1.0, 0.0, 0.0), 0.6


def preview(options: SampleOptions, runs: Sequence[MethodRun], failures: Failures) -> None:
    """Write the overlay of each image and mask; print its path."""
    for run in {run.mask: run for run in runs}.values():
        messages = MaskMessages()
        for job in run.jobs:
            try:
                image = job.image.open()
                mask = job.load_mask(image, options)
                write_image(job.overlay, overlay(image, mask.hole))
            except (ValueError, OSError) as error:
                failures.add(f"{job.image}: {error}", job.image)
                continue
            messages.add(str(job.mask), mask)
            failures.written += 1
            print(job.overlay, flush=True)
        messages.report()


def overlay(image: Image.Image, hole: Tensor) -> Image.Image:
    """The RGB image, tinted red where it is filled; grey parts of the hole (1,H,W) in [0,1] are tinted in part."""
    colour = torch.tensor(COLOUR).view(3, 1, 1)
    return to_uint8(torch.lerp(to_tensor(image), colour.expand(3, *hole.shape[1:]), STRENGTH * hole))
