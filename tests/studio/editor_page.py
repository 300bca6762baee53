"""The editor alone on a page, served from this process under the studio's content security policy."""

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import rad.studio

STATIC = Path(rad.studio.__file__).parent / "static"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'"
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Editor</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/page.css"><link rel="stylesheet" href="/css/editor.css">
<script type="module" src="/page.js"></script></head><body><section id="editor"></section></body></html>"""
STYLE = """
:root { color-scheme: light dark; --background: #f4f5f7; --surface: #fff; --text: #1a1d23; --muted: #5b6270;
  --border: #d5d9e0; --accent: #2459d6; }
@media (prefers-color-scheme: dark) { :root { --background: #101216; --surface: #1a1d23; --text: #eceff4;
  --muted: #a3abb8; --border: #363c47; --accent: #86abff; } }
html, body { margin: 0; height: 100%; font-family: system-ui, sans-serif; } #editor { height: 100vh; }"""
SCRIPT = """import { Editor } from "/js/editor/editor.js";
import { encodePng } from "/js/png.js";
const editor = new Editor(document.querySelector("#editor"));
const events = [];
for (const name of ["image", "mask", "extend", "show", "error"]) {
  editor.addEventListener(name, (event) => events.push([name, event.detail]));
}
const toText = (blob) => new Promise((resolve) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.split(",")[1]);
  reader.readAsDataURL(blob);
});
const toBlob = (text, type) => new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type });
const forget = async () => {
  await restored;
  sessionStorage.clear();
  await new Promise((resolve) => {
    const request = indexedDB.open("rad-studio", 1);
    request.onsuccess = () => {
      const write = request.result.transaction(["images", "edits"], "readwrite");
      for (const store of ["images", "edits"]) write.objectStore(store).clear();
      write.oncomplete = resolve;
    };
  });
};
const frame = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
Object.assign(window, { editor, events, toText, toBlob, frame, forget, encodePng });
window.restored = editor.restore();
"""


class Handler(SimpleHTTPRequestHandler):
    """The three files of the page, and the static files of the studio."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".js": "text/javascript"}

    def do_GET(self) -> None:
        own = {"/": ("text/html", PAGE), "/page.css": ("text/css", STYLE), "/page.js": ("text/javascript", SCRIPT)}
        kind, text = own.get(self.path, ("", ""))
        if not text:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""


@contextmanager
def served() -> Iterator[str]:
    """The page's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(STATIC)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class EditorPage:
    """What a user does with the editor, and what a test reads from it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url

    def load(self, *, fresh: bool = True) -> None:
        """Opens the page; `fresh`: without the state of an earlier visit."""
        self.driver.get(self.url)
        if fresh:
            self.run("await forget()")
            self.driver.get(self.url)
        self.run("await restored")

    def run(self, script: str, *arguments: object) -> Any:
        """Value of an asynchronous function body; `args` are the arguments."""
        wrapped = (
            "const done = arguments[arguments.length - 1]; const args = [...arguments].slice(0, -1);"
            f"(async () => {{ {script} }})().then((value) => done([value ?? null]),"
            " (error) => done([null, String(error.stack ?? error)]))"
        )
        value, *error = self.driver.execute_async_script(wrapped, *arguments)
        if error:
            raise AssertionError(error[0])
        return value

    def open(self, data: bytes, name: str = "image.png", kind: str = "image/png") -> bool:
        text = base64.b64encode(data).decode()
        opened = self.run("return await editor.open(toBlob(args[0], args[2]), args[1])", text, name, kind)
        self.frame()
        return opened

    def frame(self) -> None:
        self.run("await frame()")

    def mask(self) -> NDArray[np.uint8] | None:
        """The mask as the server would read it."""
        text = self.run("const blob = await editor.maskBlob(); return blob && await toText(blob)")
        if text is None:
            return None
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert image.mode == "L"
        return np.asarray(image)

    def settings(self, **values: object) -> None:
        self.run("editor.settings.set(args[0])", values)

    def view(self) -> dict[str, float]:
        """Zoom and offset in CSS pixels, with the stage's position on the page as `left` and `top`."""
        return self.run(
            "const { zoom, x, y, width, height } = editor.stage.view; const box = editor.stage.root"
            ".getBoundingClientRect(); return { zoom, x, y, width, height, left: box.left, top: box.top }"
        )

    def on_page(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Page positions, in CSS pixels, of image positions."""
        view = self.view()
        scale, left, top = view["zoom"], view["left"] + view["x"], view["top"] + view["y"]
        return [(left + x * scale, top + y * scale) for x, y in points]

    def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        event = {"type": f"mouse{kind}", "x": x, "y": y, "button": "left", "clickCount": 1, "pointerType": "mouse"}
        self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event | more)

    def drag(self, points: list[tuple[float, float]], **more: object) -> None:
        """Presses at the first page position and releases at the last."""
        self.mouse("Moved", *points[0], **(more | {"button": "none"}))
        self.mouse("Pressed", *points[0], buttons=1, **more)
        for point in points[1:]:
            self.mouse("Moved", *point, buttons=1, **more)
        self.mouse("Released", *points[-1], buttons=0, **more)
        self.frame()

    def key(self, key: str, *, modifiers: int = 0, up: bool = True) -> None:
        """Modifiers: 1 Alt, 2 Control, 8 Shift."""
        names = {" ": "Space", "Enter": "Enter"}
        event = {"key": key, "code": names.get(key, key), "modifiers": modifiers}
        self.driver.execute_cdp_cmd("Input.dispatchKeyEvent", event | {"type": "rawKeyDown"})
        if up:
            self.driver.execute_cdp_cmd("Input.dispatchKeyEvent", event | {"type": "keyUp"})

    def touch(self, kind: str, points: list[tuple[float, float]]) -> None:
        touches = [{"x": x, "y": y, "id": index} for index, (x, y) in enumerate(points)]
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": touches})

    def events(self, name: str) -> list[Any]:
        """Details of the editor's events so far."""
        return self.run("return events.filter(([name]) => name === args[0]).map(([, detail]) => detail)", name)


def png(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    """A PNG file of an array."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    return stream.getvalue()
