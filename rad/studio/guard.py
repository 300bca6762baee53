"""Checks before every request, and headers on every response: host, origin, token, content policy."""

import hmac
import ipaddress
import json
import re
import socket

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rad.studio.options import LOOPBACK, StudioOptions, is_loopback

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

OPEN = ("/", "/v1/health", "/openapi.json")
"""Paths without a token, besides the files of the page."""


class Guard:
    """An ASGI application in front of another.

    Args:
        token: that requests to the API have to carry; None: none.
    """

    def __init__(self, app: ASGIApp, options: StudioOptions, token: str | None) -> None:
        self._app, self._token = app, None if token is None else f"Bearer {token}".encode()
        self._any_address = not options.is_local
        names = {*LOOPBACK, *options.allow_host, options.host}
        names |= set() if options.is_local else {socket.gethostname()}
        self._names = {name.strip("[]").lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store" if scope["path"].startswith("/v1/") else "no-cache")
            await send(message)

        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, reason = problem
        body = json.dumps({"error": reason}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
        await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        headers, path = Headers(scope=scope), scope["path"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_known(hosts[0]):
            return (
                403,
                "this host name is not allowed: open the address that the server printed, or start it with --allow_host",
            )
        if scope["method"] not in ("GET", "HEAD") and not _is_same_origin(headers, hosts[0]):
            return 403, "the request comes from a page of another origin: use the page of this server"
        if self._token is not None and path not in OPEN and not path.startswith("/static/"):
            given = headers.get("authorization", "").encode("latin-1", "replace")
            if not hmac.compare_digest(given, self._token):
                return 401, "the token is missing or wrong: send the header 'Authorization: Bearer TOKEN'"
        return None

    def _is_known(self, host: str) -> bool:
        """Whether a Host header names this server; an address cannot be rebound, and is allowed where others may connect."""
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s]+)(?::[0-9]{1,5})?", host)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        return name in self._names or (is_address(name) and (self._any_address or is_loopback(name)))


def is_address(name: str) -> bool:
    """Whether a host name is an IPv4 or IPv6 address, the latter without brackets."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same_origin(headers: Headers, host: str) -> bool:
    """Whether a request comes from our page or from no page at all, such as curl."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        return False
    return site in (None, "same-origin", "none")
