"""Errors of jsonargparse, Lightning and torch that a user can correct, as one line."""

import re
from types import TracebackType

TYPE_LISTS = {
    r"Type typing\.Callable\[\[.*?\], [\w.]+\] expects a function or a callable class: ": "",
    r"- Expected a path but .*? either not accessible or invalid - ": "",
    r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - (.*?) - Expected a .*?(?=;|$)": r"\1",
    r"Problem with given class_path '[\w.]+': ": "",
    r"Parser key \"([\w.]+)\": Unable to load config '(.*?)' - .*?(?=;|$)": r"\1 is a group, not '\2': give --\1.SETTING",
    r"ambiguous option: (--[\w.]+) could match (?:--[\w.]+\.help, )?(.*)": r"unknown option \1: did you mean \2?",
}
"""Parts of jsonargparse's messages, as regular expressions, and what replaces them; applied in this order."""

LIGHTNING = ("lightning.", "lightning_utilities.", "lightning_fabric.", "pytorch_lightning.")


def without_types(error: Exception) -> str:
    """The message of jsonargparse without its lists of types, which hide the reason."""
    message = " ".join(str(error).split())
    for pattern, short in TYPE_LISTS.items():
        message = re.sub(pattern, short, message)
    return message


def explain(error: Exception) -> str | None:
    """What to correct, for an error of the training loop; None for an error that is a bug."""
    message = str(error)
    if re.search(r"DataLoader worker \(pid", message):
        return (
            f"a process that reads images was killed ({message.splitlines()[0]}), most likely for lack of memory: lower "
            "data.num_workers, or set data.in_memory to false; continue with --ckpt_path last"
        )
    if "Original Traceback" in message or "terminated with the following error" in message:  # from another process
        kind, _, reason = message.strip().splitlines()[-1].partition(": ")
        return (
            reason
            if kind.rpartition(".")[2] in ("ValueError", "FileNotFoundError", "MisconfigurationException")
            else None
        )
    if re.search(r"can't (get|pickle) local|cannot pickle|can't pickle", message, re.IGNORECASE):
        return f"{message}; trainer.strategy ddp_spawn has to copy the run to new processes: use ddp, or a function of a module"
    return message if _module(error.__traceback__).startswith(LIGHTNING) else None


def _module(traceback: TracebackType | None) -> str:
    """Name of the module that raised the exception."""
    name = ""
    while traceback is not None:
        name, traceback = traceback.tb_frame.f_globals.get("__name__", ""), traceback.tb_next
    return name
