"""The ASGI application: the page, the API, and its errors."""

import asyncio
import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from rad import __version__
from rad.studio.api import inform, jobs, tools
from rad.studio.guard import Guard
from rad.studio.jobs.queue import Full
from rad.studio.pages import PLACEHOLDER, STATIC
from rad.studio.service import Service
from rad.studio.uploads import Refused

SWEEP = 1.0
"""Seconds between two looks for abandoned and old jobs."""


def create_app(service: Service, *, token: str | None = None) -> ASGIApp:
    """The application of a service, with its checks of hosts, origins and tokens."""
    return Guard(create_api(service), service.options, token)


def create_api(service: Service) -> FastAPI:
    """The application without these checks; its OpenAPI document is at /openapi.json."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(service))
        yield
        sweeping.cancel()
        service.queue.close()
        await asyncio.to_thread(service.queue.join)

    api = FastAPI(
        title="rad studio",
        version=__version__,
        summary="Image inpainting with RAD and zero-shot methods.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    for router in (inform.router(service), jobs.router(service), tools.router(service)):
        api.include_router(router, prefix="/v1")
    api.get("/", include_in_schema=False)(_index)
    for ending, kind in {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".css": "text/css",
        ".wasm": "application/wasm",
    }.items():
        mimetypes.add_type(kind, ending)  # some systems have no or another type for them
    api.mount("/static", StaticFiles(directory=STATIC, check_dir=False))
    _add_errors(api)
    return api


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(SWEEP)
        await asyncio.to_thread(service.queue.sweep)


async def _index() -> Response:
    index = STATIC / "index.html"
    return (
        FileResponse(index, media_type="text/html; charset=utf-8")
        if index.is_file()
        else PlainTextResponse(PLACEHOLDER)
    )


def _add_errors(api: FastAPI) -> None:
    """Every error is {"error": SENTENCE}."""

    @api.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _error(error.status, error.message, error.headers)

    @api.exception_handler(Full)
    async def full(_: Request, error: Full) -> Response:
        return _error(429, str(error), {"retry-after": str(error.seconds)})

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        reasons = {
            404: "there is nothing at this address; /openapi.json lists all",
            405: f"the method {request.method} is not allowed here; /openapi.json lists those that are",
        }
        return _error(error.status_code, reasons.get(error.status_code, str(error.detail)), error.headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, f"{first['loc'][-1]}: {first['msg']}".replace("\n", " "))

    @api.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return _error(400, "the client closed the connection")

    @api.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return _error(500, f"the server failed ({type(error).__name__}); its log shows where")


def _error(status: int, message: str, headers: "dict[str, str] | None" = None) -> Response:
    return JSONResponse({"error": message}, status, headers)
