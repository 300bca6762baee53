"""Counters of the service in the text format of Prometheus."""

import contextlib
from pathlib import Path

from rad.studio.service import Service

PAGE = 4096


def metrics_text(service: Service) -> str:
    """The metrics, version 0.0.4 of the format."""
    queue = service.queue
    states = queue.states()
    lines = _metric(
        "rad_jobs", "gauge", "jobs now", {f'{{state="{name}"}}': states[name] for name in ("queued", "running")}
    )
    ended = {f'{{state="{name}"}}': states[name] for name in ("done", "failed", "cancelled")}
    lines += _metric("rad_jobs_ended_total", "counter", "ended jobs since the start", ended)
    lines += _metric("rad_network_calls_total", "counter", "network calls of ended jobs", {"": queue.nfe})
    lines += _metric(
        "rad_compute_seconds_total", "counter", "computing time of ended jobs", {"": round(queue.seconds, 6)}
    )
    lines += _metric("rad_queue_length", "gauge", "waiting jobs", {"": queue.waiting})
    lines += _metric("rad_queue_limit", "gauge", "most waiting jobs", {"": queue.limit})
    lines += _metric("rad_kept_bytes", "gauge", "bytes of inputs and results", {"": queue.bytes})
    with contextlib.suppress(OSError, ValueError, IndexError):  # Linux
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
        lines += _metric("rad_resident_bytes", "gauge", "memory of the process", {"": resident})
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, help: str, values: dict[str, float]) -> list[str]:
    return [
        f"# HELP {name} {help}",
        f"# TYPE {name} {kind}",
        *(f"{name}{labels} {value}" for labels, value in values.items()),
    ]
