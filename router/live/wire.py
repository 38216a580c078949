"""Northbound nouns on the wire: what a client is told of its request.

The southbound counterpart is router.wire. Pure translations: no gRPC, no waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from polyphase.v1 import common_pb2, inference_pb2

from router.model import (
    BackendKind,
    Decision,
    FinishReason,
    Phase,
    PhaseTimes,
    PhaseUse,
    Reject,
    Report,
    RoutePlan,
    Usage,
    Wait,
)

_KINDS: Final[Mapping[BackendKind, common_pb2.BackendKind]] = {
    BackendKind.GPU: common_pb2.BACKEND_KIND_GPU,
    BackendKind.LPU: common_pb2.BACKEND_KIND_LPU,
    BackendKind.TPU: common_pb2.BACKEND_KIND_TPU,
    BackendKind.NPU: common_pb2.BACKEND_KIND_NPU,
    BackendKind.ASIC: common_pb2.BACKEND_KIND_ASIC,
    BackendKind.CPU: common_pb2.BACKEND_KIND_CPU,
}
_PHASES: Final[Mapping[Phase, common_pb2.Phase]] = {
    Phase.PREFILL: common_pb2.PHASE_PREFILL,
    Phase.DECODE: common_pb2.PHASE_DECODE,
}
_FINISHES: Final[Mapping[FinishReason | None, common_pb2.FinishReason]] = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    None: common_pb2.FINISH_REASON_UNSPECIFIED,
}


def finished_to_proto(report: Report, explain: bool) -> inference_pb2.Finished:
    """The account of a request that ended well; with `explain`, also why it went where it went."""
    finished = inference_pb2.Finished(
        request_id=report.request.id,
        reason=_FINISHES[report.finish],
        usage=usage_to_proto(report.usage),
        times=times_to_proto(report.times),
        uses=[use_to_proto(use) for use in report.uses],
        cost_usd=report.cost_usd,
        energy_j=report.energy_j,
        attempts=report.attempts,
    )
    if explain and report.decision is not None:
        prefill, decode = _last(report.uses, Phase.PREFILL), _last(report.uses, Phase.DECODE)
        finished.decision.CopyFrom(decision_to_proto(report.decision, prefill, decode))
    return finished


def usage_to_proto(usage: Usage) -> common_pb2.Usage:
    """Tokens in and out."""
    return common_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        output_tokens=usage.output_tokens,
    )


def times_to_proto(times: PhaseTimes) -> common_pb2.PhaseTimes:
    """Where the time went; TTFT and TPOT stay unset when the request has none."""
    return common_pb2.PhaseTimes(
        queue_s=times.queue_s,
        prefill_s=times.prefill_s,
        handoff_s=times.handoff_s,
        decode_s=times.decode_s,
        ttft_s=times.ttft_s,
        tpot_s=times.tpot_s,
        e2e_s=times.e2e_s,
    )


def use_to_proto(use: PhaseUse) -> common_pb2.PhaseUse:
    """One phase as it ran on one backend."""
    return common_pb2.PhaseUse(
        phase=_PHASES[use.phase],
        backend=use.backend,
        kind=_KINDS[use.kind],
        device_s=use.cost.device_s,
        energy_j=use.cost.energy_j,
        cost_usd=use.cost_usd,
    )


def phase_to_proto(phase: Phase) -> common_pb2.Phase:
    """A phase."""
    return _PHASES[phase]


def decision_to_proto(decision: Decision, prefill: str = "", decode: str = "") -> common_pb2.Decision:
    """Why a request went where it went. `prefill` and `decode` name what was chosen."""
    runner_up, prediction = decision.runner_up, decision.prediction
    return common_pb2.Decision(
        policy=decision.policy,
        candidates=[
            common_pb2.Candidate(
                prefill=candidate.prefill,
                decode=candidate.decode,
                score=candidate.score,
                parts=candidate.parts,
            )
            for candidate in decision.candidates
        ],
        exclusions=[
            common_pb2.Exclusion(reason=exclusion.reason, count=exclusion.count, backends=exclusion.backends)
            for exclusion in decision.exclusions
        ],
        prefill=prefill,
        decode=decode,
        runner_up=f"{runner_up.prefill}+{runner_up.decode}" if runner_up is not None else "",
        predicted_ttft_s=prediction.ttft_s if prediction is not None else None,
        predicted_e2e_s=prediction.e2e_s if prediction is not None else None,
        reason=decision.reason,
    )


def plan_to_proto(answer: RoutePlan | Wait | Reject) -> inference_pb2.PlanResponse:
    """What would be done with a request."""
    verdicts = inference_pb2.PlanResponse
    if isinstance(answer, RoutePlan):
        decision = decision_to_proto(answer.decision, answer.prefill, answer.decode or "")
        return inference_pb2.PlanResponse(
            verdict=verdicts.VERDICT_PLACED, reason=answer.decision.reason, decision=decision
        )
    verdict = verdicts.VERDICT_WAIT if isinstance(answer, Wait) else verdicts.VERDICT_REJECTED
    response = inference_pb2.PlanResponse(verdict=verdict, reason=answer.reason)
    if answer.decision is not None:
        response.decision.CopyFrom(decision_to_proto(answer.decision))
    return response


def _last(uses: tuple[PhaseUse, ...], phase: Phase) -> str:
    return next((use.backend for use in reversed(uses) if use.phase is phase), "")
