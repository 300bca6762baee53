"""Devices by name."""

from collections.abc import Sequence

import torch


def find_device(name: str) -> str:
    """Check a device name; "auto" is an accelerator if there is one, otherwise "cpu".

    Raises:
        ValueError: the device cannot be used.
    """
    if name != "auto":
        try:
            torch.zeros(1, device=name).item()
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {name!r} cannot be used ({reason}): try 'auto' or 'cpu'") from None
        return name
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def find_devices(name: str, count: int) -> list[str]:
    """The devices of `count` processes: one accelerator each, or the CPU for all.

    Raises:
        ValueError: there are fewer accelerators, or `name` has a number.
    """
    name = find_device(name) if name == "auto" or count == 1 else name
    if name == "cpu" or count == 1:
        return [name] * count
    accelerator = torch.accelerator.current_accelerator()
    there = torch.accelerator.device_count() if accelerator is not None and accelerator.type == name else 0
    if there < count:
        raise ValueError(
            f"{count} devices {name!r} are asked for, and there are {there}: give fewer, or 'auto' or 'cpu'"
        )
    return [f"{name}:{number}" for number in range(count)]


def kind_of(name: str) -> str:
    """The model of a CUDA device, otherwise the type of the device."""
    device = torch.device(name)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def threads_of_each(devices: Sequence[str]) -> int:
    """CPU threads of each process; they share the threads of this one."""
    return max(1, torch.get_num_threads() // len(devices))
