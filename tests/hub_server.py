"""A server on this machine that answers as the Hugging Face hub does: create, commit, list and download models."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """`models`: files by name and branch; `requests`: paths that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        branches = self.models.get(name, {})
        by_commit = {commit_of(files): files for files in branches.values()}
        return branches.get(revision, by_commit.get(revision))


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = self._words()
        if words[:2] == ["api", "models"]:
            name, (kind, revision) = "/".join(words[2:4]), [*words[4:6], "revision", "main"][:2]
            files = self.server.files(name, revision)
            if files is None:
                self._missing("RevisionNotFound" if name in self.server.models else "RepoNotFound")
            elif kind == "tree":
                self._json([_entry(path, content) for path, content in files.items()])
            else:
                siblings = [{"rfilename": path} for path in files]
                private = self.server.private[name]
                self._json({"id": name, "sha": commit_of(files), "private": private, "siblings": siblings})
        elif words[2:3] == ["resolve"]:
            files = self.server.files("/".join(words[:2]), words[3])
            content = None if files is None else files.get("/".join(words[4:]))
            if files is None or content is None:
                self._missing("EntryNotFound")
            else:
                self._send(200, content, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": commit_of(files)})
        else:
            self._missing("EntryNotFound")

    def do_POST(self) -> None:
        body, words = self.rfile.read(int(self.headers.get("Content-Length") or 0)), self._words()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b'{"error": "Invalid credentials"}', {})
        elif words[:3] == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif words[:2] == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif words[4] == "branch":
            branches = self.server.models["/".join(words[2:4])]
            branches[words[5]] = dict(branches["main"])
            self._json({})
        elif words[4] == "preupload":
            files = [{"path": entry["path"], "uploadMode": "regular"} for entry in json.loads(body)["files"]]
            self._json({"files": [{**entry, "shouldIgnore": False} for entry in files]})
        else:
            files = self.server.models["/".join(words[2:4])][words[5]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            name = "/".join(words[2:4])
            address = f"{self.server.address}/{name}/commit/{commit_of(files)}"
            self._json({"commitUrl": address, "commitOid": commit_of(files), "pullRequestUrl": None})

    def _create(self, wanted: dict[str, object]) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name.startswith("foreign/"):
            self._send(403, b'{"error": "Forbidden"}', {})
            return
        exists = name in self.server.models
        self.server.models.setdefault(name, {"main": {}})
        self.server.private.setdefault(name, wanted.get("private") is True or wanted.get("visibility") == "private")
        self._json({"url": f"{self.server.address}/{name}"}, code=409 if exists else 200)

    def _words(self) -> list[str]:
        self.server.requests.append(self.path)
        return [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]

    def _json(self, content: object, *, code: int = 200) -> None:
        self._send(code, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code})

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: str) -> Iterator[Hub]:
    """A hub for huggingface_hub in this process, with an empty cache and the token `TOKEN`."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.address)
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
