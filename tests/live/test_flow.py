"""The index discipline of a flow: no gap, no duplicate, nothing old, nothing beyond the end."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from polyphase.v1 import inference_pb2

from router.core.messages import DecodeDone, Fact, FailRequest, FirstToken, PhaseFailed
from router.errors import Reason
from router.live.flow import Flow, Flows
from router.model import FinishReason, Phase, Report, Request

REQUEST = Request("r", "m", prompt_tokens=3, max_new_tokens=5)


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.runs: list[tuple[int, int]] = []

    def tokens(self, epoch: int, first_index: int, ids: Sequence[int]) -> None:
        """Keep tokens; indices must be consecutive."""
        assert first_index == len(self.ids) and len(ids) > 0
        self.runs.append((epoch, len(ids)))
        self.ids.extend(ids)

    def finish(self, report: Report) -> None:
        """Not used here."""

    def fail(self, action: FailRequest) -> None:
        """Not used here."""


def begun(epoch: int = 1) -> tuple[Flow, Kept, list[Fact]]:
    """A flow whose worker has been told to decode."""
    sink, facts = Kept(), list[Fact]()
    flow = Flow(REQUEST, inference_pb2.GenerateRequest(), sink, facts.append)
    flow.begin(epoch, "b0", Phase.DECODE, 10.0)
    return flow, sink, facts


def test_tokens_in_order_are_delivered_and_the_first_is_a_fact() -> None:
    """The core hears of the first token only; progress is noted with each."""
    flow, sink, facts = begun()
    flow.accept(1, 0, 70, 11.0)
    flow.accept(1, 1, 71, 12.0)
    assert sink.ids == [70, 71] and facts == [FirstToken("r", 1)]
    assert flow.next_index == 2 and flow.last_progress == 12.0 and flow.counts.delivered == 2


def test_duplicates_and_old_epochs_are_dropped_and_counted() -> None:
    """Neither is progress, and neither is told to the core."""
    flow, sink, facts = begun(epoch=2)
    flow.accept(1, 0, 9, 11.0)
    flow.accept(2, 0, 70, 11.0)
    flow.accept(2, 0, 70, 12.0)
    assert sink.ids == [70] and flow.counts.duplicated == 2 and flow.last_progress == 11.0
    assert facts == [FirstToken("r", 2)]


def test_a_gap_is_a_broken_contract_told_once() -> None:
    """After a gap nothing of the epoch is accepted, not even the token that was missing."""
    flow, sink, facts = begun()
    flow.accept(1, 0, 70, 11.0)
    flow.accept(1, 2, 72, 11.0)
    flow.accept(1, 1, 71, 11.0)
    flow.accept(1, 3, 73, 11.0)
    (failed,) = facts[1:]
    assert isinstance(failed, PhaseFailed) and failed.reason is Reason.BACKEND_BROKE_CONTRACT
    assert (failed.epoch, failed.phase, failed.backend) == (1, Phase.DECODE, "b0")
    assert sink.ids == [70] and flow.counts.skipped == 1


def test_a_new_epoch_continues_where_the_old_one_stopped() -> None:
    """An index that was delivered stays delivered; a resume starts at next_index."""
    flow, sink, facts = begun()
    flow.accept(1, 0, 70, 11.0)
    flow.begin(2, "b1", Phase.DECODE, 12.0)
    flow.accept(1, 1, 99, 12.0)
    flow.accept(2, 1, 71, 13.0)
    assert sink.runs == [(1, 1), (2, 1)] and facts == [FirstToken("r", 1)]


def test_what_is_beyond_the_end_is_cut_off_and_told_once() -> None:
    """A worker that ignores max_new_tokens is stopped; the client gets exactly what it asked for."""
    flow, sink, facts = begun()
    for index in range(9):
        flow.accept(1, index, index, 11.0)
    assert sink.ids == [0, 1, 2, 3, 4]
    (done,) = facts[1:]
    assert isinstance(done, DecodeDone) and done.overran
    assert (done.output_tokens, done.reason) == (5, FinishReason.LENGTH)
    assert flow.counts.overran == 1


def test_a_run_that_overlaps_delivers_its_new_part() -> None:
    """A run may repeat what is known and go beyond the end; both sides are cut."""
    flow, sink, facts = begun()
    flow.accept_run(1, 0, [0, 1, 2], 11.0)
    flow.accept_run(1, 1, [1, 2, 3, 4, 5, 6], 12.0)
    assert sink.ids == [0, 1, 2, 3, 4] and flow.counts.duplicated == 2
    assert isinstance(facts[-1], DecodeDone) and facts[-1].overran


def test_a_closed_flow_takes_nothing() -> None:
    """Tokens that come after the end are dropped."""
    flow, sink, facts = begun()
    flow.close()
    flow.accept(1, 0, 1, 11.0)
    flow.accept_run(1, 0, [1], 11.0)
    assert sink.ids == [] and facts == [] and flow.counts.duplicated == 2


def test_an_id_is_in_use_until_it_is_removed() -> None:
    """A second flow with the same id is refused, and the first is kept."""
    flows = Flows()
    first, second = begun()[0], begun()[0]
    assert flows.add(first) and not flows.add(second)
    assert flows.get("r") is first and "r" in flows and list(flows) == [first]
    assert flows.remove("r") is first and flows.remove("r") is None and len(flows) == 0
    assert flows.add(second)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(0, 4)), max_size=40))
def test_whatever_workers_send_the_client_sees_a_prefix(sent: list[tuple[int, int, int]]) -> None:
    """For any mix of tokens and runs of any epoch: consecutive indices, right tokens, one fault."""
    flow, sink, facts = begun(epoch=1)
    for epoch, index, length in sent:
        if length == 0:
            flow.accept(epoch, index, 100 + index, 11.0)
        else:
            flow.accept_run(epoch, index, [100 + index + step for step in range(length)], 11.0)
    assert sink.ids == [100 + index for index in range(len(sink.ids))] and len(sink.ids) <= 5
    ends = [fact for fact in facts if not isinstance(fact, FirstToken)]
    assert len(ends) <= 1 and len(facts) - len(ends) == (1 if sink.ids else 0)


@given(st.lists(st.integers(0, 7), max_size=20))
def test_runs_and_single_tokens_are_treated_alike(indices: list[int]) -> None:
    """A token is a run of one: both ways in tell and deliver the same."""
    one, one_sink, one_facts = begun()
    run, run_sink, run_facts = begun()
    for index in indices:
        one.accept(1, index, index, 11.0)
        run.accept_run(1, index, [index], 11.0)
    assert one_sink.ids == run_sink.ids and one_facts == run_facts and one.counts == run.counts
