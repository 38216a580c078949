"""What every frame of the run held to, whatever was asked for (journal.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from backends.conformance.bench import Bench
from backends.conformance.check import Check
from backends.conformance.journal import Rule
from backends.conformance.verdicts import GUIDE, PROTO, NotCheckedError, ViolationError

RULES: Final = {
    Rule.COLUMNS: (
        "Columns are of one length, events have content, and every seq was started on its lane",
        f"{PROTO}, LaneResponse",
    ),
    Rule.TOKENS: ("Tokens count up from 0 or first_index without gap or repeat", f"{GUIDE}, duty 2"),
    Rule.ORDER: (
        "Events and tokens come in the order of the table, fit their command, and a sequence ends once",
        f"{GUIDE}, duty 1",
    ),
    Rule.COSTS: ("Costs are finite and not negative", f"{GUIDE}, duty 9"),
    Rule.COUNTERS: (
        "Counters of a load report never go back",
        "protos/polyphase/v1/common.proto, LoadReport",
    ),
}


async def kept(bench: Bench, rule: Rule) -> str:
    """The journal's verdict. On its own the check sends a little traffic first."""
    if not bench.journal.seen[rule]:
        for way in bench.ways:
            await bench.answered(bench.request(), way)
    seen, broken = bench.journal.seen[rule], bench.journal.broken[rule]
    if broken:
        raise ViolationError(f"broken {broken} of {seen} times: {'; '.join(bench.journal.words[rule])}")
    if not seen:
        raise NotCheckedError("no frame that it is about came")
    return f"held {seen} times"


def _run(rule: Rule) -> Callable[[Bench], Awaitable[str]]:
    return partial(kept, rule=rule)


CHECKS: Final = tuple(Check(rule.value, text, where, _run(rule)) for rule, (text, where) in RULES.items())
