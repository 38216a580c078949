"""Hostile fields and handles, sent with gRPC's own client to a real router and a real worker."""

from __future__ import annotations

import math
from typing import Any

import grpc
import grpc.aio
import pytest
from polyphase.v1 import common_pb2, inference_pb2, inference_pb2_grpc, worker_pb2

from tests.hostile.victim import Victim
from tests.live.calls import failure, fields_of, reason_of
from tests.shell.rig import MODEL, request

pytestmark = pytest.mark.process

INVALID = grpc.StatusCode.INVALID_ARGUMENT
Change = dict[str, Any]

REFUSED: list[tuple[str, Change, str]] = [
    ("no model", {"model": ""}, "model"),
    ("a model of 10 kB", {"model": "m" * 10_000}, "model"),
    ("a model with a line break", {"model": "m\nERROR forged"}, "model"),
    ("a model with a right-to-left mark", {"model": "m\u202e"}, "model"),
    ("no prompt", {"tokens": None}, "prompt"),
    ("an empty prompt", {"tokens": {"ids": []}}, "tokens"),
    ("an empty text", {"text": ""}, "text"),
    ("a prompt above the limit", {"tokens": {"ids": [1] * 1_048_577}}, "tokens"),
    ("a token id of 2**31", {"tokens": {"ids": [1, 2**31]}}, "tokens.ids"),
    ("max_new_tokens 0", {"max_new_tokens": 0}, "max_new_tokens"),
    ("max_new_tokens 2**32 - 1", {"max_new_tokens": 2**32 - 1}, "max_new_tokens"),
    ("more wanted than allowed", {"sampling": {"min_new_tokens": 99}}, "sampling.min_new_tokens"),
    ("temperature NaN", {"sampling": {"temperature": math.nan}}, "sampling.temperature"),
    ("temperature infinite", {"sampling": {"temperature": math.inf}}, "sampling.temperature"),
    ("temperature -1", {"sampling": {"temperature": -1}}, "sampling.temperature"),
    ("temperature 1e38", {"sampling": {"temperature": 1e38}}, "sampling.temperature"),
    ("top_p 0", {"sampling": {"top_p": 0}}, "sampling.top_p"),
    ("top_p 2", {"sampling": {"top_p": 2}}, "sampling.top_p"),
    ("10,000 stop strings", {"sampling": {"stop": ["x"] * 10_000}}, "sampling.stop"),
    ("an empty stop string", {"sampling": {"stop": [""]}}, "sampling.stop"),
    ("a stop string of 1 MB", {"sampling": {"stop": ["x" * 1_000_000]}}, "sampling.stop"),
    ("an unknown priority", {"priority": 77}, "priority"),
    ("a deadline of NaN", {"slo": {"deadline_s": math.nan}}, "slo.deadline_s"),
    ("a deadline before now", {"slo": {"deadline_s": -1}}, "slo.deadline_s"),
    ("a request id of 10 kB", {"request_id": "r" * 10_000}, "request_id"),
    ("a tenant with control characters", {"tenant": "t\x1b[2J"}, "tenant"),
    ("10,000 engine options", {"engine_options": {str(i): "" for i in range(10_000)}}, "engine_options"),
]


def changed(fields: Change) -> inference_pb2.GenerateRequest:
    """A good request, but for these fields."""
    good: Change = {"model": MODEL, "max_new_tokens": 8}
    if not {"tokens", "text"} & fields.keys():
        good["tokens"] = {"ids": [1, 2, 3]}
    return inference_pb2.GenerateRequest(**{**good, **fields})


@pytest.mark.parametrize(
    ("fields", "blamed"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED]
)
async def test_a_hostile_field_is_named(victim: Victim, fields: Change, blamed: str) -> None:
    """INVALID_ARGUMENT that names the field, the same for Generate and Plan; no worker hears of it."""
    async with victim.data() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        error = await failure(stub.Generate(changed(fields), timeout=20))
        assert error.code() is INVALID and reason_of(error) == "INVALID_REQUEST"
        assert fields_of(error) == {blamed}
        assert len(error.details() or "") < 500
        with pytest.raises(grpc.aio.AioRpcError) as planned:
            await stub.Plan(inference_pb2.PlanRequest(request=changed(fields)), timeout=20)
        assert planned.value.code() is INVALID and fields_of(planned.value) == {blamed}


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "ll\u0430ma", "%00", "llama ", "'; DROP TABLE models; --"]
)
async def test_a_model_that_nobody_serves(victim: Victim, model: str) -> None:
    """A name is a name: paths, look-alikes and quotes are not found."""
    async with victim.data() as channel:
        error = await failure(
            inference_pb2_grpc.InferenceServiceStub(channel).Generate(changed({"model": model}), timeout=20)
        )
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")


async def test_unusual_fields_that_are_allowed(victim: Victim) -> None:
    """The largest seed, a deadline of ten years, text of every kind: served."""
    for fields in (
        {"sampling": {"seed": 2**64 - 1}},
        {"slo": {"deadline_s": 3.2e8}},
        {"text": "Grüße, 世界 👋\u0000\u202e"},
        {"tokens": {"ids": [2**31 - 1]}},
    ):
        async with victim.data() as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(changed(fields), timeout=20)
            assert [message async for message in call][-1].HasField("finished")


async def test_a_prompt_above_the_message_limit(victim: Victim) -> None:
    """Ten million tokens end at gRPC's limit, before they are parsed."""
    async with victim.data() as channel:
        call = channel.unary_stream("/polyphase.v1.InferenceService/Generate")
        raw = changed({"tokens": {"ids": [7] * 10_000_000}}).SerializeToString()
        error = await failure(call(raw, timeout=20))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_request_id_in_use_by_another_tenant(victim: Victim) -> None:
    """The second is refused, whoever sends it, and hears nothing of the first, which goes on."""
    async with victim.data() as channel, victim.data() as other:
        first = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
            changed({"request_id": "same", "tenant": "a", "max_new_tokens": 100_000})
        )
        await first.read()
        error = await failure(
            inference_pb2_grpc.InferenceServiceStub(other).Generate(
                changed({"request_id": "same", "tenant": "b"}), timeout=20
            )
        )
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_REQUEST")
        assert await first.read() is not grpc.aio.EOF
        first.cancel()


HANDLES: list[tuple[str, Change]] = [
    ("of nobody", {"producer": "nobody"}),
    ("of an earlier boot", {"incarnation": "0" * 32}),
    ("without a mark", {"connector": b""}),
    ("with a mark of 10 kB", {"connector": b"9" * 10_000}),
    ("with a negative lease", {"lease_s": -1.0}),
    ("with an endless lease", {"lease_s": math.nan}),
    ("of another request", {"request_id": "somebody else's"}),
]


@pytest.mark.parametrize("fields", [each for _, each in HANDLES], ids=[name for name, _ in HANDLES])
async def test_a_forged_kv_handle_yields_nothing(victim: Victim, fields: Change) -> None:
    """Who makes handles up gets no KV from a worker: a typed refusal, and not a byte."""
    good = {"producer": "p1", "incarnation": "x", "request_id": "r", "epoch": 1, "connector": b"1"}
    handle = common_pb2.KVHandle(**{"lease_s": 30.0, **good, **fields})
    async with grpc.aio.insecure_channel(victim.workers_at) as channel:
        call = channel.unary_stream("/polyphase.v1.WorkerService/PullKV")
        raw = worker_pb2.PullKVRequest(kv=handle, consumer="d1").SerializeToString()
        error = await failure(call(raw, timeout=20))
        assert error.code() in (grpc.StatusCode.FAILED_PRECONDITION, INVALID)


async def test_a_session_of_bad_requests(victim: Victim) -> None:
    """In a session each bad request fails alone; the good one among them is answered."""
    starts = [
        inference_pb2.SessionRequest.Start(stream=i, request=changed(fields))
        for i, (_, fields, _) in enumerate(REFUSED, 1)
        if "1 MB" not in REFUSED[i - 1][0]
    ]
    good = inference_pb2.SessionRequest.Start(stream=999, request=request("in a session"))
    async with victim.data() as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Session()
        for start in (*starts, good):
            await call.write(inference_pb2.SessionRequest(starts=[start]))
        await call.done_writing()
        ends = {end.stream: end async for message in call for end in message.ends}
    assert ends.pop(999).HasField("finished")
    assert len(ends) == len(starts)
    assert {end.failure.reason for end in ends.values()} == {"INVALID_REQUEST"}
