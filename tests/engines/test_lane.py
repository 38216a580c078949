"""The link to an engine: its life, its requests, and everything an engine can do wrong, over real HTTP."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backends.engines.opener import engine_opener
from router.core.messages import (
    BackendJoined,
    BackendLost,
    BackendReported,
    DecodeDone,
    FirstToken,
    KVMoved,
    PhaseFailed,
    PrefillDone,
    StopPhase,
)
from router.errors import Reason
from router.model import FinishReason, KVHandle
from tests.engines.rig import (
    Answer,
    Call,
    backend,
    context_of,
    engine_with,
    flow_of,
    linked,
    piece,
    start,
    start_decode,
    three,
    usage,
)
from tests.live_south.scripted import Facts


async def test_a_request_from_the_first_token_to_the_last() -> None:
    """The facts of a fused request, in order; the engine's own times stand for the phases."""
    facts = Facts()
    async with engine_with(three) as engine, linked(facts, backend("vllm", engine.url)) as lane:
        flow, sink = flow_of(facts)
        start(lane, flow)
        done: DecodeDone = await facts.wait(DecodeDone)
    kinds = [type(fact) for fact in facts.all if not isinstance(fact, BackendReported | BackendLost)]
    assert kinds == [BackendJoined, PrefillDone, FirstToken, DecodeDone]
    assert (done.output_tokens, done.reason) == (3, FinishReason.LENGTH)
    (prefilled,) = facts.of(PrefillDone)
    assert prefilled.kv is None
    assert prefilled.cost.device_s > 0.0
    assert sink.ids == [11, 12, 13]
    assert sink.said == "", "who sends ids wants ids"
    assert engine.calls[0].body["prompt"] == [5, 6, 7]


async def test_text_with_ids_and_text_alone() -> None:
    """One who sends text gets text; what a token is, the engine's count says."""
    facts = Facts()

    async def chunky(call: Call) -> None:
        await call.send(piece("", []), piece("one two"), piece(" three", [], "stop"), usage(9, 5), "[DONE]")

    async with engine_with(chunky) as engine, linked(facts, backend("openai", engine.url)) as lane:
        flow, sink = flow_of(facts, text="hello")
        start(lane, flow)
        done: DecodeDone = await facts.wait(DecodeDone)
        assert (sink.said, sink.ids, sink.indices) == ("one two three", [], [0, 1])
        assert (done.output_tokens, done.reason) == (5, FinishReason.STOP)
        engine.answer = three
        flow, sink = flow_of(facts, "r2", text="hello")
        start(lane, flow)
        await facts.wait(DecodeDone, 2)
        assert (sink.said, sink.ids, sink.indices) == ("abc", [11, 12, 13], [0, 1, 2])


async def test_text_after_the_last_token_is_delivered() -> None:
    """What an engine held back for a stop string is no token more: the answer is not cut, nor overrun."""
    facts = Facts()

    async def held_back(call: Call) -> None:
        await call.send(piece("a"), piece("b"), piece("c", [], "length"), "[DONE]")

    async with engine_with(held_back) as engine, linked(facts, backend("openai", engine.url)) as lane:
        flow, sink = flow_of(facts, text="hello", tokens=2)
        start(lane, flow)
        done: DecodeDone = await facts.wait(DecodeDone)
    assert sink.said == "abc"
    assert (done.output_tokens, done.overran) == (2, False)


async def test_an_engine_that_does_not_stop_is_stopped() -> None:
    """At max_new_tokens the rest is cut off."""
    facts = Facts()

    async def endless(call: Call) -> None:
        for token in range(1000):
            await call.send(piece("x", [token]))
        await call.hang()

    async with engine_with(endless) as engine, linked(facts, backend("vllm", engine.url)) as lane:
        flow, sink = flow_of(facts, tokens=4)
        start(lane, flow)
        done: DecodeDone = await facts.wait(DecodeDone)
        assert done.overran
        assert sink.ids == [0, 1, 2, 3]
        assert lane.work is not None
        lane.work.stop_phase(StopPhase("r1", 1, "e1"))  # as the core answers an overrun
        async with asyncio.timeout(10.0):
            await (await engine.call()).gone.wait()


async def test_the_stream_in_every_form() -> None:
    """Split anywhere, with comments and CRLF, and closed without the mark after a finish."""
    facts = Facts()
    text = (
        b': ping\r\n\r\ndata: {"choices":[{"text":"\xc3\xa4","token_ids":[1]}]}\r\n\r\n'
        b'data: {"choices":[{"text":"b",\ndata: "token_ids":[2],"finish_reason":"stop"}]}\n\n'
    )

    async def split(call: Call) -> None:
        for at in range(0, len(text), 7):
            await call.raw(text[at : at + 7])
            await asyncio.sleep(0)

    async with engine_with(split) as engine, linked(facts, backend("vllm", engine.url)) as lane:
        flow, sink = flow_of(facts, text="hello")
        start(lane, flow)
        await facts.wait(DecodeDone)
    assert (sink.said, sink.ids) == ("äb", [1, 2])


async def test_stopping_closes_the_stream() -> None:
    """That is how an engine learns that nobody waits; nothing more is said of the request."""
    facts = Facts()

    async def slow(call: Call) -> None:
        await call.send(piece("a", [11]))
        await call.hang()

    async with engine_with(slow) as engine, linked(facts, backend("vllm", engine.url)) as lane:
        flow, _ = flow_of(facts)
        start(lane, flow)
        await facts.wait(FirstToken)
        assert lane.work is not None
        lane.work.stop_phase(StopPhase("r1", 1, "e1"))
        async with asyncio.timeout(10.0):
            await (await engine.call()).gone.wait()
        assert not facts.of(PhaseFailed)
        assert not facts.of(DecodeDone)
        assert len(lane.work) == 0


async def test_stopping_before_the_first_step() -> None:
    """A task that is cancelled before it ran leaves nothing behind."""
    facts = Facts()
    async with engine_with(three) as engine, linked(facts, backend("vllm", engine.url)) as lane:
        assert lane.work is not None
        flow, _ = flow_of(facts)
        start(lane, flow)
        lane.work.stop_phase(StopPhase("r1", 1, "e1"))
        flow, _ = flow_of(facts, "r2")
        start(lane, flow)
        await facts.wait(DecodeDone)
        await asyncio.sleep(0)
        assert len(lane.work) == 0
        assert lane.work.snapshot().running == 0


async def test_work_that_nobody_listens_to_is_swept() -> None:
    """The flow went on, or ended, and no stop came."""
    facts = Facts()

    async def slow(call: Call) -> None:
        await call.hang()

    async with engine_with(slow) as engine, linked(facts, backend("vllm", engine.url)) as lane:
        flow, _ = flow_of(facts)
        start(lane, flow)
        call = await engine.call()
        flow.close()
        assert lane.work is not None
        lane.work.sweep()
        async with asyncio.timeout(10.0):
            await call.gone.wait()


# --- failures ---


def _refuses(status: int, body: Any = None) -> Answer:
    async def answer(call: Call) -> None:
        await call.json(body if body is not None else {"error": {"message": "x", "type": "T"}}, status)

    return answer


async def _breaks(call: Call) -> None:
    await call.send(piece("a", [11]))
    call.break_off()


async def _ends(call: Call) -> None:
    await call.send(piece("a", [11]))


async def _ends_with_mark(call: Call) -> None:
    await call.send(piece("a", [11]), "[DONE]")


async def _errs(call: Call) -> None:
    await call.send(piece("a", [11]), {"error": {"message": "kv", "code": 500}})


async def _goes_on(call: Call) -> None:
    await call.send(piece("a", [11], "stop"), piece("b", [12]), "[DONE]")


async def _gives_up(call: Call) -> None:
    await call.send(piece("a", [11], "abort"), "[DONE]")


async def _no_stream(call: Call) -> None:
    await call.json({"choices": [{"text": "abc"}]})


async def _too_much(call: Call) -> None:
    await call.raw(b"data: " + b"x" * (1 << 19))
    await call.hang()


async def _redirects(call: Call) -> None:
    await call.json({}, 307)


FAILURES: dict[str, tuple[Answer, Reason, bool]] = {
    "400": (_refuses(400), Reason.INVALID_REQUEST, False),
    "429": (_refuses(429), Reason.QUEUE_FULL, True),
    "503 in no JSON": (_refuses(503, "no"), Reason.QUEUE_FULL, True),
    "500": (_refuses(500), Reason.BACKEND_FAILED, True),
    "200 with an error": (_refuses(200, {"error": {"message": "x", "code": 503}}), Reason.QUEUE_FULL, True),
    "200 with an error of no code": (_refuses(200, {"error": {"message": "x"}}), Reason.BACKEND_FAILED, True),
    "a redirect": (_redirects, Reason.BACKEND_FAILED, True),
    "no stream": (_no_stream, Reason.BACKEND_BROKE_CONTRACT, True),
    "breaks off": (_breaks, Reason.BACKEND_LOST, True),
    "ends without a finish": (_ends, Reason.BACKEND_LOST, True),
    "mark without a finish": (_ends_with_mark, Reason.BACKEND_LOST, True),
    "error in the stream": (_errs, Reason.BACKEND_FAILED, True),
    "goes on after the finish": (_goes_on, Reason.BACKEND_BROKE_CONTRACT, True),
    "gives up": (_gives_up, Reason.BACKEND_FAILED, True),
    "an endless event": (_too_much, Reason.BACKEND_BROKE_CONTRACT, True),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_failures(name: str) -> None:
    """Each ends the phase once, with its reason, and leaves the link in order for the next request."""
    answer, reason, retryable = FAILURES[name]
    facts = Facts()
    async with engine_with(answer) as engine, linked(facts, backend("vllm", engine.url)) as lane:
        flow, _ = flow_of(facts)
        start(lane, flow)
        failed: PhaseFailed = await facts.wait(PhaseFailed)
        assert (failed.reason, failed.retryable) == (reason, retryable), failed.message
        assert not facts.of(DecodeDone)
        engine.answer = three
        flow, sink = flow_of(facts, "r2")
        start(lane, flow)
        await facts.wait(DecodeDone)
        assert sink.ids == [11, 12, 13]
        assert len(facts.of(PhaseFailed)) == 1


async def _keeps_alive(call: Call) -> None:
    await call.send(piece("a", [11]))
    while True:
        await call.raw(b": ping\n\n")
        await asyncio.sleep(0.02)


async def _half_open(call: Call) -> None:
    await call.send(piece("a", [11]))
    await call.hang()


@pytest.mark.parametrize("answer", [_keeps_alive, _half_open])
async def test_a_stream_that_stalls(answer: Answer) -> None:
    """Silence between tokens has a bound, and keeping the connection alive is no progress."""
    facts = Facts()
    config = backend
    async with engine_with(answer) as engine, linked(facts, config("vllm", engine.url, stall_s=0.2)) as lane:
        flow, _ = flow_of(facts)
        start(lane, flow)
        failed: PhaseFailed = await facts.wait(PhaseFailed)
        assert failed.reason is Reason.BACKEND_STALLED
        async with asyncio.timeout(10.0):
            await (await engine.call()).gone.wait()


async def test_an_answer_that_never_begins() -> None:
    """The bound of last resort."""
    facts = Facts()

    async def silent(call: Call) -> None:
        await call.hang()

    async with (
        engine_with(silent) as engine,
        linked(facts, backend("vllm", engine.url, answer_s=0.2)) as lane,
    ):
        flow, _ = flow_of(facts)
        start(lane, flow)
        failed: PhaseFailed = await facts.wait(PhaseFailed)
        assert failed.reason is Reason.BACKEND_STALLED


async def test_a_request_the_engine_cannot_take_is_never_sent() -> None:
    """Ids for a server of text: another backend may take them."""
    facts = Facts()
    async with engine_with(three) as engine, linked(facts, backend("openai", engine.url)) as lane:
        flow, _ = flow_of(facts)
        start(lane, flow)
        failed: PhaseFailed = await facts.wait(PhaseFailed)
        assert (failed.reason, failed.retryable) == (Reason.INVALID_REQUEST, True)
        assert not engine.calls


async def test_an_engine_without_a_connector_takes_no_kv() -> None:
    """A policy that sends it decode gets an answer."""
    facts = Facts()
    async with engine_with(three) as engine, linked(facts, backend("vllm", engine.url)) as lane:
        flow, _ = flow_of(facts)
        start_decode(lane, flow, KVHandle("p", "i", "r1", 1, "l", 3, 0, 1e9))
        failed: PhaseFailed = await facts.wait(PhaseFailed)
        assert failed.reason is Reason.KV_TRANSFER_FAILED
        assert not facts.of(KVMoved)


async def test_too_many_calls() -> None:
    """Beyond the bound a phase fails at once, and can be tried elsewhere."""
    facts = Facts()

    async def slow(call: Call) -> None:
        await call.hang()

    async with engine_with(slow) as engine, linked(facts, backend("vllm", engine.url, max_calls=1)) as lane:
        for name in ("r1", "r2"):
            flow, _ = flow_of(facts, name)
            start(lane, flow)
        (failed,) = facts.of(PhaseFailed)
        assert (failed.request_id, failed.reason) == ("r2", Reason.QUEUE_FULL)
        assert lane.work is not None
        snapshot = lane.work.snapshot()
        assert (snapshot.running, snapshot.waiting) == (1, 0)


# --- life ---


async def test_an_engine_that_goes_and_comes_back() -> None:
    """Lost after the misses, with its work; what answers again is another incarnation."""
    facts = Facts()

    async def slow(call: Call) -> None:
        await call.hang()

    async with (
        engine_with(slow) as engine,
        linked(facts, backend("vllm", engine.url, health_misses=2)) as lane,
    ):
        flow, _ = flow_of(facts)
        start(lane, flow)
        call = await engine.call()
        engine.health = 503
        await facts.wait(BackendLost)
        assert lane.work is None
        assert lane.down_since is not None
        async with asyncio.timeout(10.0):
            await call.gone.wait()
        engine.health = 200
        await facts.wait(BackendJoined, 2)
        assert lane.connected
        first, second = facts.of(BackendJoined)
        assert first.incarnation != second.incarnation
        assert not facts.of(PhaseFailed), "the core knows by BackendLost"


async def test_an_engine_that_is_gone_is_noticed_at_its_next_failure() -> None:
    """Not at the next probe: the probes of this link are an hour apart."""
    facts = Facts()
    async with engine_with(_breaks) as engine:
        config = backend("vllm", engine.url, health_interval_s=3600.0)
        async with linked(facts, config) as lane:
            engine.health = 500
            flow, _ = flow_of(facts)
            start(lane, flow)
            await facts.wait(PhaseFailed)
            async with asyncio.timeout(10.0):
                while len(engine.probes) < 2:
                    await asyncio.sleep(0.01)


async def test_an_engine_that_is_not_there_yet() -> None:
    """The link waits for it, says why, and loses nothing."""
    facts = Facts()
    async with engine_with(three) as engine:
        engine.health = 500
        joining = asyncio.create_task(_joined(facts, engine.url))
        async with asyncio.timeout(10.0):
            while len(engine.probes) < 3:
                await asyncio.sleep(0.01)
        assert not facts.all
        engine.health = 200
        await joining
    assert len(facts.of(BackendLost)) == 1, "of the end of the link"


async def _joined(facts: Facts, url: str) -> None:
    async with linked(facts, backend("vllm", url)):
        pass


async def test_reports_tell_what_we_know() -> None:
    """Sequences, the room they take, and busy time that grows with what comes back."""
    facts = Facts()
    more = asyncio.Event()

    async def halting(call: Call) -> None:
        await call.send(piece("a", [11]), piece("b", [12]))
        await more.wait()
        await call.send(piece("c", [13], "stop"), "[DONE]")

    async with engine_with(halting) as engine, linked(facts, backend("vllm", engine.url)) as lane:
        flow, _ = flow_of(facts)
        start(lane, flow)
        async with asyncio.timeout(10.0):
            while flow.next_index < 2:
                await asyncio.sleep(0.01)
        assert lane.work is not None
        snapshot = lane.work.snapshot()
        assert (snapshot.running, snapshot.waiting, snapshot.kv_used_tokens) == (1, 0, 5)
        assert snapshot.busy_prefill_s > 0.0
        assert lane.work.snapshot().busy_decode_s == snapshot.busy_decode_s, "no news, no work"
        more.set()
        await facts.wait(DecodeDone)
        async with asyncio.timeout(10.0):
            while not facts.of(BackendReported) or facts.of(BackendReported)[-1].snapshot.running:
                await asyncio.sleep(0.01)


# --- credentials ---


async def test_the_key_goes_into_one_header_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not into the body, not into the log, whatever goes wrong."""
    caplog.set_level(logging.DEBUG)
    key = tmp_path / "key"
    key.write_text("sk-very-secret\n")
    facts = Facts()
    async with engine_with(_refuses(401)) as engine:
        config = backend("vllm", engine.url, api_key_file=str(key), health_misses=1)
        async with linked(facts, config) as lane:
            flow, _ = flow_of(facts)
            start(lane, flow)
            failed: PhaseFailed = await facts.wait(PhaseFailed)
            assert engine.calls[0].request.headers["Authorization"] == "Bearer sk-very-secret"
            assert "sk-very" not in failed.message
            engine.health = 403
            lost: BackendLost = await facts.wait(BackendLost)
            assert "sk-very" not in lost.message
    assert "sk-very" not in caplog.text
    assert "sk-very" not in repr(config)


async def test_a_key_of_the_environment_in_a_header_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, without a word before it."""
    monkeypatch.setenv("ENGINE_KEY", "abc")
    facts = Facts()
    async with engine_with(three) as engine:
        config = backend("vllm", engine.url, api_key_env="ENGINE_KEY", api_key_header="api-key")
        async with linked(facts, config):
            assert engine.probes[0].headers["api-key"] == "abc"


# --- transport security ---


def _certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that no system trusts, and a server's context with it."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=engine"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


async def test_an_engine_that_cannot_prove_itself_is_not_used(tmp_path: Path) -> None:
    """Its key would go to whoever answers; with its certificate named, it serves."""
    certificate, tls = _certificate(tmp_path)
    facts = Facts()
    async with engine_with(three, tls) as engine:
        config = backend("vllm", engine.url)
        lane = engine_opener(config)("e1", config.url, context_of(facts))
        running = asyncio.create_task(lane.run())
        async with asyncio.timeout(10.0):
            while not lane.trouble:
                await asyncio.sleep(0.01)
        lane.closing = True
        running.cancel()
        await asyncio.wait([running])
        assert not facts.all
        assert not engine.probes
        async with linked(facts, backend("vllm", engine.url, ca_file=str(certificate))) as good:
            flow, sink = flow_of(facts)
            start(good, flow)
            await facts.wait(DecodeDone)
            assert sink.ids == [11, 12, 13]
