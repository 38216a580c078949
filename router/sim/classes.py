"""The nouns of a workload: classes of requests, when they come, how long they are, what is asked for them.

A class starts sessions; most sessions have one turn, and then a session is a request. The next turn of a
session comes after the answer and a pause (a tool's time, or a user's). Values only; router/sim/traffic.py
draws requests from them, router/sim/workload_file.py reads them from TOML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from router.model import Priority, Seconds, ServiceLevel
from router.sim.draws import Draw, Fixed
from router.sim.workload import MOONCAKE_BLOCK_TOKENS, Arrival

BLOCK_TOKENS = 16
"""Tokens that one prefix hash covers; the block size of the shipped profiles."""


NO_OBJECTIVES: Final = ServiceLevel()

# --- when ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Renewal:
    """Independent gamma-distributed gaps: cv 1 is a Poisson process, above 1 arrivals come in bursts."""

    rate: float
    """Sessions per second."""
    cv: float = 1.0
    """Coefficient of variation of the gaps."""


@dataclass(frozen=True, slots=True)
class TraceTimes:
    """The times of the trace that also gives the lengths, `speed` times faster."""

    speed: float = 1.0
    repeat: bool = False
    """Start over at the end, at the mean distance."""


@dataclass(frozen=True, slots=True)
class AtOnce:
    """So many sessions at one moment."""

    count: int
    at_s: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class InFlight:
    """A closed loop: so many callers, each sends its next request after its last answer and a pause."""

    callers: int
    over_s: Seconds = 1.0
    """The first requests are spread evenly over this time."""


Arrivals = Renewal | TraceTimes | AtOnce | InFlight


# --- how long --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DrawnLengths:
    """Prompt and answer drawn independently."""

    prompt: Draw
    output: Draw


@dataclass(frozen=True, slots=True)
class TraceLengths:
    """Pairs of a trace: in order, or drawn at random with replacement."""

    rows: Sequence[Arrival]
    in_order: bool = True
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    """Tokens that each of the rows' prefix hashes covers; a multiple of BLOCK_TOKENS."""


Lengths = DrawnLengths | TraceLengths


@dataclass(frozen=True, slots=True)
class SessionShape:
    """How a session goes on after its first answer."""

    turns: Draw = field(default=Fixed(1.0))
    """Requests of a session, at least 1."""
    pause_s: Draw = field(default=Fixed(0.0))
    """From an answer to the next request: a tool's time, or reading and typing."""
    grows: bool = False
    """The next prompt is everything said so far and the new tokens; otherwise turns are independent."""
    shared_prefix_tokens: int = 0
    """Leading tokens that all prompts of the class have in common: a system prompt, tool descriptions."""
    max_context_tokens: int = 1 << 17
    """A session ends before its prompt would be longer."""


# --- what ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkloadClass:
    """Requests of one kind."""

    name: str
    arrivals: Arrivals
    lengths: Lengths
    model: str
    max_new_tokens: int = 2048
    """The cap that a policy sees; longer answers are cut."""
    slo: ServiceLevel = NO_OBJECTIVES
    deadline_s: Seconds = 300.0
    """From arrival to the last token; the router stops what is later. The daemon's default is 300 s."""
    priority: Priority = Priority.NORMAL
    tenants: tuple[tuple[str, float], ...] = (("", 1.0),)
    """Names and weights."""
    session: SessionShape = SessionShape()


@dataclass(frozen=True, slots=True)
class Workload:
    """Classes mixed, and how long they go on unless the command says otherwise."""

    name: str
    classes: tuple[WorkloadClass, ...]
    duration_s: Seconds = math.inf
    """No session starts, and no turn, at or after this time."""
    requests: int | None = None
    """No more than so many."""

    @property
    def has_jitter_objective(self) -> bool:
        """Whether the times of single tokens have to be watched."""
        return any(one.slo.jitter_ratio is not None for one in self.classes)

    @property
    def models(self) -> tuple[str, ...]:
        """Models asked for, in order of first mention."""
        return tuple(dict.fromkeys(one.model for one in self.classes))
