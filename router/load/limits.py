"""Limits a run must keep, as given on the command line."""

from __future__ import annotations

from dataclasses import dataclass

from router.load.report import Tally
from router.load.samples import Samples
from router.model import Seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds; None means no bound. A bound without a sample to compare counts as crossed."""

    max_ttft_p99_s: Seconds | None = None
    max_tpot_p99_s: Seconds | None = None
    max_e2e_p99_s: Seconds | None = None
    max_failed_ratio: float | None = None
    """Failed or not sent, of all offered; 0 to 1."""

    def crossed(self, tally: Tally) -> list[str]:
        """One sentence for each limit that does not hold."""
        latencies = (
            ("TTFT p99", tally.ttft, self.max_ttft_p99_s),
            ("TPOT p99", tally.tpot, self.max_tpot_p99_s),
            ("E2E p99", tally.e2e, self.max_e2e_p99_s),
        )
        crossed = [text for name, samples, limit in latencies if (text := _over(name, samples, limit))]
        if self.max_failed_ratio is not None and tally.failed_ratio > self.max_failed_ratio:
            crossed.append(f"failed ratio {tally.failed_ratio:.4f} is above {self.max_failed_ratio:g}")
        return crossed


def _over(name: str, samples: Samples, limit: Seconds | None) -> str:
    if limit is None:
        return ""
    p99 = samples.summary()["p99"]
    if p99 is None:
        return f"{name} has no samples to hold against {limit:g} s"
    return f"{name} {p99:.4g} s is above {limit:g} s" if p99 > limit else ""
