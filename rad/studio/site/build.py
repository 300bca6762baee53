"""Builds the static demo: the page's files, a small model as ONNX, onnxruntime-web, and photographs to try.

The folder needs no server but one for files, at any path. All its URLs are relative.
"""

import json
import re
import shutil
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from rad.images.atomic import replacing_folder, write_text
from rad.resources import PACKAGE, located
from rad.runtime.precision import Precision
from rad.studio.pages import STATIC, example_file, list_examples
from rad.studio.site.packages import install

POLICY = {
    "default-src": "'none'",
    "script-src": "'self' 'wasm-unsafe-eval'",  # WebAssembly is compiled in the page
    "worker-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self' blob:",
    "base-uri": "'none'",
    "form-action": "'none'",
}
"""Content security policy of the page, in a meta element, as a host for files may set no headers."""

MANIFEST = "manifest.json"

UNUSED = ("js/backend/http.js",)
"""Files of the page that only the service uses."""


@dataclass(frozen=True)
class Site:
    """What a built folder holds: bytes by path, without those of the manifest."""

    sizes: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def build(
    output: Path,
    *,
    checkpoint: str = "rad-nature32",
    precision: Precision = "fp16",
    package: Path | None = None,
) -> Site:
    """Write the demo to the folder `output`, which appears when it is complete.

    Args:
        checkpoint: pixel model with an adapter; its base weights are exported too, for RePaint.
        precision: of the stored weights.
        package: .tgz file of onnxruntime-web; None: downloaded by npm.

    Raises ValueError for a folder that holds something else, a checkpoint without an adapter, or if npm fails.
    """
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / MANIFEST).is_file())):
        raise ValueError(f"{output} exists and is no earlier demo: give another --output, or delete it")
    with replacing_folder(output) as place:
        static = place / "static"
        shutil.copytree(STATIC, static)
        for name in UNUSED:
            (static / name).unlink(missing_ok=True)
        (static / "index.html").rename(place / "index.html")
        write_text(place / "index.html", for_browser((place / "index.html").read_text(encoding="utf-8")))
        install(static / "vendor" / "onnxruntime-web", package)
        size = export(static / "model", checkpoint, precision)
        write_examples(static / "examples", window=size)
        write_text(place / "LICENSE", licence())
        sizes = {
            str(path.relative_to(place)): path.stat().st_size for path in sorted(place.rglob("*")) if path.is_file()
        }
        write_text(place / MANIFEST, json.dumps({"files": sizes}, indent=2) + "\n")
    return Site(sizes)


def for_browser(page: str) -> str:
    """The page with the backend that runs in the browser, and with `POLICY`. Raises ValueError for another page."""
    page, backends = re.subn(r'(<meta name="rad-backend" content=)"http">', r'\1"browser">', page)
    policy = "; ".join(f"{name} {sources}" for name, sources in POLICY.items())
    meta = f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">'
    page, heads = re.subn(r'<meta charset="utf-8">', meta, page)
    if (backends, heads) != (1, 1) or re.search(r'(src|href)="/', page):
        raise ValueError("index.html needs one rad-backend, one charset, and relative URLs")
    return page


def export(folder: Path, checkpoint: str, precision: Precision) -> int:
    """Write the ONNX files of a checkpoint with its base weights. Returns the side of the model's images in pixels."""
    from rad.inpainting.runs import find_parts
    from rad.models.load import load_model
    from rad.runtime.export import export_onnx

    parts = find_parts(checkpoint, None)
    if parts.adapter is None:
        raise ValueError(f"{checkpoint} has no adapter: the demo compares RAD with RePaint on the base weights")
    folder.mkdir()
    model = load_model(parts.source, revision=parts.revision, adapter=parts.adapter, info=parts.info)
    name = Path(checkpoint).name
    export_onnx(model, folder, name=name, source=name, precision=precision, base_weights=True)
    for source, card in ((parts.adapter, "CARD.md"), (located(parts.source), "CARD-base.md")):  # with their licences
        if (source / "README.md").is_file():
            shutil.copyfile(source / "README.md", folder / card)
    return model.size[0]


def licence() -> str:
    """The licence of this package."""
    file = PACKAGE.parent / "LICENSE"  # in a checkout
    if file.is_file():
        return file.read_text(encoding="utf-8")
    package = distribution("rad-inpainting")
    return package.read_text("licenses/LICENSE") or package.read_text("LICENSE") or package.metadata["License"]


def write_examples(folder: Path, *, window: int) -> None:
    """Write photographs with masks, and their list, for a model of `window` pixels."""
    folder.mkdir()
    entries = []
    for example in list_examples():
        files = {"image": Path(example.image).name, "mask": Path(example.mask).name if example.mask else None}
        for name in files.values():
            content = None if name is None else example_file(name, window)
            if name is not None and content is not None:
                (folder / name).write_bytes(content)
        entries.append({"name": example.name, "title": example.title, **files})
    write_text(folder / "examples.json", json.dumps({"examples": entries}, indent=2) + "\n")
