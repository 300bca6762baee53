"""Power-function averages, and their combination into an average of another length (Karras et al. 2024, arXiv 2312.02696).

An average at step T weighs the weights of step t by the profile p(t) = (g + 1) t^g / T^(g + 1), 0 <= t <= T. Its length is the
standard deviation of the profile as a fraction of T, `sigma_rel`.

| paper (section 3.1, appendix C) | here |
|---|---|
| gamma | `gamma` |
| sigma_rel | `sigma_rel` |
| beta_gamma(t) | `power_decay` |
| <p_i, p_j> | `inner_products` |
| least-squares weights x = A^-1 b | `solve_weights` |
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LONGEST = 12**-0.5
"""sigma_rel of the uniform average, gamma 0."""


class Profile(NamedTuple):
    """An average: its step, above 0, counted from its start, and its length."""

    step: int
    sigma_rel: float


def gamma_of(sigma_rel: float) -> float:
    """gamma >= 0 of a length: the largest root of (g + 1) / ((g + 2)^2 (g + 3)) = sigma_rel^2, a cubic.

    Raises ValueError unless 0 < sigma_rel <= 12^(-1/2), the length of the uniform average.
    """
    if not 0 < sigma_rel <= LONGEST:
        raise ValueError(
            f"sigma_rel is {sigma_rel}; allowed are lengths above 0 and up to {LONGEST:.4f}, the uniform average"
        )
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def power_decay(step: int, gamma: float) -> float:
    """beta of update `step` = 1, 2, ... At step 1 it is 0: the average has no warm-up and no trace of its start."""
    return (1 - 1 / step) ** (gamma + 1)


def inner_products(first: Sequence[Profile], second: Sequence[Profile]) -> np.ndarray:
    """Integrals of p_i(t) p_j(t) over t >= 0: (len(first), len(second)) float64."""
    (step, gamma), (other_step, other_gamma) = _columns(first), _columns(second)
    step, gamma = step[:, None], gamma[:, None]
    # the profile of the later average enters as its value where the earlier one ends, which avoids large powers
    ratio = np.minimum(step, other_step) / np.maximum(step, other_step)
    scale = ratio ** np.where(step < other_step, other_gamma, gamma) / np.maximum(step, other_step)
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * scale


def _columns(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    steps, lengths = np.array([step for step, _ in profiles], float), [gamma_of(length) for _, length in profiles]
    return steps, np.array(lengths)


def solve_weights(saved: Sequence[Profile], target: Profile) -> tuple[np.ndarray, float]:
    """The combination of `saved` averages that is nearest to the profile `target`, by least squares (appendix C).

    The weights are constrained to sum to 1, which the paper does not state. Without it, eight steps or fewer can shrink or grow
    all weights by several percent; with more, both solutions agree.

    Returns:
        Weights (len(saved),), and the error as a fraction of the norm of the target's profile.
    """
    products, with_target = inner_products(saved, saved), inner_products(saved, [target])[:, 0]
    (norm,), count = inner_products([target], [target])[0], len(saved)
    # profiles of unit norm, for a small condition number
    scale = np.diag(products) ** -0.5
    system = np.block([[products * scale * scale[:, None], scale[:, None]], [scale[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(with_target * scale, 1.0), rcond=None)[0]
    weights = solution[:count] * scale
    weights /= weights.sum()
    square = weights @ products @ weights - 2 * weights @ with_target + norm
    return weights, float(np.sqrt(max(square, 0.0) / norm))
