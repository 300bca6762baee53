"""`rad studio`: loads the models and serves the page and the API until Ctrl-C."""

import errno
import logging
import secrets
import socket
import threading
import warnings
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec

from rad.console import EXIT_OK, guarded, print_line, report
from rad.resources import pip_install
from rad.studio.options import StudioOptions, read_options

MOST_CONNECTIONS, IDLE_SECONDS = 500, 5
"""Open connections, above which requests are answered with 503; seconds for which one without a request stays open."""

NEEDED = ("fastapi", "uvicorn", "python_multipart")


def main(arguments: Sequence[str] | None = None) -> int:
    """`rad studio [--checkpoint NAME_OR_PATH ...] [--port 7860] ...`"""

    def run() -> int:
        options = read_options(arguments)
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise ValueError(f"rad studio needs {', '.join(missing)}: {pip_install('studio')}")
        try:
            return serve(options)
        except KeyboardInterrupt:
            report("rad studio has stopped")
            return EXIT_OK

    return guarded(run)


def serve(options: StudioOptions) -> int:
    """Serve until a signal. Raises ValueError for a port in use, or a model that cannot be loaded."""
    listening = bind(options.host, options.port)
    with listening:
        import uvicorn

        from rad.images.codecs import images_up_to
        from rad.masks.reading.format import MaskWarning
        from rad.studio.app import create_app
        from rad.studio.fillers.loading import load_fillers
        from rad.studio.service import Service

        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        fillers = load_fillers(options)
        token = choose_token(options)
        with images_up_to(options.max_megapixels), warnings.catch_warnings():
            warnings.simplefilter("ignore", MaskWarning)  # clients receive them with the job
            service = Service(fillers, options)
            config = uvicorn.Config(
                create_app(service, token=token),
                log_level="error",  # clients cause warnings at will, such as by requests that are no HTTP
                access_log=False,
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=5,
            )

            class Server(uvicorn.Server):
                def handle_exit(self, sig: int, frame: object) -> None:
                    # Ends the streams of events, for which uvicorn waits. In a thread: this one may hold a lock of the queue.
                    threading.Thread(target=service.queue.close).start()
                    super().handle_exit(sig, frame)  # pyright: ignore[reportArgumentType]

            address = url(options, listening.getsockname()[1], token)
            report(f"models: {', '.join(fillers)}. Ctrl-C ends the server. Open:")
            print_line(address)
            if options.open:
                webbrowser.open(address)
            Server(config).run(sockets=[listening])
    return EXIT_OK


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ValueError for a port or an address that cannot be used."""
    name = host.strip("[]")
    try:
        family, *_, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"--port {port} is in use: give another one, or 0 for any free port") from None
        if error.errno == errno.EACCES:
            raise ValueError(f"--port {port} is reserved by the system: give one above 1023") from None
        raise ValueError(
            f"--host {host} cannot be used ({error.strerror or error}): give an address of this machine"
        ) from None


def choose_token(options: StudioOptions) -> str | None:
    """The token of a server: the given one, or a random one if others can connect."""
    if options.token not in (None, "auto"):
        return options.token
    return None if options.token is None and options.is_local else secrets.token_urlsafe(24)


def url(options: StudioOptions, port: int, token: str | None) -> str:
    """The address of the page."""
    host = options.host.strip("[]")
    host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + ("" if token is None else f"#token={token}")
