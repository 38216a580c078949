"""B2: the fluid program in windows of time. A burst cannot be served before it comes, nor after it is due.

It is B1 over the span (fluid.most) with more rows: what a type does of a class is the sum of what it does of
each window's arrivals in each window, prompts until the first token is due, answers until the last one is;
and every type has its device time in every window. Hence B2 <= B1, and shorter windows bound tighter. KV
room, links, power and dollars stay rows over the span.

The amount of a request in a window is the share of its device time that falls into it. With shares of its
steps the rows would not hold: a request may pay less than its mean for the steps of one window.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.model import Seconds
from router.plan.fluid import standing
from router.plan.network import Network
from router.plan.program import Program, Term
from router.plan.steps import BESIDE, overlaps
from router.plan.supply import NO_LIMITS, Demand, Efforts, Limits, Supply
from router.plan.tasks import Timed
from router.plan.work import Task

GROWTH: Final = 1.5
"""Of the windows after the last arrival, one to the next."""
ROUNDING: Final = 1e-9
MOST_TERMS: Final = 1_200_000
"""Coefficients that HiGHS works through in about a minute."""
Terms = dict[tuple[int, int], list[Term]]
"""By type and window."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Equal requests that come in one window, and the last windows of their phases."""

    kind: int
    window: int
    token_by: int
    end_by: int


def most_in_windows(
    tasks: Sequence[Timed],
    named: Sequence[tuple[Demand, Task]],
    supplies: Sequence[Supply],
    efforts: Efforts,
    window_s: Seconds,
    span_s: Seconds,
    limits: Limits = NO_LIMITS,
) -> tuple[float, Seconds]:
    """The most tasks that can be served within their objectives, and the length of the windows used.

    The span begins at 0; a demand's rate is its number of tasks. Windows that would make the program too
    large are doubled until it is not; after the last arrival they grow, since nothing new comes.
    """
    numbers = {task: k for k, (_, task) in enumerate(named)}
    end_s = max((one.at_s for one in tasks), default=0.0)
    clock = Clock(window_s, span_s, end_s)
    while (arrivals := _arrivals(tasks, numbers, clock)) and _terms(arrivals, supplies) > MOST_TERMS:
        window_s *= 2.0
        clock = Clock(window_s, span_s, end_s)
    program = Program()
    demands = [demand for demand, _ in named]
    rows = _Rows(program, standing(program, demands, supplies, efforts, span_s, limits), supplies)
    by_kind: dict[int, list[tuple[Arrivals, int]]] = {k: [] for k in range(len(demands))}
    for each, count in arrivals.items():
        by_kind[each.kind].append((each, count))
    for k, some in by_kind.items():
        rows.serve(k, some)
    rows.fill(demands, efforts, clock)
    return program.maximise().objective, window_s


def _arrivals(tasks: Sequence[Timed], numbers: Mapping[Task, int], clock: Clock) -> Counter[Arrivals]:
    return Counter(clock.arrivals(numbers[one.task], one) for one in tasks)


def _terms(arrivals: Iterable[Arrivals], supplies: Sequence[Supply]) -> int:
    """About how many coefficients: each share of a phase is in three rows."""
    windows = sum(each.token_by + each.end_by - 2 * each.window + 2 for each in arrivals)
    return 3 * windows * len(supplies)


class Clock:
    """Windows of a span: equal ones while requests come, growing ones after that."""

    def __init__(self, window_s: Seconds, span_s: Seconds, arrivals_end_s: Seconds) -> None:
        self._starts = [0.0]
        length_s = window_s
        while self._starts[-1] + length_s < span_s * (1.0 - ROUNDING):
            self._starts.append(self._starts[-1] + length_s)
            length_s *= GROWTH if self._starts[-1] > arrivals_end_s else 1.0
        self._span_s = span_s

    def length_s(self, window: int) -> Seconds:
        """The last window ends with the span."""
        after = self._starts[window + 1] if window + 1 < len(self._starts) else self._span_s
        return after - self._starts[window]

    def arrivals(self, kind: int, one: Timed) -> Arrivals:
        """Where a task comes and is due."""
        return Arrivals(kind, *map(self.at, (one.at_s, one.latest_token_s, one.latest_end_s)))

    def at(self, time_s: Seconds) -> int:
        """The window of a time, or the last one; a time on an edge, but for rounding, is later."""
        return bisect_right(self._starts, time_s * (1.0 + ROUNDING)) - 1


class _Rows:
    def __init__(self, program: Program, network: Network, supplies: Sequence[Supply]) -> None:
        self._program = program
        self._network = network
        self._supplies = supplies
        self._prompts: dict[tuple[int, int, int], list[int]] = {}
        self._answers: dict[tuple[int, int, int], list[int]] = {}

    def serve(self, k: int, arrivals: Iterable[tuple[Arrivals, int]]) -> None:
        """Split class k by the windows of its arrivals."""
        prefill: dict[int, list[Term]] = {d: [] for d, _ in self._network.prefill_on(k)}
        decode: dict[int, list[Term]] = {d: [] for d, _ in self._network.decode_on(k)}
        served: list[Term] = []
        for each, count in arrivals:
            some = self._program.variable(1.0, upper=count)
            served.append((some, 1.0))
            self._spread(k, some, range(each.window, each.token_by + 1), prefill, self._prompts)
            self._spread(k, some, range(each.window, each.end_by + 1), decode, self._answers)
        self._network.serve(k, served)
        for whole, parts in ((self._network.prefill_on(k), prefill), (self._network.decode_on(k), decode)):
            for d, variable in whole:
                self._program.equal([*parts[d], (variable, -1.0)], 0.0)

    def _spread(
        self,
        k: int,
        some: int,
        windows: range,
        parts: dict[int, list[Term]],
        into: dict[tuple[int, int, int], list[int]],
    ) -> None:
        """Variables of what each type does of the same arrivals in each window."""
        done: list[Term] = []
        for d, terms in parts.items():
            for window in windows:
                variable = self._program.variable()
                into.setdefault((d, window, k), []).append(variable)
                terms.append((variable, 1.0))
                done.append((variable, 1.0))
        self._program.equal([*done, (some, -1.0)], 0.0)

    def fill(self, demands: Sequence[Demand], efforts: Efforts, clock: Clock) -> None:
        """Device time of every type in every window."""
        prompts: Terms = {}
        answers: Terms = {}
        for (d, window, k), variables in self._prompts.items():
            time_s = efforts[demands[k].name, self._supplies[d].name].prefill_s
            prompts.setdefault((d, window), []).extend((v, time_s) for v in variables)
        for (d, window, k), variables in self._answers.items():
            time_s = efforts[demands[k].name, self._supplies[d].name].decode_s
            answers.setdefault((d, window), []).extend((v, time_s) for v in variables)
        for place in prompts.keys() | answers.keys():
            self._device(place[0], prompts.get(place, []), answers.get(place, []), clock.length_s(place[1]))

    def _device(self, d: int, prompts: list[Term], answers: list[Term], length_s: Seconds) -> None:
        unit = (self._network.units[d], -length_s)
        if overlaps(self._supplies[d].spec):
            self._program.at_most([*prompts, unit], 0.0)
            prompts = [(v, BESIDE * time_s) for v, time_s in prompts]
        self._program.at_most([*prompts, *answers, unit], 0.0)
