"""`make bench-policies`: writes docs/benchmarks/policies.md and policies.json."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.bench.policies.additions import REQUESTS, additions
from tests.bench.policies.field import LOADS, WORKLOADS, contestants, fleets
from tests.bench.policies.grid import Outcome, run_all, spots
from tests.bench.policies.monotone import RATES, trial
from tests.bench.policies.report import write

FOLDER = Path(__file__).parents[3] / "docs" / "benchmarks"
IN_THE_EXPERIMENT = (
    "dynamo",
    "dynamo_two_tier",
    "least_requests",
    "round_robin",
    "least_loaded",
    "predicted",
)


def main() -> None:
    """Run what is asked for."""
    asked = _arguments()
    began = time.monotonic()
    trials = [trial(name, rate, 500 if asked.quick else 2000) for name in IN_THE_EXPERIMENT for rate in RATES]
    added = additions(fleets(asked.fleets), 300 if asked.quick else REQUESTS)
    grid = spots(fleets(asked.fleets), asked.workloads, asked.loads, asked.seeds)
    labels = [who.label for who in contestants(asked.policies)]
    rows = run_all(grid, labels, not asked.no_bounds, lambda outcome: _tell(outcome, began))
    about = {"spots": len(grid), "policies": len(labels), "wall_s": time.monotonic() - began}
    write(asked.out, rows, trials, added, about)
    print(f"{asked.out / 'policies.md'} and policies.json, after {about['wall_s']:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-policies ARGS=...", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two fleets, two workloads, one load, one seed")
    parser.add_argument("--fleets", nargs="*", default=[])
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--loads", nargs="*", type=float, default=list(LOADS))
    parser.add_argument("--policies", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--no-bounds", action="store_true", help="leave out B2 and the clairvoyant policies")
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args()
    if asked.quick:
        asked.fleets, asked.workloads = ["homogeneous", "mixed"], ["chat", "code"]
        asked.loads, asked.seeds = [0.6], 1
    return asked


def _tell(outcome: Outcome, began: float) -> None:
    spot = outcome.spot
    best = max(outcome.results, key=lambda each: each.met)
    print(
        f"{time.monotonic() - began:6.0f} s  {spot.fleet:12} {spot.workload:10} {spot.load:4g} "
        f"seed {spot.seed}: {best.policy} {best.attainment:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
