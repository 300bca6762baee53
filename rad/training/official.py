"""The recipe of the official code, in the four places where the default of `Diffusion` is another.

                        default                                       official code
    last step           decoder term -log p(x_0)                      no variational term
    clipping            all trained weights, by their common norm     the low-rank updates alone
    ADM's attention     OpenAI's order of q, k, v                     thirds of the rows, which mixes heads; epsilon 1e-6
    timestep            "adm", the pretrained network's index         "official", that index + 1, and 0 for clean

The official code averages no weights by default. `rad train` therefore removes the EMA callbacks of such a run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn

from rad.training.settings import TrainingLoss, TrainingProcess


def as_published(process: TrainingProcess, loss: TrainingLoss) -> tuple[TrainingProcess, TrainingLoss]:
    """Process and loss of the official code. Raises ValueError for settings that it does not have."""
    expected = TrainingProcess(time_origin="official"), TrainingLoss(vlb_boundary="zero")
    given = replace(process, time_origin="official"), replace(loss, vlb_boundary="zero")
    if given != expected:
        raise ValueError(
            "model.official is the recipe of the official code, which has other settings than those of model.process or "
            f"model.loss ({process}, {loss}): remove them, or set model.official to false"
        )
    return expected


def low_rank(weights: Mapping[str, nn.Parameter]) -> Iterable[nn.Parameter]:
    """Weights of the low-rank updates, by the names that peft gives them."""
    return [weight for name, weight in weights.items() if "lora_" in name]
