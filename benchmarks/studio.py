"""Measures `rad studio`: start, first preview, full fill, memory, and the throughput of its queue; PyTorch against ONNX Runtime.

    python benchmarks/studio.py --repeats 10 --jobs 40

Exports the model to a temporary folder and starts one server for each runtime. Requests go to the servers in turn, over HTTP
on this machine, with the example photograph and mask of the page. Prints a Markdown table:

- start: from the start of the process to its first answer, with the model loaded. Once for each runtime.
- first preview: from sending the request to the first preview at the client, read as the page does.
- fill: from sending the request to the PNG at the client; median, and the smallest and largest of all repeats.
- computing: seconds of the job without its queue, its input and its output, as the page shows them.
- memory: resident size after the start, and the largest of all phases.
- queue: short jobs (2 steps) of 8 clients at the same time; finished jobs a second, inputs and PNG files included.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx

from rad.cli.hub.export import main as export

CLIENTS = 8


@dataclass
class Server:
    """A running server, and its measured seconds."""

    client: httpx.Client
    pid: int
    start: float
    idle: int = 0
    preview: list[float] = field(default_factory=list)
    fill: list[float] = field(default_factory=list)
    computing: list[float] = field(default_factory=list)
    jobs_a_second: list[float] = field(default_factory=list)

    def memory(self, name: str) -> int:
        """VmRSS or VmHWM of the process in MB. Linux only."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB$", status, flags=re.MULTILINE)
        assert found
        return int(found[1]) // 1024


@contextmanager
def serving(checkpoint: str, *, threads: int) -> Iterator[Server]:
    began = time.perf_counter()
    environment = {"OMP_NUM_THREADS": str(threads), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "rad", "studio", "--port", "0", "--checkpoint", checkpoint, "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        with httpx.Client(base_url=address, timeout=600) as client:
            client.get("/v1/health").raise_for_status()
            server = Server(client, process.pid, time.perf_counter() - began)
            server.idle = server.memory("VmRSS")
            yield server
    finally:
        process.terminate()
        process.wait(30)


def request(server: Server, files: Mapping[str, bytes], **fields: object) -> dict[str, Any]:
    """Post a job; other answers than 202 raise."""
    answer = server.client.post("/v1/inpaint", files=dict(files), data={k: str(v) for k, v in fields.items()})
    return answer.raise_for_status().json()


def fill(server: Server, files: Mapping[str, bytes], *, steps: int) -> None:
    """One job with previews, timed as the page sees it."""
    began = time.perf_counter()
    path = f"/v1/jobs/{request(server, files, steps=steps)['id']}"
    job, preview = {}, None
    with server.client.stream("GET", f"{path}/events") as events:
        for line in events.iter_lines():
            if line.startswith("data: "):
                job = json.loads(line[6:])
                if job["preview"] and preview is None and server.client.get(f"{path}/preview").status_code == 200:
                    preview = time.perf_counter() - began
    assert job["state"] == "done", job
    server.client.get(f"{path}/images/0").raise_for_status()
    server.fill.append(time.perf_counter() - began)
    server.computing.append(job["seconds"])
    if preview is not None:
        server.preview.append(preview)
    server.client.delete(path)


def load(server: Server, files: Mapping[str, bytes], *, jobs: int) -> None:
    """Jobs of several clients at the same time, each waiting for its answer."""

    def send(number: int) -> None:
        fields = {"steps": 2, "seed": number}
        server.client.post("/v1/inpaint?wait=true", files=dict(files), data=fields).raise_for_status()

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(send, range(jobs)))
    server.jobs_a_second.append(jobs / (time.perf_counter() - began))


def spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure rad studio with PyTorch and with ONNX Runtime.")
    parser.add_argument("--checkpoint", default="rad-nature32", help="pixel model with RAD weights")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=40, help="jobs of the queue, in each of three rounds")
    parser.add_argument("--threads", type=int, default=2, help="of each server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        exported = str(Path(folder) / "onnx")
        assert export([options.checkpoint, "--onnx", exported]) == 0
        with (
            serving(options.checkpoint, threads=options.threads) as torch_server,
            serving(exported, threads=options.threads) as onnx_server,
        ):
            measure({"torch": torch_server, "onnx": onnx_server}, options)


def measure(servers: Mapping[str, Server], options: argparse.Namespace) -> None:
    some = next(iter(servers.values())).client
    example = some.get("/v1/examples").json()["examples"][0]
    files = {kind: some.get(example[kind]).raise_for_status().content for kind in ("image", "mask")}
    for number in range(options.repeats + 1):
        for server in servers.values():
            fill(server, files, steps=options.steps)
            if number == 0:  # warm-up
                for seconds in (server.fill, server.preview, server.computing):
                    seconds.clear()
    for _ in range(3):
        for server in servers.values():
            load(server, files, jobs=options.jobs)
    what = f"{options.checkpoint}, example {example['name']!r}, {options.steps} steps, {options.repeats} repeats"
    queue = f"{options.jobs} jobs of 2 steps from {CLIENTS} clients, 3 rounds"
    print(f"{what}; queue: {queue}; {options.threads} threads a server; CPU.\n", flush=True)
    columns = ["start s", "first preview s", "fill s", "computing s", "memory MB", "most MB", "queue jobs/s"]
    print("| runtime | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for name, server in servers.items():
        cells = [f"{server.start:.1f}", spread(server.preview), spread(server.fill), spread(server.computing)]
        cells += [str(server.idle), str(server.memory("VmHWM")), spread(server.jobs_a_second)]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
