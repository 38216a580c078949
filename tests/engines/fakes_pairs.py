"""SGLang and TensorRT-LLM pairs as their wire protocols are documented: fakes that check what they are sent.

No line here was taken from a run of the real engine; docs/engines.md says so. A field that is missing, of
another type or with another value is noted in `faults`, so that a test can assert that there were none.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from tests.engines.rig import Call, piece, usage

ANSWER = ((11, "a"), (12, "b"), (13, "c"))


@dataclass
class Room:
    """Where the two engines of an SGLang pair meet."""

    prefill: asyncio.Event = field(default_factory=asyncio.Event)
    decode: asyncio.Event = field(default_factory=asyncio.Event)
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[dict[str, Any]] = field(default_factory=list)


class SglangPair:
    """Both engines. Prefill answers when decode has come for the KV, and decode when prefill has sent it."""

    def __init__(self, port: int = 8998, host: str = "127.0.0.1", dp_size: int = 1) -> None:
        self.place = (host, port)
        self.dp_size = dp_size
        self.rooms: dict[int, Room] = {}
        self.faults: list[str] = []
        self.open_calls = 0
        """Calls that hold blocks of an engine."""

    async def prefill(self, call: Call) -> None:
        """What the prefill engine does."""
        room = self._room(call, "routed_dp_rank")
        if room is None:
            await call.json({"error": {"message": "bad bootstrap"}}, 400)
            return
        self.open_calls += 1
        try:
            room.prefill.set()
            await room.decode.wait()
            await call.send(piece("a", finish="length"), "[DONE]")
        except asyncio.CancelledError:
            room.failed.set()  # decode is told
            raise
        finally:
            self.open_calls -= 1

    async def decode(self, call: Call) -> None:
        """What the decode engine does."""
        room = self._room(call, "disagg_prefill_dp_rank")
        if room is None:
            await call.json({"error": {"message": "bad bootstrap"}}, 400)
            return
        self.open_calls += 1
        try:
            room.decode.set()
            await _first(room.prefill, room.failed)
            if room.failed.is_set():
                await call.send({"error": {"message": "KVTransferError", "code": 500}})
                return
            for _, text in ANSWER[:-1]:
                await call.send(piece(text))
            await call.send(piece(ANSWER[-1][1], finish="length"), usage(3, 3), "[DONE]")
        finally:
            self.open_calls -= 1

    def _room(self, call: Call, rank_field: str) -> Room | None:
        number = call.body.get("bootstrap_room")
        if type(number) is not int or not 0 <= number < 1 << 63:
            self.faults.append("bootstrap_room")
            return None
        rank = number % self.dp_size if self.dp_size > 1 else None
        told = (call.body.get("bootstrap_host"), call.body.get("bootstrap_port"), call.body.get(rank_field))
        if told != (*self.place, rank):
            self.faults.append("bootstrap place or rank")
            return None
        room = self.rooms.setdefault(number, Room())
        room.bodies.append(call.body)
        return room


class TrtllmPair:
    """A context and a generation server. KV is kept from the context's answer until it is fetched."""

    def __init__(self, finish: str = "length") -> None:
        self.finish = finish
        self.kept: dict[int, dict[str, Any]] = {}
        self.faults: list[str] = []

    async def context(self, call: Call) -> None:
        """What the context server does."""
        body, params = call.body, call.body.get("disaggregated_params")
        if not isinstance(params, dict):
            await call.send(piece("w", [9], "length"), usage(3, 1), "[DONE]")
            return
        number: Any = params.get("disagg_request_id")
        if params.keys() != {"request_type", "disagg_request_id"} or params["request_type"] != "context_only":
            self.faults.append("disaggregated_params")
        if type(number) is not int or not 1 << 42 <= number < 1 << 63:
            self.faults.append("disagg_request_id")
        if body["stream"] is not False or "stream_options" in body:
            self.faults.append("stream")
        choice = {"index": 0, "text": ANSWER[0][1], "finish_reason": self.finish}
        if self.finish in ("length", "not_finished"):
            kept = self.kept[number] = {
                "request_type": "context_only",
                "first_gen_tokens": [ANSWER[0][0]],
                "ctx_request_id": number,
                "encoded_opaque_state": "b3BhcXVl",
                "draft_tokens": None,
                "ctx_dp_rank": 0,
                "ctx_info_endpoint": "tcp://10.0.0.5:5000",
            }
            choice["disaggregated_params"] = kept
        counts = {"prompt_tokens": 3, "completion_tokens": 1}
        await call.json({"choices": [choice], "usage": counts, "prompt_token_ids": [5, 6, 7]})

    async def generation(self, call: Call) -> None:
        """What the generation server does."""
        body = call.body
        params = body.get("disaggregated_params") or {}
        kept = self.kept.pop(params.get("ctx_request_id", 0), None)
        if kept is None:  # a reference that is stale: fetched before, or timed out
            await call.json({"error": {"message": "no such context"}}, 500)
            return
        number = kept["ctx_request_id"]
        if params != kept | {"request_type": "generation_only", "disagg_request_id": number}:
            self.faults.append("disaggregated_params")
        if body["prompt"] != [5, 6, 7] or body["stream"] is not True:
            self.faults.append("prompt")
        for _, text in ANSWER[:-1]:
            await call.send(piece(text))
        await call.send(piece(ANSWER[-1][1], finish="length"), usage(3, 3), "[DONE]")


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
