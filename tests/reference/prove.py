"""`make test-worker`: prefill in one process, decode in another, behind the router, against transformers.

Every round starts the processes anew, with another precision, chunk size, page size and number of requests at
a time, all drawn from a seed. Every token is compared; of a difference the table shows how near the two best
logits of the oracle were at the first token that differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import torch
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, inference_pb2_grpc

from backends.reference.precision import Precision
from router.cli import children
from router.cli.children import child
from router.grpc_options import channel_options
from tests.reference.models import LLAMA3, make_model
from tests.reference.oracle import Answer, Oracle
from tests.reference.stage import MODEL, greedy, prompt

ROLES = ("prefill", "decode")
DEADLINE_S = 300.0
"""For one request; nothing is timed here, and the machine may be busy."""


@dataclass(frozen=True, slots=True)
class Round:
    """One set-up of the two workers, and what is asked of them."""

    precision: Precision
    chunk: int
    block: int
    at_once: int
    prompts: list[list[int]]
    counts: list[int]


@dataclass(frozen=True, slots=True)
class Difference:
    """A request whose answer is not the oracle's."""

    precision: Precision
    prompt_tokens: int
    index: int
    """Of the first token that differs."""
    gap: float
    """Of the oracle's two best logits there."""


def drawn(rng: random.Random, precision: Precision, prompts: int) -> Round:
    """A round; prompts are of many lengths, a few of them long."""
    lengths = [
        rng.choice((rng.randrange(1, 40), rng.randrange(1, 300), rng.randrange(300, 900)))
        for _ in range(prompts)
    ]
    return Round(
        precision,
        chunk=rng.choice((17, 33, 64, 100, 129, 256, 512, 700)),
        block=rng.choice((8, 16, 32)),
        at_once=rng.choice((1, 4, 8, 16)),
        prompts=[prompt(rng, length) for length in lengths],
        counts=[rng.choice((1, 8, 32, 32)) for _ in lengths],
    )


async def run(one: Round, folder: Path) -> list[list[int]]:
    """The answers of the two workers, through the router."""
    async with AsyncExitStack() as stack:
        addresses: dict[str, str] = {}
        for role in ROLES:
            worker = await stack.enter_async_context(child(role, _arguments(one, folder, role), {}))
            addresses[role] = worker.ready["worker"]
        backends = json.dumps([{"id": role, "address": addresses[role]} for role in ROLES])
        listen = {f"POLYPHASE_LISTEN__{name}": "127.0.0.1:0" for name in ("DATA", "ADMIN", "METRICS")}
        env = {**listen, "POLYPHASE_BACKEND": backends}
        router = await stack.enter_async_context(child("router", ("serve", "--supervised"), env))
        options = list(channel_options())
        data, admin = [
            await stack.enter_async_context(grpc.aio.insecure_channel(router.ready[name], options=options))
            for name in ("data", "admin")
        ]
        await _joined(fleet_pb2_grpc.FleetServiceStub(admin))
        stub = inference_pb2_grpc.InferenceServiceStub(data)
        places = asyncio.Semaphore(one.at_once)
        asks = [_ask(stub, places, f"r{n}", ids, one.counts[n]) for n, ids in enumerate(one.prompts)]
        return list(await asyncio.gather(*asks))


async def _joined(stub: Any) -> None:
    """Wait until the router has lanes to both workers."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = await stub.ListBackends(fleet_pb2.ListBackendsRequest(), wait_for_ready=True)
            if [one.state for one in found.backends] == [fleet_pb2.BACKEND_STATE_READY] * len(ROLES):
                return
            await asyncio.sleep(0.05)


def _arguments(one: Round, folder: Path, role: str) -> Sequence[str]:
    options = {
        "model": folder,
        "name": MODEL,
        "id": role,
        "role": role,
        "dtype": one.precision,
        "listen": "127.0.0.1:0",
        "threads": 1,
        "block-tokens": one.block,
        "kv-tokens": 16_384,
        "max-num-seqs": 16,
        "max-num-batched-tokens": one.chunk,
    }
    return (
        "worker",
        "--supervised",
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
    )


async def _ask(stub: Any, places: asyncio.Semaphore, name: str, ids: list[int], count: int) -> list[int]:
    async with places:
        made = greedy(name, ids, count)
        made.slo.deadline_s = DEADLINE_S
        tokens: list[int] = []
        finished = inference_pb2.Finished()
        async for message in stub.Generate(made, wait_for_ready=True, timeout=DEADLINE_S):
            tokens += message.tokens.ids
            if message.HasField("finished"):
                finished = message.finished
        assert [use.backend for use in finished.uses] == list(ROLES), "the request was not split"
        return tokens


def compare(one: Round, answers: Sequence[list[int]], oracle: Oracle) -> list[Difference]:
    """Where the answers differ from the oracle's."""
    found: list[Difference] = []
    for ids, count, got in zip(one.prompts, one.counts, answers, strict=True):
        wanted = oracle.greedy(ids, count)
        if got != wanted.tokens:
            index = _first(got, wanted)
            found.append(Difference(one.precision, len(ids), index, wanted.gaps[index]))
    return found


def _first(got: list[int], wanted: Answer) -> int:
    pairs = enumerate(zip(got, wanted.tokens, strict=False))
    return next((n for n, (mine, theirs) in pairs if mine != theirs), min(len(got), len(wanted.tokens)) - 1)


def main() -> None:
    """Run all rounds; exit code 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    children.READY_TIMEOUT_S = DEADLINE_S
    rng = random.Random(given.seed)
    precisions = (Precision.FP32, Precision.BF16)
    differences: list[Difference] = []
    print("| precision | rope | chunk | page | at once | prompts | tokens | differ | s |")
    print(f"|---|---|{'--:|' * 7}")
    for number in range(given.rounds):
        one = drawn(rng, precisions[number % 2], given.prompts // given.rounds)
        rope = "llama3" if number // 2 % 2 else "default"
        changes = {"rope_scaling": LLAMA3} if rope == "llama3" else {}
        with tempfile.TemporaryDirectory() as place:
            folder = make_model(Path(place) / MODEL, one.precision.torch, number, **changes)
            began = time.monotonic()
            answers = asyncio.run(run(one, folder))
            took_s = time.monotonic() - began
            found = compare(one, answers, Oracle(folder, one.precision.torch))
        differences += found
        row = (one.precision, rope, one.chunk, one.block, one.at_once, len(answers), sum(map(len, answers)))
        print(f"| {' | '.join(map(str, row))} | {len(found)} | {took_s:.0f} |", flush=True)
    for one in differences:
        print(f"differs: {one}")
    print(f"torch {torch.__version__}; {len(differences)} of {given.prompts} answers differ")
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
