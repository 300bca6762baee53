"""PyTorch's modes as in a fresh program, whatever the caller has set; afterwards the caller's modes are back."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

AUTOCAST = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def plain_modes() -> Iterator[None]:
    """Context without inference mode, autocast and default device. They belong to a thread, so others are not affected.

    The default dtype belongs to the whole process: code that runs here names its dtypes.
    """
    with ExitStack() as stack:
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def float32_modes() -> Iterator[None]:
    """`plain_modes` with float32 as default dtype, for code of other libraries. Other threads see this dtype too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with plain_modes():
            yield
    finally:
        torch.set_default_dtype(before)


class Evaluation:
    """Keeps networks in evaluation mode while at least one call samples; then those in training mode return to it."""

    def __init__(self) -> None:
        self._lock, self._calls, self._training = threading.Lock(), 0, list[nn.Module]()

    @contextmanager
    def __call__(self, networks: Sequence[nn.Module]) -> Iterator[None]:
        with self._lock:
            training = [module for network in networks for module in network.modules() if module.training]
            self._training += training
            self._calls += 1
            for module in training:
                module.training = False
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    for module in self._training:
                        module.training = True
                    self._training.clear()

    def __reduce__(self) -> tuple[type["Evaluation"], tuple[()]]:
        """A copy, such as of a pickled model, begins without calls."""
        return type(self), ()
