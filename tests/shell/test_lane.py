"""Workers behind real gRPC: splits, cancels, stale handles, broken and hostile lanes, drain."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from ipaddress import ip_network

import grpc
import grpc.aio
import pytest
from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.models.messages import ServeKV, WorkerCommand, WorkerEvent
from backends.models.worker import WorkerMachine
from backends.shell.server import MockFleetServer
from router.errors import ConfigError
from router.model import BackendKind, LinkParameters, StepParameters
from router.wire import spec_from_proto
from tests.shell import rig
from tests.shell.rig import LaneEnd, lane, spec

Failed = worker_pb2.PhaseFailed
SLOW = StepParameters(base_s=0.05, prefill_base_s=0.05)


@pytest.fixture
async def fleet() -> AsyncIterator[MockFleetServer]:
    """A prefill worker, a decode worker, one that gives the first token, one that is slow."""
    specs = [
        spec("p"),
        spec("d", kind=BackendKind.LPU),
        spec("first", connector=rig.FIRST_TOKEN_FROM_PREFILL),
        spec("slow", step=SLOW, link=LinkParameters(latency_s=5.0)),
    ]
    async with MockFleetServer(specs, seed=3) as made:
        yield made


def kv_used(fleet: MockFleetServer, backend: str) -> int:
    """KV tokens in use at a worker."""
    return fleet.workers[backend].snapshot().kv_used_tokens


async def prefilled(end: LaneEnd, seq: int, made: inference_pb2.GenerateRequest) -> common_pb2.KVHandle:
    """Prefill for a peer; the handle."""
    await end.send(rig.prefill(seq, made))
    done: worker_pb2.PrefillDone = await end.event(seq, "prefill_done")
    return done.kv


async def failure(end: LaneEnd, seq: int) -> worker_pb2.PhaseFailed:
    """The failure of a sequence."""

    def found() -> worker_pb2.PhaseFailed | None:
        return next((e.failed for e in end.events if e.seq == seq and e.HasField("failed")), None)

    got: worker_pb2.PhaseFailed = await end.until(found)
    return got


async def test_welcome_says_who_is_here(fleet: MockFleetServer) -> None:
    """A lane begins with the spec and the incarnation of the worker that was named."""
    async with lane(fleet.address, "d") as d:
        assert spec_from_proto(d.welcome.spec) == fleet.workers["d"].spec
        assert d.welcome.incarnation == fleet.workers["d"].incarnation
        assert len(d.loads) == 1


async def test_split_request(fleet: MockFleetServer) -> None:
    """Prefill here, decode there: every token is right, and both workers are empty afterwards."""
    made = rig.request("split", 50)
    async with lane(fleet.address, "p") as p, lane(fleet.address, "d") as d:
        kv = await prefilled(p, 1, made)
        assert kv.source == fleet.address and 29 < kv.lease_s <= 30
        await d.send(rig.decode(9, made, kv))
        moved = await d.event(9, "kv_moved")
        done = await d.event(9, "decode_done")
        assert moved.bytes == kv.tokens * 1000 and moved.transfer_s >= 1e-3
        assert d.answer(9) == rig.answer(made, 50)
        assert (done.output_tokens, done.reason) == (50, common_pb2.FINISH_REASON_LENGTH)
        await rig.eventually(lambda: all(w.idle for w in fleet.workers.values()), "work is left")
        assert p.tokens == {}


async def test_first_token_from_prefill(fleet: MockFleetServer) -> None:
    """A prefill worker that samples sends token 0 before PrefillDone; decode goes on at 1."""
    made = rig.request("first", 10)
    async with lane(fleet.address, "first") as p, lane(fleet.address, "d") as d:
        kv = await prefilled(p, 1, made)
        assert p.tokens[1] == {0: rig.answer(made, 1)[0]}
        await d.send(rig.decode(1, made, kv, first_index=1))
        await d.event(1, "decode_done")
        assert p.answer(1) + d.answer(1) == rig.answer(made, 10)


async def test_both_phases_on_one_worker(fleet: MockFleetServer) -> None:
    """With decode_here one seq covers both phases, and the answer may stop before its limit."""
    made = rig.request("both", 40, **{"mock.output_tokens": "30"})
    async with lane(fleet.address, "d") as d:
        await d.send(rig.prefill(1, made, decode_here=True))
        prefill_done = await d.event(1, "prefill_done")
        done = await d.event(1, "decode_done")
        assert not prefill_done.HasField("kv")
        assert d.answer(1) == rig.answer(made, 30)
        assert (done.output_tokens, done.reason) == (30, common_pb2.FINISH_REASON_STOP)


async def test_many_requests_share_frames(fleet: MockFleetServer) -> None:
    """A batch's tokens come in columns: far fewer frames than tokens, and every answer is right."""
    requests = [rig.request(f"many{i}", 100) for i in range(32)]
    async with lane(fleet.address, "p") as p:
        await p.send(*(rig.prefill(i, made, decode_here=True) for i, made in enumerate(requests)))
        for i, made in enumerate(requests):
            await p.event(i, "decode_done")
            assert p.answer(i) == rig.answer(made, 100)
        assert p.frames < 3200 / 4


async def test_steps_of_one_wake_up_share_a_frame(fleet: MockFleetServer) -> None:
    """When the loop was busy for many steps, they come out in one frame, none of them lost."""
    made = rig.request("late", 400)
    async with lane(fleet.address, "p") as p:
        await p.send(rig.prefill(1, made, decode_here=True))
        await p.until(lambda: p.tokens.get(1))
        frames = p.frames
        time.sleep(0.3)  # holds up the worker's loop, which is this one
        await p.event(1, "decode_done")
        assert p.answer(1) == rig.answer(made, 400)
        assert p.frames - frames < 300


async def test_a_handle_is_pulled_once(fleet: MockFleetServer) -> None:
    """The second decode with the same handle fails as stale, and sends nothing."""
    made = rig.request("twice", 20)
    async with lane(fleet.address, "p") as p, lane(fleet.address, "d") as d:
        kv = await prefilled(p, 1, made)
        await d.send(rig.decode(1, made, kv))
        await d.event(1, "decode_done")
        await d.send(rig.decode(2, made, kv))
        assert (await failure(d, 2)).reason == Failed.REASON_KV_STALE
        assert 2 not in d.tokens
        assert kv_used(fleet, "d") == 0


async def test_a_restarted_producer_refuses_old_handles(fleet: MockFleetServer) -> None:
    """After a restart the same address is another producer: KV_STALE, never garbage."""
    made = rig.request("restart", 20)
    async with lane(fleet.address, "p") as p, lane(fleet.address, "d") as d:
        kv = await prefilled(p, 1, made)
        fleet.restart("p")
        await p.until(lambda: p.ended)
        assert p.error is not None and p.error.code() is grpc.StatusCode.UNAVAILABLE
        await d.send(rig.decode(1, made, kv))
        assert (await failure(d, 1)).reason == Failed.REASON_KV_STALE
    async with lane(fleet.address, "p") as again:
        assert again.welcome.incarnation != kv.incarnation


async def test_a_restart_in_the_middle_of_a_pull(fleet: MockFleetServer) -> None:
    """A consumer whose producer restarts during the transfer learns it at once, not by a time-out."""
    made = rig.request("torn", 20)
    async with lane(fleet.address, "slow") as p, lane(fleet.address, "d") as d:
        kv = await prefilled(p, 1, made)
        await d.send(rig.decode(1, made, kv))
        await rig.eventually(lambda: fleet.workers["slow"].transferring, "no transfer began")
        fleet.restart("slow")
        async with asyncio.timeout(3):  # the transfer alone would take 5 s
            assert (await failure(d, 1)).reason == Failed.REASON_KV_STALE
        assert kv_used(fleet, "d") == 0


@pytest.mark.parametrize("when", ["running", "held", "pulling"])
async def test_stop_frees_kv(fleet: MockFleetServer, when: str) -> None:
    """A cancel in any phase frees the KV on both sides and ends the tokens."""
    made = rig.request("stopped", 5000)
    async with lane(fleet.address, "slow") as p, lane(fleet.address, "d") as d:
        if when == "running":
            await d.send(rig.prefill(4, made, decode_here=True))
            await d.until(lambda: d.tokens.get(4))
            await d.send(rig.stop(4))
        else:
            kv = await prefilled(p, 4, made)
            assert kv_used(fleet, "slow") > 0
        if when == "held":
            await p.send(rig.stop(4))
        if when == "pulling":
            await d.send(rig.decode(5, made, kv))
            await rig.eventually(lambda: fleet.workers["slow"].transferring, "no transfer began")
            await d.send(rig.stop(5))
        await rig.eventually(lambda: kv_used(fleet, "d") == kv_used(fleet, "slow") == 0, "KV is left")
        await rig.eventually(lambda: all(w.idle for w in fleet.workers.values()), "work is left")
        assert not any(event.HasField("decode_done") for event in d.events)


async def test_release_frees_kv(fleet: MockFleetServer) -> None:
    """KV that nobody will pull goes when the router says so, and its handle is stale afterwards."""
    made = rig.request("released", 5)
    async with lane(fleet.address, "p") as p, lane(fleet.address, "d") as d:
        kv = await prefilled(p, 1, made)
        await p.send(rig.release(kv), rig.release(kv))
        await rig.eventually(lambda: kv_used(fleet, "p") == 0, "KV is left")
        await d.send(rig.decode(1, made, kv))
        assert (await failure(d, 1)).reason == Failed.REASON_KV_STALE


@pytest.mark.parametrize("phase", ["running", "held", "transfer"])
async def test_a_broken_lane_releases_everything(fleet: MockFleetServer, phase: str) -> None:
    """When a router dies, what its lanes started stops and its KV is freed, without waiting for leases."""
    made = rig.request("orphan", 5000)
    async with AsyncExitStack() as router:
        p = await router.enter_async_context(lane(fleet.address, "slow"))
        d = await router.enter_async_context(lane(fleet.address, "d"))
        if phase == "running":
            await d.send(rig.prefill(1, made, decode_here=True))
            await d.until(lambda: d.tokens.get(1))
            assert kv_used(fleet, "d") > 0
        else:
            kv = await prefilled(p, 1, made)
            assert kv_used(fleet, "slow") > 0
        if phase == "transfer":
            await d.send(rig.decode(1, made, kv))
            await rig.eventually(lambda: fleet.workers["slow"].transferring, "no transfer began")
    await rig.eventually(lambda: kv_used(fleet, "d") == kv_used(fleet, "slow") == 0, "KV is left")
    await rig.eventually(lambda: all(w.idle for w in fleet.workers.values()), "work is left")


async def test_routers_do_not_see_each_other(fleet: MockFleetServer) -> None:
    """Two routers choose the same seq and request id; each gets its own answer, and one's end spares the
    other."""
    one, other = rig.request("same", 300), rig.request("same", 300)
    other.sampling.seed = 99
    async with lane(fleet.address, "p", "a") as a:
        async with lane(fleet.address, "p", "b") as b:
            await a.send(rig.prefill(1, one, decode_here=True))
            await b.send(rig.prefill(1, other, decode_here=True))
            await b.until(lambda: b.tokens.get(1))
        await a.event(1, "decode_done")
        assert a.answer(1) == rig.answer(one, 300)
        assert all(rig.answer(other, 300)[i] == token for i, token in b.tokens[1].items())
        assert rig.answer(one, 300) != rig.answer(other, 300)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: setattr(r, "model", "no-such"), "model"),
        (lambda r: r.ClearField("prompt"), "prompt"),
        (lambda r: setattr(r, "max_new_tokens", 0), "max_new_tokens"),
        (lambda r: r.engine_options.update({"mock.output_tokens": "-1"}), "mock.output_tokens"),
        (lambda r: r.engine_options.update({"mock.output_tokens": "9" * 500}), "mock.output_tokens"),
    ],
)
async def test_impossible_requests_fail_typed(fleet: MockFleetServer, change: object, words: str) -> None:
    """A request that can never run here fails as INVALID with the cause; the lane goes on."""
    made = rig.request("bad")
    change(made)  # type: ignore[operator]
    async with lane(fleet.address, "p") as p:
        await p.send(rig.prefill(1, made))
        failed = await failure(p, 1)
        assert failed.reason == Failed.REASON_INVALID and words in failed.message
        await prefilled(p, 2, rig.request("good"))


async def test_kv_is_pulled_from_allowed_networks_only() -> None:
    """A handle cannot send a worker to an address outside its allow-list, however it is written."""
    nowhere = [ip_network("10.9.9.0/24")]
    made = rig.request("ssrf")
    async with MockFleetServer([spec("p"), spec("d")], allowed_networks=nowhere) as fleet:
        async with lane(fleet.address, "p") as p, lane(fleet.address, "d") as d:
            kv = await prefilled(p, 1, made)
            sources = (fleet.address, "169.254.169.254:80", "unix:/tmp/x", "dns:///x", "http://x:1", "")
            for seq, source in enumerate(sources, start=1):
                kv.source = source
                await d.send(rig.decode(seq, made, kv))
                assert (await failure(d, seq)).reason == Failed.REASON_KV_TRANSFER
            assert kv_used(fleet, "d") == 0 and kv_used(fleet, "p") > 0


async def test_foreign_kv_is_refused(fleet: MockFleetServer) -> None:
    """A handle that was altered to name another cache ends as stale, not with another prompt's answer."""
    mine, theirs = rig.request("mine"), rig.request("theirs")
    async with lane(fleet.address, "p") as p, lane(fleet.address, "d") as d:
        forged = await prefilled(p, 1, mine)
        forged.connector = (await prefilled(p, 2, theirs)).connector
        await d.send(rig.decode(1, mine, forged))
        assert (await failure(d, 1)).reason == Failed.REASON_KV_STALE
        assert 1 not in d.tokens


async def first_answer(address: str, method: str, raw: bytes | None) -> grpc.aio.AioRpcError:
    """How a call ends that sends one raw message, or none, and then nothing."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(method)(timeout=rig.PATIENCE_S)
        try:
            if raw is not None:
                await call.write(raw)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            await call
        except grpc.aio.AioRpcError as error:
            return error
        finally:
            call.cancel()
    raise AssertionError("the call ended well")


HELLO = worker_pb2.LaneRequest(hello=worker_pb2.Hello(backend="p")).SerializeToString()


@pytest.mark.parametrize("method", [rig.LANE, rig.PULL])
@pytest.mark.parametrize("raw", [None, b"\xff", b"\x0a\x7f\x01", HELLO[:-1], bytes(1000)])
async def test_garbage_first_messages(fleet: MockFleetServer, method: str, raw: bytes | None) -> None:
    """No message, a truncated one and garbage end as INVALID_ARGUMENT at once, and the server goes on."""
    error = await first_answer(fleet.address, method, raw)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    async with lane(fleet.address, "p") as p:
        assert p.welcome.incarnation


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (worker_pb2.LaneRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        (worker_pb2.LaneRequest(hello=worker_pb2.Hello()), grpc.StatusCode.NOT_FOUND),
        (worker_pb2.LaneRequest(hello=worker_pb2.Hello(backend="x")), grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_lanes_without_a_known_worker(
    fleet: MockFleetServer, request_: worker_pb2.LaneRequest, code: grpc.StatusCode
) -> None:
    """A lane must name a worker that is here."""
    error = await first_answer(fleet.address, rig.LANE, request_.SerializeToString())
    assert error.code() is code


async def test_a_silent_caller_is_let_go() -> None:
    """A peer that opens a call and sends nothing is not waited for beyond the time-out."""
    async with MockFleetServer([spec("p")], first_message_timeout_s=0.1) as fleet:
        async with grpc.aio.insecure_channel(fleet.address) as channel:
            for method in (rig.LANE, rig.PULL):
                call = channel.stream_stream(method)()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await asyncio.wait_for(call.read(), rig.PATIENCE_S)
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_router_that_does_not_read_is_cut_off() -> None:
    """A lane whose frames nobody takes ends after the write time-out, and its work stops."""
    # Without these the transport itself would read megabytes ahead of the router.
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384)]
    async with MockFleetServer([spec("p")], write_timeout_s=0.2) as fleet:
        async with grpc.aio.insecure_channel(fleet.address, options=options) as channel:
            call = channel.stream_stream(rig.LANE)()
            await call.write(HELLO)
            starts = [rig.prefill(i, rig.request(f"r{i}", 5000), decode_here=True) for i in range(128)]
            await call.write(worker_pb2.LaneRequest(commands=starts).SerializeToString())
            await rig.eventually(lambda: not fleet.workers["p"].idle, "nothing started")
            await rig.eventually(lambda: fleet.workers["p"].idle, "the lane was not cut off")
            call.cancel()


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff",
        worker_pb2.LaneRequest(commands=[worker_pb2.Command()]).SerializeToString(),
        worker_pb2.LaneRequest(commands=[rig.prefill(7, rig.request("again"))]).SerializeToString(),
        worker_pb2.LaneRequest(commands=[rig.release(common_pb2.KVHandle(lease_s=-1))]).SerializeToString(),
    ],
    ids=["garbage", "empty command", "seq in use", "bad lease"],
)
async def test_a_broken_protocol_ends_the_lane(fleet: MockFleetServer, raw: bytes) -> None:
    """A router that breaks the protocol loses its lane with INVALID_ARGUMENT, and its work stops."""
    async with lane(fleet.address, "p") as p, lane(fleet.address, "p") as neighbour:
        await p.send(rig.prefill(7, rig.request("long", 5000), decode_here=True))
        await p.until(lambda: p.tokens.get(7))
        await p.call.write(raw)
        await p.until(lambda: p.ended)
        assert p.error is not None and p.error.code() is grpc.StatusCode.INVALID_ARGUMENT
        await rig.eventually(lambda: fleet.workers["p"].idle, "work is left")
        await prefilled(neighbour, 1, rig.request("neighbour"))


async def test_half_closing_ends_the_lane(fleet: MockFleetServer) -> None:
    """A router that will send nothing more is through: the lane ends with OK and its work stops."""
    async with lane(fleet.address, "p") as p:
        await p.send(rig.prefill(1, rig.request("long", 5000), decode_here=True))
        await p.until(lambda: p.tokens.get(1))
        await p.call.done_writing()
        await p.until(lambda: p.ended)
        assert p.error is None
        await rig.eventually(lambda: fleet.workers["p"].idle, "work is left")


async def test_unknown_seqs_are_ignored(fleet: MockFleetServer) -> None:
    """Stops and ends cross on the way."""
    async with lane(fleet.address, "p") as p:
        await p.send(rig.stop(77), rig.release(common_pb2.KVHandle(producer="p", connector=b"zz")))
        await prefilled(p, 77, rig.request("alive"))


async def test_idle_lanes_report(fleet: MockFleetServer) -> None:
    """A lane without work still says that it is alive, a few times a second."""
    async with lane(fleet.address, "p") as p:
        await p.until(lambda: len(p.loads) >= 4)
        assert p.frames == len(p.loads)


async def test_drain_finishes_what_runs_and_refuses_the_rest(fleet: MockFleetServer) -> None:
    """A stop with a grace lets a running answer end, refuses new commands as DRAINING, then closes."""
    made = rig.request("last", 300)
    async with lane(fleet.address, "p") as p:
        await p.send(rig.prefill(1, made, decode_here=True))
        await p.until(lambda: p.tokens.get(1))
        stopping = asyncio.create_task(fleet.stop(rig.PATIENCE_S))
        await asyncio.sleep(0)
        await p.send(rig.prefill(2, rig.request("too late")))
        assert (await failure(p, 2)).reason == Failed.REASON_DRAINING
        await p.event(1, "decode_done")
        assert p.answer(1) == rig.answer(made, 300)
        await stopping
        await p.until(lambda: p.ended)
        assert p.error is None


async def test_stop_without_grace_ends_lanes() -> None:
    """A stop that does not wait cuts what runs and leaves no task behind."""
    before = asyncio.all_tasks()
    fleet = MockFleetServer([spec("p")])
    await fleet.start()
    async with lane(fleet.address, "p") as p:
        await p.send(rig.prefill(1, rig.request("cut", 5000), decode_here=True))
        await p.until(lambda: p.tokens.get(1))
        await fleet.stop(0.0)
        await p.until(lambda: p.ended)
    await rig.eventually(lambda: asyncio.all_tasks() <= before, "tasks are left")


async def test_a_worker_that_fails_restarts_alone(
    fleet: MockFleetServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in one worker's model breaks its lanes; it comes back as another incarnation, and its
    neighbours go on."""
    async with lane(fleet.address, "p") as p, lane(fleet.address, "d") as d:
        sound = WorkerMachine.handle

        def faulty(self: WorkerMachine, message: WorkerCommand, now: float) -> Sequence[WorkerEvent]:
            if isinstance(message, ServeKV):  # what a fault in the model would look like
                raise ZeroDivisionError
            return sound(self, message, now)

        monkeypatch.setattr(WorkerMachine, "handle", faulty)
        await p.send(rig.prefill(1, rig.request("x", 5000), decode_here=True))
        with pytest.raises(grpc.aio.AioRpcError):
            await pull(fleet.address, common_pb2.KVHandle(producer="p"))
        await p.until(lambda: p.ended)
        assert p.error is not None and p.error.code() is grpc.StatusCode.UNAVAILABLE
        await prefilled(d, 1, rig.request("neighbour"))
    async with lane(fleet.address, "p") as again:
        assert again.welcome.incarnation != p.welcome.incarnation


async def pull(address: str, kv: common_pb2.KVHandle) -> worker_pb2.PullKVResponse:
    """Pull as a consumer does, with the generated unary client."""
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.unary_stream(
            rig.PULL,
            request_serializer=worker_pb2.PullKVRequest.SerializeToString,
            response_deserializer=worker_pb2.PullKVResponse.FromString,
        )
        call = method(worker_pb2.PullKVRequest(kv=kv, consumer="test"), timeout=rig.PATIENCE_S)
        try:
            return [response async for response in call][-1]
        finally:
            call.cancel()


async def test_pulls_speak_the_generated_protocol(fleet: MockFleetServer) -> None:
    """The stream handlers look like the unary-stream method of the proto, fingerprint and size included."""
    made = rig.request("wire")
    async with lane(fleet.address, "p") as p:
        kv = await prefilled(p, 1, made)
        final = await pull(fleet.address, kv)
        assert (final.fingerprint, final.bytes) == (kv.prefix_hash, kv.tokens * 1000)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pull(fleet.address, kv)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_consumer_that_leaves_frees_the_kv(fleet: MockFleetServer) -> None:
    """A pull that is given up half-way frees the producer's copy at once."""
    async with lane(fleet.address, "slow") as p:
        kv = await prefilled(p, 1, rig.request("left"))
        pulling = asyncio.create_task(pull(fleet.address, kv))
        await rig.eventually(lambda: fleet.workers["slow"].transferring, "no transfer began")
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
        await rig.eventually(lambda: kv_used(fleet, "slow") == 0, "KV is left")


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:99999", "unix:/tmp/x"])
async def test_unusable_addresses(listen: str) -> None:
    """A wrong address is a typed error that names it."""
    with pytest.raises(ConfigError, match=r"listen|cannot"):
        await MockFleetServer([spec("p")], listen).start()


async def test_unusable_fleets(fleet: MockFleetServer) -> None:
    """Empty fleets, doubled ids and taken ports are typed errors."""
    with pytest.raises(ConfigError, match="empty"):
        MockFleetServer([])
    with pytest.raises(ConfigError, match="twice"):
        MockFleetServer([spec("p"), spec("p")])
    with pytest.raises(ConfigError, match=fleet.address):
        await MockFleetServer([spec("p")], fleet.address).start()
