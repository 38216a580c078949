"""One request between its intended send time and its end, as the client sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from polyphase.v1 import inference_pb2

from router.load.requests import Answer
from router.load.verify import Integrity, Transcript
from router.model import Seconds

CLIENT_TIMEOUT: Final = "CLIENT_TIMEOUT"
CONNECTION_LOST: Final = "CONNECTION_LOST"
STOPPED: Final = "STOPPED"
"""The run was interrupted; not a failure of the router."""


@dataclass(frozen=True, slots=True)
class Failed:
    """How a request ended without the rest of its answer."""

    reason: str
    """As in google.rpc.ErrorInfo, or one of this module's."""
    code: int
    """As in google.rpc.Code."""
    message: str = ""
    next_index: int | None = None
    """Tokens the router says it delivered; None when it said nothing."""


Outcome = inference_pb2.Finished | Failed


class Flight:
    """A request that was sent. Ends once; what comes later is ignored."""

    __slots__ = ("_ended", "answer", "end_s", "first_s", "intended_s", "last_s", "sent_s", "transcript")

    def __init__(
        self,
        intended_s: Seconds,
        sent_s: Seconds,
        answer: Answer | None,
        ended: Callable[[Flight, Outcome], None],
    ) -> None:
        self.intended_s = intended_s
        """When the schedule wanted it sent. Latencies count from here, so a slow client hides nothing."""
        self.sent_s = sent_s
        self.answer = answer
        self.transcript = Transcript()
        self.first_s: Seconds | None = None
        self.last_s: Seconds = 0.0
        self.end_s: Seconds | None = None
        self._ended = ended

    def tokens(self, first_index: int, ids: list[int], now: Seconds) -> None:
        """Take a run of tokens."""
        if self.end_s is not None:
            return
        if self.first_s is None:
            self.first_s = now
        self.last_s = now
        self.transcript.add(first_index, ids)

    def end(self, outcome: Outcome, now: Seconds) -> None:
        """Take the end."""
        if self.end_s is None:
            self.end_s = now
            self._ended(self, outcome)

    def check(self, outcome: Outcome) -> Integrity:
        """What is wrong with the tokens, given how the request ended."""
        if isinstance(outcome, Failed):
            return self.transcript.check(self.answer, outcome.next_index)
        owed = self.answer.tokens if self.answer else outcome.usage.output_tokens
        return self.transcript.check(self.answer, owed)
