"""The duties of a worker (docs/guides/write-a-backend.md), on the reference worker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from polyphase.v1 import common_pb2, inference_pb2, worker_pb2

from backends.reference import handover, transfer
from backends.reference.assembly import Ready
from backends.reference.precision import Precision
from router.grpc_options import channel_options
from tests.reference.models import make_model
from tests.reference.stage import Worker, greedy, prompt, ready, running
from tests.shell import rig
from tests.shell.rig import eventually


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model."""
    return make_model(tmp_path_factory.mktemp("model"), Precision.FP32.torch)


@pytest.fixture(scope="module")
def both(folder: Path) -> Ready:
    """A worker for both phases, with room for little."""
    return ready(folder, kv_tokens=1024, max_num_batched_tokens=64)


@pytest.fixture(scope="module")
def consumer(folder: Path) -> Ready:
    """A worker for decode."""
    return ready(folder, "decode", kv_tokens=1024)


def ask(name: str, tokens: int = 100, count: int = 8) -> inference_pb2.GenerateRequest:
    """A greedy request with a prompt of its own."""
    return greedy(name, prompt(random.Random(name), tokens), count)


async def failure(worker: Worker, seq: int) -> worker_pb2.PhaseFailed:
    """The failure of a sequence."""

    def found() -> worker_pb2.PhaseFailed | None:
        events = (event for event in worker.lane.events if event.seq == seq)
        return next((event.failed for event in events if event.HasField("failed")), None)

    got: worker_pb2.PhaseFailed = await worker.lane.until(found)
    return got


async def empty(*workers: Worker) -> None:
    """Wait until nothing has any room."""
    for worker in workers:
        await eventually(lambda worker=worker: worker.kv_used_tokens == 0, "pages are left")
        await eventually(lambda worker=worker: worker.host.idle, "the shell still keeps a sequence")


async def prefilled(worker: Worker, seq: int, made: inference_pb2.GenerateRequest) -> common_pb2.KVHandle:
    """The handle of a prefill that is done."""
    await worker.send(rig.prefill(seq, made))
    done: worker_pb2.PrefillDone = await worker.lane.event(seq, "prefill_done")
    return done.kv


async def pull(address: str, kv: common_pb2.KVHandle) -> list[worker_pb2.PullKVResponse]:
    """Everything a pull brings."""
    async with grpc.aio.insecure_channel(address, options=list(channel_options())) as channel:
        call = channel.unary_stream(
            rig.PULL,
            request_serializer=worker_pb2.PullKVRequest.SerializeToString,
            response_deserializer=worker_pb2.PullKVResponse.FromString,
        )(worker_pb2.PullKVRequest(kv=kv, consumer="test"), timeout=rig.PATIENCE_S)
        return [message async for message in call]


async def test_stop_at_every_point_frees_pages(both: Ready, consumer: Ready) -> None:
    """Queued, in a chunk, held, pulling, decoding: a stop leaves nothing, and others are unharmed."""
    async with running(both) as p, running(consumer) as d:
        beside = ask("beside", 200, 60)
        await p.send(rig.prefill(1, beside, decode_here=True))
        for seq in range(2, 12):
            await p.send(rig.prefill(seq, ask(f"q{seq}", 300)))
            await asyncio.sleep(0.003 * (seq % 4))
            await p.send(rig.stop(seq))
        await p.send(rig.prefill(12, ask("held", 90)))
        done = await p.lane.event(12, "prefill_done")
        await p.send(rig.stop(12))
        await d.send(rig.decode(1, ask("held", 90), done.kv, 1), rig.stop(1))
        for seq in range(13, 18):
            made = ask(f"d{seq}", 90, 200)
            kv = await prefilled(p, seq, made)
            await d.send(rig.decode(seq, made, kv, 1))
            await asyncio.sleep(0.004 * (seq - 13))
            await d.send(rig.stop(seq))
            await p.send(rig.release(kv))
        await p.lane.event(1, "decode_done")
        await empty(p, d)
        again = ask("beside", 200, 60)
        await p.send(rig.prefill(20, again, decode_here=True))
        await p.lane.event(20, "decode_done")
        assert p.lane.answer(20) == p.lane.answer(1)


async def test_a_handle_is_used_once(both: Ready) -> None:
    """The first pull gets all chunks and the fingerprint, the second is refused as stale."""
    async with running(both) as p:
        kv = await prefilled(p, 1, ask("once", 40))
        *chunks, final = await pull(kv.source, kv)
        assert final.fingerprint == kv.prefix_hash and all(one.chunk for one in chunks)
        assert sum(len(one.chunk) for one in chunks) >= final.bytes == 40 * both.spec.kv_bytes_per_token
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pull(kv.source, kv)
        assert "moved, released" in str(caught.value.details())
        await empty(p)


@pytest.mark.parametrize("change", ["incarnation", "request_id", "epoch", "tokens", "prefix_hash", "layout"])
async def test_a_handle_is_compared_field_by_field(both: Ready, change: str) -> None:
    """KV is never handed out for a handle that is not the one that was minted."""
    async with running(both) as p:
        kv = await prefilled(p, 1, ask("fenced", 30))
        forged = common_pb2.KVHandle()
        forged.CopyFrom(kv)
        value = getattr(kv, change)
        setattr(forged, change, value + 1 if isinstance(value, int) else f"{value}x")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pull(kv.source, forged)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert len(await pull(kv.source, kv)) > 1


async def test_a_lease_ends(both: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    """KV that nobody pulls is freed, and its handle is stale."""
    monkeypatch.setattr(handover, "LEASE_S", 0.05)
    async with running(both) as p:
        kv = await prefilled(p, 1, ask("late", 30))
        await empty(p)
        with pytest.raises(grpc.aio.AioRpcError):
            await pull(kv.source, kv)


async def test_a_consumer_that_leaves_frees_the_kv(both: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull that is cancelled half way drops the producer's copy."""
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1024)
    async with running(both) as p:
        kv = await prefilled(p, 1, ask("gone", 400))
        async with grpc.aio.insecure_channel(kv.source, options=list(channel_options())) as channel:
            call = channel.unary_stream(rig.PULL)(
                worker_pb2.PullKVRequest(kv=kv, consumer="test").SerializeToString()
            )
            await call.read()
            call.cancel()
        await empty(p)


async def test_kv_of_another_prompt_is_refused(both: Ready, consumer: Ready) -> None:
    """A handle that does not belong to the request fails before anything moves; so does another layout."""
    async with running(both) as p, running(consumer) as d:
        kv = await prefilled(p, 1, ask("mine", 30))
        await d.send(rig.decode(1, ask("yours", 30), kv, 1))
        assert (await failure(d, 1)).reason == worker_pb2.PhaseFailed.REASON_KV_STALE
        foreign = common_pb2.KVHandle()
        foreign.CopyFrom(kv)
        foreign.layout = "other"
        await d.send(rig.decode(2, ask("mine", 30), foreign, 1))
        assert (await failure(d, 2)).reason == worker_pb2.PhaseFailed.REASON_KV_LAYOUT
        assert p.host.transferring == 0
        await p.send(rig.release(kv))
        await empty(p, d)


async def test_broken_kv_is_never_decoded(
    both: Ready, consumer: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit, a missing layer: the decode fails, and both sides are free."""
    real = handover.runs

    def shorter(manifest: transfer.Manifest) -> Iterator[tuple[int, int, int]]:
        return iter(list(real(manifest))[:-1])

    async with running(both) as p, running(consumer) as d:
        with monkeypatch.context() as patch:
            patch.setattr(handover, "runs", shorter)
            made = ask("short", 30)
            await d.send(rig.decode(1, made, await prefilled(p, 1, made), 1))
            assert (await failure(d, 1)).reason == worker_pb2.PhaseFailed.REASON_KV_TRANSFER
        with monkeypatch.context() as patch:
            patch.setattr(transfer.zlib, "crc32", _Drifting())
            made = ask("flipped", 30)
            await d.send(rig.decode(2, made, await prefilled(p, 2, made), 1))
            assert "checksum" in (await failure(d, 2)).message
        await empty(p, d)
        assert not d.lane.tokens


class _Drifting:
    """A checksum that never comes out the same twice."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, _: bytes) -> int:
        self._calls += 1
        return self._calls


async def test_preempted_sequences_go_on_where_they_were(folder: Path) -> None:
    """When decodes outgrow the pages, some are computed again; no token is lost, repeated, or another."""
    tight = ready(folder, kv_tokens=512, max_num_batched_tokens=128)
    async with running(tight) as worker:
        for seq in range(1, 7):
            await worker.send(rig.prefill(seq, ask(f"s{seq}", 60, 90), decode_here=True))
        for seq in range(1, 7):
            await worker.lane.event(seq, "decode_done")
        assert worker.host.snapshot().preemptions > 0
        await worker.send(
            *(rig.prefill(seq + 10, ask(f"s{seq}", 60, 90), decode_here=True) for seq in (1, 6))
        )
        for seq in (1, 6):
            await worker.lane.event(seq + 10, "decode_done")
            assert worker.lane.answer(seq + 10) == worker.lane.answer(seq)
        await empty(worker)


async def test_seeded_answers_do_not_depend_on_company_or_place(both: Ready, consumer: Ready) -> None:
    """The same seed gives the same draws alone, in a crowd, and split; another seed gives others."""

    def sampled(seed: int) -> inference_pb2.GenerateRequest:
        made = ask("drawn", 50, 24)
        made.sampling.temperature, made.sampling.top_p, made.sampling.top_k = 0.9, 0.95, 200
        made.sampling.seed = seed
        return made

    async with running(both) as p, running(consumer) as d:
        await p.send(rig.prefill(1, sampled(3), decode_here=True))
        await p.lane.event(1, "decode_done")
        crowd = [rig.prefill(seq, ask(f"c{seq}", 20, 20), decode_here=True) for seq in range(10, 16)]
        await p.send(*crowd, rig.prefill(2, sampled(3), decode_here=True))
        await p.send(rig.prefill(3, sampled(4), decode_here=True))
        await p.send(rig.prefill(4, sampled(3)))
        done = await p.lane.event(4, "prefill_done")
        await d.send(rig.decode(4, sampled(3), done.kv, 1))
        for seq in (2, 3):
            await p.lane.event(seq, "decode_done")
        await d.lane.event(4, "decode_done")
        assert p.lane.answer(1) == p.lane.answer(2) == [*p.lane.answer(4), *d.lane.answer(4)]
        assert p.lane.answer(3) != p.lane.answer(1)


async def test_requests_that_cannot_run_are_refused(both: Ready, consumer: Ready) -> None:
    """Text, stop strings, unknown tokens, too long a context, the wrong phase: INVALID, with what to do."""
    text, stops, unknown, long = (ask(name, 5) for name in ("text", "stops", "unknown", "long"))
    text.text = "words"
    stops.sampling.stop.append("end")
    unknown.tokens.ids.append(8192)
    long.max_new_tokens = 5000
    async with running(both) as p, running(consumer) as d:
        for seq, (made, hint) in enumerate(
            ((text, "token ids"), (stops, "Leave them out"), (unknown, "8192"), (long, "exceed")), start=1
        ):
            await p.send(rig.prefill(seq, made, decode_here=True))
            refused = await failure(p, seq)
            assert refused.reason == worker_pb2.PhaseFailed.REASON_INVALID and hint in refused.message
        await d.send(rig.prefill(1, ask("wrong")))
        assert (await failure(d, 1)).reason == worker_pb2.PhaseFailed.REASON_INVALID


async def test_decode_may_choose_the_first_token_itself(both: Ready, consumer: Ready) -> None:
    """With first_index 0 the last token of the prompt is computed again; the answer is the same."""
    made = ask("again", 77, 6)
    async with running(both) as p, running(consumer) as d:
        await p.send(rig.prefill(1, made, decode_here=True))
        kv = await prefilled(p, 2, made)
        await d.send(rig.decode(2, made, kv, 0))
        await p.lane.event(1, "decode_done")
        await d.lane.event(2, "decode_done")
        assert d.lane.answer(2) == p.lane.answer(1)
        kv = await prefilled(p, 3, made)
        await d.send(rig.decode(3, made, kv, 2))
        assert "brought 1 tokens" in (await failure(d, 3)).message
        await empty(p, d)


async def test_text_with_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    """With a tokenizer a prompt of text is the prompt of its ids, for prefill and decode alike."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{number}": number for number in range(10)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))  # noqa: S106
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids, text = greedy("ids", [5, 6, 7], 4), greedy("text", [], 4)
    text.text = "w5 w6 w7"
    async with running(ready(folder, tokenizer=tmp_path / "tokenizer.json")) as worker:
        await worker.send(rig.prefill(1, ids, decode_here=True))
        kv = await prefilled(worker, 2, text)
        assert kv.tokens == 3
        await worker.send(rig.decode(3, text, kv, 1))
        for seq in (1, 3):
            await worker.lane.event(seq, "decode_done")
        assert worker.lane.answer(1) == [*worker.lane.answer(2), *worker.lane.answer(3)]


async def test_a_step_that_fails_restarts_the_worker(both: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the device ends the lane; the next incarnation answers, and knows nothing of the old KV."""
    async with running(both) as p:
        kv = await prefilled(p, 1, ask("kept", 30))

        def broken(_: object) -> None:
            raise RuntimeError("the device fell over")

        with monkeypatch.context() as patch:
            patch.setattr(both.runner, "step", broken)
            await p.send(rig.prefill(2, ask("fatal", 30)))
            await p.lane.until(lambda: p.lane.ended)
        async with rig.lane(p.server.address, both.spec.id) as again:
            assert again.welcome.incarnation != kv.incarnation
            with pytest.raises(grpc.aio.AioRpcError):
                await pull(kv.source, kv)
            await again.send(rig.prefill(1, ask("after", 30), decode_here=True))
            await again.event(1, "decode_done")


async def test_load_reports_add_up(both: Ready) -> None:
    """Busy time is what requests were charged, and the regressors are what they made the worker compute."""
    async with running(both) as p:
        costs: list[float] = []
        for seq in range(1, 5):
            await p.send(rig.prefill(seq, ask(f"l{seq}", 70, 10), decode_here=True))
        for seq in range(1, 5):
            costs.append((await p.lane.event(seq, "prefill_done")).cost.device_s)
            costs.append((await p.lane.event(seq, "decode_done")).cost.device_s)
        load = p.host.snapshot()
        assert sum(costs) == pytest.approx(load.busy_prefill_s + load.busy_decode_s)
        assert load.prefill_tokens == 4 * 70 and load.decode_sequences == 4 * 9
        assert load.attention_pairs == pytest.approx(4 * 70 * 70 / 2)
        assert load.context_tokens == 4 * sum(range(71, 80))
        assert load.steps >= 10 and p.lane.loads
