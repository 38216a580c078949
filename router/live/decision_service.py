"""DecisionService: explains recent requests to operators. Served on the admin listener only.

The record of a request is read off a ring in memory. The smallest changes are worked out by asking a copy of
the policy again, on another thread and in small portions: decisions of the live policy go on meanwhile.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Mapping
from typing import Any, Final

import grpc
from polyphase.v1 import decisions_pb2

from router.errors import CallerError, PolyphaseError, Reason
from router.live.admin_rpc import AdminCall, AdminService, CallLimits
from router.live.wire import decision_to_proto, phase_to_proto, times_to_proto
from router.model import Decision, RoutePlan, Seconds
from router.observe.explain import decision_of
from router.observe.explain_words import sentence
from router.observe.explanation import Explanation, explanation, verdict_of
from router.observe.records import DecisionLog, Record
from router.observe.scene import Kept, SceneLog
from router.observe.scene_json import scene_to_json

SERVICE_NAME: Final = decisions_pb2.DESCRIPTOR.services_by_name["DecisionService"].full_name
MAX_ASKED: Final = 600
"""Questions to the policy for one explanation; fewer in a large fleet, where each takes longer."""
MAX_ASKED_VIEWS: Final = 60_000
"""Backends looked at for one explanation, over all questions: about a second of CPU time."""
LEAST_ASKED: Final = 60
PAUSE_S: Final[Seconds] = 0.0005
"""After each question, so that the event loop gets its turn."""
MAX_SNAPSHOT_BYTES: Final = 3 << 20
"""Below gRPC's limit of 4 MiB on one message."""


class DecisionService:
    """Answers operators. Needs the running loop."""

    def __init__(self, records: DecisionLog, scenes: SceneLog, limits: CallLimits | None = None) -> None:
        self._records = records
        self._scenes = scenes
        self._limits = limits or CallLimits()
        self._now = asyncio.get_running_loop().time
        self._one_at_a_time = asyncio.Lock()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the method to a server."""
        AdminService(SERVICE_NAME, {"Explain": self._explain}, self._limits).register(server)

    async def _explain(self, call: AdminCall) -> None:
        asked = await call.first(decisions_pb2.ExplainRequest)
        record = self._records.get(asked.request_id)
        if record is None:
            raise CallerError(
                Reason.UNKNOWN_REQUEST,
                f"no record of request {asked.request_id[:128]!r}: it is not among the last "
                f"{len(self._records)} that arrived, or went to another router",
            )
        response = _of_record(record, self._now())
        kept = self._scenes.get(asked.request_id)
        if kept is not None:
            await self._of_scene(response, kept, asked)
        else:
            _without_scene(response, record)
        await call.write(response)

    async def _of_scene(
        self,
        response: decisions_pb2.ExplainResponse,
        kept: Kept,
        asked: decisions_pb2.ExplainRequest,
    ) -> None:
        decision = decision_of(kept.answer)
        response.verdict = verdict_of(kept.answer)
        if decision is not None:
            response.sentence = sentence(decision, self._scenes.since, kept.scene.now)
            response.decision.CopyFrom(_to_proto(decision, kept))
        elif not isinstance(kept.answer, RoutePlan):
            response.sentence = kept.answer.reason
        if asked.snapshot:
            response.snapshot = _snapshot(kept)
        if asked.changes:
            _add_changes(response, await self._worked_out(kept))

    async def _worked_out(self, kept: Kept) -> Explanation:
        policy = copy.deepcopy(kept.policy)
        most = max(LEAST_ASKED, min(MAX_ASKED, MAX_ASKED_VIEWS // max(1, len(kept.scene.fleet.views))))
        async with self._one_at_a_time:
            return await asyncio.to_thread(
                explanation, policy, kept.scene, kept.answer, most=most, paced=lambda: time.sleep(PAUSE_S)
            )


def _of_record(record: Record, now: Seconds) -> decisions_pb2.ExplainResponse:
    request, began = record.request, record.arrived_at
    response = decisions_pb2.ExplainResponse(
        request_id=request.id,
        model=request.model,
        prompt_tokens=request.prompt_tokens,
        max_new_tokens=request.max_new_tokens,
        workload_class=request.workload_class,
        age_s=max(0.0, now - began),
        decisions=[
            decisions_pb2.DecisionNote(decided_at_s=at - began, decision=_chosen(decision))
            for at, decision in record.decisions
        ],
        retries=[
            decisions_pb2.RetryNote(
                failed_at_s=note.at - began,
                phase=phase_to_proto(note.phase),
                backend=note.backend,
                reason=note.reason,
            )
            for note in record.retries
        ],
        policy_faults=record.policy_faults,
        failure=record.message,
    )
    if record.ended_at is not None and record.report is not None:
        response.ended_at_s = record.ended_at - began
        response.times.CopyFrom(times_to_proto(record.report.times))
    return response


def _chosen(decision: Decision) -> Any:
    """A record names its first candidate as the chosen one (policies/decision.py)."""
    first = decision.candidates[0] if decision.candidates else None
    return decision_to_proto(decision, first.prefill if first else "", first.decode if first else "")


def _to_proto(decision: Decision, kept: Kept) -> Any:
    answer = kept.answer
    if isinstance(answer, RoutePlan):
        return decision_to_proto(decision, answer.prefill, answer.decode or "")
    return decision_to_proto(decision)


def _without_scene(response: decisions_pb2.ExplainResponse, record: Record) -> None:
    """The record alone remains: the policy was not asked, the fallback decided, or it is long ago."""
    if not record.decisions:
        response.verdict = "ended without a decision" if response.failure else "no decision yet"
        response.sentence = response.failure
        response.changes_note = "the policy was not asked about it, or longer ago than questions are kept"
        return
    decision = record.decisions[-1][1]
    response.decision.CopyFrom(_chosen(decision))
    response.verdict = " -> ".join(dict.fromkeys((response.decision.prefill, response.decision.decode)))
    response.sentence = sentence(decision)
    response.changes_note = "what the policy was asked is no longer kept; ask sooner after the request"


def _add_changes(response: decisions_pb2.ExplainResponse, told: Explanation) -> None:
    response.goal = told.goal
    response.changes_note = told.changes.note
    if not told.changes.complete and not told.changes.note:
        response.changes_note = f"stopped after {told.changes.asked} questions to the policy"
    for change in told.changes.found:
        response.changes.add(text=change.text, before=change.before, after=change.after, effort=change.effort)


def _snapshot(kept: Kept) -> str:
    table: Mapping[str, Any] = getattr(kept.policy, "table", {"name": kept.policy.name})
    text = json.dumps(scene_to_json(kept.scene, table), separators=(",", ":"))
    if len(text) > MAX_SNAPSHOT_BYTES:
        raise PolyphaseError(
            Reason.REQUEST_TOO_LARGE,
            f"the snapshot of {len(kept.scene.fleet.views)} backends has {len(text)} bytes, more than one "
            "message holds; nothing was changed; explain without a snapshot",
        )
    return text
