"""Damaged and strange input of every kind, more of it than the tests try: how often it is used, and how often refused.

python benchmarks/fuzz.py --examples 2000 --minutes 15

The memory of the process is limited, so that input which asks for too much of it is found as a MemoryError.
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
    parser.add_argument("--examples", type=int, default=2000, help="of the quickest kind; others take as long")
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="no kind is begun after this time")
    parser.add_argument(
        "--memory", type=float, default=4, help="GiB that may be allocated beyond those of the beginning"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    limit_memory(options.memory)
    begun, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="rad-fuzz-") as root:
        place = make_place(Path(root))
        for kind in options.kind:
            if time.monotonic() - begun > 60 * options.minutes:
                print(f"{kind}: not begun, for the time is over", flush=True)
                continue
            attempt, weight = KINDS[kind]
            since, end = time.monotonic(), ""
            found: Counter[str] = Counter()
            try:
                explore(attempt, place, found, examples=max(4, options.examples // weight), seed=options.seed)
            except (Exception, Hang):
                wrong += 1
                traceback.print_exc()
                end = "; FAILED, see above"
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.items()))
            print(f"{kind}: {found.total()} examples: {counts} ({time.monotonic() - since:.0f} s){end}", flush=True)
    return min(wrong, 1)


def limit_memory(gib: float) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(gib * 2**30),) * 2)


if __name__ == "__main__":
    sys.exit(main())
