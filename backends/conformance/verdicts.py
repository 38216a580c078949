"""What a run is asked and what it finds out: targets, settings, verdicts. Values only; no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from router.model import Seconds

Control = Callable[[str], Awaitable[None]]
"""Does something to the worker with this backend id; returns when it was done, not when it took effect."""

GUIDE: Final = "docs/guides/write-a-backend.md"
PROTO: Final = "protos/polyphase/v1/worker.proto"


@dataclass(frozen=True, slots=True)
class Target:
    """A worker that runs."""

    backend: str
    address: str
    """host:port."""

    def __str__(self) -> str:
        return f"{self.backend}@{self.address}"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to go about it."""

    patience_s: Seconds = 30.0
    """The longest wait for anything that must come; what does not come by then is missing."""
    longest_lease_s: Seconds = 60.0
    """Leases up to this long are waited out; 0 leaves that check out."""
    vocabulary: int = 1000
    """Prompts are made of token ids from 3 to this, exclusive; at least 4."""
    deterministic: bool = False
    """The author says that equal requests get equal answers."""
    listen: str = "127.0.0.1:0"
    """Where the suite plays a producer of KV; the decode worker must be able, and allowed, to connect."""
    seed: int = 0
    """Of the prompts."""
    restart: Control | None = None
    """Restarts a worker; it comes back at the same address."""
    drain: Control | None = None
    """Tells a worker to take nothing new and to end what runs. It need not come back."""


class Verdict(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Result:
    """One check."""

    name: str
    rule: str
    """What the contract says."""
    where: str
    """Its place in the documents."""
    verdict: Verdict
    evidence: str
    """What was seen; with SKIP, why nothing was."""
    took_s: Seconds


@dataclass(frozen=True, slots=True)
class Report:
    """A run."""

    targets: Sequence[Target]
    results: Sequence[Result]

    @property
    def failed(self) -> Sequence[str]:
        """Names of the checks that failed."""
        return [result.name for result in self.results if result.verdict is Verdict.FAIL]

    @property
    def counts(self) -> Counter[Verdict]:
        """Checks by verdict."""
        return Counter(result.verdict for result in self.results)

    def as_json(self) -> dict[str, Any]:
        """For machines; a stable format."""
        return {
            "targets": [{"backend": one.backend, "address": one.address} for one in self.targets],
            "counts": {verdict.value: self.counts[verdict] for verdict in Verdict},
            "results": [
                {
                    "name": one.name,
                    "verdict": one.verdict.value,
                    "evidence": one.evidence,
                    "rule": one.rule,
                    "where": one.where,
                    "took_s": round(one.took_s, 3),
                }
                for one in self.results
            ],
        }


class ViolationError(Exception):
    """The worker broke the contract; the message says what was seen."""


class NotCheckedError(Exception):
    """A check does not apply, or its case could not be brought about; the message says why."""


def expect(holds: object, otherwise: str) -> None:
    """Raise ViolationError unless something holds."""
    if not holds:
        raise ViolationError(otherwise)
