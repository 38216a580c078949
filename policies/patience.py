"""What becomes of a request whose best place would cost more good requests than it brings.

    it has objectives that an idle fleet could still hold   it waits
    it has none, or no fleet could ever hold them           it yields: it waits, but no longer than patience
    its objectives cannot be held any more                  it is refused, or yields if so configured

A refusal is early: before any work is done, and with the caller told why. Nobody without objectives is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from policies import forecast
from policies.filters import could
from policies.stakes import Stake
from policies.standing import Standing
from policies.waits import Waits
from router.model import Phase, Reject, Request, Seconds, Wait

MARGIN = 0.8
"""An idle backend has to be done within this share of the time left: some goes by on the way."""

RETRY_AFTER_S = 1.0
"""As for every other request that is shed."""


@dataclass(frozen=True, slots=True)
class Case:
    """A request before its best place."""

    request: Request
    arrived: Seconds
    now: Seconds
    stake: Stake
    ttft_s: Seconds
    finish_s: Seconds
    """As predicted there."""

    @property
    def has_objectives(self) -> bool:
        """Whether there is anything to hold."""
        slo = self.request.slo
        return slo.ttft_s is not None or slo.tpot_s is not None or slo.jitter_ratio is not None


class Patience:
    """Says who waits, who is refused, and who is placed all the same."""

    def __init__(self, waits: Waits, refuses: bool, patience_s: Seconds) -> None:
        """`patience_s` is the longest that anyone yields."""
        self._waits = waits
        self._refuses = refuses
        self._patience_s = patience_s

    def verdict(self, case: Case, standings: Sequence[Standing]) -> Wait | Reject | None:
        """None places the request where it is best."""
        if not case.has_objectives:
            return self._yields(case)
        least = _alone(case.request, standings)
        if least is None:
            return self._yields(case)
        hope_ends = self._hope_ends(case, least)
        if case.now < hope_ends:
            return self._waits.defer(case.request, Wait("objectives", None, False, hope_ends), case.now)
        if not self._refuses:
            return self._yields(case)
        return Reject(
            f"{why(case)}; try again when the load is lower, or ask for less", retry_after_s=RETRY_AFTER_S
        )

    def _hope_ends(self, case: Case, least_s: Seconds) -> Seconds:
        slo = case.request.slo
        if slo.ttft_s is None:
            return case.arrived + self._patience_s
        return case.arrived + slo.ttft_s - least_s / MARGIN

    def _yields(self, case: Case) -> Wait | None:
        until = case.arrived + self._patience_s
        if case.now >= until or case.stake.harm < 0.5:
            return None
        return self._waits.defer(case.request, Wait("objectives_of_others", None, True, until), case.now)


def _alone(request: Request, standings: Sequence[Standing]) -> Seconds | None:
    """The least time to a first token on an idle fleet; None where not even that holds all objectives.

    A fleet that could never hold them serves as well as it can: to refuse everybody would help nobody.
    """
    slo, prompt = request.slo, request.prompt_tokens
    kinds = {(id(s.latency), s.spec.phases): s for s in standings if not s.flaw and s.latency is not None}
    prefill = [s for s in kinds.values() if could(s, request, Phase.PREFILL)]
    decode = [s for s in kinds.values() if could(s, request, Phase.DECODE)]
    least = min((forecast.alone_s(s, prompt) for s in prefill), default=math.inf)
    step = min(
        (forecast.seconds(s.latency.decode_step_s(1, prompt)) for s in decode if s.latency), default=math.inf
    )
    if least > MARGIN * (math.inf if slo.ttft_s is None else slo.ttft_s):
        return None
    return None if step > (math.inf if slo.tpot_s is None else slo.tpot_s) else least


def why(case: Case) -> str:
    """What is the matter with the best place there is."""
    return (
        f"the first token is predicted in {case.ttft_s:.3g} s and the last in {case.finish_s:.3g} s at best, "
        f"which breaks its own objectives with a probability of {case.stake.risk:.2f} and costs "
        f"{case.stake.harm:.1f} other requests theirs"
    )
