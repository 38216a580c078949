"""Where KV is pulled from: names, many producers, and producers that vanish."""

import asyncio

import pytest

from backends.models.messages import FailReason, KVArrived, KVPullFailed
from backends.shell import pull
from backends.shell.pull import KVPuller
from backends.shell.server import LOOPBACK, MockFleetServer
from router.address import AddressRules
from router.model import KVHandle
from router.wire import kv_handle_from_proto
from tests.shell import rig
from tests.shell.rig import lane, spec


async def pulled(puller: KVPuller, handle: KVHandle) -> KVArrived | KVPullFailed:
    """How a pull ends."""
    answer: asyncio.Future[KVArrived | KVPullFailed] = asyncio.get_running_loop().create_future()
    puller.start(1, handle, "test", answer.set_result)
    return await asyncio.wait_for(answer, rig.PATIENCE_S)


def handle(source: str) -> KVHandle:
    """A handle of KV that is not there."""
    return KVHandle("p", "boot", "r", 1, "l", 4, 5, 1e12, source)


async def test_names_are_resolved_and_then_judged() -> None:
    """localhost is an address of an allowed network; the producer is reached and answers for itself."""
    puller = KVPuller(AddressRules(LOOPBACK))
    async with MockFleetServer([spec("p")]) as fleet:
        port = fleet.address.rpartition(":")[2]
        answer = await pulled(puller, handle(f"localhost:{port}"))
        assert isinstance(answer, KVPullFailed) and answer.reason is FailReason.KV_STALE
    await puller.close()


async def test_many_producers_share_few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that were closed for want of use are opened again; answers stay right."""
    monkeypatch.setattr(pull, "MAX_CHANNELS", 1)
    puller = KVPuller(AddressRules(LOOPBACK))
    async with MockFleetServer([spec("p")]) as one, MockFleetServer([spec("p")]) as other:
        for source in (one.address, other.address) * 3:
            answer = await pulled(puller, handle(source))
            assert isinstance(answer, KVPullFailed) and answer.reason is FailReason.KV_STALE
    await puller.close()


async def test_nobody_listens() -> None:
    """A producer that is gone is a failed transfer, at once."""
    puller = KVPuller(AddressRules(LOOPBACK))
    async with MockFleetServer([spec("p")]) as fleet:
        address = fleet.address
    answer = await pulled(puller, handle(address))
    assert isinstance(answer, KVPullFailed) and answer.reason is FailReason.KV_TRANSFER
    await puller.close()


async def test_a_time_out_is_a_failed_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer that accepts and never answers holds a decode for no longer than the time-out."""
    monkeypatch.setattr(pull, "PULL_TIMEOUT_S", 0.2)
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    puller = KVPuller(AddressRules(LOOPBACK))
    answer = await pulled(puller, handle(f"127.0.0.1:{port}"))
    assert isinstance(answer, KVPullFailed) and answer.reason is FailReason.KV_TRANSFER
    await puller.close()
    for writer in accepted:
        writer.close()
        await writer.wait_closed()
    silent.close()
    await silent.wait_closed()


async def test_close_cancels_pulls() -> None:
    """A worker that ends leaves no pull behind, and its answer never comes."""
    slow = spec("p", link=rig.LinkParameters(latency_s=30.0))
    puller = KVPuller(AddressRules(LOOPBACK))
    answers: list[KVArrived | KVPullFailed] = []
    async with MockFleetServer([slow]) as fleet, lane(fleet.address, "p") as p:
        await p.send(rig.prefill(1, rig.request("x")))
        done = await p.event(1, "prefill_done")
        kv = kv_handle_from_proto(done.kv, asyncio.get_running_loop().time())
        task = puller.start(1, kv, "test", answers.append)
        await rig.eventually(lambda: fleet.workers["p"].transferring, "no transfer began")
        await puller.close()
        assert task.cancelled() and answers == []
        await rig.eventually(lambda: fleet.workers["p"].idle, "the producer's KV is left")
