"""A service with the small random model of the tests, in this process or behind a real server on a free port."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image

from rad.inpainting.inpainter import Inpainter
from rad.studio.app import create_app
from rad.studio.command import bind
from rad.studio.fillers.torch_filler import TorchFiller
from rad.studio.options import StudioOptions
from rad.studio.service import Service
from tests.conftest import random_image


def make_service(checkpoint: Path | str, *, id: str = "tiny", **options: object) -> Service:
    """A service of one model on the CPU; `options` as of `StudioOptions`."""
    inpainter = Inpainter.from_pretrained(str(checkpoint), device="cpu")
    return Service({id: TorchFiller(id, str(checkpoint), inpainter)}, StudioOptions(**options))  # type: ignore[arg-type]


@contextmanager
def serving(service: Service, *, token: str | None = None, port: int = 0) -> Iterator[str]:
    """The address of a server, which ends with the block."""
    listening = bind("127.0.0.1", port)
    server = uvicorn.Server(
        uvicorn.Config(create_app(service, token=token), log_level="error", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        service.queue.close()
        server.should_exit = True
        thread.join(20)
        listening.close()


def png(image: Image.Image | np.ndarray) -> bytes:
    """The bytes of a PNG file."""
    file = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format="PNG")
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    """The pixels of an image file."""
    with Image.open(BytesIO(data)) as image:
        return np.array(image)


def photo(width: int = 40, height: int = 28, *, seed: int = 3) -> bytes:
    return png(random_image(height, width, seed=seed))


def box(
    width: int = 40, height: int = 28, *, area: tuple[int, int, int, int] = (6, 20, 10, 33), value: int = 255
) -> bytes:
    """A mask that is `value` in area (top, bottom, left, right)."""
    mask = np.zeros((height, width), np.uint8)
    top, bottom, left, right = area
    mask[top:bottom, left:right] = value
    return png(mask)
