"""The decode side of a KV handoff: fetches the KV from the worker that computed it.

Always over gRPC, also when the producer lives in this process: the path that is tested is the one that
runs. A handle names the address it is pulled from, and a router may be wrong or lied to, so addresses are
resolved here and only networks on the allow-list are contacted.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import grpc.aio
from polyphase.v1 import worker_pb2

from backends.models.messages import FailReason, KVArrived, KVPullFailed
from backends.shell.port import StoreChunk
from backends.shell.status import reason_of
from backends.shell.wire import RefusedCommandError
from router.address import AddressRules, HostPort, parse_host_port
from router.grpc_options import MAX_MESSAGE_BYTES, channel_options
from router.model import KVHandle, Seconds
from router.wire import kv_handle_to_proto

log = logging.getLogger(__name__)

PULL_TIMEOUT_S: Final[Seconds] = 30.0
"""A whole pull, name resolution and transfer included; equal to the lease, after which the KV is gone."""

MAX_CHANNELS: Final = 64
"""Producers that stay connected; the one unused for longest goes first."""

_METHOD: Final = "/polyphase.v1.WorkerService/PullKV"

Answer = KVArrived | KVPullFailed


@dataclass(slots=True)
class _Producer:
    channel: grpc.aio.Channel
    pulls: int = 0


class KVPuller:
    """The pulls of all workers of a process. Owns its channels and its tasks until `close`."""

    def __init__(self, rules: AddressRules, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._rules = rules
        self._options = list(channel_options(max_message_bytes))
        self._producers: OrderedDict[str, _Producer] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self,
        key: int,
        handle: KVHandle,
        consumer: str,
        answer: Callable[[Answer], None],
        store: StoreChunk | None = None,
    ) -> asyncio.Task[None]:
        """Pull; `answer` is called once unless the task is cancelled, which frees the producer's copy.

        `store` takes the KV, part by part; without it, it is dropped.
        """
        task = asyncio.create_task(self._run(key, handle, consumer, answer, store))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel all pulls and disconnect."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        producers, self._producers = list(self._producers.values()), OrderedDict()
        for producer in producers:
            await producer.channel.close()

    async def _run(
        self,
        key: int,
        handle: KVHandle,
        consumer: str,
        answer: Callable[[Answer], None],
        store: StoreChunk | None,
    ) -> None:
        started_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(PULL_TIMEOUT_S):
                final = await self._pull(handle, consumer, store)
        except (_PullError, RefusedCommandError) as error:
            answer(KVPullFailed(key, error.reason, str(error)))
        except TimeoutError:
            answer(KVPullFailed(key, FailReason.KV_TRANSFER, f"the pull took over {PULL_TIMEOUT_S:g} s"))
        except Exception as error:  # a supervision point: one pull must not leave its sequence waiting
            log.exception("a pull failed")
            answer(KVPullFailed(key, FailReason.INTERNAL, f"the pull failed with {type(error).__name__}"))
        else:
            took_s = asyncio.get_running_loop().time() - started_at
            answer(KVArrived(key, final.bytes, took_s, final.fingerprint))

    async def _pull(
        self, handle: KVHandle, consumer: str, store: StoreChunk | None
    ) -> worker_pb2.PullKVResponse:
        producer = await self._producer(handle.source)
        producer.pulls += 1
        try:
            return await _call(producer.channel, handle, consumer, store)
        except grpc.aio.AioRpcError as error:
            raise _PullError(_reason(error), f"{error.code().name}: {error.details()}") from error
        finally:
            producer.pulls -= 1

    async def _producer(self, source: str) -> _Producer:
        if source not in self._producers:
            target = await _resolve(source, self._rules)
            # Another pull may have connected while the name was resolved.
            if source not in self._producers:
                channel = grpc.aio.insecure_channel(target, options=self._options)
                self._producers[source] = _Producer(channel)
        self._producers.move_to_end(source)
        producer = self._producers[source]
        producer.pulls += 1  # holds it through the eviction of others
        try:
            await self._evict()
        finally:
            producer.pulls -= 1
        return producer

    async def _evict(self) -> None:
        idle = [source for source, producer in self._producers.items() if not producer.pulls]
        excess = max(len(self._producers) - MAX_CHANNELS, 0)
        for producer in [self._producers.pop(source) for source in idle[:excess]]:
            await producer.channel.close()


class _PullError(Exception):
    def __init__(self, reason: FailReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


async def _call(
    channel: grpc.aio.Channel, handle: KVHandle, consumer: str, store: StoreChunk | None
) -> worker_pb2.PullKVResponse:
    method = channel.unary_stream(
        _METHOD,
        request_serializer=worker_pb2.PullKVRequest.SerializeToString,
        response_deserializer=worker_pb2.PullKVResponse.FromString,
    )
    lease = kv_handle_to_proto(handle, asyncio.get_running_loop().time())
    call = method(worker_pb2.PullKVRequest(kv=lease, consumer=consumer), timeout=PULL_TIMEOUT_S)
    try:
        final: worker_pb2.PullKVResponse | None = None
        async for message in call:
            if not message.chunk:
                final = message
            elif store is not None:
                await store(message.chunk)
    finally:
        # A call that is dropped without cancel() goes on at the producer until the channel closes.
        call.cancel()
    if final is None:
        raise _PullError(FailReason.KV_TRANSFER, "the producer ended the pull without KV")
    return final


def _reason(error: grpc.aio.AioRpcError) -> FailReason:
    """The producer's own word for it; without one the transfer broke off on the way."""
    try:
        return FailReason(reason_of(error).lower())
    except ValueError:
        return FailReason.KV_TRANSFER


async def _resolve(source: str, rules: AddressRules) -> str:
    """Where to connect to for `host:port`, as an IP address, so that the name cannot change in between."""
    try:
        place = parse_host_port(source)
        ips = await _addresses(place)
    except (ValueError, OSError) as error:
        raise _PullError(FailReason.KV_TRANSFER, f"the KV's address is unusable: {error}") from error
    objection = rules.objection(ips, place.port)
    if objection is not None:
        raise _PullError(FailReason.KV_TRANSFER, f"KV is not pulled from {source}: {objection}")
    return str(HostPort(str(ips[0]), place.port))


async def _addresses(
    place: HostPort,
) -> Sequence[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
