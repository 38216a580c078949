"""One sequence as a router follows it: what was asked, what came, and what of it breaks the contract."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from polyphase.v1 import worker_pb2

from backends.conformance.journal import Journal, Rule

OPENING: Final = frozenset({"kv_moved", "prefill_done"})
"""Events that precede the tokens of their frame, unless they hand KV over."""


class Kind(StrEnum):
    """What was asked for."""

    PREFILL = "prefill"
    HERE = "prefill with decode_here"
    DECODE = "decode"


class Sequence:
    """From its command on."""

    def __init__(self, name: str, kind: Kind, first_index: int, first_token: bool, journal: Journal) -> None:
        """`first_token` says whether prefills of this worker produce token 0."""
        self.name = name
        self.kind = kind
        self.tokens: dict[int, int] = {}
        """By index; the first that came, where several did."""
        self.prefill_done: worker_pb2.PrefillDone | None = None
        self.kv_moved: worker_pb2.KVMoved | None = None
        self.decode_done: worker_pb2.DecodeDone | None = None
        self.failed: worker_pb2.PhaseFailed | None = None
        self.ended = False
        self.stopped = False
        """Told to stop; what was under way then may still come, and is not judged."""
        self._first_token = first_token
        self._next = first_index
        self._journal = journal

    @property
    def opened(self) -> bool:
        """Whether tokens may come; those of a mere prefill precede its end."""
        if self.kind is Kind.PREFILL:
            return self._first_token
        return self.prefill_done is not None or self.kv_moved is not None

    @property
    def answer(self) -> tuple[int, ...]:
        """The tokens in order of their indices."""
        return tuple(self.tokens[index] for index in sorted(self.tokens))

    def token(self, index: int, token: int) -> None:
        """A token came."""
        self.tokens.setdefault(index, token)
        if self.stopped:
            return
        text = f"{self.name}: token {index} came where {self._next} was next"
        self._journal.note(Rule.TOKENS, index == self._next, text)
        self._order(self.opened and not self.ended, f"token {index} came {self._when()}")
        if self.kind is Kind.PREFILL:
            self._order(index == 0, f"token {index} came from a prefill for a peer")
        self._next = max(self._next, index + 1)

    def event(self, event: worker_pb2.PhaseEvent) -> None:
        """An event came."""
        kind = event.WhichOneof("event")
        if kind is None:
            self._journal.note(Rule.COLUMNS, False, f"{self.name}: an event without content")
            return
        self._order(self.stopped or not self.ended, f"{kind} came {self._when()}")
        match kind:
            case "prefill_done":
                self._take_prefill(event.prefill_done)
            case "kv_moved":
                self._order(self.kind is Kind.DECODE and self.kv_moved is None, f"{kind} came unasked")
                self.kv_moved = event.kv_moved
            case "decode_done":
                self._take_end(event.decode_done)
            case "failed":
                self.failed = event.failed
                self.ended = True

    def _take_prefill(self, done: worker_pb2.PrefillDone) -> None:
        fits = self.kind is (Kind.PREFILL if done.HasField("kv") else Kind.HERE)
        what = "with" if done.HasField("kv") else "without"
        self._order(fits and self.prefill_done is None, f"prefill_done {what} a handle for a {self.kind}")
        if self._first_token and self.kind is Kind.PREFILL and not self.stopped:
            self._order(self.tokens, "prefill_done came before token 0, which prefills here produce")
        self._journal.cost(done.cost, f"the prefill of {self.name}")
        self.prefill_done = done
        self.ended = self.ended or done.HasField("kv")

    def _take_end(self, done: worker_pb2.DecodeDone) -> None:
        self._order(self.kind is not Kind.PREFILL and self.opened, f"decode_done came {self._when()}")
        if not self.stopped:
            counted = f"decode_done counts {done.output_tokens} tokens, and {self._next} is the next index"
            self._order(done.output_tokens == self._next, counted)
        self._journal.cost(done.cost, f"the decode of {self.name}")
        self.decode_done = done
        self.ended = True

    def _order(self, holds: object, otherwise: str) -> None:
        self._journal.note(Rule.ORDER, holds, f"{self.name}: {otherwise}")

    def _when(self) -> str:
        return "after the end" if self.ended else "before its KV was there"
