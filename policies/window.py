"""What arrived of late, in bounded memory: tallies of like requests over a sliding window.

Requests are alike that ask for the same model in the same workload class with the same objectives, and whose
prompts and expected answers are of the same power of two. The window is a ring of slots; the oldest is
dropped as a whole when time has moved on. Clients choose the names of classes, so a slot keeps the first
MAX_KINDS it sees, and adds what comes beyond them to one kind per model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from router.model import Request, Seconds, ServiceLevel

SLOTS: Final = 8
"""A window moves in steps of an eighth of its length."""
MAX_KINDS: Final = 128
"""Kinds of requests per slot, one more for each model beyond them."""
MAX_MODELS: Final = 64
"""Models per slot; requests for more are not counted."""
MAX_CLASSES: Final = 256
"""Models and workload classes whose hits are known; what comes beyond them is taken to have none."""
MAX_WAITED_FOR: Final = 1 << 16
"""Prompts whose end is awaited; the oldest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes requests alike."""

    model: str
    workload_class: str
    slo: ServiceLevel
    prompt_bin: int
    """Bits of the prompt's length."""
    output_bin: int


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests of one kind in the window, by their sums."""

    kind: Kind
    count: int
    prompt_tokens: int
    cached_tokens: float
    """Of the prompts, as expected when they came."""
    output_tokens: int
    """As expected when they came."""

    @property
    def mean_prompt(self) -> int:
        """At least 1."""
        return max(1, round(self.prompt_tokens / self.count))

    @property
    def mean_cached(self) -> int:
        """Less than the prompt: an engine computes at least its last token."""
        return max(0, min(round(self.cached_tokens / self.count), self.mean_prompt - 1))

    @property
    def mean_output(self) -> int:
        """At least 1."""
        return max(1, round(self.output_tokens / self.count))


Sums = tuple[int, int, float, int]
"""Of Arrivals."""
NONE: Final[Sums] = (0, 0, 0.0, 0)


@dataclass(slots=True)
class _Slot:
    since: Seconds
    sums: dict[Kind, Sums]


def kind_of(request: Request, output_tokens: int) -> Kind:
    """The kind of a request whose answer is expected to be that long."""
    return Kind(
        request.model,
        request.workload_class,
        request.slo,
        max(1, request.prompt_tokens).bit_length(),
        max(1, output_tokens).bit_length(),
    )


class Window:
    """Counts what came in the last `length_s` seconds, give or take a slot."""

    def __init__(self, length_s: Seconds) -> None:
        self._slot_s = length_s / SLOTS
        self._slots: deque[_Slot] = deque(maxlen=SLOTS + 1)

    def __deepcopy__(self, memo: dict[int, object]) -> Window:
        other = Window(self._slot_s * SLOTS)
        other._slots.extend(_Slot(slot.since, dict(slot.sums)) for slot in self._slots)
        return other

    def arrived(self, request: Request, output_tokens: int, cached_share: float, now: Seconds) -> None:
        """Count one request, with what is expected of its answer and of the part of its prompt that is
        cached."""
        if not self._slots or now - self._slots[-1].since >= self._slot_s:
            self._slots.append(_Slot(now, {}))
        sums = self._slots[-1].sums
        kind = kind_of(request, output_tokens)
        if kind not in sums and len(sums) >= MAX_KINDS:
            kind = Kind(request.model, "", ServiceLevel(), 0, 0)
            if kind not in sums and len(sums) >= MAX_KINDS + MAX_MODELS:
                return
        prompt = max(1, request.prompt_tokens)
        sums[kind] = _plus(sums.get(kind, NONE), (1, prompt, cached_share * prompt, max(1, output_tokens)))

    def seen(self, now: Seconds) -> tuple[Seconds, list[Arrivals]]:
        """For how long was counted, and what came, most frequent kinds first. Changes nothing."""
        kept = [slot for slot in self._slots if now - slot.since < self._slot_s * (SLOTS + 1)]
        sums: dict[Kind, Sums] = {}
        for slot in kept:
            for kind, more in slot.sums.items():
                sums[kind] = _plus(sums.get(kind, NONE), more)
        found = [Arrivals(kind, *tally) for kind, tally in sums.items()]
        return (now - kept[0].since if kept else 0.0), sorted(found, key=lambda one: -one.count)


def _plus(a: Sums, b: Sums) -> Sums:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


class HitShare:
    """Share of the prompt that is found in a prefix cache, per model and workload class: a moving average."""

    def __init__(self, memory: int) -> None:
        """`memory` is the number of prompts after which an old one has lost two thirds of its weight."""
        self._memory = memory
        self._shares: dict[tuple[str, str], float] = {}
        self._prompts: dict[str, tuple[tuple[str, str], int]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> HitShare:
        other = HitShare(self._memory)
        other._shares, other._prompts = dict(self._shares), dict(self._prompts)  # values are immutable
        return other

    def expect(self, request: Request) -> float:
        """In [0, 1]; 0 while nothing is known."""
        return self._shares.get((request.model, request.workload_class), 0.0)

    def wait_for(self, request: Request) -> None:
        """Remember a prompt until it is done."""
        if len(self._prompts) >= MAX_WAITED_FOR and request.id not in self._prompts:
            del self._prompts[next(iter(self._prompts))]
        self._prompts[request.id] = (request.model, request.workload_class), request.prompt_tokens

    def prefilled(self, request_id: str, cached_tokens: float) -> None:
        """Learn from a prompt that is done. A count that cannot be is ignored."""
        known = self._prompts.pop(request_id, None)
        if known is None or not 0 <= cached_tokens <= known[1] or not known[1]:
            return
        which, prompt = known
        if which in self._shares or len(self._shares) < MAX_CLASSES:
            before = self._shares.get(which, 0.0)
            self._shares[which] = before + (cached_tokens / prompt - before) / self._memory

    def forget(self, request_id: str) -> None:
        """A request ended without its prefill."""
        self._prompts.pop(request_id, None)
