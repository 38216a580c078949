"""The store of decisions by request id."""

from __future__ import annotations

from router.core.messages import NoteDecision, NotePolicyFault, NoteRetry, RequestArrived
from router.errors import Reason
from router.model import Decision, Phase
from router.observe.records import MAX_STEPS, DecisionLog
from tests.observe.stories import DECISION, failed, request, split_request


def test_a_request_can_be_explained_from_arrival_to_end() -> None:
    """Decision, times and report, by id."""
    log = DecisionLog()
    split_request(log, request())
    record = log.get("r1")
    assert record is not None
    assert record.decisions == ((10.0, DECISION),)
    assert (record.arrived_at, record.ended_at) == (10.0, 10.5)
    assert record.report is not None
    assert record.report.usage.output_tokens == 49


def test_a_live_request_has_a_record_without_an_end() -> None:
    """It can be asked about while it runs."""
    log = DecisionLog()
    log.seen(RequestArrived(request()), 1.0, [])
    record = log.get("r1")
    assert record is not None
    assert (record.ended_at, record.report, record.decisions) == (None, None, ())


def test_retries_and_the_faults_of_policies_are_kept() -> None:
    """A fault belongs to the decision of the same step."""
    log = DecisionLog()
    fault = NotePolicyFault("mine", "raised", "boom")
    log.seen(RequestArrived(request()), 1.0, [NoteDecision("r1", Decision("fallback")), fault])
    log.seen(None, 2.0, [NoteRetry("r1", Phase.PREFILL, "gpu-0", Reason.BACKEND_STALLED)])
    record = log.get("r1")
    assert record is not None
    assert record.policy_faults == ("mine: raised",)
    assert [(note.at, note.backend, note.reason) for note in record.retries] == [
        (2.0, "gpu-0", "BACKEND_STALLED")
    ]


def test_a_failure_keeps_its_message() -> None:
    """It says cause, consequence and next step."""
    log = DecisionLog()
    failed(log, request(), Reason.SHED)
    record = log.get("r1")
    assert record is not None
    assert record.message == "no"


def test_the_oldest_go_first_and_the_newest_come_first() -> None:
    """Bounded by count; an id that is used again is the newest."""
    log = DecisionLog(capacity=3)
    for i in (1, 2, 3, 1, 4):
        log.seen(RequestArrived(request(f"r{i}")), float(i), [])
    assert len(log) == 3
    assert [record.request.id for record in log.recent(2)] == ["r4", "r1"]
    assert log.get("r2") is None
    assert [record.request.id for record in log.recent(99)] == ["r4", "r1", "r3"]


def test_one_request_cannot_fill_the_memory() -> None:
    """A core with a bug that retries without end is still bounded."""
    log = DecisionLog()
    log.seen(RequestArrived(request()), 1.0, [])
    for i in range(100):
        log.seen(None, float(i), [NoteDecision("r1", DECISION)])
    record = log.get("r1")
    assert record is not None
    assert len(record.decisions) == MAX_STEPS
