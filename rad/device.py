"""Devices by name."""

import torch


def find_device(name: str) -> str:
    """The device of that name; "auto": an accelerator if there is one, or the CPU. Raises ValueError if it cannot be used."""
    if name != "auto":
        try:
            torch.zeros(1, device=name).item()
        except (RuntimeError, AssertionError, ImportError) as error:
            raise ValueError(
                f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try 'auto' or 'cpu'"
            ) from None
        return name
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type
