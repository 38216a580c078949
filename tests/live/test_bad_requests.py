"""Bad requests over real gRPC: each ends in a typed status that names the field, and leaves nothing."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import pytest
from polyphase.v1 import inference_pb2

from router.model import Priority
from tests.live.calls import collect, failure, fields_of, reason_of
from tests.live.rig import Rig, answer_at_once, generate_request
from tests.live.wires import END_STREAM, frame, opening, send_raw

GENERATE = "/polyphase.v1.InferenceService/Generate"

BAD: list[tuple[str, dict[str, Any], set[str]]] = [
    ("no model", {"model": ""}, {"model"}),
    ("model of 10 kB", {"model": "m" * 10_000}, {"model"}),
    ("model with a line break", {"model": "m\nlevel=error forged"}, {"model"}),
    ("model with an escape sequence", {"model": "m\x1b[31m"}, {"model"}),
    ("model with a bidirectional override", {"model": "m\u202e"}, {"model"}),
    ("model with a NUL", {"model": "m\x00"}, {"model"}),
    ("no prompt", {"tokens": None, "text": None}, {"prompt"}),
    ("empty tokens", {"tokens": {"ids": []}}, {"tokens"}),
    ("empty text", {"text": ""}, {"text"}),
    ("prompt of 1,048,577 tokens", {"tokens": {"ids": [1] * 1_048_577}}, {"tokens"}),
    ("token id of 2**31", {"tokens": {"ids": [1, 2**31, 2]}}, {"tokens.ids"}),
    ("token id of 2**32 - 1", {"tokens": {"ids": [2**32 - 1]}}, {"tokens.ids"}),
    ("no output wanted", {"max_new_tokens": 0}, {"max_new_tokens"}),
    ("-1 as uint32", {"max_new_tokens": 2**32 - 1}, {"max_new_tokens"}),
    ("min above max", {"sampling": {"min_new_tokens": 65}}, {"sampling.min_new_tokens"}),
    ("temperature NaN", {"sampling": {"temperature": math.nan}}, {"sampling.temperature"}),
    ("temperature infinite", {"sampling": {"temperature": math.inf}}, {"sampling.temperature"}),
    ("temperature negative", {"sampling": {"temperature": -1}}, {"sampling.temperature"}),
    ("temperature 1e30", {"sampling": {"temperature": 1e30}}, {"sampling.temperature"}),
    ("top_p 0", {"sampling": {"top_p": 0}}, {"sampling.top_p"}),
    ("top_p 2", {"sampling": {"top_p": 2}}, {"sampling.top_p"}),
    ("top_p NaN", {"sampling": {"top_p": math.nan}}, {"sampling.top_p"}),
    ("10,000 stop strings", {"sampling": {"stop": ["x"] * 10_000}}, {"sampling.stop"}),
    ("empty stop string", {"sampling": {"stop": ["a", ""]}}, {"sampling.stop"}),
    ("stop string of 1 MB", {"sampling": {"stop": ["x" * 1_000_000]}}, {"sampling.stop"}),
    ("unknown priority", {"priority": 99}, {"priority"}),
    ("negative priority", {"priority": -1}, {"priority"}),
    ("TTFT objective NaN", {"slo": {"ttft_s": math.nan}}, {"slo.ttft_s"}),
    ("TPOT objective 0", {"slo": {"tpot_s": 0}}, {"slo.tpot_s"}),
    ("deadline negative", {"slo": {"deadline_s": -1}}, {"slo.deadline_s"}),
    ("deadline infinite", {"slo": {"deadline_s": math.inf}}, {"slo.deadline_s"}),
    ("jitter below 1", {"slo": {"jitter_ratio": 0.5}}, {"slo.jitter_ratio"}),
    ("cost NaN", {"max_cost_usd": math.nan}, {"max_cost_usd"}),
    ("energy negative", {"max_energy_j": -3}, {"max_energy_j"}),
    ("17 engine options", {"engine_options": {str(i): "" for i in range(17)}}, {"engine_options"}),
    ("engine option without a name", {"engine_options": {"": "x"}}, {"engine_options"}),
    ("engine option too long", {"engine_options": {"k": "x" * 1025}}, {"engine_options"}),
    ("65,537 prefix hashes", {"prefix_hashes": [1] * 65_537}, {"prefix_hashes"}),
    ("tenant with control characters", {"tenant": "t\r\n"}, {"tenant"}),
    ("request id too long", {"request_id": "r" * 257}, {"request_id"}),
    ("session key unprintable", {"session_key": "\x7f"}, {"session_key"}),
    ("workload class too long", {"workload_class": "w" * 257}, {"workload_class"}),
    (
        "several at once",
        {"model": "", "max_new_tokens": 0, "priority": 9, "sampling": {"top_p": 3, "temperature": -1}},
        {"model", "max_new_tokens", "priority", "sampling.top_p", "sampling.temperature"},
    ),
]


@pytest.mark.parametrize(("fields", "blamed"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
async def test_a_bad_field_is_named(rig: Rig, fields: dict[str, Any], blamed: set[str]) -> None:
    """INVALID_ARGUMENT within a second, every broken field in BadRequest, and the core never hears of it."""
    async with asyncio.timeout(10):
        error = await failure(rig.stub.Generate(generate_request(**fields)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and reason_of(error) == "INVALID_REQUEST"
    assert fields_of(error) == blamed
    assert rig.core.facts == [] and len(error.details()) < 500
    assert [refused.reason for refused in rig.refused] == ["INVALID_REQUEST"]
    rig.assert_nothing_leaks()


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("a path as a model is just an unknown name", {"model": "../../etc/passwd"}),
    ("largest numbers", {"max_new_tokens": 131_072, "sampling": {"seed": 2**64 - 1, "temperature": 100}}),
    ("largest token id", {"tokens": {"ids": [2**31 - 1]}}),
    ("text beyond ASCII", {"text": "Grüße, 世界 👋"}),
    ("a deadline of ten years is cut", {"slo": {"deadline_s": 3e8}}),
    ("every objective", {"slo": {"ttft_s": 1, "tpot_s": 0.01, "jitter_ratio": 1, "deadline_s": 5}}),
]


@pytest.mark.parametrize("fields", [case[1] for case in GOOD], ids=[case[0] for case in GOOD])
async def test_an_unusual_request_is_served(rig: Rig, fields: dict[str, Any]) -> None:
    """What the rules allow gets an answer."""
    rig.lanes.on_start = answer_at_once(2)
    assert (await collect(rig.stub.Generate(generate_request(**fields))))[0] == [0, 1]


async def raw_refusal(rig: Rig, message: bytes) -> list[str]:
    """The fields blamed for a message that gRPC's client would not send."""
    data = b"\x00" + len(message).to_bytes(4, "big") + message
    answer = await send_raw(rig.port, opening(GENERATE), frame(0, END_STREAM, 1, data))
    assert b"grpc-status" in answer
    assert rig.core.facts == []
    return [violation.field for error in rig.refused for violation in error.violations]


async def test_two_prompts_are_refused(rig: Rig) -> None:
    """Parsers keep the last member of a oneof; the router does not answer half a request."""
    text = inference_pb2.GenerateRequest(text="x").SerializeToString()
    assert await raw_refusal(rig, generate_request().SerializeToString() + text) == ["prompt"]


async def test_text_that_is_not_utf8_is_refused(rig: Rig) -> None:
    """Invalid UTF-8 in a string field is a bad message, not an internal error."""
    assert await raw_refusal(rig, b"\x12\x02\xff\xfe") == ["message"]


async def test_random_bytes_are_refused(rig: Rig) -> None:
    """A message that cannot be parsed at all."""
    assert await raw_refusal(rig, bytes(range(255, 155, -1))) == ["message"]


async def test_a_negative_token_id_is_refused(rig: Rig) -> None:
    """-1 as protobuf's ten-byte varint is truncated to 2**32 - 1, which is above the limit."""
    minus_one = b"\xff" * 9 + b"\x01"
    raw = b"\x12\x01m\x28\x01\x1a\x0c\x0a\x0a" + minus_one
    assert await raw_refusal(rig, raw) == ["tokens.ids"]


async def test_unknown_fields_are_dropped(rig: Rig) -> None:
    """Three megabytes that no version knows neither fail the request nor reach the worker."""
    rig.lanes.on_start = answer_at_once(1)
    noise = b"\xfa\x7f" + b"\x80\x80\x80\x01" + b"x" * (1 << 21)  # field 2047, two MiB
    call = rig.channel.unary_stream(GENERATE)(generate_request(request_id="r").SerializeToString() + noise)
    ids = [list(inference_pb2.GenerateResponse.FromString(raw).tokens.ids) async for raw in call]
    assert ids == [[0]]
    assert rig.lanes.flows["r"].payload == generate_request(request_id="r")


async def test_a_message_above_4_mib_is_refused(rig: Rig) -> None:
    """gRPC's own limit ends it before it is held in memory."""
    error = await failure(rig.stub.Generate(generate_request(text="x" * (5 << 20))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    rig.lanes.on_start = answer_at_once(1)
    assert (await collect(rig.stub.Generate(generate_request())))[0] == [0]


async def test_a_length_of_4_gib_is_refused(rig: Rig) -> None:
    """A length prefix of 0xFFFFFFFF allocates nothing."""
    answer = await send_raw(rig.port, opening(GENERATE), frame(0, 0, 1, b"\x00\xff\xff\xff\xffxx"))
    assert b"grpc-status" in answer and rig.core.facts == []


@pytest.mark.parametrize("path", ["/polyphase.v1.InferenceService/Nope", "/nope/Generate", GENERATE + "/"])
async def test_an_unknown_method_is_unimplemented(rig: Rig, path: str) -> None:
    """Paths are not normalised: what is not exactly a method does not exist."""
    error = await failure(rig.channel.unary_stream(path)(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_metadata_changes_nothing(rig: Rig) -> None:
    """Priority, tenant and trace context come from the request, not from headers anybody can set."""
    rig.lanes.on_start = answer_at_once(1)
    forged = (("x-priority", "system"), ("x-tenant", "other"), ("traceparent", "not-hex" * 50))
    await collect(rig.stub.Generate(generate_request(tenant="mine"), metadata=forged))
    (flow,) = rig.lanes.flows.values()
    assert flow.request.tenant == "mine" and flow.request.priority is Priority.NORMAL


async def test_a_second_message_is_ignored(rig: Rig) -> None:
    """Generate has one request; what follows it starts nothing."""
    rig.lanes.on_start = answer_at_once(1)
    raw = generate_request().SerializeToString()
    message = b"\x00" + len(raw).to_bytes(4, "big") + raw
    answer = await send_raw(rig.port, opening(GENERATE), frame(0, END_STREAM, 1, message * 2))
    assert b"grpc-status" in answer and rig.lanes.started.qsize() == 1
    rig.assert_nothing_leaks()


async def test_bytes_that_are_no_http2_do_no_harm(rig: Rig) -> None:
    """HTTP/1.1, a TLS hello and noise are closed; the next client is served."""
    for noise in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", bytes(range(256))):
        await send_raw(rig.port, noise, wait_s=0.2)
    rig.lanes.on_start = answer_at_once(1)
    assert (await collect(rig.stub.Generate(generate_request())))[0] == [0]


async def test_a_refused_plan_names_its_fields(rig: Rig) -> None:
    """Plan validates as Generate does."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.stub.Plan(inference_pb2.PlanRequest(request=generate_request(model="")))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT and fields_of(caught.value) == {"model"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.stub.Plan(inference_pb2.PlanRequest())
    assert fields_of(caught.value) == {"model", "prompt", "max_new_tokens"}
