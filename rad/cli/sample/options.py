"""Options of `rad sample`: one dataclass, read from the command line and from YAML files. Loads no torch."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

import jsonargparse

from rad.cli.config import check_config
from rad.cli.names import (
    MASKS,
    METHODS,
    CompileMode,
    GridRule,
    NoiseDevice,
    Offload,
    Precision,
    Quantize,
    RuntimeName,
    SizePolicy,
    Solver,
    Spacing,
)
from rad.console import SEEDS, add_options, check_options, option, program, with_hint, with_underscores
from rad.evaluation.options import ReportOptions
from rad.masks.reading.format import MaskChannel, MaskFormat, MaskResize, Polarity
from rad.resources import PACKAGE

if TYPE_CHECKING:
    from rad.inpainting.canvas.outpaint import Extension
    from rad.inpainting.canvas.pyramid import Pyramid

METHODS_TABLE = PACKAGE / "methods" / "methods.txt"
"""The text of `rad.methods.registry.table`, which a test compares; reading it needs no torch."""

GUIDES = {"control": "controlnet", "adapter": "t2i_adapter", "style": "ip_adapter"}
"""Kinds of guiding images, with the option of their network."""

PIXELS, MANY = 2**16, 2**31
"""Upper limits that exclude typing errors: of lengths in pixels, and of counts."""

RECORDED = {"runtime": "torch", "size_policy": "error", "average": 1}
"""Defaults in requests and records, of options that are "auto" or None until the checkpoint is known."""

SCALES, MASK_FILES, LATENT, TEXT = "--size_policy pyramid", "mask files", "latent models", "text-to-image models"


@dataclass(frozen=True, kw_only=True)
class SampleOptions(ReportOptions):
    """Options of `rad sample`; each field is the option of its name.

    Raises ValueError for a value out of range, options that exclude each other, or a missing one.
    """

    checkpoint: str = option(
        "adapter, run folder (its newest model), base model (diffusers folder, .pt file), folder of rad export --onnx, or "
        "USER/NAME[@REVISION] on the hub"
    )
    runtime: RuntimeName = option(
        "torch; onnx: ONNX Runtime on the CPU, without torch, for a folder of rad export --onnx; auto: by --checkpoint",
        "auto",
    )
    base: str | None = option("base model of the adapter; default: the one that the adapter names", None)
    image: str = option("image, folder, zip, tar, LMDB or hf:ID:SPLIT; read as 8-bit RGB, first frame, upright, opaque")
    mask: list[str] = option(
        "image for all, folder or archive by name, or generator; each of several gets a folder; optional with --extend: "
        f"{', '.join(MASKS)}",
        [],
    )
    extend: str | None = option(
        "outpainting: pixels to add at each side of every image, and to fill, such as 0,0,64,0; a checkpoint without a size "
        "policy needs --size_policy crop",
        None,
        metavar="LEFT,TOP,RIGHT,BOTTOM",
    )
    mask_by: Literal["name", "order"] = option("how masks of a folder are assigned to images", "name")
    limit: int | None = option("number of images, spread evenly over the sorted names", None, low=1, high=MANY)
    output: str = option(
        "folder, or PNG file for a single image; a PNG file contains its settings, without paths and prompts"
    )
    method: list[str] = option(
        "one (default: rad) or several, each in its own folder with equal noise. rad@50: 50 steps; ddnm@100nfe: at most "
        "100 network calls; rad@10,solver=ddim,spacing=quad,eta=0: another solver; mine.py:Mine: class Mine of your "
        f"file, whose code is run. Methods: {', '.join(METHODS)}",
        [],
    )
    set: list[str] = option("setting of a method, see --list_methods", [], metavar="METHOD.SETTING=VALUE")
    steps: int | None = option(
        "noise levels, 1 to those of the model (1000); default: the checkpoint's or by method", None, low=1, high=10**5
    )
    budget_nfe: int | None = option(
        "most network calls of a window, in place of --steps; a VJP counts as two", None, low=1, high=MANY
    )
    solver: Solver | None = option(
        "ddpm: first order, with noise by --eta; ddim: the same without noise; dpm++2m: second order, an ODE (--eta 0) or "
        "SDE (1). dpm++2m is for few steps of rad, tdpaint and inpainting_model, with --spacing logsnr or quad. Default: the "
        "checkpoint's, otherwise by method",
        None,
    )
    spacing: Spacing | None = option(
        "noise levels even in time; trailing: even, longer last step; quad: denser at low noise; logsnr: even in "
        "log(alpha/sigma); official: as RAD's code. Default: the checkpoint's, otherwise by solver or method",
        None,
    )
    eta: float | None = option(
        "fresh noise, 0 (DDIM) to 1 (DDPM); default: the checkpoint's or by solver or method", None, low=0, high=1
    )
    strength: float = option(
        "above 0 to 1; below 1: start from the image's own content in the hole, noised, with the last floor(steps * strength) "
        "levels; rad@20,strength=0.5 for one method; for methods of the standard loop",
        1.0,
        low=1e-6,
        high=1,
    )
    seed: int = option("seed of noise and generated masks", 0, low=SEEDS[0], high=SEEDS[1])
    num_samples: int = option("results per image", 1, low=1, high=10**4)
    average: int | None = option(
        "a result is the mean of N samples, at N times the cost; or rad@5,average=4; default: 1, or the checkpoint's with its "
        "steps and solver",
        None,
        low=1,
        high=10**4,
        metavar="N",
    )
    adapt: int = option(
        "first train RAD's network for STEPS steps on the known pixels of each image; 200 steps of the model photos take "
        "minutes of a CPU core; for images with repeated texture; or rad@4,adapt=200; 0: off",
        0,
        low=0,
        high=10**5,
        metavar="STEPS",
    )
    thin_steps: int | None = option(
        "steps of the windows without a hole wider than 8 pixels, for the method rad; others take --steps; or "
        "rad@4,thin_steps=1; default: none, or the checkpoint's with its steps and solver",
        None,
        low=1,
        high=10**5,
        metavar="N",
    )
    size_policy: SizePolicy | None = option(
        "images of another size than the model's; crop: windows around each hole; zoom: one region around all holes, scaled to "
        "the model's size and back; pyramid: windows at several scales, coarse to fine, for holes larger than a window; default: "
        "the checkpoint's, otherwise error",
        None,
    )
    margin: int | None = option(
        "context in pixels: of a window, for crop and pyramid; of the holes, for zoom; default: the checkpoint's for its "
        "size_policy, otherwise an eighth of the model's size; for zoom half the holes' longer side, if that is more",
        None,
        low=0,
        high=PIXELS,
    )
    pyramid_coarsest: int | None = option(
        "the coarsest scale is the first without a larger square in the hole, in its cells; default: the checkpoint's, "
        "otherwise 3/8 of the model's size",
        None,
        low=1,
        high=PIXELS,
        group=SCALES,
    )
    pyramid_strength: float | None = option(
        "start of a finer scale, see --strength; less keeps more of the coarser result; default: 0.65, or the checkpoint's",
        None,
        low=1e-6,
        high=0.999999,
        group=SCALES,
    )
    pyramid_steps: int | None = option(
        "noise levels of each finer scale; default: 6, or the checkpoint's", None, low=1, high=10**5, group=SCALES
    )
    feather: int = option(
        "width in pixels of the blend from known pixels into the filling; 0: off", 0, low=0, high=PIXELS
    )
    size: int | None = option(
        "image size of the network in pixels, such as 96 for a pixel model trained at 32; for pixel models and flow models such "
        "as SD3 and Flux; default: the checkpoint's, otherwise the model's",
        None,
        low=8,
        high=PIXELS,
    )
    batch_size: int = option("windows per network call", 8, low=1, high=PIXELS)
    precision: Precision = option("precision of the networks", "32")
    compile: CompileMode = option(
        "torch.compile of the network, a minute or more at the start; reduce-overhead: with CUDA graphs, on CUDA devices",
        "off",
    )
    channels_last: bool = option("memory format of the network's convolutions", False)
    offload: Offload | None = option(
        "keep weights of flow models (SD3, Flux, ...) on the CPU; model: one network at a time on the accelerator; sequential: "
        "one layer at a time, far slower. Equal results",
        None,
    )
    quantize: Quantize | None = option(
        "quantise flow models, with --precision bf16; 8bit, 4bit: by bitsandbytes, on CUDA devices; int8: by torchao",
        None,
    )
    vae_tiling: bool = option("encode and decode large images in tiles, to save memory", False)
    noise_device: NoiseDevice = option(
        "cpu: equal noise on all machines; device: faster, but equal on the same kind of accelerator only",
        "cpu",
    )
    device: str = option("auto (an accelerator if there is one), cpu, cuda, ...", "auto")
    devices: int = option(
        "processes that share the images: one per accelerator, or all on the CPU", 1, low=1, high=1024
    )
    shard: str | None = option(
        "one part of the images, such as 2/4; a last call without it writes contact sheet and report",
        None,
        metavar="NUMBER/COUNT",
    )
    max_megapixels: float = option("largest accepted image, against decompression bombs", 179.0, low=1e-6, high=1e6)
    raw: bool = option("also write NAME-raw.png, without the known pixels restored", False)
    save_mask: bool = option("also write NAME-mask.png, white = filled", False)
    preview_masks: bool = option("only write NAME-overlay.png, the image with its hole in red; loads no model", False)
    report: bool = option("then score the results: metrics.csv, summary.md and report.html in --output", False)
    overwrite: bool = option("recompute finished images, also those of other settings", False)

    mask_polarity: Polarity = option("meaning of white", "white_is_fill", group=MASK_FILES)
    mask_channel: MaskChannel = option(
        "part of the file; auto: transparency if it varies, a painted colour, or grey values, with a note",
        "auto",
        group=MASK_FILES,
    )
    mask_threshold: float | None = option(
        "brighter pixels, of 0 to 1, are white; default: a half where nearly all are black or white, else an error",
        None,
        low=0,
        high=1,
        group=MASK_FILES,
    )
    soft_mask: bool = option("keep grey values; such pixels are filled in part", False, group=MASK_FILES)
    mask_resize: MaskResize = option(
        "masks of another size than their image; nearest needs an equal aspect ratio", "error", group=MASK_FILES
    )
    mask_dilate: int = option("pixels by which holes grow in each direction (a square)", 0, low=0, group=MASK_FILES)
    mask_pattern: str | None = option(
        "name of the mask of an image in the folder --mask, which may also hold the images, such as '{stem}_mask.*' or "
        "'{name}.png'; {name} is the image's file name, {stem} without its ending",
        None,
        group=MASK_FILES,
    )

    grid: GridRule | None = option("how the hole is reduced to the latent grid; default: average", None, group=LATENT)
    dilate: int = option("rings of latent cells added to the hole", 0, low=0, high=PIXELS, group=LATENT)
    encode_full: bool = option("let the encoder see the hole's content, which leaks it", False, group=LATENT)

    prompt: str = option("text for the content of the holes", "", group=TEXT)
    prompts: str | None = option('prompts by image, {"cat.png": "a cat"}', None, metavar="FILE.json", group=TEXT)
    negative_prompt: str = option("text for content to avoid", "", metavar="PROMPT", group=TEXT)
    guidance: float | None = option("classifier-free guidance; 1: off; default: the model's", None, low=0, group=TEXT)
    control_image: str | None = option("image for all, folder or archive by name, for --controlnet", None, group=TEXT)
    control_scale: float = option("weight of the ControlNet; 0: off", 1.0, group=TEXT)
    adapter_image: str | None = option("image for all, folder or archive by name, for --t2i_adapter", None, group=TEXT)
    adapter_scale: float = option("weight of the T2I-Adapter; 0: off", 1.0, group=TEXT)
    style_image: str | None = option("image for all, folder or archive by name, for --ip_adapter", None, group=TEXT)
    style_scale: float = option("weight of the IP-Adapter; 0: off", 1.0, group=TEXT)
    controlnet: str | None = option(
        "diffusers ControlNet, folder or hub id; for Stable Diffusion 3 one trained for inpainting",
        None,
        metavar="FOLDER",
        group=TEXT,
    )
    t2i_adapter: str | None = option("diffusers T2I-Adapter", None, metavar="FOLDER", group=TEXT)
    ip_adapter: str | None = option(".safetensors beside its folder image_encoder", None, metavar="FILE", group=TEXT)
    lora: list[str] = option(".safetensors file or its folder; several add up", [], metavar="PATH[=WEIGHT]", group=TEXT)

    def __post_init__(self) -> None:
        check_options(self)
        if self.steps is not None and self.budget_nfe is not None:
            raise ValueError("--steps and --budget_nfe both set the number of steps: give one of them")
        for kind, network in GUIDES.items():
            if getattr(self, f"{kind}_image") is not None and getattr(self, network) is None:
                raise ValueError(f"--{kind}_image {getattr(self, f'{kind}_image')} needs --{network}")
        _ = self.part, self.loras, self.mask_format, self.pyramid
        self._check_extend()
        if self.mask_pattern is not None and not ("{stem}" in self.mask_pattern or "{name}" in self.mask_pattern):
            raise ValueError(f"--mask_pattern {self.mask_pattern!r}: put {{stem}} or {{name}} for the image's name")
        if self.mask_pattern is not None and self.mask_by == "order":
            raise ValueError("--mask_pattern and --mask_by order both choose the masks: give one of them")

    def _check_extend(self) -> None:
        """Write --extend in one way: None for no new pixels."""
        sides = () if self.extension is None else astuple(self.extension)
        object.__setattr__(self, "extend", ",".join(map(str, sides)) if any(sides) else None)
        if not self.mask and self.extend is None:
            raise ValueError("nothing to fill: give --mask, or new pixels at the borders with --extend")
        if self.extend is None:
            return
        if self.strength < 1:
            raise ValueError(
                f"--strength {self.strength}: new pixels of --extend have no content: leave out one of them"
            )
        if self.report:
            raise ValueError(
                "--report scores results against the images, which --extend enlarges: leave out one of them"
            )
        guides = [f"--{kind}_image" for kind in GUIDES if getattr(self, f"{kind}_image") is not None]
        if guides:
            raise ValueError(f"{guides[0]} does not cover the pixels of --extend: leave out one of them")

    @property
    def extension(self) -> "Extension | None":
        """New pixels of --extend."""
        from rad.inpainting.canvas.outpaint import Extension

        return None if self.extend is None else Extension.parse(self.extend)

    @property
    def policy(self) -> SizePolicy:
        """The size policy, once the checkpoint's settings are known."""
        return self.size_policy or "error"

    @property
    def pyramid(self) -> "Pyramid | None":
        """Settings of --size_policy pyramid; None for others. Raises ValueError for settings without effect."""
        from rad.inpainting.canvas.pyramid import Pyramid

        pyramid = Pyramid.chosen(self)
        if pyramid != Pyramid() and self.size_policy not in ("pyramid", None):  # None: until the checkpoint is known
            raise ValueError("--pyramid_... options need --size_policy pyramid: give it, or leave them out")
        return pyramid if self.size_policy == "pyramid" else None

    @property
    def tree(self) -> bool:
        """Whether results lie in OUTPUT/MASK/METHOD/, for a comparison; otherwise in OUTPUT, or OUTPUT/METHOD/."""
        return self.report or len(set(self.mask)) > 1

    @property
    def mask_format(self) -> MaskFormat:
        """How mask files are read."""
        return MaskFormat(
            polarity=self.mask_polarity,
            channel=self.mask_channel,
            threshold=self.mask_threshold,
            soft=self.soft_mask,
            resize=self.mask_resize,
            dilate=self.mask_dilate,
        )

    @property
    def part(self) -> tuple[int, int] | None:
        """(Number, count) of --shard."""
        if self.shard is None:
            return None
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--shard {self.shard!r}: give 1/4 to 4/4 for the parts of a run on four machines")
        return int(match[1]), int(match[2])

    @property
    def loras(self) -> list[tuple[str, float]]:
        """Path and weight of each --lora."""
        pairs = []
        for word in self.lora:
            path, equals, weight = word.rpartition("=")
            try:
                pairs.append((path, float(weight)) if equals else (word, 1.0))
            except ValueError:
                raise ValueError(f"--lora {word!r}: give PATH, or PATH=WEIGHT with a number") from None
        return pairs


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = re.sub(r'Parser key "(\w+)":', r"--\1:", re.sub(r"<class '(\w+)'>", r"\1", message))
        for kind, words in (("int", "a whole number"), ("float", "a number")):
            message = re.sub(rf"Expected a {kind}\. Got value: (\S+)", rf"give {words}, not \1", message)
        raise ValueError(f"{with_hint(message, self)}; `{self.prog} --help` lists the options")


class _ListMethods(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        files = [word for word in namespace.method if ".py:" in word]
        if files:
            from rad.cli.sample.plan import Label
            from rad.methods.registry import table

            for word in files:
                Label.of(word)  # registers the method
            print(table())
        else:
            print(METHODS_TABLE.read_text(encoding="utf-8"), end="")
        parser.exit()


def parser() -> jsonargparse.ArgumentParser:
    """The options of `rad sample`."""
    parser = _Parser(
        prog=program("sample"),
        description="Fill holes in images with a RAD adapter, or with a zero-shot method on a base model.",
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument(
        "--config", action="config", metavar="FILE.yaml", help="options from a file; later ones override it"
    )
    parser.add_argument(
        "--list_methods",
        action=_ListMethods,
        nargs=0,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="print all methods with cost and settings; after --method FILE.py:CLASS also yours",
    )
    add_options(parser, SampleOptions)
    return parser


def read_options(arguments: Sequence[str] | None = None) -> SampleOptions:
    """The options on the command line, or in `arguments`. Raises ValueError for unusable ones."""
    words = with_underscores(arguments)
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == "--config" or word.startswith("--config="):
            check_config(word.partition("=")[2] or after)
    values = vars(parser().parse_args(words))
    values.pop("config")
    return SampleOptions(**values)
