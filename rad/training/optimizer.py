"""AdamW and its learning-rate schedule."""

from typing import Any, Literal, get_args

import torch

Schedule = Literal["constant", "linear", "cosine", "warmup_stable_decay"]


def adamw(module: Any, total: int, *, sharded: bool = False) -> dict[str, Any]:
    """AdamW on what `module` trains, by its settings, and its schedule over `total` steps, as Lightning wants them."""
    settings = {"lr": module.learning_rate, "betas": module.adam_betas, "weight_decay": module.weight_decay}
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    if sharded:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        optimizer = ZeroRedundancyOptimizer(trained, torch.optim.AdamW, **settings)
    else:
        optimizer = torch.optim.AdamW(trained, **settings)
    if module.schedule != "constant" and total <= 0:
        raise ValueError(f"schedule {module.schedule!r} needs to know the length of the run: set trainer.max_steps")
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(
            step, module.warmup_steps, total, module.schedule, decay_share=module.decay_share
        ),
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def require_schedule(schedule: str, *, warmup_steps: int, decay_share: float, learning_rate: float) -> None:
    """Raise ValueError for settings of the learning rate that are out of range."""
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule is {schedule!r}; allowed are {', '.join(get_args(Schedule))}")
    if warmup_steps < 0 or learning_rate <= 0:
        raise ValueError(f"warmup_steps is {warmup_steps} and learning_rate {learning_rate}; allowed are >= 0 and > 0")
    if not 0 < decay_share <= 1:
        raise ValueError(f"decay_share is {decay_share}; allowed are shares of trainer.max_steps above 0, up to 1")


def learning_rate_factor(step: int, warmup: int, total: int, schedule: Schedule, *, decay_share: float = 0.1) -> float:
    """The factor of the learning rate at optimiser step `step` = 0, 1, ... of `total`; see `Diffusion`."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    start = max(warmup, round(total * (1 - decay_share))) if schedule == "warmup_stable_decay" else warmup
    progress = min(1.0, max(0, step - start) / max(1, total - start))
    if schedule == "linear":
        return 1 - progress
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress, dtype=torch.float64))))
