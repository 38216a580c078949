"""Prompts are nobody's business: they are in no log, no error, no metric, whatever goes wrong."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from polyphase.v1 import inference_pb2, inference_pb2_grpc

from tests.hostile.raw import connection, envelope
from tests.hostile.victim import Victim
from tests.shell.rig import MODEL

pytestmark = pytest.mark.process

MARK = "zebra-crossing-at-midnight"
MARKED_IDS = [1_837_465_091, 1_928_374_655]
"""Token ids that no counter, port or address of a test run comes near."""


def marked(**fields: object) -> inference_pb2.GenerateRequest:
    """A request with a marked prompt."""
    good: dict[str, object] = {"model": MODEL, "max_new_tokens": 4, "text": f"{MARK} {'x' * 50}"}
    if "tokens" in fields:
        del good["text"]
    return inference_pb2.GenerateRequest(**{**good, **fields})  # type: ignore[arg-type]


REQUESTS: list[tuple[str, inference_pb2.GenerateRequest]] = [
    ("a good request", marked()),
    ("a good request of tokens", marked(tokens={"ids": MARKED_IDS})),
    ("an explained one", marked(explain=True)),
    ("a bad field", marked(max_new_tokens=0)),
    ("a bad token", marked(tokens={"ids": [*MARKED_IDS, 3_000_000_001]})),
    ("an unknown model", marked(model="nobody-serves-it")),
    ("no time", marked(slo={"deadline_s": 1e-6})),
    ("too long for the worker", marked(max_new_tokens=131_072, text=MARK * 100_000)),
    ("refused by the worker", marked(engine_options={"mock.output_tokens": "none"})),
    ("too large for gRPC", marked(text=MARK * 200_000)),
]


@pytest.mark.parametrize("asked", [each for _, each in REQUESTS], ids=[name for name, _ in REQUESTS])
async def test_a_prompt_stays_between_client_and_worker(
    victim: Victim, asked: inference_pb2.GenerateRequest
) -> None:
    """Whatever becomes of a request, its prompt shows nowhere."""
    async with victim.data() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        said = [await _all(stub.Generate(asked, timeout=20)), await _planned(stub, asked)]
    _check(" ".join(said))
    await _check_router(victim)


async def test_a_prompt_in_a_broken_message_stays_there(victim: Victim) -> None:
    """A message that cannot be read is not quoted either."""
    raw = marked().SerializeToString()
    for body in (
        raw + b"\xff",
        raw[:-3],
        raw.replace(b"zebra", b"zebr\xff"),
        raw + marked(tokens={"ids": MARKED_IDS}).SerializeToString(),
    ):
        async with connection(victim.port) as wire:
            await wire.call(1, envelope(body))
            _check((await wire.outcome(1)).message)
    await _check_router(victim)


async def test_a_cancelled_request_leaves_no_prompt(victim: Victim) -> None:
    """Nor does one that is given up in the middle."""
    async with victim.data() as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(marked(max_new_tokens=100_000))
        await call.read()
        call.cancel()
    await _check_router(victim)


async def _all(call: grpc.aio.UnaryStreamCall) -> str:
    try:
        return " ".join([str(message) async for message in call])
    except grpc.aio.AioRpcError as error:
        return f"{error.details()} {error.debug_error_string()} {error.trailing_metadata()}"


async def _planned(
    stub: inference_pb2_grpc.InferenceServiceStub, asked: inference_pb2.GenerateRequest
) -> str:
    try:
        return str(await stub.Plan(inference_pb2.PlanRequest(request=asked), timeout=20))
    except grpc.aio.AioRpcError as error:
        return f"{error.details()} {error.trailing_metadata()}"


def _check(text: str) -> None:
    for mark in ("zebra", "midnight", *map(str, MARKED_IDS), "3000000001"):
        assert mark not in text, mark


async def _check_router(victim: Victim) -> None:
    _check(victim.log())
    _check(victim.workers_log())
    _check(await victim.scrape())
