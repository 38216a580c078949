"""B3: the integer program with hindsight, for a few requests: a tighter bound, and a check of the others.

Against B2, a request is served whole or not at all, by one backend for its prompt and one for its answer;
backends are told apart; and no part of an answer comes before the same part of its prompt is done. Still a
relaxation of what an engine does, so OPT <= B3 <= B2. Exact integer programs of this kind need complete
knowledge of the future and grow beyond use with the number of requests (Jaillet et al., arXiv 2502.07115).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from router.errors import ConfigError
from router.model import BackendSpec, Seconds
from router.plan.program import Program, Term
from router.plan.steps import BESIDE, overlaps
from router.plan.supply import Effort, Supply, hands_over
from router.plan.tasks import Timed
from router.plan.windows import Clock
from router.plan.work import floors_of, least_efforts

MOST_REQUESTS: Final = 30


def most_whole(
    tasks: Sequence[Timed], specs: Sequence[BackendSpec], window_s: Seconds, span_s: Seconds
) -> float:
    """The most requests that can end within their objectives. Raises ConfigError for more than 30."""
    if len(tasks) > MOST_REQUESTS:
        raise ConfigError(
            f"the integer program is for at most {MOST_REQUESTS} requests and there are {len(tasks)}; "
            "use the bound by windows of time."
        )
    return _Hindsight(tasks, specs, window_s, span_s).solve()


class _Hindsight:
    def __init__(
        self, tasks: Sequence[Timed], specs: Sequence[BackendSpec], window_s: Seconds, span_s: Seconds
    ) -> None:
        self._program = Program()
        self._units = [Supply(spec.id, spec, 1) for spec in specs]
        self._clock = Clock(window_s, span_s, max((one.at_s for one in tasks), default=0.0))
        self._prompts: dict[tuple[int, int], list[Term]] = {}
        self._answers: dict[tuple[int, int], list[Term]] = {}
        self._room: dict[int, list[Term]] = {}
        self._sent: dict[int, list[Term]] = {}
        self._came: dict[int, list[Term]] = {}
        floors = floors_of([one.task for one in tasks])
        for one in tasks:
            self._serve(one, least_efforts(one.task, specs, floors))
        self._fill(span_s)

    def solve(self) -> float:
        """The optimum, a whole number."""
        return float(round(self._program.maximise().objective))

    def _serve(self, one: Timed, efforts: Sequence[Effort]) -> None:
        """One request: a choice among pairs, and both phases of it in windows of time."""
        choice = self._choices(efforts)
        self._program.at_most([(x, 1.0) for x in choice.values()], 1.0)
        first, token_by, end_by = map(self._clock.at, (one.at_s, one.latest_token_s, one.latest_end_s))
        made = self._phase(choice, 0, range(first, token_by + 1), self._prompts, efforts)
        used = self._phase(choice, 1, range(first, end_by + 1), self._answers, efforts)
        for window in range(first, token_by):
            upto = [(v, 1.0) for w, v in used if w <= window] + [(v, -1.0) for w, v in made if w <= window]
            self._program.at_most(upto, 0.0)

    def _choices(self, efforts: Sequence[Effort]) -> dict[tuple[int, int], int]:
        choice: dict[tuple[int, int], int] = {}
        for p, producer in enumerate(self._units):
            for d, consumer in enumerate(self._units):
                able = not efforts[p].no_prefill and not efforts[d].no_decode
                if able and hands_over(producer, consumer):
                    x = choice[p, d] = self._program.variable(1.0, upper=1.0, integer=True)
                    self._room.setdefault(d, []).append((x, efforts[d].kv_token_s))
                    if p != d:
                        self._sent.setdefault(p, []).append((x, efforts[p].egress_bytes))
                        self._came.setdefault(d, []).append((x, efforts[p].egress_bytes))
        return choice

    def _phase(
        self,
        choice: dict[tuple[int, int], int],
        end: int,
        windows: range,
        loads: dict[tuple[int, int], list[Term]],
        efforts: Sequence[Effort],
    ) -> list[tuple[int, int]]:
        """Shares of a phase by window: all of it on the backend that was chosen. Returns (window, share)."""
        shares: list[tuple[int, int]] = []
        for unit in sorted({pair[end] for pair in choice}):
            mine = [(window, self._program.variable(upper=1.0)) for window in windows]
            chosen = [(x, -1.0) for pair, x in choice.items() if pair[end] == unit]
            self._program.equal([*((v, 1.0) for _, v in mine), *chosen], 0.0)
            time_s = efforts[unit].decode_s if end else efforts[unit].prefill_s
            for window, v in mine:
                loads.setdefault((unit, window), []).append((v, time_s))
            shares += mine
        return shares

    def _fill(self, span_s: Seconds) -> None:
        for unit, window in self._prompts.keys() | self._answers.keys():
            prompts = self._prompts.get((unit, window), [])
            length_s = self._clock.length_s(window)
            if overlaps(self._units[unit].spec):
                self._program.at_most(prompts, length_s)
                prompts = [(v, BESIDE * time_s) for v, time_s in prompts]
            answers = self._answers.get((unit, window), [])
            self._program.at_most([*prompts, *answers], length_s)
        for unit, supply in enumerate(self._units):
            spec, link = supply.spec, supply.spec.link
            self._program.at_most(self._room.get(unit, []), span_s * spec.kv_capacity_tokens)
            self._program.at_most(self._sent.get(unit, []), span_s * link.bandwidth_bytes_per_s)
            self._program.at_most(self._came.get(unit, []), span_s * link.ingress_bytes_per_s)
