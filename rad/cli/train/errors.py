"""Errors of jsonargparse, Lightning and torch that a user can correct, as one line."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rad.console import EXIT_INPUT
from rad.images.remote import Unreachable

PATIENCE = 5.0
"""Seconds that a process other than the first of its machine waits before it reports an error."""

TYPE_LISTS = {
    r"Does not validate against any of the Union subtypes Subtypes: \[<class 'float'>, <class 'torch\.Tensor'>\] .*? "
    r"Given value: (\S+?)\.? Got value: .*?(?=;|$)": r"Expected a number, not \1",
    r"Type typing\.Callable\[\[.*?\], [\w.]+\] expects a function or a callable class: ": "",
    r"- Expected a path but .*? either not accessible or invalid - ": "",
    r"Errors: (?:- Expected a <class '[\w.]+'> )+(?=- (?!Expected a <class))": "Errors: ",
    r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - (.*?) - Expected a .*?(?=;|$)": r"\1",
    r"Problem with given class_path '[\w.]+': ": "",
    r"Parser key \"([\w.]+)\": Unable to load config '(.*?)' - .*?(?=;|$)": r"\1 is a group, not '\2': give --\1.SETTING",
    r"Not a valid subclass of \w+ Subclass types expect one of: .*? - (?=the following arguments)": "",
    r"Not a valid subclass of Logger\.? Got value: .*?\(implicit class_path\) - (?=\S)": "trainer.logger cannot be used: ",
    r" - Not a valid subclass of .*?(?=;|$)": "",
    r"Parser key \"([\w.]+)\": the following arguments are required: (\w+)": r"\1 needs \2: give --\1.\2",
    r"Expected a dot import path string: (\S+)": r"no class is called \1: give its import path, such as rad.training.EMA",
    r"(trainer\.precision\": )Expected a typing\.Literal\[.*?\](?=;|$)": r"\1allowed are 32-true, bf16-mixed, 16-mixed, 64-true",
    r"ambiguous option: (--[\w.]+) could match (?:--[\w.]+\.help, )?(.*)": r"unknown option \1: did you mean \2?",
}
"""Parts of jsonargparse's messages, as regular expressions, and what replaces them; applied in this order."""

REPORTED = ("torch.optim.", "lightning.", "lightning_utilities.", "lightning_fabric.", "pytorch_lightning.")


OF_OPTIMIZER = {"learning_rate": "lr", **{name: name for name in ("lr", "weight_decay", "betas", "eps", "momentum")}}
"""Names for settings of the optimiser that users give without its group, and the names there."""


@contextmanager
def reported_once() -> Iterator[None]:
    """Within the context, an error that all processes of a machine raise is reported by the first of them only.

    Another process waits. If the first one fails too, either the launcher ends this process (torchrun), or its parent ends, since
    Lightning starts the others from the first; then it exits in silence. Otherwise the error is its own, and is raised.
    """
    parent = os.getppid()
    try:
        yield
    except (ValueError, OSError):
        if os.environ.get("LOCAL_RANK", "0") == "0" or os.environ.get("RAD_DEBUG"):
            raise
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if os.getppid() != parent:
                raise SystemExit(EXIT_INPUT) from None
            time.sleep(0.05)
        raise


def optimizer_hint(message: str) -> str | None:
    """A message for an unknown option that is a setting of the optimiser; None for other errors of the parser."""
    unknown = re.search(r"(?:unrecognized arguments|ambiguous option): (--(?:model\.)?(\w+))(?![\w.])", message)
    if unknown is None or unknown[2] not in OF_OPTIMIZER:
        return None
    return f"unknown option {unknown[1]}: did you mean --model.optimizer.{OF_OPTIMIZER[unknown[2]]}?"


def without_types(error: Exception) -> str:
    """The message of jsonargparse without its lists of types, which hide the reason."""
    message = " ".join(str(error).split())
    for pattern, short in TYPE_LISTS.items():
        message = re.sub(pattern, short, message)
    return message


def explain(error: Exception) -> str | None:
    """What to correct, for an error of the training loop; None for an error that is a bug."""
    message = str(error)
    if isinstance(error, Unreachable) and "Original Traceback" not in message:
        return message
    if re.search(r"DataLoader worker \(pid", message):
        return (
            f"a process that reads images was killed ({message.splitlines()[0]}), most likely for lack of memory: lower "
            "data.num_workers, or set data.in_memory to false; continue with --ckpt_path last"
        )
    if "Original Traceback" in message or "terminated with the following error" in message:  # from another process
        kind, _, reason = message.strip().splitlines()[-1].partition(": ")
        return (
            reason
            if kind.rpartition(".")[2]
            in ("ValueError", "FileNotFoundError", "MisconfigurationException", "Unreachable")
            else None
        )
    if re.search(r"can't (get|pickle) local|cannot pickle|can't pickle", message, re.IGNORECASE):
        return f"{message}; trainer.strategy ddp_spawn has to copy the run to new processes: use ddp, or a function of a module"
    return message if _module(error.__traceback__).startswith(REPORTED) else None


def _module(traceback: TracebackType | None) -> str:
    """Name of the module that raised the exception."""
    name = ""
    while traceback is not None:
        name, traceback = traceback.tb_frame.f_globals.get("__name__", ""), traceback.tb_next
    return name
