"""The options of scoring, for both commands: `rad evaluate` and `rad sample --report`. Importing this loads no torch."""

import argparse
from typing import Literal, get_args

LPIPSNet = Literal["alex", "vgg", "squeeze"]
"""The trunks of LPIPS."""


def add_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Networks for `rad.evaluation.compare.extractors`, and the baseline."""
    nets = get_args(LPIPSNet)
    parser.add_argument(
        "--feature_net", nargs="+", default=[], metavar="PATH", help="networks for perceptual and set distances"
    )
    parser.add_argument("--lpips", nargs="+", default=[], choices=nets, metavar="NET", help=f"LPIPS: {', '.join(nets)}")
    parser.add_argument("--fid", action="store_true", help="FID and KID with the Inception network of torch-fidelity")
    parser.add_argument("--baseline", help="the method that others are compared with; rad, or else the first")
