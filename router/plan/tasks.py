"""Requests as a planner with hindsight sees them: with their true lengths, at the times they came. Pure.

Many similar requests become few equal ones: lengths are rounded down to a geometric grid, which makes them
cheaper everywhere, so that a bound over them still bounds the originals.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from router.model import Request, Seconds
from router.plan.work import Task

BLOCK_TOKENS: Final = 16
"""Tokens that one prefix hash covers, as in the workloads."""
GRIDS: Final = (1.02, 1.05, 1.1, 1.2, 1.4, 2.0)
"""Ratios of neighbouring lengths of the grids, finest first."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A task and when it came."""

    at_s: Seconds
    task: Task

    @property
    def latest_token_s(self) -> Seconds:
        """When its first token must be out."""
        return self.at_s + min(self.task.ttft_s, self.task.deadline_s)

    @property
    def latest_end_s(self) -> Seconds:
        """When its last token must be out."""
        task = self.task
        streamed = task.ttft_s + task.steps * task.tpot_s if task.steps else task.ttft_s
        return self.at_s + min(task.deadline_s, streamed)


def timed(
    arrivals: Iterable[tuple[Seconds, Request]], output_tokens: Callable[[Request], int]
) -> list[Timed]:
    """Tasks in order of arrival; tokens that an earlier prompt shared may be cached."""
    seen: set[int] = set()
    tasks: list[Timed] = []
    for at_s, request in sorted(arrivals, key=lambda pair: pair[0]):
        hits = 0
        while hits < len(request.prefix_hashes) and request.prefix_hashes[hits] in seen:
            hits += 1
        seen.update(request.prefix_hashes)
        cached = min(hits * BLOCK_TOKENS, request.prompt_tokens - 1)
        tasks.append(Timed(at_s, _task(request, at_s, output_tokens(request), cached)))
    return tasks


def _task(request: Request, at_s: Seconds, output_tokens: int, cached_tokens: int) -> Task:
    slo = request.slo
    return Task(
        request.model,
        request.prompt_tokens,
        min(output_tokens, request.max_new_tokens),
        cached_tokens,
        math.inf if slo.ttft_s is None else slo.ttft_s,
        math.inf if slo.tpot_s is None else slo.tpot_s,
        request.deadline - at_s,
        request.workload_class,
    )


def coarsen(tasks: Sequence[Timed], most_kinds: int) -> list[Timed]:
    """The same tasks on the finest grid that leaves at most `most_kinds` different ones."""
    rounded = list(tasks)
    for ratio in GRIDS:
        if len({one.task for one in rounded}) <= most_kinds:
            break
        rounded = [replace(one, task=_rounded(one.task, ratio)) for one in tasks]
    return rounded


def kinds(tasks: Iterable[Timed]) -> Mapping[Task, int]:
    """How many there are of each task."""
    return Counter(one.task for one in tasks)


def representatives(tasks: Sequence[Task], cells: int) -> list[tuple[Task, int]]:
    """About `cells` mean tasks and how many each stands for, class by class, in quantile bins of prompt and
    answer. For estimates: half of what a mean stands for is dearer."""
    by_class: dict[str, list[Task]] = {}
    for task in tasks:
        by_class.setdefault(task.workload_class, []).append(task)
    bins = max(1, round(math.sqrt(cells / max(1, len(by_class)))))
    found: list[tuple[Task, int]] = []
    for members in by_class.values():
        found += [(_mean(cell), len(cell)) for cell in _cells(members, bins)]
    return found


def _cells(members: Sequence[Task], bins: int) -> Iterable[list[Task]]:
    prompts = _edges([task.prompt_tokens for task in members], bins)
    answers = _edges([task.output_tokens for task in members], bins)
    cells: dict[tuple[int, int], list[Task]] = {}
    for task in members:
        where = bisect_right(prompts, task.prompt_tokens), bisect_right(answers, task.output_tokens)
        cells.setdefault(where, []).append(task)
    return [cell for _, cell in sorted(cells.items())]


def _edges(values: Sequence[int], bins: int) -> list[int]:
    ordered = sorted(values)
    return [ordered[i * len(ordered) // bins] for i in range(1, bins)]


def _mean(cell: Sequence[Task]) -> Task:
    count = len(cell)
    prompt = round(sum(task.prompt_tokens for task in cell) / count)
    new = max(1, round(sum(task.new_tokens for task in cell) / count))
    output = max(1, round(sum(task.output_tokens for task in cell) / count))
    return replace(cell[0], prompt_tokens=prompt, output_tokens=output, cached_tokens=prompt - new)


def _rounded(task: Task, ratio: float) -> Task:
    prompt = _down(task.prompt_tokens, ratio)
    new = min(prompt, _down(task.new_tokens, ratio))
    output = _down(task.output_tokens, ratio)
    return replace(task, prompt_tokens=prompt, output_tokens=output, cached_tokens=prompt - new)


def _down(tokens: int, ratio: float) -> int:
    """The largest number of the grid that is no more than `tokens`."""
    power = math.floor(math.log(tokens) / math.log(ratio) + 1e-12)
    return max(1, min(tokens, math.ceil(ratio**power - 1e-9)))
