"""What fits below the power caps, for one request: who is left out, and who waits for power.

A request waits for power as long as its first token can still come in time, and is refused after that: what
is drawn by answers that help nobody is what those behind it wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from policies.filters import Eligible
from policies.power import Limit, PowerCaps, draw_w
from policies.search import Found
from policies.standing import Standing
from router.model import Phase, Reject, Request, Seconds, Wait

REASON: Final = "power_cap"
RETRY_S: Final = 0.1
"""A request that waits for power is asked again after this time: the margin comes back without any fact."""


class Gate:
    """The caps at one decision, after a look at the fleet."""

    def __init__(self, caps: PowerCaps, request: Request, found: Eligible) -> None:
        """Nobody is left out yet: far below the caps nobody has to be, and to ask of each backend what the
        request adds takes longer than to place it."""
        self._caps = caps
        self._request = request
        self._prompt = request.prompt_tokens
        self._context = request.prompt_tokens + found.output_tokens // 2
        self._added: dict[tuple[object, bool, bool], float] = {}
        """Backends that are alike are asked once."""
        self._out: list[Standing] = []
        self._refused = self._nobody = False

    def admits(self, best: Sequence[Found]) -> bool:
        """Whether the best placement stays below all caps, and so do those that are recorded beside it."""
        return all(self._fits_pair(one[-2], one[-1]) for one in best)

    def leave_out(self, found: Eligible) -> None:
        """Take whom a cap leaves no room out of what was found."""
        self._out = self._left_out(found)
        self._refused = bool(self._out)
        self._nobody = not (found.prefill and found.decode)

    def fitting(self, best: Sequence[Found]) -> list[Found]:
        """The placements that stay below all caps, in the same order."""
        fit = [one for one in best if self._fits_pair(one[-2], one[-1])]
        self._refused |= len(fit) < len(best)
        return fit

    def answer(self, arrived: Seconds, now: Seconds, refuses: bool) -> Wait | Reject | None:
        """For a request that found no place; None when that is not for lack of power."""
        if not self._refused:
            return None
        if self._nobody and all(self._never(s) for s in self._out):
            return Reject(
                "the power cap is below what this request alone would make the idle fleet draw; "
                "raise power_cap_w or rack_cap_w, or ask for less"
            )
        ttft_s = self._request.slo.ttft_s
        if refuses and ttft_s is not None and now - arrived >= ttft_s:
            return Reject("no power was left below the cap in time; try again later", retry_after_s=1.0)
        return Wait(REASON, None, False, now + RETRY_S)

    def _left_out(self, found: Eligible) -> list[Standing]:
        prefill = [s for s in found.prefill if self._fits(s, self._adds(s, True, False))]
        decode = [s for s in found.decode if self._fits(s, self._adds(s, False, True))]
        out = {s.id: s for s in (*found.prefill, *found.decode)}
        takes = {s.id for s in decode}
        for s in prefill:
            if s.id in takes or Phase.DECODE not in s.spec.phases:
                del out[s.id]
        for s in decode:
            if Phase.PREFILL not in s.spec.phases:
                out.pop(s.id, None)
        found.prefill, found.decode = prefill, decode
        found.barred.extend((s, REASON) for s in out.values())
        return list(out.values())

    def _never(self, s: Standing) -> bool:
        """Whether nothing runs below a cap that has no room for it, so that waiting makes none."""
        return any(self._too_much(s, one) for one in self._caps.over(s.spec))

    def _too_much(self, s: Standing, limit: Limit) -> bool:
        prefill = Phase.PREFILL in s.spec.phases
        alone_w = limit.idle_w + self._adds(s, prefill, not prefill)
        return limit.drawn_w <= limit.idle_w and alone_w > limit.cap_w

    def _fits_pair(self, producer: Standing, consumer: Standing) -> bool:
        if producer is consumer:
            return self._fits(producer, self._adds(producer, True, True))
        both = self._adds(producer, True, False) + self._adds(consumer, False, True)
        shared = self._caps.over(consumer.spec)
        return all(both <= one.room_w for one in self._caps.over(producer.spec) if one in shared)

    def _fits(self, s: Standing, added_w: float) -> bool:
        return added_w <= 0 or all(added_w <= one.room_w for one in self._caps.over(s.spec))

    def _adds(self, s: Standing, prefill: bool, decode: bool) -> float:
        """Watts that the phases add to a backend."""
        key = ((s.load_key, id(s.spec.power)), prefill, decode)
        known = self._added.get(key)
        if known is None:
            more = draw_w(s, self._prompt if prefill else 0, int(decode), self._context if decode else 0)
            known = self._added[key] = more - draw_w(s)
        return known
