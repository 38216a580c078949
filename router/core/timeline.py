"""The only definition of every latency. Metrics, reports and records read it and define none themselves.

One request, on the router's clock, in its last attempt:

    arrived ── dispatched ────── prefill done ── bound ──── KV moved ────── ended
       └ queue ┘└ w ┘└ prefill ┘      └ queue ┘└ handoff ┘└ w ┘└ decode ┘

`w` is the wait inside a worker, which the worker reports as a duration; it counts as queue. So
queue + prefill + handoff + decode = e2e, and what a failed attempt took counts as queue: the request waited
for an attempt that works. The wire between router and worker is part of the phase that it serves.
TTFT runs from arrival to the first token at the client's stream; TPOT is the mean time per output token after
the first, undefined below two tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.model import PhaseTimes, Seconds


@dataclass(slots=True)
class Timeline:
    """Marks of one request, set by the core as facts come in."""

    arrived: Seconds
    dispatched: Seconds | None = None
    prefill_done: Seconds | None = None
    bound: Seconds | None = None
    """Decode was sent to its backend; at prefill_done when decode stays there."""
    kv_moved: Seconds | None = None
    first_token: Seconds | None = None
    prefill_wait_s: Seconds = 0.0
    decode_wait_s: Seconds = 0.0
    """From the decode command to its first step, as the worker saw it: the handoff is inside."""

    def restart(self) -> None:
        """Forget an attempt that failed; what it took becomes queue."""
        self.dispatched = self.prefill_done = self.bound = self.kv_moved = self.first_token = None
        self.prefill_wait_s = self.decode_wait_s = 0.0

    def times(self, ended: Seconds, output_tokens: int) -> PhaseTimes:
        """Where the time went, for a request that ended at `ended`, in whatever phase it was."""
        dispatched = _or(self.dispatched, ended)
        prefill_done = _or(self.prefill_done, ended)
        bound = _or(self.bound, ended)
        moved = _or(self.kv_moved, ended)
        prefill_wait = _clip(self.prefill_wait_s, prefill_done - dispatched)
        handoff = moved - bound
        decode_wait = _clip(self.decode_wait_s - handoff, ended - moved)
        return PhaseTimes(
            queue_s=(dispatched - self.arrived) + prefill_wait + (bound - prefill_done) + decode_wait,
            prefill_s=prefill_done - dispatched - prefill_wait,
            handoff_s=handoff,
            decode_s=ended - moved - decode_wait,
            e2e_s=ended - self.arrived,
            ttft_s=None if self.first_token is None else self.first_token - self.arrived,
            tpot_s=self._tpot_s(ended, output_tokens),
        )

    def _tpot_s(self, ended: Seconds, output_tokens: int) -> Seconds | None:
        if self.first_token is None or output_tokens < 2:
            return None
        return (ended - self.first_token) / (output_tokens - 1)


def _or(mark: Seconds | None, otherwise: Seconds) -> Seconds:
    return otherwise if mark is None else mark


def _clip(duration: Seconds, longest: Seconds) -> Seconds:
    # Workers' clocks run at their own pace: a reported wait never makes another phase negative.
    return min(max(duration, 0.0), longest)
