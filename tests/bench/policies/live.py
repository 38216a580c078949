"""`python -m tests.bench.policies.live`: three cells live over gRPC, against their simulation.

A daemon, a mock fleet and the load generator run as in `polyphase dev`, in processes of their own, and the
daemon records. The recorded policy is simulated on the recorded arrivals (router/sim/whatif.py). A cell is
confirmed when the share of good requests, and p50, p90 and the mean of TTFT, TPOT and E2E, are within the
error that the simulator states for itself. Loads are what two cores carry in real time; a machine that is
busy with others confirms nothing. What was found stays in live.json, for the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from router.observe.reports import objectives_met
from router.sim.recorded import Recorded, read_recording
from router.sim.result import LATENCIES
from router.sim.whatif import Fidelity, WhatIf
from router.sim.workload_file import load_workload
from tests.bench.policies.field import CHAMPION
from tests.bench.policies.kept import ROOT

FILE: Final = "live.json"
STATED_ERROR: Final = 0.03
"""Of the percentiles of a recorded run that is simulated: what the simulator is built to."""
WORKLOAD: Final = "chat"
DURATION_S: Final = 45.0
JUDGED: Final = ("p50", "p90", "mean")
"""Not p99: of a few hundred requests it is that of a handful."""


@dataclass(frozen=True, slots=True)
class Live:
    """One cell to run."""

    fleet: str
    rate_per_s: float
    policy: str = CHAMPION

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.fleet} {WORKLOAD} {self.rate_per_s:g}/s"


CELLS: Final = (Live("homogeneous", 12.0), Live("fast-slow", 12.0), Live("gpu-tpu", 10.0))


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What a cell gave."""

    cell: str
    policy: str
    requests: int
    measured_met: float
    """Share of the requests that met all objectives."""
    simulated_met: float
    measured_e2e_mean_s: float
    simulated_e2e_mean_s: float
    error: float
    """The largest relative error of p50, p90 and p99 of TTFT, TPOT and E2E."""
    judged_error: float
    """The largest of p50, p90 and the mean."""

    @property
    def confirmed(self) -> bool:
        """Whether simulation and measurement agree within the stated error."""
        return max(abs(self.simulated_met - self.measured_met), self.judged_error) <= STATED_ERROR

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "confirmed": self.confirmed}


def live_runs(folder: Path) -> Sequence[dict[str, Any]]:
    """What the last live run left; nothing where there was none."""
    path = folder / FILE
    if not path.exists():
        return ()
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def confirm(cell: Live, recording: Path) -> Confirmation:
    """Simulate what was recorded, and compare. Raises RecordingError and ConfigError."""
    recorded = read_recording(recording)
    what_if = WhatIf(recorded)
    fidelity = what_if.fidelity()
    simulated = what_if.ask((), fidelity, "e2e_mean_s").standings[0].results[0]
    return of(cell, recorded, fidelity, simulated.attainment)


def of(cell: Live, recorded: Recorded, fidelity: Fidelity, simulated_met: float) -> Confirmation:
    """The values of a comparison."""
    met = [objectives_met(report, at)["all"] for report, at in recorded.measured]
    rows = [row for row in fidelity.rows if row.name in LATENCIES]
    mean = next(row for row in rows if (row.name, row.statistic) == ("e2e", "mean"))
    return Confirmation(
        cell.name,
        cell.policy,
        fidelity.requests,
        sum(met) / max(1, len(met)),
        simulated_met,
        mean.measured,
        mean.simulated,
        fidelity.error,
        max(abs(row.error) for row in rows if row.statistic in JUDGED),
    )


def run(cell: Live, recording: Path, duration_s: float) -> None:
    """Daemon, mock fleet and load, with the daemon recording. Raises CalledProcessError when one fails."""
    slo = load_workload(WORKLOAD).classes[0].slo
    options = {
        "--fleet": cell.fleet,
        "--policy": cell.policy,
        "--trace": "azure",
        "--rate": cell.rate_per_s,
        "--duration": duration_s,
        "--class": WORKLOAD,
        "--ttft-slo": slo.ttft_s,
        "--tpot-slo": slo.tpot_s,
        "--base-port": 0,
    }
    words = [str(word) for option in options.items() for word in option]
    subprocess.run(
        [sys.executable, "-m", "router.cli.main", "dev", *words],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "POLYPHASE_OBSERVE__RECORD": str(recording)},
        timeout=duration_s + 120.0,
    )


def main() -> None:
    """All cells, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--duration", type=float, default=DURATION_S, help="seconds of each")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    asked = parser.parse_args()
    found: list[Confirmation] = []
    for cell in CELLS:
        with tempfile.TemporaryDirectory() as folder:
            recording = Path(folder) / "live.jsonl"
            run(cell, recording, asked.duration)
            found.append(confirm(cell, recording))
        print(json.dumps(found[-1].as_dict()), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(json.dumps(each.as_dict()) for each in found)
    (asked.out / FILE).write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
