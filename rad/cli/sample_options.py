"""The options of `rad sample`. Reading them, and --help, load no torch."""

import argparse

from rad.cli.guidance_options import add_conditions
from rad.cli.names import MASKS, METHODS, SOLVERS, SPACINGS
from rad.console import Parser, program
from rad.evaluation.options import add_options


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: give 1/4 to 4/4 for the parts of a run on four machines")
    return int(number), int(count)


class _ListMethods(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        from rad.cli.plan import Label
        from rad.methods.registry import table

        for text in namespace.method or []:
            Label.of(text)  # registers a method of a file
        print(table())
        parser.exit()


def parser() -> Parser:
    """The options of `rad sample`."""
    made = Parser(
        prog=program("sample"),
        description="Fill holes in images with a saved RAD adapter, or with a zero-shot method on a base model.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--checkpoint", required=True, help="adapter folder; or a base model: diffusers folder, hub id, .pt"
    )
    made.add_argument("--base", help="base model of the adapter, where it is not found by itself")
    made.add_argument(
        "--image",
        required=True,
        help="image, folder of any depth, zip, tar or LMDB, or hf:ID:SPLIT; 8 bits are read, of the first frame, "
        "turned upright, without transparency. An RGB colour profile is kept in the results, grey and CMYK with one become sRGB",
    )
    made.add_argument(
        "--mask",
        required=True,
        nargs="+",
        action="extend",
        help="image (for all), folder or archive (by name), or a generator; of several, each has its folder of results: "
        f"{', '.join(MASKS)}",
    )
    made.add_argument(
        "--mask_by", default="name", choices=["name", "order"], help="which mask of a folder an image gets"
    )
    made.add_argument("--limit", type=int, help="only so many images, evenly spread over the sorted names")
    made.add_argument("--output", required=True, help="PNG file for one image, or a folder")
    made.add_argument(
        "--method",
        nargs="+",
        action="extend",
        metavar="METHOD",
        help="one (rad if none is given), or several on equal noise, each into a folder of its name; rad@50: with 50 steps, "
        "ddnm@100nfe: as many steps as 100 network calls allow; rad@10,solver=ddim,spacing=quad,eta=0: with its own solver, "
        "spacing and eta; mine.py:Mine: your own, the class Mine of the file mine.py, whose code is run, as mine. "
        f"There are {', '.join(METHODS)}",
    )
    made.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="METHOD.SETTING=VALUE", help="see --list_methods"
    )
    made.add_argument(
        "--list_methods",
        action=_ListMethods,
        nargs=0,
        help="print all methods, their cost and settings; with --method FILE.py:CLASS before it yours too",
    )
    made.add_argument("--steps", type=int, help="noise levels visited; the method's preset if not given")
    made.add_argument(
        "--budget_nfe",
        type=int,
        help="as many steps as cost at most this many network calls an image; a VJP is two, line searches not counted",
    )
    made.add_argument(
        "--solver",
        choices=SOLVERS,
        help="ddpm: first order, with fresh noise by --eta; ddim: without; dpm++2m: second order, for few steps, an ODE "
        "(--eta 0) or SDE (--eta 1), for rad and tdpaint, with --spacing logsnr or quad. The method's preset if not given",
    )
    made.add_argument(
        "--spacing",
        choices=SPACINGS,
        help="where the noise levels lie. even: in time; trailing: even, but the last network call goes farther; quad: closer "
        "together at low noise; logsnr: even in log(a/s); official: as the official RAD sampler. The method's preset if not "
        "given, or that of --solver",
    )
    made.add_argument(
        "--eta",
        type=float,
        help="fresh noise, 0 (none) to 1 (DDPM's); the method's preset if not given, or that of --solver",
    )
    made.add_argument("--seed", type=int, default=0, help="of noise and generated masks")
    made.add_argument("--num_samples", type=int, default=1, help="fillings of each image")
    made.add_argument("--mask_polarity", default="white_is_fill", choices=["white_is_fill", "white_is_known"])
    made.add_argument(
        "--size_policy",
        default="error",
        choices=["error", "resize", "crop"],
        help="images of another size than the model's; crop: a window around each hole, any size of image",
    )
    made.add_argument(
        "--margin",
        type=int,
        help="for crop: pixels that a window sees around its core (an eighth of its size)",
    )
    made.add_argument("--feather", type=int, default=0, help="pixels over which what is known passes into the filling")
    made.add_argument(
        "--size", type=int, help="side of the images in pixels, for SD3 and Flux; the model's own if not given"
    )
    latent = made.add_argument_group("for models that work on latents")
    latent.add_argument(
        "--grid",
        choices=["average", "bilinear", "nearest"],
        help="how the hole comes to the latent grid; average, where a cell is known if 95%% of it is, if not given",
    )
    latent.add_argument("--dilate", type=int, default=0, help="rings of cells that are added to the hole")
    latent.add_argument(
        "--encode_full",
        action="store_true",
        help="let the encoder see what is in the hole, as other programs do: the result knows something of it",
    )
    made.add_argument("--batch_size", type=int, default=8, help="windows that go through the network together")
    made.add_argument("--precision", default="32", choices=["32", "bf16"])
    made.add_argument("--device", default="auto", help="auto: an accelerator if there is one, or cpu")
    made.add_argument(
        "--devices",
        type=int,
        default=1,
        help="share the images between so many processes, one an accelerator or all on the CPU, whose threads they divide. "
        "Files are those of one process with as many threads as each; seconds are counted in each, and on a CPU they are not "
        "those of one that is alone",
    )
    made.add_argument(
        "--shard",
        type=_shard,
        metavar="NUMBER/COUNT",
        help="do only this part of the images, as 2/4, for example one on each of four machines that share a disk; "
        "sheet and report are made by the same call without it, when all are done",
    )
    made.add_argument(
        "--max_megapixels",
        type=float,
        default=179,
        help="larger images are refused, for they may be decompression bombs",
    )
    made.add_argument("--raw", action="store_true", help="also write NAME-raw.png, before known pixels are put back")
    made.add_argument("--save_mask", action="store_true", help="also write NAME-mask.png, white = filled")
    made.add_argument(
        "--report",
        action="store_true",
        help="then score the files: metrics.csv, summary.md and report.html in --output",
    )
    made.add_argument("--overwrite", action="store_true", help="make finished images again")
    add_conditions(made.add_argument_group("for text-to-image models"))
    add_options(made.add_argument_group("for --report"))
    return made
