"""Facts and actions as a core would exchange them, written by hand, for the tests of the observers."""

from __future__ import annotations

import math
from typing import Any

from prometheus_client import CollectorRegistry

from router.core.messages import (
    BackendJoined,
    DecodeDone,
    FailRequest,
    FinishRequest,
    FirstToken,
    KVMoved,
    NoteDecision,
    PrefillDone,
    RequestArrived,
    StartDecode,
    StartPrefill,
)
from router.core.ports import Tap
from router.errors import Reason
from router.model import (
    BackendKind,
    BackendSpec,
    Decision,
    FinishReason,
    KVHandle,
    Phase,
    PhaseCost,
    PhaseTimes,
    PhaseUse,
    Report,
    Request,
    ServiceLevel,
    StepParameters,
    Usage,
)

MODEL = "llama-8b"
BOTH = frozenset(Phase)


def spec(backend: str, kind: BackendKind = BackendKind.GPU, **changes: Any) -> BackendSpec:
    """A backend that offers both phases of one model."""
    values: dict[str, Any] = {
        "device": "test",
        "models": (MODEL,),
        "phases": BOTH,
        "step": StepParameters(base_s=0.01),
        "kv_capacity_tokens": 1000,
        "max_num_seqs": 8,
    }
    return BackendSpec(id=backend, kind=kind, **(values | changes))


def request(request_id: str = "r1", **changes: Any) -> Request:
    """A request of 100 prompt tokens for at most 50."""
    values: dict[str, Any] = {"model": MODEL, "prompt_tokens": 100, "max_new_tokens": 50}
    return Request(id=request_id, **(values | changes))


def handle(request_id: str = "r1", producer: str = "gpu-0") -> KVHandle:
    """Ownership of a request's KV at its producer."""
    return KVHandle(producer, "boot-1", request_id, 1, "layout", 100, 7, expires_at=40.0)


DECISION = Decision("predicted", "earliest_finish")
TIMES = PhaseTimes(
    queue_s=0.01, prefill_s=0.1, handoff_s=0.02, decode_s=0.37, e2e_s=0.5, ttft_s=0.14, tpot_s=0.0075
)
"""queue + prefill + handoff + decode = e2e; tpot = (0.5 - 0.14) / 48."""

USAGE = Usage(prompt_tokens=100, cached_prompt_tokens=20, output_tokens=49)

SPLIT = (
    PhaseUse(Phase.PREFILL, "gpu-0", BackendKind.GPU, PhaseCost(0.01, 0.1, 50.0), 0.002),
    PhaseUse(Phase.DECODE, "lpu-0", BackendKind.LPU, PhaseCost(0.0, 0.3, 30.0), 0.001),
)


def report(
    asked: Request,
    *,
    uses: tuple[PhaseUse, ...] = SPLIT,
    finish: FinishReason | None = FinishReason.STOP,
    times: PhaseTimes = TIMES,
    usage: Usage = USAGE,
    attempts: int = 1,
    error: str = "",
    decision: Decision | None = DECISION,
) -> Report:
    """The account of a request; by default of a split one that ended well."""
    return Report(asked, times, usage, uses, attempts, decision, finish, error)


def join(tap: Tap, *specs: BackendSpec, now: float = 0.0) -> None:
    """Backends join."""
    for joined in specs:
        tap.seen(BackendJoined(joined, "boot-1"), now, [])


def split_request(tap: Tap, asked: Request, ended: Report | None = None, start: float = 10.0) -> None:
    """A request whose prefill runs on gpu-0 and whose decode runs on lpu-0, to its good end."""
    rid = asked.id
    tap.seen(
        RequestArrived(asked),
        start,
        [StartPrefill(rid, 1, "gpu-0", decode_here=False), NoteDecision(rid, DECISION)],
    )
    tap.seen(
        PrefillDone(rid, 1, SPLIT[0].cost, 20, handle(rid)),
        start + 0.11,
        [StartDecode(rid, 1, "lpu-0", handle(rid))],
    )
    tap.seen(KVMoved(rid, 1, moved_bytes=4096, transfer_s=0.015), start + 0.13, [])
    tap.seen(FirstToken(rid, 1), start + 0.14, [])
    done = DecodeDone(rid, 1, SPLIT[1].cost, 49, FinishReason.STOP)
    tap.seen(done, start + 0.5, [FinishRequest(rid, ended or report(asked))])


def failed(
    tap: Tap,
    asked: Request,
    reason: Reason,
    *,
    attempts: int = 0,
    times: PhaseTimes | None = None,
    **more: Any,
) -> None:
    """A request that arrives and fails at once."""
    account = report(
        asked,
        uses=more.pop("uses", ()),
        finish=None,
        times=times or PhaseTimes(0.0, 0.0, 0.0, 0.0, 0.0, None, None),
        usage=Usage(0, 0, 0),
        attempts=attempts,
        error=reason,
        decision=None,
    )
    tap.seen(RequestArrived(asked), 1.0, [FailRequest(asked.id, reason, "no", 0.0, account)])


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    """One sample; None if its series does not exist. Labels that are not named must not exist either."""
    return registry.get_sample_value(name, labels)


def objectives(**levels: float) -> ServiceLevel:
    """A service level."""
    return ServiceLevel(**levels)


INFINITE = math.inf
