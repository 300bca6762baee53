"""The request behind a result, stored in its PNG file, so that results of other settings are never taken for finished ones.

Files, folders and texts are stored as hashes of their content, because images are passed on.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rad.cli.sample.options import RECORDED, SampleOptions
from rad.cli.sample.plan import Job, Label, MethodRun
from rad.cli.sample.record import COMMON, method_settings, noise_kind
from rad.cli.sample.runtimes.base import Runtime
from rad.images.sources import ImageFile
from rad.resources import located

CHUNK = "rad"
"""Keyword of the text chunk in a PNG file."""

Request = dict[str, object]

OF_EACH = {"image", "num_samples", "prompts", "prompt", "mask_pattern"}
"""Options that differ from result to result, or do not change one."""

FILES = ("controlnet", "t2i_adapter", "ip_adapter", "control_image", "adapter_image", "style_image")
HASHED = {"model", "name", "image", "mask", "prompt", "lora", "negative_prompt", *FILES}
"""Entries of a request that are hashes."""

EDGE = 2**16
"""Bytes at both ends of a weight file that identify it, with its size."""

PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n", b"\x00\x00\x00\x00IEND\xaeB`\x82"

DEFAULTS = {entry.name: entry.default for entry in fields(SampleOptions) if entry.default is not MISSING}
DEFAULTS |= RECORDED
"""Values that a request leaves out."""


class Requests:
    """The requests of a run: all that a result depends on, except its sample number."""

    def __init__(self, runtime: Runtime) -> None:
        options = runtime.options
        values = {name: getattr(options, name) for name in COMMON if name not in OF_EACH}
        common = {name: value for name, value in values.items() if value not in (DEFAULTS.get(name), [])}
        common |= {name: source_hash(common[name]) for name in FILES if name in common}
        if "noise_device" in common:
            common["noise_device"] = noise_kind(options)
        if options.negative_prompt:
            common["negative_prompt"] = text_hash(options.negative_prompt)
        if options.loras:
            common["lora"] = [[source_hash(path), weight] for path, weight in options.loras]
        common["seed"] = options.seed
        models = runtime.hashes()
        self._common: dict[Label, Request] = {}
        self._presets: dict[Label, Request] = {}
        self._hashes: dict[str, str | None] = {}
        for label, method in runtime.methods.items():
            settings = {**common, **method_settings(runtime, label)}
            settings.pop("method_file", None)
            for name in runtime.paths(label):
                if (path := settings.pop(name)) is not None:
                    settings[f"{name}_sha256"] = source_hash(str(path))
            if method.weights != "none":
                preset = method.choose(**label.given(options)).steps
                settings |= {"model": models[method.weights], **_length(label, options, preset)}
                self._presets[label] = {"steps": preset}
            self._common[label] = settings

    def of(self, label: Label, job: Job) -> Request:
        """The request of a result, of JSON values. An input that cannot be read is null."""
        mask = self._hash(job.mask) if isinstance(job.mask, ImageFile) else _mask_hash(job.mask)
        request = {**self._common[label], "name": text_hash(job.name), "image": self._hash(job.image), "mask": mask}
        request |= {"prompt": text_hash(job.prompt)} if job.prompt else {}
        return json.loads(json.dumps(request, default=str))

    def completed(self, label: Label, earlier: Request) -> Request:
        """The request of an earlier result; without a length, as earlier versions stored it, it has the preset's steps."""
        return earlier if "budget_nfe" in earlier else {**self._presets.get(label, {}), **earlier}

    def stored(self, label: Label, job: Job) -> PngInfo:
        """The text chunk of a result."""
        text = PngInfo()
        text.add_text(CHUNK, json.dumps(self.of(label, job), sort_keys=True))
        return text

    def _hash(self, file: ImageFile) -> str | None:
        name = str(file)
        if name not in self._hashes:
            try:
                content = file.file()
                content = content.read_bytes() if isinstance(content, Path) else content.getvalue()
                self._hashes[name] = hashlib.sha256(content).hexdigest()[:16]
            except (ValueError, OSError):
                self._hashes[name] = None
        return self._hashes[name]


def _length(label: Label, options: SampleOptions, preset: int) -> Request:
    steps, budget = label.length(options)
    if budget is not None:  # its steps are known with the model only
        return {"budget_nfe": budget}
    return {"steps": preset if steps is None else steps}


def _mask_hash(mask: object) -> str | None:
    """Hash of a generator's type and settings."""
    return None if mask is None else text_hash(f"{type(mask).__name__} {sorted(vars(mask).items())}")


def text_hash(text: str) -> str:
    """The first 16 hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def source_hash(source: str) -> str:
    """Hash of weights or images in a file or folder, by names, sizes and ends of the files; of the text for other sources."""
    path = located(source)
    if not path.exists():
        return text_hash(source)
    result = hashlib.sha256()
    for name, file in sorted(_files(path)):
        size = file.stat().st_size
        result.update(f"{name}\n{size}\n".encode("utf-8", "surrogateescape"))
        with file.open("rb") as stream:
            result.update(stream.read(EDGE))
            stream.seek(max(0, size - EDGE))
            result.update(stream.read(EDGE))
    return result.hexdigest()[:16]


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield "", path
        return
    for root, _, names in os.walk(path):
        for name in names:
            file = Path(root, name)
            if not name.startswith(".") and file.suffix.lower() not in (".md", ".txt") and file.is_file():
                yield file.relative_to(path).as_posix(), file


def is_incomplete(path: Path) -> bool:
    """Whether a file is empty or a PNG file without its end."""
    with path.open("rb") as file:
        begin, end = file.read(len(PNG_BEGIN)), _end(file)
    return PNG_BEGIN.startswith(begin) and end != PNG_END


def _end(file: BinaryIO) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(PNG_END)))
    return file.read()


def read_request(path: Path) -> Request | None:
    """The request in a result; None if it has none. Raises ValueError for another kind of file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            request = json.loads(image.info.get(CHUNK, "null"))
    except ValueError:
        return None
    except OSError:
        raise ValueError(f"{path} is not a PNG file: give another --output, or --overwrite to replace it") from None
    return request if isinstance(request, dict) else None


@dataclass
class Finished:
    """What an earlier run left of the results of a run.

    Args:
        missing: by run, the jobs to fill.
        different: results of other requests or of inputs that have changed since, with the differences.
        unrecorded: by run, the number of results without a request.
    """

    missing: list[list[Job]] = field(default_factory=list)
    different: list[tuple[Path, str]] = field(default_factory=list)
    unrecorded: list[int] = field(default_factory=list)

    @classmethod
    def find(cls, runs: Sequence[MethodRun], requests: Requests) -> "Finished":
        """Compare the files of all jobs with their requests. Raises ValueError for a file that is not a PNG file."""
        finished = cls()
        for run in runs:
            finished.unrecorded.append(0)
            finished.missing.append([job for job in run.jobs if not finished._check(job, run.label, requests)])
        return finished

    def _check(self, job: Job, label: Label, requests: Requests) -> bool:
        """Whether a job is finished."""
        existing = [path for path in job.files if path.exists()]
        whole = [path for path in existing if not is_incomplete(path)]
        for path in (path for path in job.outputs if path in whole):
            request = read_request(path)
            if request is None:
                self.unrecorded[-1] += path == job.outputs[0]
                continue
            request, new = requests.completed(label, request), requests.of(label, job)
            if names := differences(request, new):
                self.different.append((path, ", ".join(_describe(name, request, new) for name in names)))
        return len(whole) == len(job.files)


def differences(old: Request, new: Request) -> list[str]:
    """Names of the entries that differ; of another method only "method". An input that cannot be read any more does not count."""
    unread = {name for name in ("image", "mask") if new.get(name) is None}
    names = sorted((old.keys() | new.keys()) - unread)
    names = [name for name in names if old.get(name, DEFAULTS.get(name)) != new.get(name, DEFAULTS.get(name))]
    return ["method"] if "method" in names else names  # its settings differ too


def _describe(name: str, old: Request, new: Request) -> str:
    if name in HASHED or name.endswith("sha256"):
        return f"another {name}"
    before, now = (request.get(name, DEFAULTS.get(name)) for request in (old, new))
    return f"{name} {'by default' if before is None else before}, now {'by default' if now is None else now}"
