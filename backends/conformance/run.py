"""A run: the checks one after the other, each with a verdict, none of them for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from backends.conformance.bench import Bench
from backends.conformance.check import Check
from backends.conformance.checks import (
    answers,
    cancels,
    drains,
    frames,
    handles,
    handovers,
    hello,
    lanes,
    loads,
    phases,
    refusals,
)
from backends.conformance.verdicts import (
    NotCheckedError,
    Report,
    Result,
    Settings,
    Target,
    Verdict,
    ViolationError,
)
from router.errors import BackendError, ConfigError
from router.model import Seconds

log = logging.getLogger(__name__)

CHECKS: Final[Sequence[Check]] = (
    *hello.CHECKS,
    *phases.CHECKS,
    *refusals.CHECKS,
    *cancels.CHECKS,
    *handles.CHECKS,
    *handovers.CHECKS,
    *lanes.CHECKS,
    *loads.CHECKS,
    *answers.CHECKS,
    *frames.CHECKS,
    *drains.CHECKS,
)
PATIENCES: Final = 10
"""How many waits of full length a check may take, leases aside."""


def chosen(only: Sequence[str]) -> Sequence[Check]:
    """The checks of these names or groups; all without any. Raises ConfigError for a name that is none."""
    names = {check.name for check in CHECKS} | {check.name.partition(".")[0] for check in CHECKS}
    if unknown := [name for name in only if name not in names]:
        raise ConfigError(
            f"There is no check {unknown[0]!r}. Nothing was checked. Choose from "
            f"{', '.join(check.name for check in CHECKS)}, or the part before a dot."
        )
    return [
        check for check in CHECKS if not only or check.name in only or check.name.partition(".")[0] in only
    ]


async def conform(
    targets: Sequence[Target],
    settings: Settings,
    only: Sequence[str] = (),
    told: Callable[[Result], object] = lambda _: None,
) -> Report:
    """Check workers that nobody else uses. `told` hears of each result as it comes.

    Raises ConfigError for an unknown check or an address that cannot be listened on, BackendError when a
    worker cannot be reached.
    """
    checks, results = chosen(only), list[Result]()
    try:
        async with Bench(targets, settings) as bench:
            for check in checks:
                failed_before = bool(results) and results[-1].verdict is Verdict.FAIL
                results.append(await _check(bench, check, failed_before))
                told(results[-1])
    except ViolationError as violation:
        results = _unwelcome(checks, str(violation))
        for result in results:
            told(result)
    return Report(tuple(targets), tuple(results))


def _unwelcome(checks: Sequence[Check], why: str) -> list[Result]:
    """A run whose workers do not introduce themselves."""
    first, *rest = (hello.CHECKS[0], *(check for check in checks if check is not hello.CHECKS[0]))
    return [
        _result(first, Verdict.FAIL, why, 0.0),
        *(_result(check, Verdict.SKIP, "the welcome cannot be used", 0.0) for check in rest),
    ]


async def _check(bench: Bench, check: Check, failed_before: bool) -> Result:
    if missing := [need for need in check.needs if bench.lacks(need)]:
        return _result(check, Verdict.SKIP, f"it takes {missing[0].value}", 0.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    verdict, evidence = await _judged(bench, check, failed_before)
    return _result(check, verdict, evidence, loop.time() - began)


async def _judged(bench: Bench, check: Check, failed_before: bool) -> tuple[Verdict, str]:
    settings = bench.settings
    limit_s = PATIENCES * settings.patience_s + settings.longest_lease_s
    try:
        async with asyncio.timeout(limit_s):
            await bench.reports.quiet(bench.subjects, failed_before)
            return Verdict.PASS, await check.run(bench)
    except ViolationError as violation:
        return Verdict.FAIL, str(violation)
    except NotCheckedError as why:
        return Verdict.SKIP, str(why)
    except TimeoutError:
        return Verdict.FAIL, f"it was not over within {limit_s:g} s"
    except BackendError as error:
        return Verdict.FAIL, error.message
    except Exception as error:  # a supervision point: what a worker sends may break one check, not the run
        log.exception("check %s failed in an unforeseen way", check.name)
        return Verdict.FAIL, f"unforeseen {type(error).__name__}: {error}"


def _result(check: Check, verdict: Verdict, evidence: str, took_s: Seconds) -> Result:
    return Result(check.name, check.rule, check.where, verdict, evidence, took_s)
