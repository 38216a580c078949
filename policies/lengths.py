"""How long answers are: learned per model, workload class, tenant and size of the prompt, with quantiles.

What is most like the request counts as soon as enough such answers ended: its tenant's answers to prompts of
its size (to a power of two), then everybody's to such prompts, then its tenant's, then all of its class;
until there is one, a prior. In public traces the size of the prompt says a good deal: in Azure's
conversations it takes the deviation of the logarithm from 0.91 to 0.56. The logarithm of a length is taken to
be normal (assumption: answer lengths of public traces are skewed like that), so that mean and variance of the
logarithm give every quantile in constant memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from policies.learned import MAX_CLASSES, MAX_WAITED_FOR
from policies.standing import UNKNOWN_OUTPUT_TOKENS
from router.model import Request

Class = tuple[str, str, str, int]
"""Model, workload class, tenant, bits of the prompt's length; empty and 0 stand for all."""
OTHERS: Final[Class] = ("", "", "", 0)
"""Classes beyond the limit share one estimate."""
MAX_KINDS: Final = 8 * MAX_CLASSES
"""Classes, tenants and sizes that have an estimate of their own; clients choose the names."""
ENOUGH: Final = 8
"""Answers from which on a part of a class is known better by itself."""
PRIOR_DEVIATION: Final = 0.9
"""Of the logarithm of a length, before any is known (the Azure traces have 0.8 to 1.2; assumption)."""
THIRDS: Final = (-0.967, 0.0, 0.967)
"""Standard deviations of a normal variable at 1/6, 1/2 and 5/6: the middles of its thirds."""


@dataclass(frozen=True, slots=True)
class _Known:
    seen: int
    mean: float
    log_mean: float
    log_square: float

    def learn(self, tokens: float, memory: int) -> _Known:
        """With one more answer."""
        seen = min(self.seen + 1, memory)
        weight, log = 1.0 / seen, math.log(tokens)
        error = log - self.log_mean
        log_mean = self.log_mean + weight * error
        # Welford's update of a variance, with forgetting once the memory is full.
        square = (1.0 - weight) * (self.log_square + weight * error * error)
        return _Known(seen, self.mean + weight * (tokens - self.mean), log_mean, square)


NOTHING: Final = _Known(0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Lengths:
    """What is expected of one answer, in tokens from 1 to its max_new_tokens."""

    mean: int
    thirds: tuple[int, ...]
    """Typical lengths of the shortest, the middle and the longest third of such answers; one if known."""


class OutputLengths:
    """Expected output tokens: a moving average of what finished, and its spread.

    Until a class has finished an answer, the expectation is min(max_new_tokens, 256) (assumption).
    Answers in progress are not counted, so long ones arrive late in the average, and answers cut at
    max_new_tokens count as they are (both bias it downwards while traffic grows).
    """

    def __init__(self, memory: int, learns: bool = True) -> None:
        """`memory` is the number of answers after which an old one has lost two thirds of its weight. Without
        learning, every answer is expected to be as long as it may be."""
        self._memory = memory
        self._learns = learns
        self._known: dict[Class, _Known] = {}
        self._awaited: dict[str, tuple[Class, ...]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> OutputLengths:
        other = OutputLengths(self._memory, self._learns)
        other._known, other._awaited = dict(self._known), dict(self._awaited)  # values are immutable
        return other

    def expect(self, request: Request) -> int:
        """Output tokens a request is expected to need, at least 1 and at most max_new_tokens."""
        most = max(1, request.max_new_tokens)
        if not self._learns:
            return most
        known = self._best(request)
        return min(most, UNKNOWN_OUTPUT_TOKENS if known is None else max(1, round(known.mean)))

    def lengths(self, request: Request) -> Lengths:
        """The same with its spread."""
        most, known = max(1, request.max_new_tokens), self._best(request)
        mean = self.expect(request)
        if not self._learns:
            return Lengths(most, (most,))
        if known is None:
            middle, deviation = math.log(mean), PRIOR_DEVIATION
        else:
            prior = PRIOR_DEVIATION**2 / known.seen  # counts as one answer
            middle, deviation = known.log_mean, math.sqrt(known.log_square + prior)
        low, half, high = (min(most, max(1, round(math.exp(middle + z * deviation)))) for z in THIRDS)
        return Lengths(mean, (low, half, high))

    def wait_for(self, request: Request) -> None:
        """Remember the class of a request until it finishes."""
        if not self._learns:
            return
        if len(self._awaited) >= MAX_WAITED_FOR and request.id not in self._awaited:
            del self._awaited[next(iter(self._awaited))]
        self._awaited[request.id] = _classes(request)

    def finished(self, request_id: str, output_tokens: float) -> None:
        """Learn from an answer that ended."""
        classes = self._awaited.pop(request_id, None)
        if classes is None or not 1 <= output_tokens < math.inf:
            return
        for one in classes:
            full = one not in self._known and len(self._known) >= MAX_KINDS
            which = OTHERS if full else one
            self._known[which] = self._known.get(which, NOTHING).learn(output_tokens, self._memory)

    def forget(self, request_id: str) -> None:
        """A request ended without an answer."""
        self._awaited.pop(request_id, None)

    def _best(self, request: Request) -> _Known | None:
        *parts, whole = _classes(request)
        for which in parts:
            known = self._known.get(which)
            if known is not None and known.seen >= ENOUGH:
                return known
        known = self._known.get(whole)
        if known is None and len(self._known) >= MAX_KINDS:
            known = self._known.get(OTHERS)
        return known


def _classes(request: Request) -> tuple[Class, ...]:
    """From what is most like a request to all of its class."""
    model, name, tenant = request.model, request.workload_class, request.tenant
    size = max(1, request.prompt_tokens).bit_length()
    of_class: tuple[Class, ...] = ((model, name, "", size), (model, name, "", 0))
    if not tenant:
        return of_class
    return (model, name, tenant, size), of_class[0], (model, name, tenant, 0), of_class[1]
