"""How to read a report: whether a request got what it asked for, whose matter it was when not, and where it
ran. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from router.errors import Reason
from router.model import Phase, PhaseUse, Report, Seconds


class Outcome(StrEnum):
    """How a request ended, by whose fault."""

    OK = "ok"
    CANCELLED = "cancelled"
    """Nobody waited any more."""
    REFUSED = "refused"
    """The request was at fault."""
    SHED = "shed"
    """No room, or no time, before any work was done."""
    FAILED = "failed"
    """A backend, a policy or the router was at fault, or time ran out underway."""


_CANCELLED: Final = frozenset({Reason.CANCELLED, Reason.SLOW_READER})
_REFUSED: Final = frozenset(
    {
        Reason.INVALID_REQUEST,
        Reason.REQUEST_TOO_SLOW,
        Reason.DUPLICATE_REQUEST,
        Reason.UNKNOWN_MODEL,
        Reason.UNKNOWN_BACKEND,
        Reason.NOT_ALLOWED,
        Reason.REQUEST_TOO_LARGE,
        Reason.POLICY_REJECTED,
    }
)
_SHED: Final = frozenset({Reason.QUEUE_FULL, Reason.SHED, Reason.DEADLINE_INFEASIBLE})
_SHED_IF_UNSTARTED: Final = frozenset({Reason.DEADLINE_EXPIRED, Reason.NO_BACKEND, Reason.DRAINING})


def outcome_of(reason: Reason, started: bool) -> Outcome:
    """The outcome of a request that failed; `started` says that a backend had begun to work on it."""
    if reason in _CANCELLED:
        return Outcome.CANCELLED
    if reason in _REFUSED:
        return Outcome.REFUSED
    if reason in _SHED or (reason in _SHED_IF_UNSTARTED and not started):
        return Outcome.SHED
    return Outcome.FAILED


def objectives_met(report: Report, ended_at: Seconds) -> Mapping[str, bool]:
    """Each objective the request had, and whether it was met; plus "all", which includes having finished.

    ttft: ttft_s <= slo.ttft_s. tpot: tpot_s <= slo.tpot_s; an answer below two tokens has no time per
    token and meets it. deadline: finished at or before it. A request that failed met none of its objectives.
    """
    finished = report.finish is not None
    met = {name: finished and kept for name, kept in _kept(report, ended_at)}
    met["all"] = finished and all(met.values())
    return met


def last_use(report: Report, phase: Phase) -> PhaseUse | None:
    """The use that produced the answer; earlier ones of the phase are attempts that failed."""
    return next((use for use in reversed(report.uses) if use.phase is phase), None)


def _kept(report: Report, ended_at: Seconds) -> list[tuple[str, bool]]:
    slo, times = report.request.slo, report.times
    kept: list[tuple[str, bool]] = []
    if slo.ttft_s is not None:
        kept.append(("ttft", times.ttft_s is not None and times.ttft_s <= slo.ttft_s))
    if slo.tpot_s is not None:
        kept.append(("tpot", times.tpot_s is None or times.tpot_s <= slo.tpot_s))
    if math.isfinite(report.request.deadline):
        kept.append(("deadline", ended_at <= report.request.deadline))
    return kept
