"""Requests with files: forms and JSON, bounded while they arrive; errors as one sentence."""

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
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

MOST_VALUES = 20_000
"""Values in a JSON object, by its commas and brackets; a parser needs 50 times the memory of short ones."""

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


class Arriving:
    """Bytes of the requests that are being read, bounded over all of them. For one event loop."""

    def __init__(self, most: float) -> None:
        self.most, self.bytes = most, 0

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """A function that counts bytes of a request until its end; it raises Refused (429) above the limit."""
        counted = 0

        def count(size: int) -> None:
            nonlocal counted
            if self.bytes + size > self.most:
                raise Refused(429, "too many files arrive at the same time: try again later", {"retry-after": "5"})
            self.bytes, counted = self.bytes + size, counted + size

        try:
            yield count
        finally:
            self.bytes -= counted


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


async def read_upload(request: Request, files: Sequence[str], most: int, count: Callable[[int], None]) -> Upload:
    """Read a form or a JSON object; `count` is called with the size of each part that arrives.

    Raises Refused: 413 above `most` bytes, 415 for another type, 422 for broken content.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, files, _limited(request, most, count))
    if kind == "application/json":
        return await _read_json(files, _limited(request, most, count))
    raise Refused(415, f"the content type is {describe(kind)}; send multipart/form-data or application/json")


def explain(error: ValidationError, known: Sequence[str]) -> str:
    """The first problem of some fields as a sentence."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = printable(".".join(str(part) for part in first["loc"][:2]) or "the request")[:80]
    if first["type"] == "extra_forbidden":
        return f"there is no field {name}{did_you_mean(name, known)}; allowed are {', '.join(known)}"
    if first["type"] == "string_pattern_mismatch":
        return f"{name} is {printable(describe(first['input']))}; {PATTERNS.get(name, 'it has characters that are not allowed')}"
    if first["loc"][:1] == ("set",) and len(first["loc"]) > 1:  # pydantic names each type of the value
        return f"{name} is {printable(describe(first['input']))}; give a number, a short text, true or false"
    problem = first["msg"].removeprefix("Input ").removeprefix("Value ").removeprefix("String ")
    return f"{name} is {printable(describe(first['input']))}; it {problem}"


async def _limited(request: Request, most: int, count: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
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
        count(len(chunk))
        yield chunk


async def _read_form(request: Request, files: Sequence[str], body: AsyncGenerator[bytes, None]) -> Upload:
    parser = MultiPartParser(
        request.headers,
        body,
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


async def _read_json(files: Sequence[str], body: AsyncGenerator[bytes, None]) -> Upload:
    data = b"".join([chunk async for chunk in body])
    if sum(map(data.count, b",[{")) > MOST_VALUES:  # the server would stand still while it parses them
        raise Refused(422, f"the JSON has more than {MOST_VALUES} values: give the fields of this request alone")
    fields = _object(data)
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
