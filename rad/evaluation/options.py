"""Options of scoring, for `rad evaluate` and `rad sample --report`. Importing this file loads no torch."""

import argparse
from dataclasses import dataclass
from typing import Literal

from rad import console
from rad.console import option

LPIPSNet = Literal["alex", "vgg", "squeeze"]
"""Networks of LPIPS."""

_GROUP = "scoring"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Networks for `rad.evaluation.compare.extractors`, and the baseline."""

    feature_net: list[str] = option("networks for perceptual and set distances", [], metavar="PATH", group=_GROUP)
    lpips: list[LPIPSNet] = option("networks of LPIPS", [], group=_GROUP)
    fid: bool = option("FID and KID with torch-fidelity's Inception network", False, group=_GROUP)
    baseline: str | None = option(
        "method that the others are compared with; default: rad, or the first", None, group=_GROUP
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ReportOptions`."""
    console.add_options(parser, ReportOptions)
