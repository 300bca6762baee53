"""Options of `rad studio`. Loads neither torch nor FastAPI."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rad.console import Parser, add_options, check_options, option, program

Runtime = Literal["auto", "torch", "onnx"]
Precision = Literal["32", "bf16"]

DEFAULT_CHECKPOINTS = ("checkpoints/photos-turbo", "checkpoints/photos", "checkpoints/rad-nature32")
"""Shipped models that fill photographs with RAD. The zero-shot methods run on all but the first."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")

ACCESS, LIMITS, MODELS = "access from other machines", "limits", "models"


@dataclass(frozen=True, kw_only=True)
class StudioOptions:
    """Options of `rad studio`; each field is the option of its name. Raises ValueError for a value out of range."""

    checkpoint: list[str] = option(
        "adapters, run folders, base models or ONNX folders, as for rad sample; the page starts with the first "
        f"(default: {' '.join(DEFAULT_CHECKPOINTS)})",
        [],
        metavar="NAME_OR_PATH",
        group=MODELS,
    )
    runtime: Runtime = option(
        "onnx: folders of rad export --onnx; auto: onnx for such folders, else torch", "auto", group=MODELS
    )
    device: str = option("auto (an accelerator if there is one), cpu, cuda, ...", "auto", group=MODELS)
    precision: Precision = option("precision of the networks", "32", group=MODELS)
    port: int = option("port; 0: any free one", 7860, low=0, high=65535)
    open: bool = option("open the page in the browser", False)
    host: str = option("address to bind; any but a loopback address needs a token", "127.0.0.1", group=ACCESS)
    token: str | None = option(
        "secret that each request has to carry; auto: a random one, the default for other hosts", None, group=ACCESS
    )
    allow_host: list[str] = option("further names by which browsers reach the server", [], metavar="NAME", group=ACCESS)
    lanes: int = option(
        "jobs that run at the same time; they take turns at every network call", 4, low=1, high=64, group=LIMITS
    )
    max_queue: int = option("jobs that wait", 50, low=1, high=10**4, group=LIMITS)
    max_megapixels: float = option(
        "largest image, also summed over the samples", 32.0, low=1e-3, high=1e4, group=LIMITS
    )
    max_upload: float = option("largest request in megabytes", 64.0, low=1e-3, high=1e4, group=LIMITS)
    max_samples: int = option("most samples of an image", 16, low=1, high=1000, group=LIMITS)
    max_memory: float = option("megabytes of inputs and results that are kept", 512.0, low=1, high=1e6, group=LIMITS)
    keep: float = option("minutes for which results are kept", 60.0, low=0.1, high=1e5, group=LIMITS)

    def __post_init__(self) -> None:
        check_options(self)
        if self.token is not None and re.fullmatch(r"auto|[A-Za-z0-9._~-]{8,200}", self.token) is None:
            raise ValueError("--token: give auto, or at least 8 of the characters A-Z a-z 0-9 . _ ~ -")
        for name in self.allow_host:
            if re.fullmatch(r"[A-Za-z0-9.-]+|\[?[0-9A-Fa-f:]+\]?", name) is None:
                raise ValueError(
                    f"--allow_host {name!r}: give a host name without scheme and port, such as studio.example.org"
                )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name, or an address with or without brackets, is this machine's own."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_options(arguments: Sequence[str] | None = None) -> StudioOptions:
    """The options on the command line, or in `arguments`. Raises ValueError for unusable ones."""
    parser = Parser(
        prog=program("studio"),
        description="Open a page on this machine: brush a mask, fill the hole, watch methods race. Also an HTTP API.",
    )
    add_options(parser, StudioOptions)
    return StudioOptions(**vars(parser.parse_args(arguments)))
