"""Whatever a file holds, the outcome is a result or one line: never a traceback, a hang, or a file written over.

`benchmarks/fuzz.py --examples 2000` tries more.
"""

from collections import Counter

import pytest
import torch

from tests.fuzzing import KINDS, Place, explore, make_place

EXAMPLES = 60
"""Of the quickest kind; of others as many as take about as long."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return make_place(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.spread(1)
@pytest.mark.parametrize("kind", KINDS)
def test_every_outcome_is_a_result_or_one_line(kind, place):
    attempt, weight = KINDS[kind]
    before = torch.get_rng_state()
    found: Counter[str] = Counter()
    explore(attempt, place, found, examples=max(4, EXAMPLES // weight))
    assert sum(found.values()) >= 4
    assert len(found) > 1, f"all outcomes were {found}: nothing is tried here"
    assert torch.equal(torch.get_rng_state(), before) or kind.startswith(("checkpoints", "configurations"))
