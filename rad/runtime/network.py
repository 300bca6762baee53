"""A network in an ONNX file, run by ONNX Runtime on the CPU."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rad.resources import pip_install
from rad.runtime.sampling.process import Floats

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")
"""In the messages of ONNX Runtime, which has no type for this error: of its arena, and of C++ libraries."""


class OnnxNetwork:
    """A network in an ONNX file, run by ONNX Runtime on the CPU. Threads may share it. The session is created at the first call.

    `threads`: of one call; None: one for each CPU core.
    """

    def __init__(self, file: Path, *, threads: int | None = None) -> None:
        self.file, self.threads = file, threads
        self._lock = threading.Lock()
        self._session: InferenceSession | None = None

    def __call__(self, sample: Floats, timesteps: Floats, levels: Floats) -> Floats:
        """The output. Raises MemoryError when memory runs out."""
        session, inputs = self.session, {"sample": sample, "timesteps": timesteps, "levels": levels}
        try:
            return np.asarray(session.run(["output"], inputs)[0], np.float32)
        except Exception as error:  # ONNX Runtime raises several types
            if _is_out_of_memory(error):
                raise MemoryError(f"ONNX Runtime cannot run {len(sample)} windows at once") from error
            raise

    @property
    def session(self) -> "InferenceSession":
        with self._lock:
            if self._session is None:
                self._session = _session(self.file, self.threads)
            return self._session


def _session(file: Path, threads: int | None) -> "InferenceSession":
    """A session. Raises ValueError for a file that cannot be loaded, MemoryError when memory runs out."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError(f"ONNX Runtime is not installed: {pip_install('onnx')}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.enable_mem_pattern = False  # it would keep a block of memory for each size of a batch
    options.log_severity_level = 4  # errors are raised
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises several types
        if _is_out_of_memory(error):
            raise MemoryError(f"ONNX Runtime cannot load {file}") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} cannot be loaded by ONNX Runtime ({reason}): export the model again") from error


def _is_out_of_memory(error: Exception) -> bool:
    return any(words in str(error) for words in OUT_OF_MEMORY)
