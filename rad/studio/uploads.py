"""Requests with files: forms and JSON, bounded while they arrive; errors as one sentence."""

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from rad.arguments import describe
from rad.console import did_you_mean
from rad.streams import printable

MOST_FIELDS = 60
"""Fields of a form, and their length in bytes."""
LONGEST_FIELD = 2**16

PLAIN = "allowed are letters, digits, '.', '_' and '-', at most 100"
PATTERNS = {
    "name": PLAIN,
    "model": PLAIN,
    "method": PLAIN,
    "extend": "give LEFT,TOP,RIGHT,BOTTOM in pixels, such as 0,0,64,0",
}
"""Values that are allowed, by field."""

Fields = TypeVar("Fields", bound=BaseModel)


class Refused(Exception):
    """A request that is not carried out: HTTP status, one sentence, and further headers."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


@dataclass(frozen=True)
class Upload:
    """A request: files by field, their names, and other fields; `strict`: these have the types of JSON."""

    files: dict[str, bytes]
    names: dict[str, str]
    fields: dict[str, object]
    strict: bool

    def read(self, kind: type[Fields]) -> Fields:
        """The fields, validated. Raises Refused (422)."""
        try:
            return kind.model_validate(self.fields, strict=self.strict)
        except ValidationError as error:
            raise Refused(422, explain(error, list(kind.model_fields))) from None


async def read_upload(request: Request, files: Sequence[str], most: int) -> Upload:
    """Read a form or a JSON object. Raises Refused: 413 above `most` bytes, 415 for another type, 422 for broken content."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, files, most)
    if kind == "application/json":
        return await _read_json(request, files, most)
    raise Refused(415, f"the content type is {describe(kind)}; send multipart/form-data or application/json")


def explain(error: ValidationError, known: Sequence[str]) -> str:
    """The first problem of some fields as a sentence."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = printable(".".join(str(part) for part in first["loc"][:2]) or "the request")[:80]
    if first["type"] == "extra_forbidden":
        return f"there is no field {name}{did_you_mean(name, known)}; allowed are {', '.join(known)}"
    if first["type"] == "string_pattern_mismatch":
        return f"{name} is {printable(describe(first['input']))}; {PATTERNS.get(name, 'it has characters that are not allowed')}"
    problem = first["msg"].removeprefix("Input ").removeprefix("Value ").removeprefix("String ")
    return f"{name} is {printable(describe(first['input']))}; it {problem}"


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    total = int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
    refused = Refused(413, f"the request has more than {most / 1e6:g} MB, the limit of this server: send smaller files")
    if total > most:
        raise refused
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > most:
            raise refused
        yield chunk


async def _read_form(request: Request, files: Sequence[str], most: int) -> Upload:
    parser = MultiPartParser(
        request.headers,
        _limited(request, most),
        max_files=len(files),
        max_fields=MOST_FIELDS,
        max_part_size=LONGEST_FIELD,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(422, f"the form cannot be read: {printable(error.message)}") from None
    except (ValueError, LookupError):
        raise Refused(422, "the form cannot be read: its parts are damaged") from None
    contents: dict[str, bytes] = {}
    names: dict[str, str] = {}
    fields: dict[str, object] = {}
    try:
        for name, value in form.multi_items():
            if name in contents or name in fields:
                raise Refused(422, f"{printable(name)[:80]} is given twice: give it once")
            if isinstance(value, UploadFile):
                if name not in files:
                    raise Refused(422, f"{printable(name)[:80]} is a file; allowed are {', '.join(files)}")
                contents[name], names[name] = await value.read(), value.filename or ""
            elif name in files:
                raise Refused(422, f"{name} is text: send it as a file, with a file name")
            elif value != "":  # an empty field of a form is one that is left out
                fields[name] = _object(value) if name == "set" else value
    finally:
        await form.close()
    return Upload({name: data for name, data in contents.items() if data}, names, fields, strict=False)


async def _read_json(request: Request, files: Sequence[str], most: int) -> Upload:
    fields = _object(b"".join([chunk async for chunk in _limited(request, most)]))
    contents: dict[str, bytes] = {}
    for name in files:
        text = fields.pop(name, None)
        if text is None:
            continue
        try:
            if not isinstance(text, str):
                raise ValueError
            contents[name] = base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            raise Refused(422, f"{name} is {describe(text)}; give the file in base64") from None
    return Upload(contents, {}, fields, strict=True)


def _object(text: str | bytes) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused(422, 'the JSON cannot be read: give an object such as {"steps": 20}') from None
    if not isinstance(value, dict):
        raise Refused(422, f'the JSON is {describe(value)}; give an object such as {{"steps": 20}}')
    return value
