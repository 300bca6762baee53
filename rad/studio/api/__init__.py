"""The endpoints of the HTTP API."""

from rad.studio.schema import Error

Responses = dict[int | str, dict[str, object]]


def errors(*statuses: int) -> Responses:
    """The documented errors of an endpoint; each may also refuse the host, the origin or the token."""
    reasons = {
        401: "the token is missing or wrong",
        403: "the host or the origin is not allowed",
        404: "unknown",
        408: "it did not arrive in time",
        409: "the job was cancelled",
        410: "removed, after its time or by DELETE",
        413: "too large",
        415: "another content type",
        422: "bad input",
        429: "the queue or the memory for requests is full; Retry-After says for how many seconds",
        500: "the job failed",
    }
    return {status: {"model": Error, "description": reasons[status]} for status in (401, 403, *statuses)}


PNG: Responses = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "PNG"}
}
"""Response of an endpoint that returns an image."""


def upload_body(kind: type, files: dict[str, str], *, required: tuple[str, ...]) -> dict[str, object]:
    """The OpenAPI entry of a request with files: as a form, or as JSON with files in base64."""
    fields = kind.model_json_schema()["properties"]  # pyright: ignore[reportAttributeAccessIssue]
    binary = {name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()}
    base64 = {
        name: {"type": "string", "contentEncoding": "base64", "description": f"{text}, in base64"}
        for name, text in files.items()
    }
    empty = {"type": "string", "maxLength": 0}
    text = {"set": {"type": "string", "description": fields["set"]["description"]}} if "set" in fields else {}
    written = {  # an empty field of a form is one that is left out
        name: {"anyOf": [field, empty], "description": field["description"]} for name, field in (fields | text).items()
    }
    common = {"type": "object", "required": list(required), "additionalProperties": False}
    content = {
        "multipart/form-data": {"schema": {**common, "properties": {**binary, **written}}},
        "application/json": {"schema": {**common, "properties": {**base64, **fields}}},
    }
    return {"requestBody": {"required": True, "content": content}}
