"""Session over real gRPC: many requests on one stream, each with its own end."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import grpc
import pytest
from polyphase.v1 import inference_pb2

from router.core.messages import DrainStarted, PhaseFailed
from router.errors import Reason
from router.live.service import ServiceLimits
from router.live.session import SessionLimits
from router.model import Phase
from tests.live.calls import failure, reason_of
from tests.live.rig import BACKEND, Rig, answer_at_once, generate_request, play, serve
from tests.live.wires import END_STREAM, SMALL_WINDOW, frame, opening, send_raw

SESSION = "/polyphase.v1.InferenceService/Session"


class Client:
    """The client's end of a session: tokens and ends by stream, indices checked."""

    def __init__(self, rig: Rig) -> None:
        self.call: Any = rig.stub.Session()
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.ends: dict[int, list[inference_pb2.SessionResponse.End]] = defaultdict(list)
        self.messages: list[inference_pb2.SessionResponse] = []

    async def start(self, *streams: int, **fields: Any) -> None:
        """Start one request per stream, in one message."""
        starts = [{"stream": stream, "request": generate_request(**fields)} for stream in streams]
        await self.call.write(inference_pb2.SessionRequest(starts=starts))

    async def read(self) -> bool:
        """Take one message in; False at the end of the session."""
        message = await self.call.read()
        if message is grpc.aio.EOF:
            return False
        self.messages.append(message)
        at = 0
        columns = zip(message.streams, message.first_indices, message.counts, strict=True)
        for stream, first_index, count in columns:
            assert first_index == len(self.tokens[stream]) and count > 0
            assert stream not in self.ends, "tokens after the end"
            self.tokens[stream].extend(message.ids[at : at + count])
            at += count
        assert at == len(message.ids)
        for end in message.ends:
            self.ends[end.stream].append(end)
        return True

    async def read_ends(self, count: int) -> None:
        """Read until so many requests have ended."""
        async with asyncio.timeout(10):
            while sum(map(len, self.ends.values())) < count:
                assert await self.read(), "the session ended early"

    async def close(self) -> None:
        """Half-close, and read to the end of a session that ends well."""
        await self.call.done_writing()
        async with asyncio.timeout(10):
            while await self.read():
                pass
        assert await self.call.code() is grpc.StatusCode.OK

    def failure(self, stream: int) -> inference_pb2.Failure:
        """How a stream failed."""
        return self.ends[stream][-1].failure


async def test_two_hundred_requests_share_a_session(rig: Rig) -> None:
    """Every request gets its own tokens in order and its own account; none is lost or ends twice."""
    client = Client(rig)
    await client.start(*range(200), max_new_tokens=50)
    flows = [await rig.flow() for _ in range(200)]

    async def worker() -> None:
        for step in range(20):
            for number, flow in enumerate(flows):
                play(flow, [number * 1000 + step], done=step == 19)
            await asyncio.sleep(0)

    working = asyncio.create_task(worker())
    await client.read_ends(200)
    await working
    by_id = {flow.id: number for number, flow in enumerate(flows)}
    assert len(client.ends) == 200
    for stream in range(200):
        (end,) = client.ends[stream]
        number = by_id[end.finished.request_id]
        assert client.tokens[stream] == [number * 1000 + step for step in range(20)]
        assert end.finished.usage.output_tokens == 20
    assert len(client.messages) < 60, "tokens of one frame do not share messages"
    await client.close()
    rig.assert_nothing_leaks()


async def test_one_frame_is_one_message(rig: Rig) -> None:
    """All tokens that a wake-up brings go out together, in columns, and then the ends."""
    client = Client(rig)
    await client.start(1, 2, 3)
    for flow in [await rig.flow() for _ in range(3)]:
        play(flow, [5, 6])
    await client.read_ends(3)
    (message,) = client.messages
    assert list(message.streams) == [1, 2, 3] and list(message.counts) == [2, 2, 2]
    assert list(message.epochs) == [1, 1, 1] and list(message.ids) == [5, 6] * 3
    await client.close()


async def test_a_new_attempt_is_a_new_run(rig: Rig) -> None:
    """Tokens of two epochs never share a run."""
    client = Client(rig)
    await client.start(1)
    flow = await rig.flow()
    play(flow, [5], done=False)
    flow.begin(2, "b1", Phase.DECODE, 0.0)
    play(flow, [6, 7], epoch=2)
    await client.read_ends(1)
    (message,) = client.messages
    assert list(message.epochs) == [1, 2] and list(message.counts) == [1, 2]
    assert list(message.first_indices) == [0, 1] and client.tokens[1] == [5, 6, 7]
    await client.close()


async def test_a_bad_request_fails_alone(rig: Rig) -> None:
    """Other requests of the same message are served; the bad one is told all its violations."""
    client = Client(rig)
    bad = inference_pb2.GenerateRequest(max_new_tokens=0)
    starts = [{"stream": 1, "request": generate_request()}, {"stream": 2, "request": bad}, {"stream": 3}]
    await client.call.write(inference_pb2.SessionRequest(starts=starts))
    play(await rig.flow(), [1])
    await client.read_ends(3)
    assert client.ends[1][0].HasField("finished") and client.tokens[1] == [1]
    for stream in (2, 3):
        assert client.failure(stream).reason == "INVALID_REQUEST" and client.failure(stream).code == 3
        fields = {violation.field for violation in client.failure(stream).violations}
        assert fields == {"model", "prompt", "max_new_tokens"}
    assert [error.reason for error in rig.refused] == [Reason.INVALID_REQUEST] * 2
    await client.close()


async def test_a_stream_or_request_id_in_use_is_a_duplicate(rig: Rig) -> None:
    """Both kinds of duplicate fail alone, and a stream is free again after its end."""
    client = Client(rig)
    await client.start(1, request_id="r")
    flow = await rig.flow()
    await client.start(1)
    await client.read_ends(1)
    assert client.failure(1).reason == "DUPLICATE_REQUEST" and client.failure(1).code == 6
    await client.start(2, request_id="r")
    await client.read_ends(2)
    assert client.failure(2).reason == "DUPLICATE_REQUEST"
    client.ends.clear()
    play(flow, [9])
    await client.read_ends(1)
    assert client.tokens[1] == [9]
    client.ends.clear()
    client.tokens.clear()
    await client.start(1, 2)
    for again in [await rig.flow(), await rig.flow()]:
        play(again, [4])
    await client.read_ends(2)
    assert client.tokens == {1: [4], 2: [4]}
    await client.close()


async def test_a_cancel_ends_one_stream(rig: Rig) -> None:
    """The cancelled request ends with CANCELLED and its worker is stopped; its neighbour goes on."""
    client = Client(rig)
    await client.start(1, request_id="a")
    await client.start(2, request_id="b")
    flows = {flow.id: flow for flow in [await rig.flow(), await rig.flow()]}
    await client.call.write(inference_pb2.SessionRequest(cancels=[1, 77]))
    await client.read_ends(1)
    assert client.failure(1).reason == "CANCELLED" and client.failure(1).code == 1
    assert rig.lanes.stopped == ["a"]
    play(flows["b"], [3])
    await client.read_ends(2)
    assert client.tokens[2] == [3]
    await client.close()


async def test_a_failed_request_says_how_far_it_came(rig: Rig) -> None:
    """A failure inside a session has the code, the reason, a retry hint and the next index."""
    client = Client(rig)
    await client.start(1, request_id="a")
    flow = await rig.flow()
    play(flow, [1, 2, 3], done=False)
    flow.tell(PhaseFailed("a", 1, Phase.DECODE, BACKEND, Reason.BACKEND_LOST, "lane broke"))
    await client.read_ends(1)
    failed = client.failure(1)
    assert (failed.code, failed.reason, failed.next_index) == (14, "BACKEND_LOST", 3)
    assert failed.retry_after_s == 1.5 and client.tokens[1] == [1, 2, 3]
    await client.close()


async def test_a_half_close_lets_running_requests_end(rig: Rig) -> None:
    """A client that sends nothing more still gets every token."""
    client = Client(rig)
    await client.start(1)
    flow = await rig.flow()
    await client.call.done_writing()
    await asyncio.sleep(0.05)
    play(flow, [1, 2])
    await client.read_ends(1)
    assert client.tokens[1] == [1, 2]
    assert not await client.read()
    assert await client.call.code() is grpc.StatusCode.OK


async def test_a_client_that_leaves_cancels_everything(rig: Rig) -> None:
    """No request of a dead session keeps a worker busy."""
    client = Client(rig)
    await client.start(*range(30))
    names = sorted([(await rig.flow()).id for _ in range(30)])
    client.call.cancel()
    await rig.until(lambda: sorted(rig.lanes.stopped) == names)
    rig.assert_nothing_leaks()
    await rig.until(lambda: rig.service.calls == 0)


async def test_a_session_has_a_limit_of_streams() -> None:
    """What comes beyond the limit fails with a retry hint; room comes back with each end."""
    limits = ServiceLimits(session=SessionLimits(streams=2))
    async with serve(limits) as rig:
        client = Client(rig)
        await client.start(1, 2, 3)
        await client.read_ends(1)
        assert client.failure(3).reason == "QUEUE_FULL" and client.failure(3).retry_after_s > 0
        play(await rig.flow(), [1])
        await client.read_ends(2)
        await client.start(4)
        for flow in [await rig.flow(), await rig.flow()]:
            play(flow, [1])
        await client.read_ends(4)
        assert client.tokens[4] == [1]
        await client.close()


async def test_a_message_with_too_many_entries_ends_the_session() -> None:
    """One message cannot keep the router from its other clients."""
    async with serve(ServiceLimits(session=SessionLimits(entries_per_message=8))) as rig:
        client = Client(rig)
        await client.start(1, request_id="a")
        await rig.flow()
        await client.call.write(inference_pb2.SessionRequest(cancels=range(9)))
        error = await failure(client.call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and reason_of(error) == "INVALID_REQUEST"
        await rig.until(lambda: rig.lanes.stopped == ["a"])
        rig.assert_nothing_leaks()


async def test_an_unreadable_message_ends_the_session(rig: Rig) -> None:
    """Bytes that are no SessionRequest end in INVALID_ARGUMENT."""
    data = frame(0, END_STREAM, 1, b"\x00\x00\x00\x00\x03\xff\xff\xff")
    assert b"grpc-status" in await send_raw(rig.port, opening(SESSION), data)
    assert [error.reason for error in rig.refused] == [Reason.INVALID_REQUEST]


async def test_unread_failures_stop_the_reading_of_requests() -> None:
    """A client that sends bad requests and reads nothing cannot fill the router's memory; nothing is lost."""
    limits = ServiceLimits(session=SessionLimits(unsent_ends=64))
    async with serve(limits, channel_options=SMALL_WINDOW) as rig:
        client = Client(rig)

        async def send() -> None:
            for start in range(0, 4000, 100):
                await client.start(*range(start, start + 100), model="m" * 300)

        sending = asyncio.create_task(send())
        seen = -1
        while seen != len(rig.refused):
            seen = len(rig.refused)
            await asyncio.sleep(0.3)
        assert 64 <= seen < 3000, "requests are read although nobody reads their failures"
        await client.read_ends(4000)
        await sending
        assert all(client.failure(stream).reason == "INVALID_REQUEST" for stream in range(4000))
        await client.close()


async def test_tokens_that_pile_up_end_the_session() -> None:
    """A session whose client does not read ends at its bound of unsent tokens, before the write's time."""
    limits = ServiceLimits(session=SessionLimits(unsent_tokens=20_000), write_s=60)
    async with serve(limits, channel_options=SMALL_WINDOW) as rig:
        client = Client(rig)
        await client.start(1, request_id="a", max_new_tokens=131_072)
        flow = await rig.flow()
        for _ in range(200):
            play(flow, [2**31 - 1] * 600, done=False)
            await asyncio.sleep(0.002)
            if not len(rig.driver.flows):
                break
        assert [fact.reason for fact in rig.cancelled()] == [Reason.SLOW_READER]
        error = await failure(client.call)
        assert error.code() is grpc.StatusCode.ABORTED and reason_of(error) == "SLOW_READER"


async def test_a_drain_ends_idle_sessions_and_lets_busy_ones_finish(rig: Rig) -> None:
    """An idle session would hold the drain up; a busy one ends after its last request."""
    idle, busy = Client(rig), Client(rig)
    await busy.start(1)
    flow = await rig.flow()
    await idle.start(1, model="")
    await idle.read_ends(1)
    rig.service.drain()
    rig.driver.tell(DrainStarted())
    with pytest.raises(grpc.aio.AioRpcError, match="shuts down") as ended:
        await idle.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE and reason_of(ended.value) == "DRAINING"
    await busy.start(2)
    await busy.read_ends(1)
    assert busy.failure(2).reason == "DRAINING" and busy.failure(2).retry_after_s > 0
    play(flow, [1, 2])
    await busy.read_ends(2)
    assert busy.tokens[1] == [1, 2]
    with pytest.raises(grpc.aio.AioRpcError, match="shuts down"):
        await busy.read()


async def test_requests_that_end_at_once_keep_their_order(rig: Rig) -> None:
    """Requests that are refused or answered within the same turn end once each."""
    rig.lanes.on_start = answer_at_once(3)
    client = Client(rig)
    for round_ in range(5):
        await client.start(*range(round_ * 20, round_ * 20 + 20))
        await client.start(1000 + round_, model="unknown")
    await client.read_ends(105)
    assert all(len(ends) == 1 for ends in client.ends.values()) and len(client.ends) == 105
    assert all(client.tokens[stream] == [0, 1, 2] for stream in range(100))
    assert all(client.failure(1000 + round_).reason == "UNKNOWN_MODEL" for round_ in range(5))
    await client.close()


@pytest.mark.parametrize("size", [1, 3])
async def test_two_prompts_fail_alone(rig: Rig, size: int) -> None:
    """A start with tokens and text is refused by itself, also in a message with others."""
    both = (
        generate_request().SerializeToString() + inference_pb2.GenerateRequest(text="x").SerializeToString()
    )
    message = b""
    for stream in range(size):
        raw = both if stream == 0 else generate_request().SerializeToString()
        start = b"\x08" + bytes((stream,)) + b"\x12" + bytes((len(raw),)) + raw
        message += b"\x0a" + bytes((len(start),)) + start
    rig.lanes.on_start = answer_at_once(1)
    data = frame(0, END_STREAM, 1, b"\x00" + len(message).to_bytes(4, "big") + message)
    assert b"grpc-status" in await send_raw(rig.port, opening(SESSION), data)
    assert [error.violations[0].field for error in rig.refused] == ["prompt"]
    assert rig.lanes.started.qsize() == size - 1
