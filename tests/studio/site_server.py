"""A server for files with the MIME types of modules and of WebAssembly, and promises of a page as values in Python."""

import functools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of a server for the files of `folder`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def evaluate(driver: Any, body: str, **values: object) -> Any:
    """The value that the body of an async function returns in the page; `values` are its constants."""
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    script = (
        "const finish = arguments[arguments.length - 1];\n"
        f"(async () => {{ {constants} {body} }})()"
        ".then((value) => finish({ value }), (error) => finish({ error: `${error.message} ${error.stack}` }));"
    )
    result = driver.execute_async_script(script)
    assert "error" not in result, result["error"]
    return result["value"]
