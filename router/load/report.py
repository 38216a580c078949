"""Counts what happened to the requests of a run and sums it up.

Latencies are the client's: from the time a request should have been sent to what reached the client.
Phases, backends, cost and energy are the router's account, from `finished` (their definition:
docs/architecture.md).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from google.rpc import code_pb2
from polyphase.v1 import common_pb2, inference_pb2

from router.load.client import Clock
from router.load.flight import STOPPED, Failed, Flight, Outcome
from router.load.samples import Samples
from router.load.verify import Integrity
from router.model import Seconds

PHASES: Final = ("queue", "prefill", "handoff", "decode")


@dataclass(slots=True)
class BackendTally:
    """What one backend did for the requests of this run that ended well."""

    kind: str
    prefills: int = 0
    decodes: int = 0
    prompt_tokens: int = 0
    """Prefilled here."""
    tokens: int = 0
    """Decoded here."""
    prefill_device_s: Seconds = 0.0
    decode_device_s: Seconds = 0.0
    energy_j: float = 0.0
    cost_usd: float = 0.0

    @property
    def device_s(self) -> Seconds:
        """Device time of both phases."""
        return self.prefill_device_s + self.decode_device_s


class Tally:
    """The running account of a run; an Observer of the open loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.started_s = clock()
        self.offered = 0
        self.sent_count = 0
        self.not_sent_count = 0
        self.ok = 0
        self.cancelled = 0
        self.tokens = 0
        self.failures: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.messages: dict[str, str] = {}
        """The first message of each failure reason."""
        self.integrity = Integrity()
        self.ttft, self.tpot, self.e2e, self.lateness = Samples(), Samples(), Samples(), Samples()
        self.phases = {name: Samples() for name in PHASES}
        self.backends: dict[str, BackendTally] = {}
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.split = 0
        """Requests whose phases ran on different backends."""
        self.retried = 0
        self.cost_usd = 0.0
        self.energy_j = 0.0
        self._last_sent_s = self.started_s
        self._last_end_s = self.started_s

    def begin(self) -> None:
        """The schedule starts now; connecting took its time before."""
        self.started_s = self._last_sent_s = self._last_end_s = self._clock()

    def sent(self, flight: Flight) -> None:
        """A request left."""
        self.offered += 1
        self.sent_count += 1
        self._last_sent_s = flight.sent_s
        self.lateness.add(max(flight.sent_s - flight.intended_s, 0.0))

    def not_sent(self) -> None:
        """A request was due, but too many were under way."""
        self.offered += 1
        self.not_sent_count += 1

    def ended(self, flight: Flight, outcome: Outcome) -> None:
        """A request ended."""
        self._last_end_s = flight.end_s or self._clock()
        self.tokens += len(flight.transcript)
        self.integrity += flight.check(outcome)
        if isinstance(outcome, Failed):
            self._failed(outcome)
        else:
            self._finished(flight, outcome)

    def _failed(self, failed: Failed) -> None:
        if failed.reason == STOPPED:
            self.cancelled += 1
            return
        self.failures[failed.reason] += 1
        self.codes[_code_name(failed.code)] += 1
        self.messages.setdefault(failed.reason, failed.message[:300])

    def _finished(self, flight: Flight, finished: inference_pb2.Finished) -> None:
        self.ok += 1
        self._time(flight)
        for name, samples in self.phases.items():
            samples.add(getattr(finished.times, f"{name}_s"))
        self.cost_usd += finished.cost_usd
        self.energy_j += finished.energy_j
        self.retried += finished.attempts > 1
        self._place(finished)

    def _time(self, flight: Flight) -> None:
        end = flight.end_s or flight.intended_s
        self.e2e.add(end - flight.intended_s)
        tokens = len(flight.transcript)
        if flight.first_s is not None:
            self.ttft.add(flight.first_s - flight.intended_s)
            if tokens > 1:
                self.tpot.add((flight.last_s - flight.first_s) / (tokens - 1))

    def _place(self, finished: inference_pb2.Finished) -> None:
        """Where the phases ran; with retries, the last use of each phase is the one that counted."""
        last: dict[int, common_pb2.PhaseUse] = {}
        for use in finished.uses:
            last[use.phase] = use
            self._use(use)
        prefill = last.get(common_pb2.PHASE_PREFILL)
        decode = last.get(common_pb2.PHASE_DECODE)
        if prefill:
            self.backends[prefill.backend].prompt_tokens += finished.usage.prompt_tokens
        if decode:
            self.backends[decode.backend].tokens += finished.usage.output_tokens
        if prefill and decode:
            self.pairs[kind_name(prefill.kind), kind_name(decode.kind)] += 1
            self.split += prefill.backend != decode.backend

    def _use(self, use: common_pb2.PhaseUse) -> None:
        backend = self.backends.setdefault(use.backend, BackendTally(kind_name(use.kind)))
        backend.energy_j += use.energy_j
        backend.cost_usd += use.cost_usd
        if use.phase == common_pb2.PHASE_PREFILL:
            backend.prefills += 1
            backend.prefill_device_s += use.device_s
        else:
            backend.decodes += 1
            backend.decode_device_s += use.device_s

    @property
    def failed(self) -> int:
        """Requests that were sent and failed."""
        return self.failures.total()

    @property
    def failed_ratio(self) -> float:
        """Failed or not sent, of all that were offered; 0 when nothing was."""
        return (self.failed + self.not_sent_count) / self.offered if self.offered else 0.0

    @property
    def duration_s(self) -> Seconds:
        """From the start of the run to the last end."""
        return max(self._last_end_s, self._last_sent_s) - self.started_s

    @property
    def clean(self) -> bool:
        """Something was done, nothing failed, every token came once and was right."""
        trouble = self.failed + self.not_sent_count + self.integrity.violations
        return trouble == 0 and self.ok > 0

    def report(self) -> dict[str, Any]:
        """The summary as JSON values; the names are public API."""
        duration = self.duration_s
        sending_s = self._last_sent_s - self.started_s
        return {
            "requests": {
                "total": self.offered,
                "ok": self.ok,
                "failed": self.failed,
                "cancelled": self.cancelled,
                "not_sent": self.not_sent_count,
                "retried": self.retried,
                "split": self.split,
                "failures": dict(self.failures.most_common()),
                "codes": dict(self.codes.most_common()),
            },
            "integrity": {
                "lost": self.integrity.lost,
                "duplicated": self.integrity.duplicated,
                "mismatched": self.integrity.mismatched,
            },
            "ttft_s": self.ttft.summary(),
            "tpot_s": self.tpot.summary(),
            "e2e_s": self.e2e.summary(),
            "send_lateness_s": self.lateness.summary(),
            "phases": {name: samples.summary() for name, samples in self.phases.items()},
            "backends": [self._backend(id_, tally) for id_, tally in sorted(self.backends.items())],
            "pairs": [
                {"prefill": prefill, "decode": decode, "requests": count}
                for (prefill, decode), count in self.pairs.most_common()
            ],
            "cost_usd": self.cost_usd,
            "energy_j": self.energy_j,
            "duration_s": duration,
            "sent_rate": self.sent_count / sending_s if sending_s > 0 else 0.0,
            "tokens": self.tokens,
            "tokens_per_s": self.tokens / duration if duration > 0 else 0.0,
        }

    def _backend(self, id_: str, tally: BackendTally) -> dict[str, Any]:
        duration = self.duration_s
        return {
            "id": id_,
            "kind": tally.kind,
            "prefills": tally.prefills,
            "decodes": tally.decodes,
            "busy_ratio": tally.device_s / duration if duration > 0 else 0.0,
            "tokens": tally.tokens,
            "prompt_tokens": tally.prompt_tokens,
            "prefill_device_s": tally.prefill_device_s,
            "decode_device_s": tally.decode_device_s,
            "cost_usd": tally.cost_usd,
            "energy_j": tally.energy_j,
        }


def kind_name(kind: int) -> str:
    """A BackendKind of the wire by its short name, as in `gpu`."""
    if kind in common_pb2.BackendKind.values():
        return common_pb2.BackendKind.Name(kind).removeprefix("BACKEND_KIND_").lower()
    return str(kind)


def _code_name(code: int) -> str:
    return str(code_pb2.Code.Name(code)) if code in code_pb2.Code.values() else str(code)
