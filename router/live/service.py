"""The northbound service: Generate, Session and Plan, from the first byte of a call to its status.

Methods are registered by hand as stream handlers with raw bytes both ways. The wire format is that of the
protos; a stream handler can bound the wait for a message that never comes, and parsing ourselves gives a
broken message a typed status. It is a supervision point: whatever goes wrong in a call ends in a status for
that call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from polyphase.v1 import inference_pb2

from router.core.messages import RequestCancelled
from router.errors import CallerError, CapacityError, PolyphaseError, Reason
from router.live.driver import INTERNAL_MESSAGE, Driver
from router.live.flow import Flow, Sink
from router.live.generate import GenerateCall
from router.live.outlet import ClientGoneError, Writer, first_message
from router.live.parse import generate_request, plan_request
from router.live.salts import PrefixSalts
from router.live.session import Session, SessionLimits
from router.live.status import RequestFailedError, abort
from router.live.validate import Limits, mint_id, validate
from router.live.wire import plan_to_proto
from router.model import Seconds

log = logging.getLogger(__name__)

SERVICE_NAME: Final = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name

Body = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """Bounds of a call."""

    request: Limits = field(default_factory=Limits)
    session: SessionLimits = field(default_factory=SessionLimits)
    first_message_s: Seconds = 10.0
    """For the message of Generate and Plan. A session may be idle: pings find a client that vanished."""
    write_s: Seconds = 30.0
    """For one message to a client that does not read."""
    calls: int = 20_000
    """Open calls of all methods. Our own bound, since gRPC's would refuse health checks too."""
    live_prompt_tokens: int = 1 << 28
    """Of all live requests, about 1 GiB: prompts are kept until the end, for another attempt."""
    retry_s: Seconds = 1.0
    """What a client is told to wait when there is too much of something, or the router drains."""


def _ignore(error: PolyphaseError) -> None:
    pass


class InferenceService:
    """Answers clients. One per driver."""

    def __init__(
        self,
        driver: Driver,
        limits: ServiceLimits | None = None,
        *,
        mint: Callable[[], str] = mint_id,
        salts: PrefixSalts | None = None,
        on_refused: Callable[[PolyphaseError], None] = _ignore,
    ) -> None:
        """`mint` makes request ids; `salts` keeps tenants apart in the prefix cache.

        `on_refused` hears of calls and requests that never reached the core."""
        self._driver = driver
        self._limits = limits if limits is not None else ServiceLimits()
        self._mint = mint
        self._salts = salts
        self._on_refused = on_refused
        self._sessions: set[Session] = set()
        self._calls = 0
        self._draining = False

    def register(self, server: grpc.aio.Server) -> None:
        """Add the methods to a server."""
        methods = {"Generate": self._generate, "Session": self._session, "Plan": self._plan}
        handlers = {
            name: grpc.stream_stream_rpc_method_handler(self._supervised(name, body))
            for name, body in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    def drain(self) -> None:
        """Refuse new calls, and end sessions once their requests have ended. What runs goes on."""
        self._draining = True
        for session in tuple(self._sessions):
            session.drain()

    @property
    def calls(self) -> int:
        """Open calls."""
        return self._calls

    # --- what sessions need ---

    def admit(self, payload: inference_pb2.GenerateRequest, sink: Sink, left_s: Seconds | None) -> Flow:
        """Validate and open a request. Raises PolyphaseError; afterwards the sink hears of its end."""
        driver = self._driver
        request = validate(
            payload,
            driver.now(),
            self._limits.request,
            time_remaining_s=left_s,
            mint=self._mint,
            salts=self._salts,
        )
        if driver.flows.prompt_tokens + request.prompt_tokens > self._limits.live_prompt_tokens:
            raise self._too_much(f"{self._limits.live_prompt_tokens} prompt tokens", "request")
        flow = Flow(request, payload, sink, driver.tell, driver.flows.counts)
        if not driver.open(flow):
            raise CallerError(
                Reason.DUPLICATE_REQUEST,
                f"request id {request.id!r} is live; this request was not accepted and the live one goes on; "
                "send it with another id, or with none",
            )
        return flow

    def cancel(self, request_id: str, reason: Reason) -> None:
        """Nobody waits for a request any more."""
        self._driver.tell(RequestCancelled(request_id, reason))

    def refused(self, error: PolyphaseError) -> None:
        """A request ended before the core saw it."""
        self._on_refused(error)

    # --- methods ---

    async def _generate(self, context: Any) -> None:
        raw = await first_message(context, self._limits.first_message_s)
        payload = generate_request(raw)
        loop = asyncio.get_running_loop()
        call = GenerateCall(loop, payload.explain)
        flow = self.admit(payload, call, context.time_remaining())
        writer = Writer(context, self._limits.write_s, loop)
        reason = Reason.CANCELLED
        try:
            await call.pump(writer)
        except PolyphaseError as error:
            reason = error.reason
            raise
        except asyncio.CancelledError:
            reason = Reason.DEADLINE_EXPIRED if context.time_remaining() == 0 else Reason.CANCELLED
            raise
        finally:
            writer.close()
            if not call.ended:
                self.cancel(flow.id, reason)

    async def _session(self, context: Any) -> None:
        session = Session(self, context, self._limits.write_s, self._limits.session)
        self._sessions.add(session)
        try:
            await session.run()
        finally:
            self._sessions.discard(session)

    async def _plan(self, context: Any) -> None:
        raw = await first_message(context, self._limits.first_message_s)
        payload = plan_request(raw)
        request = validate(
            payload,
            self._driver.now(),
            self._limits.request,
            time_remaining_s=context.time_remaining(),
            mint=self._mint,
            salts=self._salts,
        )
        answer = plan_to_proto(self._driver.plan(request))
        writer = Writer(context, self._limits.write_s, asyncio.get_running_loop())
        try:
            await writer.write(answer.SerializeToString())
        finally:
            writer.close()

    # --- supervision ---

    def _supervised(self, name: str, body: Body) -> Callable[[Any, Any], Awaitable[None]]:
        async def handler(_requests: Any, context: Any) -> None:
            self._calls += 1
            try:
                self._refuse_call()
                await body(context)
            except PolyphaseError as error:
                await self._end(context, error)
            except ClientGoneError:
                # Returning would make grpc.aio send a status into the dead call, and log its failure.
                raise asyncio.CancelledError from None
            except Exception:
                log.exception("%s failed", name)
                await self._end(context, PolyphaseError(Reason.INTERNAL, INTERNAL_MESSAGE))
            finally:
                self._calls -= 1

        return handler

    def _refuse_call(self) -> None:
        if self._draining:
            raise CapacityError(
                Reason.DRAINING,
                "the router shuts down; the call was not accepted; send it to another router",
                retry_after_s=self._limits.retry_s,
            )
        if self._calls > self._limits.calls:
            raise self._too_much(f"{self._limits.calls} calls are open", "call")

    def _too_much(self, what: str, refused: str) -> CapacityError:
        return CapacityError(
            Reason.QUEUE_FULL,
            f"{what}, the most this router holds; the {refused} was not accepted; retry later",
            retry_after_s=self._limits.retry_s,
        )

    async def _end(self, context: Any, error: PolyphaseError) -> None:
        if not isinstance(error, RequestFailedError) and error.reason is not Reason.SLOW_READER:
            self._on_refused(error)
        await abort(context, error)
