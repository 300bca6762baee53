"""Merges a RAD adapter into its base model and writes the result as a base model for zero-shot methods.

    python benchmarks/merged_base.py --checkpoint checkpoints/rad-nature32 --output runs/merged-nature32
    python sample.py --checkpoint runs/merged-nature32 --image runs/images32 --mask half --method repaint --output runs/M

This is a control for training length: RAD's network was trained for longer than the base. At one noise level for the whole
image it is a stock network, so RePaint and the other methods can run on RAD's own weights. Prints the output folder.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from diffusers import UNet2DModel

from rad.inpainting.inpainter import Inpainter
from rad.models.base import save_base
from rad.models.unet_model import UNetModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a RAD adapter for a pixel model")
    parser.add_argument("--base", help="base model of the adapter (default: the one that the adapter names)")
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    model = Inpainter.from_pretrained(options.checkpoint, base=options.base).model
    if not isinstance(model, UNetModel) or model.kind != "pixel" or model.adapted is None or model.info is None:
        parser.error(
            f"{options.checkpoint} is not a RAD adapter for a pixel model: give one, such as checkpoints/rad-nature32"
        )
    weights, config = model.adapted.state_dict(), dict(model.unet.config)
    if not model.info.learned_variance:  # an untrained variance is not exported
        config["out_channels"] = model.autoencoder.channels
        weights |= {name: weights[name][: model.autoencoder.channels] for name in ("conv_out.weight", "conv_out.bias")}
    unet = UNet2DModel.from_config(config)
    unet.load_state_dict(weights)
    save_base(options.output, unet, betas=model.base.betas, prediction_type=model.base.prediction_type, half=False)
    print(options.output)


if __name__ == "__main__":
    main()
