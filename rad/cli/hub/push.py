"""`rad push`: publishes a trained model on the Hugging Face hub, checked and with a model card."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rad.console import EXIT_OK, Parser, counted, print_line, program, report


def parser() -> Parser:
    """The options of `rad push`."""
    result = Parser(
        prog=program("push"),
        description="Publish an adapter or a model on the Hugging Face hub. It uploads safetensors, settings, card and images "
        "only. Local paths are refused, and the folder is not changed.",
    )
    result.add_argument("folder", metavar="FOLDER", help="adapter, model, or run folder (its newest model)")
    result.add_argument("name", metavar="USER/NAME", help="name on the hub; an existing model is updated")
    result.add_argument("--private", action="store_true", help="create a private model")
    result.add_argument("--revision", metavar="BRANCH", help="branch to write to, created if missing (default: main)")
    result.add_argument(
        "--base", metavar="USER/BASE", help="base model on the hub; required for an adapter on a local base"
    )
    result.add_argument("--license", metavar="ID", help="licence of the weights in the model card, such as apache-2.0")
    result.add_argument("--dry_run", action="store_true", help="check, and print files and card; upload nothing")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rad push ...`. The address, or the card of a dry run, goes to stdout."""
    options = parser().parse_args(arguments)
    from rad.inpainting.runs import find_trained
    from rad.models.hub.download import split_revision
    from rad.models.hub.upload import HubBase, changed_files, check_name, find_hub_base, model_files, staged, upload
    from rad.resources import located

    check_name(options.name)
    folder = find_trained(located(options.folder))
    files = model_files(folder)
    base = None
    if options.base is not None:  # a dry run opens no connection
        name = check_name(split_revision(options.base)[0])
        base = HubBase(name, None) if options.dry_run else find_hub_base(options.base)
    contents = changed_files(folder, files, base=base, license=options.license)
    size = sum(path.stat().st_size for path in files)
    report(f"{folder}: {counted(len(files), 'file')}, {size / 1e6:.1f} MB -> {options.name}")
    if options.dry_run:
        for path in files:
            report(f"  {path.relative_to(folder)}, {path.stat().st_size / 1e6:.2f} MB")
        for line in contents["README.md"].splitlines():
            print_line(line)
        return EXIT_OK
    with tempfile.TemporaryDirectory(prefix="rad-push-") as place:
        staged(folder, files, contents, Path(place))
        address = upload(
            Path(place), options.name, private=options.private, revision=options.revision, message="Upload by rad push"
        )
    print_line(address)
    return EXIT_OK
