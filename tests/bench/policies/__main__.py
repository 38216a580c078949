"""`make bench-policies`: writes docs/benchmarks/policies.md and policies.json.

For quick feedback while a policy is tuned, a table on the terminal and no files:

    python -m tests.bench.policies --quick
    python -m tests.bench.policies --table --fleets mixed --workloads chat vision --loads 0.8 1.0
    python -m tests.bench.policies --table --keep --policies predicted      (the others as they were)
    python -m tests.bench.policies --experiments                            (jitter, energy, overload, ...)

Runs are kept in .benchmarks/policies.jsonl. Those of this state of the code are not run again; `--keep` also
takes those of other states, but for the policies that are named.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from router.errors import ConfigError
from tests.bench.policies.field import LOADS, MORE_WORKLOADS, WORKLOADS, fleets, labels_of, quick
from tests.bench.policies.findings import Findings, found
from tests.bench.policies.grid import WORKERS, Outcome, run_all, spots_of
from tests.bench.policies.kept import ROOT, Kept, state_of_the_code
from tests.bench.policies.live import live_runs
from tests.bench.policies.report import write
from tests.bench.policies.rows import cells_of
from tests.bench.policies.targets import verdicts
from tests.bench.policies.terminal import table, targets

FOLDER = ROOT / "docs" / "benchmarks"
KEPT = ROOT / ".benchmarks" / "policies.jsonl"


def main(given: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    asked = _arguments(given)
    try:
        named, places = labels_of(asked.policies), fleets(asked.fleets)
    except ConfigError as error:
        sys.exit(str(error))
    began = time.monotonic()
    if asked.experiments:
        print(targets(verdicts((), _experiments(asked.out, began))))
        return
    kept = Kept(asked.kept, state_of_the_code(), asked.keep)
    spots = spots_of(places, asked.workloads, asked.loads, asked.seeds)
    everybody = quick() if asked.quick else labels_of(bounds=not asked.no_bounds)
    labels = named if asked.policies and not asked.keep else everybody
    anew = named if asked.policies else ()
    outcomes = run_all(spots, labels, kept, anew, lambda outcome: _tell(outcome, began), asked.workers)
    cells = cells_of(outcomes)
    print(table(cells, named if asked.policies else quick()))
    if not (asked.quick or asked.table):
        about = {"spots": len(spots), "policies": len(everybody), "kept": kept.others(spots, everybody)}
        write(asked.out, cells, _experiments(asked.out, began), about)
        print(f"{asked.out / 'policies.md'} and policies.json")
    print(f"{len(spots)} spots, {time.monotonic() - began:.0f} s")


def _experiments(out: Path, began: float) -> Findings:
    """All of them, and the last live run."""
    experiments = found(lambda what: print(f"{time.monotonic() - began:6.0f} s  {what}", file=sys.stderr))
    experiments.live = live_runs(out)
    return experiments


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench-policies ARGS=...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="two fleets, three workloads, one seed; no files"
    )
    parser.add_argument("--table", action="store_true", help="no files")
    parser.add_argument("--experiments", action="store_true", help="only what is beside the grid; no files")
    parser.add_argument("--keep", action="store_true", help="take kept runs of other states of the code")
    parser.add_argument("--fleets", nargs="*", default=[])
    parser.add_argument(
        "--workloads", nargs="*", default=list(WORKLOADS), choices=[*WORKLOADS, *MORE_WORKLOADS]
    )
    parser.add_argument("--loads", nargs="*", type=float, default=list(LOADS))
    parser.add_argument("--policies", nargs="*", default=[], help="by label; `clairvoyants` and B2 too")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--no-bounds", action="store_true", help="leave out B2 and the clairvoyant policies")
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes")
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--out", type=Path, default=FOLDER)
    asked = parser.parse_args(given)
    if asked.quick:
        asked.fleets = asked.fleets or ["homogeneous", "mixed"]
        asked.seeds = 1
        if asked.workloads == list(WORKLOADS):
            asked.workloads = ["chat", "vision", "mixed"]
        if asked.loads == list(LOADS):
            asked.loads = [0.8, 1.0]
    return asked


def _tell(outcome: Outcome, began: float) -> None:
    spot = outcome.spot
    label, best = max(outcome.scores.items(), key=lambda each: each[1].met)
    print(
        f"{time.monotonic() - began:6.0f} s  {spot.fleet:12} {spot.workload:10} {spot.load:4g} "
        f"seed {spot.seed}: {label} {best.met / max(1, best.arrived):.3f}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
