"""The live end of a request: where tokens of workers become the tokens of one client.

This is the hot path: a token costs a few comparisons and one call of the sink. Index discipline lives here
and nowhere else, so that a client never sees a gap, a duplicate, a token of an old attempt, or one too many.
It may not do I/O, wait, or keep tokens: the sink does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from polyphase.v1 import inference_pb2

from router.core.messages import DecodeDone, Fact, FailRequest, FirstToken, PhaseFailed
from router.errors import Reason
from router.model import FinishReason, Phase, PhaseCost, Report, Request, Seconds

Tell = Callable[[Fact], None]

NO_EPOCH: Final = -1
"""No worker may speak for the flow: before the first attempt, after a broken contract, after the end."""


class Sink(Protocol):
    """Takes what a request produces, towards its client. Never blocks, never raises."""

    def tokens(self, epoch: int, first_index: int, ids: Sequence[int]) -> None:
        """Consecutive tokens; the indices of calls are consecutive too. `ids` is not empty."""
        ...

    def text(self, epoch: int, first_index: int, text: str, ids: Sequence[int], count: int) -> None:
        """Text of `count` consecutive tokens, with their ids or with none. A count of 0 adds to the last."""
        ...

    def finish(self, report: Report) -> None:
        """The request ended well; nothing follows."""
        ...

    def fail(self, action: FailRequest) -> None:
        """The request ended without (the rest of) its answer; nothing follows."""
        ...


@dataclass(slots=True)
class TokenCounts:
    """What became of the tokens workers sent. Counters that grow: flows update them, metrics read them."""

    delivered: int = 0
    """Handed to a client's stream."""
    duplicated: int = 0
    """Dropped: of an old attempt, or of an index that was delivered before."""
    skipped: int = 0
    """Times a worker left out an index."""
    overran: int = 0
    """Times a worker went on beyond max_new_tokens."""


class Flow:
    """One live request: what workers need of it, and what they have produced for it so far."""

    __slots__ = (
        "backend",
        "counts",
        "epoch",
        "last_progress",
        "max_new_tokens",
        "next_index",
        "payload",
        "phase",
        "request",
        "sink",
        "tell",
    )

    def __init__(
        self,
        request: Request,
        payload: inference_pb2.GenerateRequest,
        sink: Sink,
        tell: Tell,
        counts: TokenCounts | None = None,
    ) -> None:
        """`payload` goes to workers verbatim; `tell` takes the facts this flow finds out."""
        self.request = request
        self.payload = payload
        self.sink = sink
        self.tell = tell
        self.counts = counts if counts is not None else TokenCounts()
        self.max_new_tokens = request.max_new_tokens
        self.epoch = NO_EPOCH
        self.next_index = 0
        """Index of the next token, hence also how many were delivered; a decode starts here."""
        self.backend = ""
        """Whose tokens count at this time."""
        self.phase = Phase.PREFILL
        self.last_progress: Seconds = 0.0
        """Loop time of the last sign of life of the current phase; lanes move it on with events."""

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    def begin(self, epoch: int, backend: str, phase: Phase, now: Seconds) -> None:
        """A worker is about to be told to work: from here on its tokens count, and no other's."""
        self.epoch = epoch
        self.backend = backend
        self.phase = phase
        self.last_progress = now

    def close(self) -> None:
        """The request is over: whatever still comes is dropped."""
        self.epoch = NO_EPOCH

    def accept(self, epoch: int, index: int, token: int, now: Seconds) -> None:
        """Take one token from a lane. `now` is the loop time, read once per frame."""
        if epoch == self.epoch and index == self.next_index and index < self.max_new_tokens:
            self.next_index = index + 1
            self.last_progress = now
            self.counts.delivered += 1
            self.sink.tokens(epoch, index, (token,))
            if index == 0:
                self.tell(FirstToken(self.request.id, epoch))
        else:
            self._refuse(epoch, index)

    def accept_run(self, epoch: int, first_index: int, ids: Sequence[int], now: Seconds) -> None:
        """Take consecutive tokens from a lane; what was delivered before is dropped, the rest counts."""
        if epoch != self.epoch:
            self.counts.duplicated += len(ids)
            return
        known = max(0, self.next_index - first_index)
        self.counts.duplicated += min(known, len(ids))
        fresh = ids[known : max(0, self.max_new_tokens - first_index)]
        if known < len(ids) and first_index + known != self.next_index:
            self._skip(epoch, first_index)
        else:
            self._deliver(epoch, fresh, now)
            if known < len(ids) and first_index + len(ids) > self.max_new_tokens:
                self._overrun(epoch)

    def accept_text(
        self, epoch: int, first_index: int, text: str, ids: Sequence[int], count: int, now: Seconds
    ) -> None:
        """Take one delta of an engine that answers in text, with the ids of its `count` tokens or with none.

        All of it counts or nothing does: text cannot be cut at a token.
        """
        if epoch != self.epoch or first_index < self.next_index:
            self.counts.duplicated += count
        elif first_index > self.next_index:
            self._skip(epoch, first_index)
        elif first_index + count > self.max_new_tokens:
            self._overrun(epoch)
        else:
            self.next_index += count
            self.last_progress = now
            self.counts.delivered += count
            self.sink.text(epoch, first_index, text, ids, count)
            if first_index == 0 and count > 0:
                self.tell(FirstToken(self.request.id, epoch))

    def _deliver(self, epoch: int, fresh: Sequence[int], now: Seconds) -> None:
        if not fresh:
            return
        first = self.next_index
        self.next_index += len(fresh)
        self.last_progress = now
        self.counts.delivered += len(fresh)
        self.sink.tokens(epoch, first, fresh)
        if first == 0:
            self.tell(FirstToken(self.request.id, epoch))

    def _refuse(self, epoch: int, index: int) -> None:
        if epoch != self.epoch or index < self.next_index:
            self.counts.duplicated += 1
        elif index > self.next_index:
            self._skip(epoch, index)
        else:
            self._overrun(epoch)

    def _skip(self, epoch: int, index: int) -> None:
        # The client must not see a gap, and a worker that lost one token may have lost its place altogether.
        self.counts.skipped += 1
        self.epoch = NO_EPOCH
        message = (
            f"{self.backend} sent token {index} where token {self.next_index} was due; "
            "the rest of its answer was dropped"
        )
        self.tell(
            PhaseFailed(
                self.request.id, epoch, self.phase, self.backend, Reason.BACKEND_BROKE_CONTRACT, message
            )
        )

    def _overrun(self, epoch: int) -> None:
        # A worker that does not stop would hold its slot and the client's attention for ever.
        self.counts.overran += 1
        self.epoch = NO_EPOCH
        self.tell(
            DecodeDone(
                self.request.id,
                epoch,
                PhaseCost(),
                self.max_new_tokens,
                FinishReason.LENGTH,
                overran=True,
            )
        )


class Flows:
    """The live flows by request id. An id is in use from add to remove."""

    __slots__ = ("_by_id", "counts", "prompt_tokens")

    def __init__(self, counts: TokenCounts | None = None) -> None:
        self._by_id: dict[str, Flow] = {}
        self.counts = counts if counts is not None else TokenCounts()
        """Shared by the flows that the service opens."""
        self.prompt_tokens = 0
        """Of the live requests; each takes about four bytes, as an id or as text."""

    def add(self, flow: Flow) -> bool:
        """Whether the flow's id was free and is now taken by it."""
        if flow.id in self._by_id:
            return False
        self._by_id[flow.id] = flow
        self.prompt_tokens += flow.request.prompt_tokens
        return True

    def get(self, request_id: str) -> Flow | None:
        """The live flow of a request."""
        return self._by_id.get(request_id)

    def remove(self, request_id: str) -> Flow | None:
        """Take a flow out and close it."""
        flow = self._by_id.pop(request_id, None)
        if flow is not None:
            flow.close()
            self.prompt_tokens -= flow.request.prompt_tokens
        return flow

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Flow]:
        """The flows at this time; safe against removal while iterating."""
        return iter(tuple(self._by_id.values()))
