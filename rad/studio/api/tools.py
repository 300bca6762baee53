"""Reading files that a browser cannot: masks in every form, and images in further formats."""

import base64

import anyio
from fastapi import APIRouter, Request, Response

from rad.studio.api import PNG, errors, upload_body
from rad.studio.inputs import decode_image, encode, read_hole
from rad.studio.schema import MaskFields, MaskView, NoFields
from rad.studio.service import Service
from rad.studio.uploads import Refused

IMAGE = {"image": "image of any format that rad reads"}
MASK = {"mask": "mask of any form that rad reads", "image": "the image, for masks painted on a copy of it"}


def router(service: Service) -> APIRouter:
    """The endpoints."""
    router, megapixels = APIRouter(), service.options.max_megapixels

    @router.post(
        "/mask",
        responses=errors(408, 413, 415, 422, 429),
        openapi_extra=upload_body(MaskFields, MASK, required=("mask",)),
    )
    async def mask(request: Request) -> MaskView:
        """Read a mask file, as `rad sample` does."""
        async with service.receive(request, tuple(MASK)) as upload:
            fields = upload.read(MaskFields)

            def read() -> MaskView:
                data, image = upload.files.get("mask"), upload.files.get("image")
                if data is None:
                    raise Refused(422, "mask is missing: send a file")
                opened = None if image is None else decode_image(image, megapixels=megapixels)
                try:
                    format = fields.mask_format
                except ValueError as error:
                    raise Refused(422, str(error)) from None
                hole = read_hole(data, format, image=opened, megapixels=megapixels)
                return MaskView(mask=base64.b64encode(hole.png).decode(), notes=hole.notes, warnings=hole.warnings)

            return await anyio.to_thread.run_sync(read, limiter=service.decoding)

    @router.post(
        "/image",
        response_class=Response,
        responses=PNG | errors(408, 413, 415, 422, 429),
        openapi_extra=upload_body(NoFields, IMAGE, required=("image",)),
    )
    async def image(request: Request) -> Response:
        """Convert an image to an upright 8-bit RGB PNG."""
        async with service.receive(request, tuple(IMAGE)) as upload:
            upload.read(NoFields)
            data = upload.files.get("image")
            if data is None:
                raise Refused(422, "image is missing: send a file")

            def convert(data: bytes = data) -> bytes:
                return encode(decode_image(data, megapixels=megapixels), compression=1)

            return Response(await anyio.to_thread.run_sync(convert, limiter=service.decoding), media_type="image/png")

    return router
