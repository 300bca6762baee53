"""`python -m rad.studio.site`: build the static demo, a folder that any host for files serves."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rad.console import EXIT_OK, Parser, guarded, print_line, report

LARGEST = 8
"""Number of files in the list of sizes."""


def parser() -> Parser:
    """The options of `python -m rad.studio.site`."""
    result = Parser(
        prog="python -m rad.studio.site",
        description="Build the page of rad studio as a static demo: images are filled in the browser, without a server. "
        "Downloads onnxruntime-web with npm.",
    )
    result.add_argument("--output", metavar="FOLDER", default="build/pages", help="new folder (default: %(default)s)")
    result.add_argument(
        "--checkpoint",
        default="rad-nature32",
        help="pixel model with an adapter, of less than about 10 million parameters (default: %(default)s)",
    )
    result.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp16",
        help="storage of the weights (default: %(default)s); the computation is in float32",
    )
    result.add_argument("--package", metavar="FILE.tgz", help="onnxruntime-web of `npm pack`, in place of a download")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. The folder goes to stdout, the sizes of its files to stderr."""
    options = parser().parse_args(arguments)
    from rad.runtime.export import require_onnx
    from rad.studio.site.build import build

    require_onnx()
    output, package = Path(options.output), Path(options.package) if options.package else None
    site = build(output, checkpoint=options.checkpoint, precision=options.precision, package=package)
    by_size = sorted(site.sizes.items(), key=lambda entry: -entry[1])
    for name, size in by_size[:LARGEST]:
        report(f"{size / 1e6:8.2f} MB  {name}")
    rest = by_size[LARGEST:]
    if rest:
        report(f"{sum(size for _, size in rest) / 1e6:8.2f} MB  {len(rest)} other files")
    report(f"{site.total / 1e6:8.2f} MB  in all; try it with: python -m http.server --directory {output}")
    print_line(output)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(guarded(main))
