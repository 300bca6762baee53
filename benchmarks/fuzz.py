"""Tries damaged and strange input of every kind: more examples of tests/fuzzing.py than the tests run.

    python benchmarks/fuzz.py --examples 2000 --minutes 15

Prints for each kind how often the input was used and how often it was refused. Any other outcome prints its traceback, and the
exit code is 1. The memory of the process is limited, to find input that allocates too much.
"""

import argparse
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from tests.fuzzing import KINDS, Hang, explore, make_place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--examples", type=int, default=2000, help="examples of the fastest kind; slower kinds get fewer"
    )
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="start no kind after this time")
    parser.add_argument("--memory", type=float, default=4, help="GiB that may be allocated after the start")
    options = parser.parse_args()
    torch.set_num_threads(1)
    limit_memory(options.memory)
    begun, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="rad-fuzz-") as root:
        place = make_place(Path(root))
        for kind in options.kind:
            if time.monotonic() - begun > 60 * options.minutes:
                print(f"{kind}: skipped, --minutes is over", flush=True)
                continue
            attempt, weight = KINDS[kind]
            since, end = time.monotonic(), ""
            outcomes: Counter[str] = Counter()
            try:
                explore(attempt, place, outcomes, examples=max(4, options.examples // weight), seed=options.seed)
            except (Exception, Hang):
                wrong += 1
                traceback.print_exc()
                end = "; FAILED, see above"
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
            print(f"{kind}: {outcomes.total()} examples: {counts} ({time.monotonic() - since:.0f} s){end}", flush=True)
    return min(wrong, 1)


def limit_memory(gib: float) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gib * 2**30),) * 2)


if __name__ == "__main__":
    sys.exit(main())
