"""What a probe sends: a short schedule in which every term of the step model shows. Pure.

    single streams      base of a step
    prompts, one by one prefill: per token, per attention pair, the floor below
    rising concurrency  per sequence, per token of context
    a burst             prompts that share steps with each other and with decodes

Shapes come in pairs, one behind the other: a fit looks at every second request, so the half that is held out
has the same shapes as the half that is fitted on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Final

from router.errors import CapacityError, Reason
from router.model import Seconds
from router.sim.workload import Arrival

SHORT: Final = 64
"""Tokens of a short prompt; far below the knee of every published prefill curve."""
LEAST_TOKENS: Final = 6
"""Of an answer from which a time per output token is read."""
MOST_TOKENS: Final = 256
PROMPT_ANSWER: Final = 4
"""Answers behind single prompts are short: the prompt is what they measure."""
MOST_SINGLES: Final = 24
MOST_ROUNDS: Final = 3
MOST_REQUESTS: Final = 2000
SLACK: Final = 1.3
"""Single requests are this much further apart than the pace says, so that they stay single."""
CROWDED: Final = 1.6
"""Steps of a full batch are taken to last this much longer than those of one stream."""
SHARES: Final = (0.15, 0.25, 0.4, 0.2)
"""Of the time: single streams, prompts, concurrency, burst."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the target is, roughly, from a few requests sent alone."""

    step_s: Seconds
    """Between two tokens of a single stream, above 0."""
    start_s: Seconds
    """To the first token of a short prompt, at least 0."""
    per_prompt_token_s: Seconds
    """Above 0."""

    def alone_s(self, prompt: int, output: int) -> Seconds:
        """A request that has the backend to itself."""
        return self.start_s + self.per_prompt_token_s * prompt + self.step_s * (output - 1)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a sweep must keep within."""

    duration_s: Seconds
    """In which requests are sent."""
    max_in_flight: int = 64
    """At least 4."""
    max_prompt_tokens: int = 4096
    """At least SHORT."""


def sweep(pace: Pace, bounds: Bounds) -> tuple[Arrival, ...]:
    """The schedule, in order of time; the same for the same pace and bounds.

    Raise CapacityError when the target is too slow for its shortest form.
    """
    singles_s, prompts_s, crowd_s, burst_s = (share * bounds.duration_s for share in SHARES)
    arrivals: list[Arrival] = []
    at_s = 0.0
    for part, share_s in (
        (_singles(pace, singles_s), singles_s),
        (_prompts(pace, prompts_s, bounds.max_prompt_tokens), prompts_s),
        (_crowds(pace, crowd_s, _levels(bounds.max_in_flight // 2), bounds), crowd_s),
        (_crowds(pace, burst_s, (bounds.max_in_flight * 3 // 4,), bounds), burst_s),
    ):
        arrivals += [Arrival(at_s + one.at_s, one.prompt_tokens, one.output_tokens) for one in part]
        at_s += share_s
    return tuple(islice(arrivals, MOST_REQUESTS))


def _singles(pace: Pace, share_s: Seconds) -> list[Arrival]:
    """Short prompts, one at a time; as long answers as an even number of six or more leaves room for."""
    room = (share_s / (6 * SLACK) - pace.alone_s(SHORT, 1)) / pace.step_s
    output = min(int(room) + 1, SHORT)
    if output < LEAST_TOKENS:
        raise _too_slow(pace, share_s / (6 * SLACK), pace.alone_s(SHORT, LEAST_TOKENS), SHARES[0])
    each = SLACK * pace.alone_s(SHORT, output)
    count = min(int(share_s / each), MOST_SINGLES) // 2 * 2
    return [Arrival(place * each, SHORT, output) for place in range(count)]


def _prompts(pace: Pace, share_s: Seconds, longest: int) -> list[Arrival]:
    """Every length twice in a row, one request at a time, in as many rounds as fit; longest last."""
    lengths = _levels(longest, least=SHORT)
    while len(lengths) > 2 and _round_s(pace, lengths) > share_s:
        lengths.pop()
    if _round_s(pace, lengths) > share_s:
        raise _too_slow(pace, share_s, _round_s(pace, lengths), SHARES[1])
    rounds = min(int(share_s / _round_s(pace, lengths)), MOST_ROUNDS)
    arrivals: list[Arrival] = []
    at_s = 0.0
    for length in lengths * rounds:
        for _ in range(2):
            arrivals.append(Arrival(at_s, length, PROMPT_ANSWER))
            at_s += SLACK * pace.alone_s(length, PROMPT_ANSWER)
    return arrivals


def _round_s(pace: Pace, lengths: Sequence[int]) -> Seconds:
    return 2 * SLACK * sum(pace.alone_s(length, PROMPT_ANSWER) for length in lengths)


def _crowds(pace: Pace, share_s: Seconds, levels: Sequence[int], bounds: Bounds) -> list[Arrival]:
    """At each level so many requests at once, of several lengths; what does not fit is left out."""
    arrivals: list[Arrival] = []
    each_s = share_s / len(levels)
    for place, level in enumerate(levels):
        arrivals += _crowd(pace, each_s, level, place * each_s, bounds.max_prompt_tokens)
    return arrivals


def _crowd(pace: Pace, share_s: Seconds, level: int, at_s: Seconds, longest: int) -> Iterator[Arrival]:
    """One batch. Answers differ in length, so that the batch thins out rather than ends at once."""
    prompts = _crowd_prompts(pace, share_s / 3.0, level, longest)
    prefill_s = pace.start_s + pace.per_prompt_token_s * sum(prompts)
    room = (share_s - prefill_s) / (CROWDED * pace.step_s)
    output = min(int(room), MOST_TOKENS)
    if output < LEAST_TOKENS:
        return
    parts = cycle((1.0, 1.0, 0.8, 0.8, 0.6, 0.6))
    for prompt, part in zip(prompts, parts, strict=False):
        yield Arrival(at_s, prompt, max(LEAST_TOKENS, int(part * output)))


def _crowd_prompts(pace: Pace, room_s: Seconds, level: int, longest: int) -> list[int]:
    """Short and long prompts in pairs; long ones as long as their share of the time allows."""
    mean = int(room_s / (level * pace.per_prompt_token_s))
    longer = max(SHORT, min(2 * mean, longest, 2048))
    shapes = (SHORT, SHORT, longer, longer, (SHORT + longer) // 2, (SHORT + longer) // 2)
    return list(islice(cycle(shapes), level))


def _levels(most: int, least: int = 2) -> list[int]:
    """Doublings from `least` to `most`; the last is at most `most`."""
    levels = [least]
    while levels[-1] * 2 <= most:
        levels.append(levels[-1] * 2)
    return levels


def _too_slow(pace: Pace, room_s: Seconds, need_s: Seconds, share: float) -> CapacityError:
    return CapacityError(
        Reason.DEADLINE_INFEASIBLE,
        f"the target is too slow for so short a probe: {pace.step_s * 1e3:.3g} ms a token leave room for "
        f"{room_s:.3g} s where {need_s:.3g} s are needed. Nothing was fitted. Give --duration "
        f"{need_s / room_s:.1f} times as long.",
    )
