"""Parameters of tests whose first cases run by default and whose other cases run with the slow tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def rest_slow(values: Iterable[Any], keep: int = 1, ids: Iterable[str] | None = None) -> list[Any]:
    """The values of a `parametrize`; those after the first `keep` are marked slow. A tuple is one case of several arguments."""
    cases = [value if isinstance(value, tuple) else (value,) for value in values]
    names = [None] * len(cases) if ids is None else list(ids)
    return [
        pytest.param(*case, marks=[] if number < keep else [pytest.mark.slow], id=name)
        for number, (case, name) in enumerate(zip(cases, names, strict=True))
    ]
