"""Memory of a run: its peak, and errors of an allocator. Loads no torch."""

import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an accelerator or the CPU's allocator ran out of memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def reset_peak_memory(device: "torch.device | None" = None) -> None:
    """Start a new measurement of `peak_memory`, where the system can."""
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux only; "5" resets the peak of the resident size
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: "torch.device | None" = None) -> int:
    """Largest memory in bytes since the reset (or the start of the process): allocated on CUDA, otherwise resident."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
        if peak:
            return int(peak[1]) * 1024
    import resource  # POSIX only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
