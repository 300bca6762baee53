"""From a request to a job: decoding, limits, turns at the network, and the files of the result."""

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import PurePath

import anyio
from anyio import CapacityLimiter
from fastapi import Request
from PIL import Image

from rad.arguments import describe
from rad.console import did_you_mean, one_line
from rad.inpainting.canvas.outpaint import Extension
from rad.inpainting.result import Progress
from rad.masks.reading.hole import Hole
from rad.studio.fillers.filler import Filler, Plan, Speed, complete
from rad.studio.inputs import (
    ReadHole,
    as_hole,
    decode_image,
    empty_hole,
    encode,
    encode_preview,
    read_hole,
    read_written,
    without_paths,
)
from rad.studio.jobs.job import Files, Job
from rad.studio.jobs.queue import JobQueue
from rad.studio.jobs.turns import Turn, Turnstile
from rad.studio.options import StudioOptions
from rad.studio.schema import InpaintFields
from rad.studio.uploads import Arriving, Refused, Upload, read_upload

BETWEEN_PREVIEWS = 0.2
"""Least seconds between two previews of a job."""

UPLOAD_SECONDS = 300.0
"""Seconds in which a request has to arrive, against clients that keep connections and memory by sending slowly."""

OVERLAP = 8
"""Most pixels of all windows, in pixels of the largest image. The default margin needs 2 for a hole of the whole image."""

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".mdb")
"""Endings that `rad sample` takes for archives."""


class Service:
    """The loaded models and their jobs.

    Args:
        fillers: the models by id; the first is the default.
    """

    def __init__(self, fillers: Mapping[str, Filler], options: StudioOptions) -> None:
        self.fillers, self.options = dict(fillers), options
        self.default = next(iter(self.fillers))
        self._speeds = {id: Speed() for id in self.fillers}
        self._turnstile = Turnstile()
        self._arriving = Arriving(max(options.max_memory, options.max_upload) * 1e6)
        self.decoding = CapacityLimiter(2)  # requests that are decoded at the same time, for memory
        self.queue = JobQueue(
            lanes=options.lanes,
            limit=options.max_queue,
            most_bytes=options.max_memory * 1e6,
            most_seconds=options.keep * 60,
            explain=explain,
        )

    def filler(self, id: str | None) -> Filler:
        """A model by its id; None: the default. Raises Refused (422) for an unknown one."""
        id = self.default if id is None else id
        if id not in self.fillers:
            known = ", ".join(self.fillers)
            raise Refused(422, f"there is no model {describe(id)}{did_you_mean(id, self.fillers)}; allowed are {known}")
        return self.fillers[id]

    @asynccontextmanager
    async def receive(self, request: Request, files: Sequence[str]) -> AsyncIterator[Upload]:
        """The content of a request; its bytes count as arriving until the context ends. Raises Refused."""
        with self._arriving.request() as count:
            try:
                with anyio.fail_after(UPLOAD_SECONDS):
                    upload = await read_upload(request, files, int(self.options.max_upload * 1e6), count)
            except TimeoutError:
                reason = f"the request did not arrive within {UPLOAD_SECONDS:g} seconds: send smaller files"
                raise Refused(408, reason, {"connection": "close"}) from None
            yield upload

    def submit(self, fields: InpaintFields, image_data: bytes, mask_data: bytes | None) -> Job:
        """Check a request and queue its job. Raises Refused, or Full."""
        filler = self.filler(fields.model)
        fields = complete(fields, filler.preferred, refines=filler.refines(fields))
        if fields.name.lower().endswith(ARCHIVES):
            raise Refused(
                422, f"name is {fields.name!r}, as of an archive; give the name of an image, such as photo.png"
            )
        image = decode_image(image_data, megapixels=self.options.max_megapixels)
        hole = self._hole(fields, image, mask_data)
        try:
            size, values = self._extended(fields, image, hole.values)
            self._check_size(fields, *size)
            most = self._most_windows(fields, filler)
            plan = filler.plan(fields, values, rate=lambda: self._rate(filler), most_windows=most)
        except ValueError as error:
            raise Refused(422, explain(error)) from None
        if plan.windows > most:
            raise Refused(
                413,
                f"the hole needs more than {most} windows, the limit of this server: give a smaller hole, margin or "
                "num_samples",
            )
        data, mask = image_data, hole.png
        job = Job(
            filler.view.id,
            fields.method,
            plan.steps,
            plan.nfe,
            *size,
            samples=fields.num_samples,
            stem=PurePath(fields.name).stem,
            work=lambda job: self._work(job, filler, fields, plan, data, mask),
            warnings=[*hole.warnings, *hole.notes, *plan.warnings],
            held=len(data) + len(mask),
            watched=fields.watched,
        )
        self.queue.add(job)
        return job

    def _hole(self, fields: InpaintFields, image: Image.Image, data: bytes | None) -> ReadHole:
        if data is None:
            if fields.extend is None or not Extension.parse(fields.extend):
                raise Refused(422, "mask is missing: give an image of the size of the image, white = fill")
            return empty_hole(image)
        try:
            format = fields.mask_format
        except ValueError as error:
            raise Refused(422, str(error)) from None
        return read_hole(data, format, image=image, megapixels=self.options.max_megapixels)

    def _extended(self, fields: InpaintFields, image: Image.Image, hole: Hole) -> tuple[tuple[int, int], Hole]:
        """(Width, height) of the result, and its hole."""
        if fields.extend is None:
            return image.size, hole
        extension = Extension.parse(fields.extend)
        width = image.width + extension.left + extension.right
        height = image.height + extension.top + extension.bottom
        self._check_size(fields, width, height)
        return (width, height), extension.hole(hole)

    def _check_size(self, fields: InpaintFields, width: int, height: int) -> None:
        most, samples = self.options.max_megapixels, fields.num_samples
        if samples > self.options.max_samples:
            raise Refused(422, f"num_samples is {samples}; this server takes up to {self.options.max_samples}")
        if width * height * samples > most * 1e6:
            count = f"{samples} samples of " if samples > 1 else ""
            raise Refused(
                413, f"{count}{width}x{height} pixels exceed {most:g} megapixels, the limit of this server: give less"
            )

    def _most_windows(self, fields: InpaintFields, filler: Filler) -> int:
        """Largest number of windows of a sample: a large margin, or a hole of many pieces, needs more than memory has."""
        height, width = filler.view.size
        return max(64, int(OVERLAP * self.options.max_megapixels * 1e6 / (height * width))) // fields.num_samples

    def _rate(self, filler: Filler) -> float:
        """Seconds per network call of a model; measured at the first use."""
        speed = self._speeds[filler.view.id]
        if speed.rate is None:
            with Turn(self._turnstile):
                result = filler.probe()
            speed.add(result, result.seconds)
        return speed.rate or 1.0

    def _work(self, job: Job, filler: Filler, fields: InpaintFields, plan: Plan, data: bytes, mask: bytes) -> Files:
        """Fill the hole; the computation of a job."""
        image = decode_image(data, megapixels=self.options.max_megapixels)
        grey = read_written(mask)
        has_mask = fields.extend is None or bool(grey.any())
        turn, last = Turn(self._turnstile), 0.0

        def on_step(progress: Progress) -> None:
            nonlocal last
            turn.pause()
            job.nfe, job.planned, job.seconds = progress.done, progress.planned, turn.seconds
            job.check()
            first = 0 in progress.indices  # later batches keep the last preview of the first sample
            if first and job.is_seen and time.monotonic() - last >= BETWEEN_PREVIEWS:
                job.show(encode_preview(progress.preview(0)))
                last = time.monotonic()
            turn.pass_on()
            job.check()

        with turn:
            job.check()
            result = filler.fill(fields, plan, image, as_hole(grey) if has_mask else None, on_step)
        job.nfe, job.seconds = result.nfe, turn.seconds
        self._speeds[filler.view.id].add(result, turn.seconds)
        soft = bool(((grey > 0) & (grey < 255)).any())
        settings = sample_settings(filler, fields, plan, has_mask=has_mask, soft=soft)
        text = json.dumps(public_settings(filler.view.id, settings), sort_keys=True)
        images = [encode(image, settings=text) for image in result.images]
        return Files(images, mask, (json.dumps(settings, indent=2) + "\n").encode())


def sample_settings(
    filler: Filler, fields: InpaintFields, plan: Plan, *, has_mask: bool, soft: bool
) -> dict[str, object]:
    """The settings with which `rad sample --config` gives the same pixels, from the image and the mask of the job."""
    stem, method = PurePath(fields.name).stem, fields.method
    settings: dict[str, object] = {
        **filler.checkpoint,
        "image": fields.name,
        "output": f"{stem}-{method}.png",
        "method": [method],
        "set": [f"{method}.{name}={value}" for name, value in plan.settings.items()],
        "solver": plan.solver,
        "spacing": plan.spacing,
        "eta": plan.eta,
        "seed": fields.seed,
        "num_samples": fields.num_samples,
        "size_policy": fields.size_policy,
        "feather": fields.feather,
        "batch_size": fields.batch_size,
    }
    if has_mask:
        settings |= {"mask": [f"{stem}-mask.png"], "mask_channel": "grey", "soft_mask": soft}
    average = None if fields.average == 1 else fields.average
    optional = {
        "average": average,
        "thin_steps": plan.thin_steps,
        "steps": plan.steps,
        "margin": fields.margin,
        "extend": fields.extend,
        "guidance": fields.guidance,
    }
    if plan.pyramid is not None:
        optional |= {f"pyramid_{name}": value for name, value in asdict(plan.pyramid).items()}
    optional |= {"prompt": fields.prompt or None, "negative_prompt": fields.negative_prompt or None}
    return settings | {name: value for name, value in optional.items() if value is not None}


def public_settings(model: str, settings: Mapping[str, object]) -> dict[str, object]:
    """The settings that a PNG file contains, since images are passed on: no names of files, and no texts."""
    private = ("checkpoint", "image", "mask", "output", "prompt", "negative_prompt")
    return {"model": model} | {name: value for name, value in settings.items() if name not in private}


def explain(error: Exception) -> str:
    """An error as one sentence for the client, without paths of this machine."""
    message = one_line(error)
    if isinstance(error, Refused):
        return error.message
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in message
    ):
        return "not enough memory: give a smaller image, fewer samples, a smaller batch_size, or another method"
    if isinstance(error, ValueError) or type(error).__name__ == "NotFiniteError":
        return without_paths(message).replace("--", "")
    return f"the job failed with an unexpected error ({type(error).__name__}); the log of the server shows where"
