"""What a backend did since its boot: busy time by phase, energy, and what the steps worked on. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from backends.models.metering import Bill, parts_s
from router.model import Seconds


@dataclass(frozen=True, slots=True)
class Overhead:
    """Time and energy of a backend that are on no request's bill. Its cost is device_s at the list price."""

    stopped_s: Seconds
    """Device time of sequences that were stopped before their phase ended."""
    idle_s: Seconds
    """Without work; loading a model included."""
    energy_j: float
    """Of both."""

    @property
    def device_s(self) -> Seconds:
        """Of both."""
        return self.stopped_s + self.idle_s


@dataclass(slots=True)
class Account:
    """Counters that only grow; the regressors are those of router.model.BackendSnapshot."""

    busy_prefill_s: Seconds = 0.0
    busy_decode_s: Seconds = 0.0
    energy_j: float = 0.0
    steps: int = 0
    decode_sequences: int = 0
    context_tokens: int = 0
    prefill_tokens: int = 0
    attention_pairs: float = 0.0
    busy_loading_s: Seconds = 0.0
    busy_attention_s: Seconds = 0.0
    busy_ffn_s: Seconds = 0.0
    busy_transfer_s: Seconds = 0.0
    dropped_s: Seconds = 0.0
    """Device time of sequences that were stopped: busy, and on nobody's bill."""
    dropped_j: float = 0.0

    def book(self, bill: Bill, prefill_s: Seconds) -> None:
        """Add the steps of a bill, `prefill_s` of whose time went to prompts."""
        work, steps = bill.work, bill.span.steps
        self.busy_prefill_s += prefill_s
        self.busy_decode_s += bill.time_s - prefill_s
        self.energy_j += bill.energy_j
        self.steps += steps
        self.decode_sequences += work.decodes * steps
        self.context_tokens += work.context_tokens * steps + work.decodes * (steps * (steps - 1) // 2)
        for chunk in work.chunks:
            self.prefill_tokens += chunk.tokens
            self.attention_pairs += chunk.pairs
        if work.price.parts is not None:
            self._book_parts(bill)

    def drop(self, device_s: Seconds, energy_j: float) -> None:
        """Add what a sequence was charged that will never be billed."""
        self.dropped_s += device_s
        self.dropped_j += energy_j

    def ahead(self, bill: Bill) -> Account:
        """The account as it will be, with steps that decode alone and are over but not booked yet."""
        later = Account(  # in the order of the fields; `replace` takes eight times as long
            self.busy_prefill_s, self.busy_decode_s, self.energy_j,
            self.steps, self.decode_sequences, self.context_tokens, self.prefill_tokens, self.attention_pairs,
            self.busy_loading_s, self.busy_attention_s, self.busy_ffn_s, self.busy_transfer_s,
            self.dropped_s, self.dropped_j,
        )  # fmt: skip
        later.book(bill, 0.0)
        return later

    def _book_parts(self, bill: Bill) -> None:
        attention_s, ffn_s, transfer_s = parts_s(bill)
        self.busy_attention_s += attention_s
        self.busy_ffn_s += ffn_s
        self.busy_transfer_s += transfer_s
