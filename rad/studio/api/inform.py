"""What a server offers: models, methods, limits, examples, health and metrics."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse

from rad import __version__
from rad.studio.api import PNG, errors
from rad.studio.metrics import metrics_text
from rad.studio.pages import example_file, list_examples
from rad.studio.schema import Examples, Health, Limits, Methods, Models
from rad.studio.service import Service
from rad.studio.uploads import Refused

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def router(service: Service) -> APIRouter:
    """The endpoints."""
    router, queue, options = APIRouter(), service.queue, service.options

    @router.get("/health", responses=errors())
    async def health() -> Health:
        """Whether the server answers, and its load. Needs no token."""
        return Health(version=__version__, running=queue.running, waiting=queue.waiting, limit=queue.limit)

    @router.get("/models", responses=errors())
    async def models() -> Models:
        """The loaded models."""
        return Models(default=service.default, models=[filler.view for filler in service.fillers.values()])

    @router.get("/methods", responses=errors(422))
    async def methods(
        model: Annotated[str | None, Query(description="id in GET /v1/models; default: the first")] = None,
    ) -> Methods:
        """The methods that a model supports, with their presets and settings."""
        return Methods(methods=list(service.filler(model).methods.values()))

    @router.get("/limits", responses=errors())
    async def limits() -> Limits:
        """Limits of requests."""
        return Limits(
            max_bytes=int(options.max_upload * 1e6),
            max_megapixels=options.max_megapixels,
            max_samples=options.max_samples,
            max_queue=options.max_queue,
            max_steps=1000,
            lanes=options.lanes,
            keep_seconds=options.keep * 60,
        )

    @router.get("/examples", responses=errors())
    async def examples() -> Examples:
        """Photographs with a mask, in a size for the default model."""
        return Examples(examples=list_examples())

    @router.get("/examples/{file}", response_class=Response, responses=PNG | errors(404))
    def example(file: str) -> Response:
        """A photograph or its mask."""
        data = example_file(file, max(service.filler(None).view.size))
        if data is None:
            raise Refused(404, "there is no such example; GET /v1/examples lists all")
        return Response(data, media_type="image/png")

    @router.get("/metrics", response_class=PlainTextResponse, responses=errors())
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        return Response(metrics_text(service), media_type=PROMETHEUS)

    return router
