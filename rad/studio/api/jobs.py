"""Jobs: start, follow, cancel, and read their files."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from rad.studio.api import PNG, Responses, errors, upload_body
from rad.studio.jobs.job import Files, Job
from rad.studio.jobs.queue import JobQueue
from rad.studio.schema import NAME, InpaintFields, JobView
from rad.studio.service import Service
from rad.studio.uploads import Refused

FILES = {"image": "image of any format that rad reads", "mask": "mask of the image's size; may be missing with extend"}

TICK, QUIET = 0.1, 5.0
"""Seconds between two looks at a job, and between two comments that keep a connection open."""

WAITED: Responses = PNG | {202: {"model": JobView, "description": "the job is queued"}}
EVENTS: Responses = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "events"}}

Id = Annotated[str, Path(description="id of a job")]


def router(service: Service) -> APIRouter:
    """The endpoints."""
    router = APIRouter()
    _add_start(router, service)
    _add_state(router, service.queue)
    _add_files(router, service.queue)
    return router


def find(queue: JobQueue, id: str) -> Job:
    """A job. Raises Refused: 410 for one that was removed, 404 for an unknown id."""
    job = queue.get(id)
    if job is None and queue.was_removed(id):
        raise Refused(410, "the job was removed: results are kept for a limited time, see GET /v1/limits")
    if job is None:
        raise Refused(404, "there is no job of this id on this server; it may have been restarted")
    return job


def find_files(queue: JobQueue, id: str) -> tuple[Job, Files]:
    """A job with its files. Raises Refused as `find`, and 404 before it is done."""
    job = find(queue, id)
    if job.files is None:
        raise Refused(404, f"the job is {job.state}, and has no files: they appear when it is done")
    return job, job.files


def view(queue: JobQueue, job: Job) -> JobView:
    """The state of a job for clients."""
    names = [name for name in JobView.model_fields if name not in ("position", "preview")]
    values = {name: getattr(job, name) for name in names}
    return JobView(**values, position=queue.position(job), preview=job.previews)


def _add_start(router: APIRouter, service: Service) -> None:
    @router.post(
        "/inpaint",
        status_code=202,
        response_model=JobView,
        responses=WAITED | errors(408, 409, 413, 415, 422, 429, 500),
        openapi_extra=upload_body(InpaintFields, FILES, required=("image",)),
    )
    async def inpaint(
        request: Request,
        wait: Annotated[bool, Query(description="answer with the PNG of the first sample when it is finished")] = False,
    ) -> Response:
        """Fill the hole of an image."""
        async with service.receive(request, tuple(FILES)) as upload:
            name = upload.names.get("image", "")
            if "name" not in upload.fields and is_plain(name):
                upload.fields["name"] = name
            fields, image = upload.read(InpaintFields), upload.files.get("image")
            if image is None:
                raise Refused(422, "image is missing: send a file")
            if wait:  # a client that waits is watched by its connection
                fields = fields.model_copy(update={"watched": False})
            mask = upload.files.get("mask")
            job = await anyio.to_thread.run_sync(service.submit, fields, image, mask, limiter=service.decoding)
        del upload, image, mask
        headers = {"location": f"/v1/jobs/{job.id}"}
        if not wait:
            return JSONResponse(view(service.queue, job).model_dump(), 202, headers)
        return await _result(request, service.queue, job, headers)


async def _result(request: Request, queue: JobQueue, job: Job, headers: dict[str, str]) -> Response:
    """The first image of a job when it is finished; the job is cancelled if the client leaves."""
    try:
        while not job.is_over:
            await asyncio.sleep(TICK / 2)
            if await request.is_disconnected():
                break
    finally:
        if not job.is_over:
            queue.cancel(job)
    if job.files is None:
        status = 500 if job.state == "failed" else 409
        raise Refused(status, job.error or "the job was cancelled", headers)
    return Response(job.files.images[0], media_type="image/png", headers=headers)


def _add_state(router: APIRouter, queue: JobQueue) -> None:
    @router.get("/jobs/{id}", responses=errors(404, 410))
    async def state(id: Id) -> JobView:
        """State of a job."""
        return view(queue, find(queue, id))

    @router.get("/jobs/{id}/events", response_class=StreamingResponse, responses=EVENTS | errors(404, 410))
    async def events(id: Id) -> Response:
        """Server-sent events: the state of the job whenever it changes, at most ten times a second."""
        return StreamingResponse(
            _stream(queue, find(queue, id)), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    @router.delete("/jobs/{id}", responses=errors(404, 410))
    async def delete(id: Id) -> JobView:
        """Cancel a job, or forget a finished one."""
        job = find(queue, id)
        if job.is_over:
            queue.remove(job)
        else:
            queue.cancel(job)
        return view(queue, job)


async def _stream(queue: JobQueue, job: Job) -> AsyncIterator[str]:
    job.read(+1)
    try:
        last, sent = "", time.monotonic()
        while True:
            over, text = job.is_over, view(queue, job).model_dump_json()
            if text != last:
                last, sent = text, time.monotonic()
                yield f"data: {text}\n\n"
            elif time.monotonic() - sent > QUIET:
                sent = time.monotonic()
                yield ": waiting\n\n"
            if over:
                return
            await asyncio.sleep(TICK)
    finally:
        job.read(-1)


def _add_files(router: APIRouter, queue: JobQueue) -> None:
    @router.get("/jobs/{id}/preview", response_class=Response, responses=PNG | errors(404, 410))
    async def preview(id: Id) -> Response:
        """Estimate of the first sample so far, with sides of at most 512 pixels."""
        job = find(queue, id)
        if job.preview is None:
            raise Refused(404, "there is no preview of this job yet")
        return Response(job.preview, media_type="image/png")

    @router.get("/jobs/{id}/images/{number}", response_class=Response, responses=PNG | errors(404, 410, 422))
    async def image(id: Id, number: Annotated[int, Path(ge=0, le=10**6, description="sample, from 0")]) -> Response:
        """A result; known pixels are exact, and a text chunk has the settings."""
        job, kept = find_files(queue, id)
        if number >= len(kept.images):
            raise Refused(404, f"there is no sample {number}; the job has {len(kept.images)}, from 0")
        suffix = f"-{number}" if len(kept.images) > 1 else ""
        return _file(kept.images[number], f"{job.stem}-{job.method}{suffix}.png", "image/png")

    @router.get("/jobs/{id}/mask", response_class=Response, responses=PNG | errors(404, 410))
    async def mask(id: Id) -> Response:
        """The mask as used, white = filled, in the size of the image before it was extended."""
        job, kept = find_files(queue, id)
        return _file(kept.mask, f"{job.stem}-mask.png", "image/png")

    @router.get("/jobs/{id}/settings", response_model=dict[str, object], responses=errors(404, 410))
    async def settings(id: Id) -> Response:
        """A file for `rad sample --config FILE`, which gives the same pixels from the image and the mask."""
        job, kept = find_files(queue, id)
        return _file(kept.settings, f"{job.stem}-{job.method}.json", "application/json")


def is_plain(name: str) -> bool:
    """Whether the file name of an upload can be used as it is."""
    return re.fullmatch(NAME, name) is not None


def _file(data: bytes, name: str, kind: str) -> Response:
    """A download; `name` has plain characters only."""
    return Response(data, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})
