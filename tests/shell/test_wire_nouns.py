"""Specs, handles and loads survive the wire; numbers that a worker must not send are refused."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyphase.v1 import common_pb2, worker_pb2

from router.errors import BackendError, Reason
from router.model import (
    AfdLaw,
    AfdParameters,
    BackendKind,
    BackendSnapshot,
    BackendSpec,
    ConnectorFlags,
    FinishReason,
    HandoffMint,
    KVHandle,
    LinkParameters,
    ModelBinding,
    Phase,
    PhaseCost,
    PowerParameters,
    SchedulerKind,
    StepParameters,
)
from router.wire import (
    MAX_LEASE_S,
    cost_from_proto,
    cost_to_proto,
    failure_from_proto,
    finish_from_proto,
    finish_to_proto,
    kv_handle_from_proto,
    kv_handle_to_proto,
    load_from_proto,
    load_to_proto,
    spec_from_proto,
    spec_to_proto,
)

AMOUNT = st.floats(0, 1e12)
COUNT = st.integers(1, 2**32 - 1)
NAMES = st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple)
STEPS = st.builds(
    StepParameters, **{f.name: AMOUNT for f in fields(StepParameters) if f.name != "saturation_tokens"}
)
BANDWIDTH = st.just(math.inf) | st.floats(1, 1e12)
BUCKETS = st.lists(COUNT, max_size=3).map(tuple)
AFDS = st.builds(
    AfdParameters,
    layers=COUNT,
    law=st.sampled_from(AfdLaw),
    micro_batches=COUNT,
    **{f.name: AMOUNT for f in fields(AfdParameters) if f.name.endswith("_s")},
)
SPECS = st.builds(
    BackendSpec,
    id=st.text(min_size=1),
    kind=st.sampled_from(BackendKind),
    device=st.text(),
    models=st.lists(st.text(), min_size=1, max_size=3).map(tuple),
    phases=st.sets(st.sampled_from(Phase), min_size=1).map(frozenset),
    step=STEPS,
    count=COUNT,
    binding=st.sampled_from(ModelBinding),
    profile=st.text(),
    kv_bytes_per_token=AMOUNT,
    kv_capacity_tokens=COUNT,
    block_tokens=COUNT,
    kv_layout=st.text(),
    kv_accepts=NAMES,
    max_num_seqs=COUNT,
    max_num_batched_tokens=COUNT,
    max_context_tokens=COUNT,
    link=st.builds(LinkParameters, AMOUNT, BANDWIDTH, BANDWIDTH, st.integers(0, 1000)),
    connector=st.builds(
        ConnectorFlags, st.booleans(), st.booleans(), st.sampled_from(HandoffMint), st.booleans()
    ),
    usd_per_hour=AMOUNT,
    power=st.builds(PowerParameters, AMOUNT, AMOUNT, AMOUNT, st.just(math.inf) | st.floats(1, 1e6)),
    zone=st.text(),
    scheduler=st.sampled_from(SchedulerKind),
    prompt_buckets=BUCKETS,
    batch_buckets=BUCKETS,
    load_s=AMOUNT,
    compile_s=AMOUNT,
    kv_conversion=st.floats(1, 100),
    afd=st.none() | AFDS,
)


@given(SPECS)
def test_specs_survive(spec: BackendSpec) -> None:
    """Every field of a spec comes back as it was, through bytes."""
    wire = spec_to_proto(spec).SerializeToString()
    assert spec_from_proto(common_pb2.BackendSpec.FromString(wire)) == spec


def minimal() -> common_pb2.BackendSpec:
    """The least that a worker must say."""
    return common_pb2.BackendSpec(
        id="w", kind=common_pb2.BACKEND_KIND_GPU, models=["m"], phases=[common_pb2.PHASE_DECODE]
    )


def test_unset_numbers_get_defaults() -> None:
    """A foreign worker that says the least is usable, without zero capacities or divisions by zero."""
    spec = spec_from_proto(minimal())
    expected = BackendSpec("w", BackendKind.GPU, "", ("m",), frozenset({Phase.DECODE}), StepParameters(0.0))
    assert spec == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("path", ["kv_bytes_per_token", "usd_per_hour", "step.base_s", "power.idle_w"])
def test_bad_numbers_in_specs_are_refused(path: str, bad: float) -> None:
    """NaN, infinity and negative numbers never reach the core, and the failure names the field."""
    proto = minimal()
    *parents, field = path.split(".")
    target = proto
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, field, bad)
    with pytest.raises(BackendError, match=field) as caught:
        spec_from_proto(proto)
    assert caught.value.reason is Reason.BACKEND_BROKE_CONTRACT


@pytest.mark.parametrize("field", ["id", "kind", "models", "phases"])
def test_missing_essentials_are_refused(field: str) -> None:
    """A spec without an id, a kind, models or phases is no backend."""
    proto = minimal()
    proto.ClearField(field)  # type: ignore[arg-type]
    with pytest.raises(BackendError):
        spec_from_proto(proto)


def test_unknown_kinds_are_refused() -> None:
    """A kind of silicon from the future is refused rather than taken for another."""
    proto = minimal()
    proto.kind = 99  # type: ignore[assignment]
    with pytest.raises(BackendError, match="kind"):
        spec_from_proto(proto)


HANDLE = KVHandle("p", "boot", "r", 3, "layout", 17, 2**64 - 1, 110.0, "127.0.0.1:1", b"\0x")


def test_handles_carry_time_left() -> None:
    """The two ends have different clocks: the lease is what is left of it when sent."""
    proto = kv_handle_to_proto(HANDLE, now=100.0)
    assert proto.lease_s == 10.0
    assert kv_handle_from_proto(proto, now=5000.0) == replace(HANDLE, expires_at=5010.0)
    assert kv_handle_to_proto(HANDLE, now=200.0).lease_s == 0.0


@pytest.mark.parametrize("lease", [math.nan, -1.0])
def test_bad_leases_are_refused(lease: float) -> None:
    """A lease that is no duration is refused."""
    with pytest.raises(BackendError, match="lease_s"):
        kv_handle_from_proto(common_pb2.KVHandle(lease_s=lease), 0.0)


def test_endless_leases_are_cut() -> None:
    """KV cannot be pinned for ever."""
    assert kv_handle_from_proto(common_pb2.KVHandle(lease_s=math.inf), 1.0).expires_at == 1.0 + MAX_LEASE_S


def test_loads_and_costs_survive() -> None:
    """Reports come back as they were, with the receiver's time of observation."""
    counters = {f.name: i for i, f in enumerate(fields(BackendSnapshot)) if f.name not in {"loading"}}
    snapshot = BackendSnapshot(**counters, loading="n" * 200)  # type: ignore[arg-type]
    cost = PhaseCost(0.1, 0.2, 0.3)
    assert load_from_proto(load_to_proto(snapshot), 9.0) == replace(snapshot, observed_at=9.0)
    assert cost_from_proto(cost_to_proto(cost)) == cost
    with pytest.raises(BackendError, match="energy_j"):
        load_from_proto(common_pb2.LoadReport(energy_j=math.nan), 0.0)
    with pytest.raises(BackendError, match="device_s"):
        cost_from_proto(worker_pb2.PhaseCost(device_s=-1.0))


def test_finishes_and_failures() -> None:
    """Known reasons keep their meaning, an unset finish is refused, an unset failure is the backend's."""
    for reason in FinishReason:
        assert finish_from_proto(finish_to_proto(reason)) is reason
    with pytest.raises(BackendError, match="finish"):
        finish_from_proto(common_pb2.FINISH_REASON_UNSPECIFIED)
    stale = worker_pb2.PhaseFailed(reason=worker_pb2.PhaseFailed.REASON_KV_STALE, message="x" * 9999)
    assert failure_from_proto(stale) == (Reason.KV_STALE, "x" * 500)
    assert failure_from_proto(worker_pb2.PhaseFailed())[0] is Reason.BACKEND_FAILED
