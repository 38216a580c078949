"""What a policy test expects, as one line of text, and how an answer reads in the same words.

b200 -> lpu        prefill on b200, decode on lpu
b200               both phases on b200
b200 -> later      prefill on b200, decode bound after it
wait               no place at this time; `wait: kv_full` names the reason
reject             refused; `reject: deadline` asks for a word of the reason
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, assert_never

from router.core.choice import Plan
from router.errors import ConfigError
from router.model import Reject, RoutePlan, Wait

LATER: Final = "later"
_VERDICT: Final = re.compile(r"(wait|reject)(?:\s*:\s*(.+))?")
_PLACE: Final = re.compile(r"([^\s>]+)(?:\s*->\s*([^\s>]+))?")


@dataclass(frozen=True, slots=True)
class Expectation:
    """A place, or a verdict without one."""

    text: str
    verdict: str = ""
    """`wait` or `reject`; empty for a place."""
    reason: str = ""
    """Of a verdict: what its reason contains."""
    prefill: str = ""
    decode: str = ""

    def met_by(self, answer: Plan) -> bool:
        """Whether an answer is what was expected."""
        match answer:
            case RoutePlan():
                return (self.prefill, self.decode) == (answer.prefill, answer.decode or LATER)
            case Wait():
                return self.verdict == "wait" and self.reason in answer.reason
            case Reject():
                return self.verdict == "reject" and self.reason.lower() in answer.reason.lower()
            case _:
                assert_never(answer)


def parse_expectation(value: object, where: str) -> Expectation:
    """Read the line. Raises ConfigError."""
    text = value.strip() if isinstance(value, str) else ""
    if (verdict := _VERDICT.fullmatch(text)) is not None:
        return Expectation(text, verdict=verdict[1], reason=(verdict[2] or "").strip())
    if (place := _PLACE.fullmatch(text)) is not None:
        return Expectation(text, prefill=place[1], decode=place[2] or place[1])
    raise ConfigError(
        f'{where}: expect is {value!r:.80}; write "PREFILL -> DECODE", one backend for both phases, '
        '"wait", "wait: REASON" or "reject".'
    )


def said(answer: Plan) -> str:
    """An answer as an expectation that it meets."""
    match answer:
        case RoutePlan():
            decode = answer.decode or LATER
            return answer.prefill if decode == answer.prefill else f"{answer.prefill} -> {decode}"
        case Wait():
            return f"wait: {answer.reason}"
        case Reject():
            return "reject"
        case _:
            assert_never(answer)
