"""Networks of the runtime, and their denoisers: x and its noise levels to an estimate of the clean image."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rad.resources import pip_install
from rad.runtime.process import Floats, NoiseLevel
from rad.runtime.steps import Denoised, Prediction, denoised

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class Network(Protocol):
    """A noise network whose pixels have one of K noise levels each."""

    def __call__(self, sample: Floats, timesteps: Floats, levels: Floats) -> Floats:
        """The output (B,C or 2C,H,W), all float32.

        Args:
            sample: (B,C,H,W); timesteps: (B,K).
            levels: (B,K,H,W), 1 where a pixel has level k, else 0.
        """
        ...


class OnnxNetwork:
    """A network in an ONNX file, run by ONNX Runtime on the CPU. Threads may share it. The session is created at the first call.

    `threads`: of one call; None: one for each CPU core.
    """

    def __init__(self, file: Path, *, threads: int | None = None) -> None:
        self.file, self.threads = file, threads
        self._lock = threading.Lock()
        self._session: InferenceSession | None = None

    def __call__(self, sample: Floats, timesteps: Floats, levels: Floats) -> Floats:
        inputs = {"sample": sample, "timesteps": timesteps, "levels": levels}
        return np.asarray(self.session.run(["output"], inputs)[0], np.float32)

    @property
    def session(self) -> "InferenceSession":
        with self._lock:
            if self._session is None:
                self._session = _session(self.file, self.threads)
            return self._session


def _session(file: Path, threads: int | None) -> "InferenceSession":
    """A session that returns memory to the system after each call. Raises ValueError for a file that cannot be loaded."""
    try:
        from onnxruntime import InferenceSession, SessionOptions
    except ImportError:
        raise ImportError(f"ONNX Runtime is not installed: {pip_install('onnx')}") from None
    options = SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.enable_cpu_mem_arena = False  # an arena would keep the memory of the largest batch
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors, which are raised too
    try:
        return InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises several types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} cannot be loaded by ONNX Runtime ({reason}): export the model again") from error


@dataclass(frozen=True)
class Denoiser:
    """The estimate of the clean image from a network's output, as `rad.diffusion.UNetDenoiser`.

    Args:
        prediction: "epsilon", "sample" or "v_prediction".
        clip: clamp x0 to [-1,1]. learned_variance: whether further output channels are a learned variance.
    """

    network: Network
    prediction: Prediction
    channels: int = 3
    clip: bool = True
    learned_variance: bool = True

    def __call__(self, x: Floats, noise: NoiseLevel, levels: Floats) -> tuple[Denoised, Floats]:
        """The estimate at x (B,C,H,W), and the network's output. `levels`: indicator maps of `noise`."""
        output = self.network(x, noise.timesteps.astype(np.float32), levels)
        x0 = denoised(x, output[:, : self.channels], noise, self.prediction)
        if self.clip:
            x0 = np.clip(x0, -1, 1)
        learned = self.learned_variance and output.shape[1] == 2 * self.channels
        return Denoised(x0, (output[:, self.channels :] + 1) / 2 if learned else None), output
