"""Generate over real gRPC: what a client sees, and what the core is told."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from google.rpc import error_details_pb2
from polyphase.v1 import common_pb2, inference_pb2, inference_pb2_grpc

from router.core.messages import DrainStarted, FirstToken, PhaseFailed, RequestArrived
from router.errors import Reason
from router.live.service import ServiceLimits
from router.model import Phase
from tests.live.calls import collect, detail, failure, reason_of
from tests.live.rig import BACKEND, Rig, answer_at_once, generate_request, play, serve
from tests.live.wires import END_STREAM, SMALL_WINDOW, cuttable, frame, opening, send_raw

WIDE = [2**31 - 1] * 4000
"""Tokens of five bytes each on the wire."""
GENERATE = "/polyphase.v1.InferenceService/Generate"


async def test_a_request_streams_its_tokens_and_its_account(rig: Rig) -> None:
    """Tokens arrive in order, and the last message says where they came from and what they cost."""
    call = rig.stub.Generate(generate_request(request_id="r1"))
    play(await rig.flow(), [10, 11, 12])
    ids, finished, _ = await collect(call)
    assert ids == [10, 11, 12]
    assert finished is not None
    assert finished.request_id == "r1" and finished.reason == common_pb2.FINISH_REASON_STOP
    assert finished.usage.output_tokens == 3 and finished.usage.prompt_tokens == 3
    assert finished.times.queue_s == 0.25 and finished.times.ttft_s == 0.75
    assert not finished.times.HasField("tpot_s")
    assert [use.backend for use in finished.uses] == [BACKEND, BACKEND]
    assert finished.cost_usd == 0.375 and finished.energy_j == 4.0
    assert not finished.HasField("decision")
    assert FirstToken("r1", 1) in rig.core.facts
    rig.assert_nothing_leaks()


async def test_explain_adds_the_decision(rig: Rig) -> None:
    """A caller that asks for it sees who was considered and who came second."""
    call = rig.stub.Generate(generate_request(explain=True))
    play(await rig.flow(), [1])
    _, finished, _ = await collect(call)
    assert finished is not None
    assert finished.decision.policy == "scripted" and finished.decision.runner_up == "b1+b2"
    assert finished.decision.prefill == BACKEND and finished.decision.candidates[0].parts["fit"] == 1.0


async def test_the_payload_reaches_the_lane_verbatim_with_a_minted_id(rig: Rig) -> None:
    """Workers get what the client sent; the id it did not choose is filled in."""
    sent = generate_request(engine_options={"mock.output_tokens": "3"}, session_key="s")
    call = rig.stub.Generate(sent)
    flow = await rig.flow()
    assert flow.id.startswith("minted-") and flow.payload.request_id == flow.id
    sent.request_id = flow.id
    assert flow.payload == sent
    play(flow, [1])
    await collect(call)


async def test_tokens_of_one_frame_share_a_message(rig: Rig) -> None:
    """Fifty tokens that are there at once go out together with the account, in one message."""
    call = rig.stub.Generate(generate_request())
    play(await rig.flow(), range(50))
    ids, finished, messages = await collect(call)
    assert ids == list(range(50)) and finished is not None and messages == 1


async def test_a_lone_token_is_not_held_back(rig: Rig) -> None:
    """A token goes out although the next one is nowhere in sight."""
    call = rig.stub.Generate(generate_request())
    flow = await rig.flow()
    play(flow, [7], done=False)
    message = await asyncio.wait_for(anext(aiter(call)), 5)
    assert list(message.tokens.ids) == [7]
    play(flow, [8])
    assert list((await asyncio.wait_for(anext(aiter(call)), 5)).tokens.ids) == [8]
    await collect(call)


async def test_headers_wait_for_the_first_token(rig: Rig) -> None:
    """Before the first token a client may retry, so it must not see headers; with it they come."""
    call = rig.stub.Generate(generate_request())
    flow = await rig.flow()
    headers = asyncio.ensure_future(call.initial_metadata())
    await asyncio.sleep(0.2)
    assert not headers.done()
    play(flow, [1], done=False)
    await asyncio.wait_for(headers, 5)
    play(flow, [2])
    await collect(call)


async def test_a_clients_own_retry_policy_works_before_the_first_token() -> None:
    """An error before any token commits nothing: the client library's second try gets an answer."""
    policy = (
        '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3, "initialBackoff": "0.01s",'
        ' "maxBackoff": "0.01s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}'
    )
    async with serve(channel_options=[("grpc.service_config", policy)]) as rig:
        rig.core.refuse, rig.core.refusals = (Reason.NO_BACKEND, 0.02), 1
        rig.lanes.on_start = answer_at_once(3)
        ids, _, _ = await collect(rig.stub.Generate(generate_request()))
        assert ids == [0, 1, 2]
        arrivals = [fact for fact in rig.core.facts if isinstance(fact, RequestArrived)]
        assert len(arrivals) == 2


async def test_a_retry_hint_comes_in_both_forms(rig: Rig) -> None:
    """RetryInfo for callers that read details, push-back for gRPC's own retry policy."""
    rig.core.refuse, rig.core.refusals = (Reason.QUEUE_FULL, 1.25), -1
    error = await failure(rig.stub.Generate(generate_request()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and reason_of(error) == "QUEUE_FULL"
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds() == 1.25
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1250"


async def test_a_failure_after_tokens_says_how_many_were_delivered(rig: Rig) -> None:
    """The tokens that came before the failure are delivered, then the status names the next index."""
    call = rig.stub.Generate(generate_request(request_id="r1"))
    flow = await rig.flow()
    play(flow, [5, 6], done=False)
    flow.tell(PhaseFailed("r1", 1, Phase.DECODE, BACKEND, Reason.BACKEND_LOST, "lane broke"))
    message = await anext(aiter(call))
    assert list(message.tokens.ids) == [5, 6]
    error = await failure(call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    info = detail(error, error_details_pb2.ErrorInfo)
    assert info.reason == "BACKEND_LOST" and dict(info.metadata) == {"request_id": "r1", "next_index": "2"}


async def test_a_cancel_reaches_the_core_at_once(rig: Rig) -> None:
    """Cancelling stops the worker within 100 ms and leaves nothing behind."""
    call = rig.stub.Generate(generate_request(request_id="r1"))
    flow = await rig.flow()
    play(flow, [1], done=False)
    await anext(aiter(call))
    started = time.monotonic()
    call.cancel()
    await rig.until(lambda: rig.lanes.stopped == ["r1"])
    assert time.monotonic() - started < 1.0  # 100 ms on a machine that is not loaded
    assert [fact.reason for fact in rig.cancelled()] == [Reason.CANCELLED]
    rig.assert_nothing_leaks()


async def test_a_cancel_while_queued_reaches_the_core(rig: Rig) -> None:
    """Also before any token the worker is stopped."""
    call = rig.stub.Generate(generate_request(request_id="r1"))
    await rig.flow()
    call.cancel()
    await rig.until(lambda: rig.lanes.stopped == ["r1"])
    rig.assert_nothing_leaks()


async def test_a_client_that_vanishes_is_a_cancel(rig: Rig) -> None:
    """A closed connection ends the request."""
    call = rig.stub.Generate(generate_request(request_id="r1"))
    await rig.flow()
    await rig.channel.close()
    await rig.until(lambda: rig.lanes.stopped == ["r1"])
    rig.assert_nothing_leaks()
    del call


async def test_the_calls_deadline_caps_the_requests(rig: Rig) -> None:
    """gRPC's deadline is the request's when it has no earlier one; work stops when it passes."""
    call = rig.stub.Generate(generate_request(request_id="r1"), timeout=1.0)
    flow = await rig.flow()
    left = flow.request.deadline - asyncio.get_running_loop().time()
    assert 0.0 < left <= 1.1  # gRPC rounds time-outs up
    error = await failure(call)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await rig.until(lambda: not rig.core.live)
    rig.assert_nothing_leaks()


async def test_a_requests_own_deadline_ends_it(rig: Rig) -> None:
    """slo.deadline_s is kept by the core's timer, and the status says so."""
    error = await failure(rig.stub.Generate(generate_request(slo={"deadline_s": 0.05})))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and reason_of(error) == "DEADLINE_EXPIRED"
    rig.assert_nothing_leaks()


async def test_a_deadline_that_has_passed_starts_nothing(rig: Rig) -> None:
    """A request with no time left ends with DEADLINE_EXCEEDED and no backend hears of it."""
    error = await failure(rig.stub.Generate(generate_request(slo={"deadline_s": 1e-9})))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and reason_of(error) == "DEADLINE_EXPIRED"
    assert rig.lanes.started.empty()
    rig.assert_nothing_leaks()


async def test_an_id_in_use_is_refused_and_the_first_request_goes_on(rig: Rig) -> None:
    """Two clients with the same id never share a stream."""
    first = rig.stub.Generate(generate_request(request_id="same"))
    flow = await rig.flow()
    error = await failure(rig.stub.Generate(generate_request(request_id="same")))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS and reason_of(error) == "DUPLICATE_REQUEST"
    play(flow, [1, 2])
    ids, _, _ = await collect(first)
    assert ids == [1, 2]
    again = rig.stub.Generate(generate_request(request_id="same"))
    play(await rig.flow(), [3])
    assert (await collect(again))[0] == [3]


async def test_draining_refuses_with_a_retry_hint_and_lets_running_requests_end(rig: Rig) -> None:
    """A drain cuts nothing off."""
    running = rig.stub.Generate(generate_request())
    flow = await rig.flow()
    rig.service.drain()
    rig.driver.tell(DrainStarted())
    error = await failure(rig.stub.Generate(generate_request()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE and reason_of(error) == "DRAINING"
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.seconds == 1
    play(flow, [1])
    assert (await collect(running))[0] == [1]


async def test_too_many_calls_are_refused() -> None:
    """The bound of open calls holds and is given back."""
    async with serve(ServiceLimits(calls=1)) as rig:
        first = rig.stub.Generate(generate_request())
        flow = await rig.flow()
        error = await failure(rig.stub.Generate(generate_request()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and reason_of(error) == "QUEUE_FULL"
        play(flow, [1])
        await collect(first)
        await rig.until(lambda: rig.service.calls == 0)
        third = rig.stub.Generate(generate_request())
        play(await rig.flow(), [2])
        assert (await collect(third))[0] == [2]


async def test_too_many_prompt_tokens_at_once_are_refused() -> None:
    """Prompts are kept until the end: their sum is bounded, and each end makes room."""
    async with serve(ServiceLimits(live_prompt_tokens=5)) as rig:
        first = rig.stub.Generate(generate_request())
        flow = await rig.flow()
        error = await failure(rig.stub.Generate(generate_request()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and reason_of(error) == "QUEUE_FULL"
        play(flow, [1])
        await collect(first)
        second = rig.stub.Generate(generate_request())
        play(await rig.flow(), [2])
        assert (await collect(second))[0] == [2]
        assert rig.driver.flows.prompt_tokens == 0


async def test_a_bug_in_the_core_costs_one_request(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets INTERNAL without a stack trace, the log gets the cause, the next request works."""
    rig.core.explode = RequestArrived
    error = await failure(rig.stub.Generate(generate_request(request_id="poison")))
    assert error.code() is grpc.StatusCode.INTERNAL and reason_of(error) == "INTERNAL"
    assert "ZeroDivisionError" not in error.details() and "ZeroDivisionError" in caplog.text
    assert "poison" in caplog.text
    rig.core.explode = None
    call = rig.stub.Generate(generate_request())
    play(await rig.flow(), [1])
    assert (await collect(call))[0] == [1]
    rig.assert_nothing_leaks()


async def test_a_call_without_a_message_is_an_invalid_argument(rig: Rig) -> None:
    """END_STREAM without a message gets an answer at once, and no slot is held."""
    call = rig.channel.stream_stream(GENERATE)()
    await call.done_writing()
    error = await failure(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert detail(error, error_details_pb2.BadRequest).field_violations[0].field == "message"
    assert rig.refused
    async with asyncio.timeout(5.0):  # the client hears of the end before the server has closed the call
        while rig.service.calls:
            await asyncio.sleep(0.01)


async def test_a_message_that_does_not_come_is_given_up() -> None:
    """A call that sends nothing holds its place for first_message_s only."""
    async with serve(ServiceLimits(first_message_s=0.2)) as rig:
        call = rig.channel.stream_stream(GENERATE)()
        error = await asyncio.wait_for(failure(call), 5)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and reason_of(error) == "REQUEST_TOO_SLOW"
        await rig.until(lambda: rig.service.calls == 0)


async def test_a_client_that_does_not_read_is_given_up() -> None:
    """A stalled reader loses its request after write_s; worker and core are told why."""
    async with serve(ServiceLimits(write_s=0.3), channel_options=SMALL_WINDOW) as rig:
        call = rig.stub.Generate(generate_request(request_id="slow", max_new_tokens=100_000))
        flow = await rig.flow()
        while len(rig.driver.flows):
            play(flow, WIDE[:500], done=False)  # never read: fills the flow-control window
            await asyncio.sleep(0.01)
        assert [fact.reason for fact in rig.cancelled()] == [Reason.SLOW_READER]
        assert rig.lanes.stopped == ["slow"]
        await rig.until(lambda: rig.service.calls == 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.ABORTED and reason_of(caught.value) == "SLOW_READER"


async def test_a_slow_but_reading_client_gets_everything(rig: Rig) -> None:
    """Back-pressure coalesces tokens; it loses none."""
    call = rig.stub.Generate(generate_request(max_new_tokens=100_000))
    flow = await rig.flow()

    async def worker() -> None:
        for start in range(0, 60_000, 1000):
            play(flow, range(start, start + 1000), done=start == 59_000)
            await asyncio.sleep(0)

    task = asyncio.create_task(worker())
    ids: list[int] = []
    async for message in call:
        ids.extend(message.tokens.ids)
        await asyncio.sleep(0.001)
    await task
    assert ids == list(range(60_000))


async def test_the_connection_dies_while_a_write_waits(caplog: pytest.LogCaptureFixture) -> None:
    """A write that fails because the client's machine died is a cancel, not an error in the log."""
    async with serve() as rig, cuttable(rig.port) as (port, cut):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=SMALL_WINDOW)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(generate_request(request_id="r1", max_new_tokens=100_000))
        flow = await rig.flow()
        for _ in range(20):
            play(flow, WIDE, done=False)
            await asyncio.sleep(0.01)
        cut.set()
        await rig.until(lambda: rig.lanes.stopped == ["r1"])
        await rig.until(lambda: rig.service.calls == 0)
        rig.assert_nothing_leaks()
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []
        call.cancel()
        await channel.close()


async def test_a_truncated_message_is_an_invalid_argument(rig: Rig) -> None:
    """A message that announces more bytes than come is refused at once."""
    data = frame(0, END_STREAM, 1, b"\x00\x00\x00\x00\x64only ten b")
    answer = await send_raw(rig.port, opening(GENERATE), data)
    assert b"grpc-status" in answer
    assert [error.reason for error in rig.refused] == [Reason.INVALID_REQUEST]
    await rig.until(lambda: rig.service.calls == 0)


async def test_a_half_sent_message_is_given_up() -> None:
    """A client that stops in the middle of its message holds its place for first_message_s only."""
    async with serve(ServiceLimits(first_message_s=0.2)) as rig:
        data = frame(0, 0, 1, b"\x00\x00\x00\x00\x64only ten b")
        answer = await send_raw(rig.port, opening(GENERATE), data)
        assert b"grpc-status" in answer
        assert [error.reason for error in rig.refused] == [Reason.REQUEST_TOO_SLOW]


async def test_plan_decides_and_starts_nothing(rig: Rig) -> None:
    """A dry run shows the decision; no request arrives and no worker hears of it."""
    request = inference_pb2.PlanRequest(request=generate_request())
    answer = await rig.stub.Plan(request)
    assert answer.verdict == inference_pb2.PlanResponse.VERDICT_PLACED
    assert answer.decision.prefill == BACKEND and answer.decision.policy == "scripted"
    assert rig.core.facts == [] and rig.lanes.started.empty()
