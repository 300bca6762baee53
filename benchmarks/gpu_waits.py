"""Counts what keeps an accelerator idle: synchronisations of a call, and the graphs of torch.compile; used by gpu.py.

On a GPU, torch's `set_sync_debug_mode` reports each synchronisation. On a CPU, `Pretended` counts them instead. It makes marked
tensors seem to lie on an accelerator, so that code with a path for each device takes the accelerator's. A synchronisation is

    a read     a value goes to the host: item(), bool(), tolist(), cpu(), nonzero(), an index of booleans
    an upload  data from ordinary memory of the host go to the device: torch.tensor(..., device=), to(device);
               not from page-locked memory with non_blocking=True
"""

import dataclasses
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).parent
DEVICE = torch.device("cuda")
READS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "equal",
    "allclose",
    "is_nonzero",
    "nonzero",
    "argwhere",
    "unique",
    "bincount",
}
READS |= {"unique_consecutive", "masked_select"}
READS |= {f"__{name}__" for name in ("bool", "int", "float", "index", "array", "contains")}
"""Functions whose result, or its shape, the host must know."""

Counts = Counter[tuple[str, str]]
"""Number of synchronisations by (kind, place in the code)."""


def count_synchronisations(call: Callable[[], object], device: str, *, before: int = 0) -> Counts:
    """Synchronisations of one call, after `before` others; on a CPU it must work on tensors marked by `mark`."""
    if device != "cuda":
        with _generators(), Pretended() as mode:
            for _ in range(before):
                call()
            mode.counts.clear()
            call()
        return mode.counts
    for _ in range(before):
        call()
    counts: Counts = Counter()

    def note(message: Warning | str, *where: object) -> None:
        if "called a synchronizing" in str(message):
            counts["read or upload", _place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return counts


def mark(tensor: Tensor) -> Tensor:
    """Make `tensor` seem to lie on an accelerator within `Pretended`."""
    tensor.pretended = True  # pyright: ignore[reportAttributeAccessIssue]
    return tensor


def is_marked(value: object) -> bool:
    return isinstance(value, Tensor) and getattr(value, "pretended", False)


class Pretended(TorchFunctionMode):
    """Counts the synchronisations of marked tensors. A result is marked if an argument is, or if its `device` is DEVICE."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counts = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:  # pyright: ignore[reportAttributeAccessIssue]
            return DEVICE if is_marked(args[0]) else func(*args)
        if func is torch.device:
            return func(*args, **kwargs)
        args, kwargs, target = _redirected(name, args, kwargs)
        if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
            target = DEVICE if is_marked(args[1]) else torch.device("cpu")
        if name == "to" and _inside_torch():  # clip_grad_norm_ groups gradients by device in C++, which sees the CPU
            target = None
        here = any(is_marked(leaf) for leaf in tree_leaves(args[:1] if name == "to" else (args, kwargs)))
        if here and (name in READS or (target is not None and target != DEVICE) or _selects(name, args)):
            self._count("read")
        elif not here and target == DEVICE and name in ("to", "tensor", "as_tensor", "asarray"):
            waits = not (kwargs.get("non_blocking") and getattr(args[0], "page_locked", False))
            if waits:
                self._count("upload")
        if name == "pin_memory":  # fails without a GPU
            result = args[0].clone()
            result.page_locked = True
            return result
        result = func(*args, **kwargs)
        if (
            name == "copy_" and len(args) > 1 and not is_marked(args[0])
        ):  # into memory of the host, where the result stays
            if is_marked(args[1]) and not kwargs.get("non_blocking"):
                self._count("read")
            return result
        if name == "cpu" or (target is not None and target != DEVICE):
            return result.clone() if is_marked(result) else result
        if not here and target == DEVICE:  # a copy, since the CPU's `to` returns the same tensor
            return tree_map_only(Tensor, lambda tensor: mark(tensor.clone()), result)
        return tree_map_only(Tensor, mark, result) if here else result

    def _count(self, kind: str) -> None:
        self.counts[kind, _place()] += 1


def _redirected(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], torch.device | None]:
    """Arguments with DEVICE replaced by the CPU, and the device that they name."""
    target = None

    def replaced(value: Any, *, named: bool) -> Any:
        nonlocal target
        if isinstance(value, torch.device) or (named and isinstance(value, str)):
            target = torch.device(value)
            return torch.device("cpu")
        return value

    args = tuple(replaced(value, named=name == "to") for value in args)
    kwargs = {key: replaced(value, named=key == "device") for key, value in kwargs.items()}
    return args, kwargs, target


def _selects(name: str, args: tuple[Any, ...]) -> bool:
    """Whether this is an index of booleans on the accelerator."""
    if name not in ("__getitem__", "__setitem__"):
        return False
    return any(is_marked(leaf) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))


class _Generator(torch.Generator):
    """A CPU generator that names the device it was created for."""

    named: torch.device

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        self = super().__new__(cls)
        self.named = torch.device(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.named


@contextmanager
def _generators() -> Iterator[None]:
    """Within the context generators can be created for DEVICE."""
    with mock.patch.object(torch, "Generator", _Generator), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
        yield


def _inside_torch() -> bool:
    """Whether torch's own Python code called the function."""
    return Path(sys._getframe(2).f_code.co_filename).is_relative_to(TORCH)


def _place() -> str:
    """File and line of the innermost frame in this project, outside this file."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and file.startswith(str(ROOT)) and "site-packages" not in file:
            return f"{_relative(file)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "other"


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "/".join(path.parts[-3:])


@contextmanager
def quietly() -> Iterator[None]:
    """Within the context torch.compile prints no advice on graph breaks, which are counted."""
    logger = logging.getLogger("torch._dynamo")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Dynamo ")
            yield
    finally:
        logger.setLevel(before)


def count_graphs(function: Callable[..., object], *args: Any) -> tuple[int, list[str]]:
    """Number of graphs that torch.compile splits a call into, and the reasons of the breaks that it reports."""
    torch.compiler.reset()
    explained = torch._dynamo.explain(function)(*args)
    torch.compiler.reset()
    return explained.graph_count, [str(reason.reason).splitlines()[0] for reason in explained.break_reasons]


def count_compilations(
    function: Callable[..., object], calls: Sequence[Callable[[Callable[..., Any]], object]], *, dynamic: bool | None
) -> int:
    """Number of graphs compiled for several calls, such as batches of several sizes; each gets the compiled function.

    `dynamic`: as in torch.compile.
    """
    from torch._dynamo.testing import CompileCounter

    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(function, backend=counter, dynamic=dynamic)
    for call in calls:
        call(compiled)
    torch.compiler.reset()
    return counter.frame_count


def mark_all(*values: Any) -> None:
    """Mark the tensors of containers, dataclasses, modules, and optimisers (without their counters of steps)."""
    for value in tree_leaves(values):
        if isinstance(value, Tensor):
            mark(value)
        elif isinstance(value, torch.nn.Module):
            mark_all(*value.parameters(), *value.buffers())
        elif isinstance(value, torch.optim.Optimizer):
            states = value.state.values()
            mark_all([entry for state in states for name, entry in state.items() if name != "step"])
        elif dataclasses.is_dataclass(value):
            mark_all(vars(value))
