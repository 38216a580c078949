"""What real engines behind our daemon must show. A check returns what it measured, or raises."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc.aio

from backends.engines.dialect import Ask
from backends.engines.nixl import Hosts, connector_of, prefill_ask, release_ask
from tests.engines_real.engines import Engine
from tests.engines_real.router import Outcome, ask, daemon, entry, stub_of

ANSWER_TOKENS: Final = 24
LEASE_S: Final = 30.0
LATEST_S: Final = 3 * LEASE_S + 10.0
"""No request may take longer, whatever fails: a prompt whose decode has no place is computed again at the end
of its lease, in three attempts at most; the queue and stalls have shorter bounds."""
_USED: Final = "vllm:kv_cache_usage_perc"
_RUNNING: Final = "vllm:num_requests_running"

PROBES: Final = {"health_timeout_s": 60.0}
"""An engine that is alive answers in that time, however busy the machine; a dead one refuses connections."""

Prompt = list[int]


class CheckError(Exception):
    """An engine or the router did not do what it should."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The engines, and where logs go."""

    single: Engine
    prefill: Engine
    decode: Engine
    folder: Path

    def pair(self, *, release: bool = True) -> str:
        """[[backend]] entries of the pair."""
        through = {"release_through": self.decode.url} if release else {}
        prefill = entry("prefill", "vllm-nixl", self.prefill.url, ["prefill"], **PROBES, **through)
        return prefill + entry("decode", "vllm-nixl", self.decode.url, ["decode"], **PROBES)

    def fused(self) -> str:
        """And of the single one."""
        return entry("fused", "vllm", self.single.url, **PROBES)


def prompts(count: int, seed: int, longest: int = 400) -> list[Prompt]:
    """Random ids; some shorter than a block of KV, some of many blocks."""
    rng = random.Random(seed)
    return [[rng.randrange(2, 8192) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def answers(engine: Engine, wanted: Sequence[Prompt], count: int = ANSWER_TOKENS) -> list[list[int]]:
    """What one engine says by itself, one prompt after the other: the reference."""
    return [engine.tokens(prompt, count) for prompt in wanted]


async def exact(fleet: Fleet, count: int) -> dict[str, Any]:
    """The pair says what the single engine says, token for token, and KV has gone from one to the other."""
    wanted = prompts(count, seed=1)
    reference = answers(fleet.single, wanted)
    _must_matter(fleet, wanted, reference)
    before = _moved_bytes(fleet)
    with daemon(fleet.folder, SPLIT + PATIENT + fleet.pair()) as router:
        await router.until_ready(2)
        async with grpc.aio.insecure_channel(router.data) as channel:
            outcomes = [await ask(stub_of(channel), prompt, ANSWER_TOKENS) for prompt in wanted]
    for outcome, tokens in zip(outcomes, reference, strict=True):
        if outcome.error or outcome.ids != tokens or set(outcome.backends) != {"prefill", "decode"}:
            raise CheckError(f"{outcome} instead of {tokens}")
    retried = sum(outcome.attempts > 1 for outcome in outcomes)
    moved = _moved_bytes(fleet) - before
    if moved <= 0:
        raise CheckError("no KV was transferred")
    tokens = count * ANSWER_TOKENS
    return {"prompts": count, "tokens": tokens, "differences": 0, "retried": retried, "kv_bytes_moved": moved}


def _moved_bytes(fleet: Fleet) -> float:
    """Pulls are counted by decode, pushes by prefill."""
    return sum(engine.metric("vllm:nixl_bytes_transferred_sum") for engine in (fleet.prefill, fleet.decode))


def _must_matter(fleet: Fleet, wanted: Sequence[Prompt], reference: Sequence[list[int]]) -> None:
    """Without the KV of all but the last tokens of a prompt, the model says something else."""
    long = [(prompt, tokens) for prompt, tokens in zip(wanted, reference, strict=True) if len(prompt) > 64][
        :10
    ]
    same = sum(fleet.single.tokens(prompt[-16:], ANSWER_TOKENS) == tokens for prompt, tokens in long)
    if same > 1 or len(long) < 10:
        raise CheckError(
            f"{same} of {len(long)} answers do not depend on the KV: the check would show nothing"
        )


async def mixed(fleet: Fleet, count: int) -> dict[str, Any]:
    """A fused engine beside the pair, in one fleet: the policy uses both, and no answer depends on which."""
    wanted = prompts(count, seed=2)
    reference = answers(fleet.single, wanted)
    used: Counter[str] = Counter()
    with daemon(fleet.folder, SPLIT + PATIENT + fleet.pair() + fleet.fused()) as router:
        await router.until_ready(3)
        async with grpc.aio.insecure_channel(router.data) as channel:
            for prompt, tokens in zip(wanted, reference, strict=True):
                outcome = await ask(stub_of(channel), prompt, ANSWER_TOKENS)
                if outcome.error or outcome.ids != tokens:
                    raise CheckError(f"{outcome} instead of {tokens}")
                used["+".join(dict.fromkeys(outcome.backends))] += 1
    if not {"prefill+decode", "fused"} <= used.keys():
        raise CheckError(f"only {dict(used)} was used")
    return {"requests": count, "used": dict(used)}


async def cancelled(fleet: Fleet, count: int, *, release: bool) -> dict[str, Any]:
    """Clients that leave at any time leave nothing pinned behind: no request, and no KV after its lease."""
    wanted = prompts(count, seed=3, longest=900)
    rng = random.Random(4)
    with daemon(fleet.folder, SPLIT + PATIENT + fleet.pair(release=release)) as router:
        await router.until_ready(2)
        async with grpc.aio.insecure_channel(router.data) as channel:
            whole = [await ask(stub_of(channel), prompt, 200) for prompt in wanted[:5]]
            typical_s = statistics.median(outcome.ttft_s for outcome in whole)
            left = Counter[str]()
            for prompt in wanted:
                # Half of the time before the first token, half of it after.
                after_s = typical_s * rng.uniform(0.02, 2.0)
                outcome = await ask(stub_of(channel), prompt, 200, after_s)
                left["before the first token" if not outcome.ids else "after it"] += 1
            freed_s = await _freed(fleet)
            again = await ask(stub_of(channel), wanted[0], ANSWER_TOKENS)
    if again.ids != fleet.single.tokens(wanted[0], ANSWER_TOKENS):
        raise CheckError("after the cancellations the pair says something else")
    return {"cancelled": dict(left), "release_through": release, "nothing_pinned_after_s": round(freed_s, 1)}


async def _freed(fleet: Fleet) -> float:
    """Seconds until neither engine of the pair holds KV or runs anything."""
    began = time.monotonic()
    while True:
        pair = (fleet.prefill, fleet.decode)
        held = [(engine.metric(_USED), engine.metric(_RUNNING)) for engine in pair]
        if not any(any(of_one) for of_one in held):
            return time.monotonic() - began
        if time.monotonic() - began > LEASE_S + 10.0:
            raise CheckError(f"KV is pinned after its lease: {held}")
        await asyncio.sleep(0.5)


async def leases(fleet: Fleet) -> dict[str, Any]:
    """KV that prefill keeps for nobody is freed at the end of its lease, and at once when it is released."""
    took: dict[str, float] = {}
    for how in ("by its lease", "by a release"):
        ask = prefill_ask(Ask("/v1/completions", {"model": "tiny", "prompt": list(range(2, 500))}))
        _, answer = fleet.prefill.post(ask.path, ask.body)
        connector = connector_of(answer, Hosts())
        if connector is None:
            raise CheckError("prefill kept no KV")
        await asyncio.sleep(1.0)
        if fleet.prefill.metric(_USED) == 0.0:
            raise CheckError("the engine's metric does not show what it keeps")
        if how == "by a release":
            status, _ = fleet.decode.post("/v1/completions", release_ask(connector, "tiny").body)
            if status != 404:
                raise CheckError(f"decode answered {status} to a release")
        took[how] = round(await _freed(fleet), 1)
    if took["by a release"] > LEASE_S / 2:
        raise CheckError(f"the release did nothing: {took}")
    return {"freed_after_s": took}


async def kills(fleet: Fleet, victim: Engine, *, fused: bool) -> dict[str, Any]:
    """An engine dies under 8 requests: each is answered rightly, or ends with a typed error, in time."""
    wanted = prompts(8, seed=5, longest=600)
    reference = answers(fleet.single, wanted, 300)
    text = SPLIT + BRIEF + fleet.pair() + (fleet.fused() if fused else "")
    with daemon(fleet.folder, text) as router:
        await router.until_ready(3 if fused else 2)
        async with grpc.aio.insecure_channel(router.data) as channel:
            tasks = [asyncio.create_task(ask(stub_of(channel), prompt, 300)) for prompt in wanted]
            await asyncio.sleep(0.4)
            await asyncio.to_thread(victim.kill)
            outcomes = await asyncio.gather(*tasks)
    ends: Counter[str] = Counter()
    for outcome, tokens in zip(outcomes, reference, strict=True):
        _judge(outcome, tokens)
        retried = "answered after a retry" if outcome.attempts > 1 else "answered"
        ends[outcome.error or retried] += 1
    return {"ends": dict(ends), "slowest_s": round(max(outcome.e2e_s for outcome in outcomes), 1)}


def _judge(outcome: Outcome, tokens: list[int]) -> None:
    if outcome.e2e_s > LATEST_S:
        raise CheckError(f"a request took {outcome.e2e_s:.1f} s")
    if outcome.ids != tokens[: len(outcome.ids)] or (not outcome.error and outcome.ids != tokens):
        raise CheckError(f"wrong tokens: {outcome}")
    if outcome.error and outcome.error not in TYPED:
        raise CheckError(f"{outcome.error} is no typed error of the router's")


TYPED: Final = frozenset(
    {"BACKEND_LOST", "BACKEND_FAILED", "BACKEND_STALLED", "KV_TRANSFER_FAILED", "KV_STALE"}
    | {"RETRIES_EXHAUSTED", "SHED", "NO_BACKEND", "QUEUE_FULL"}
)


async def overhead(fleet: Fleet, count: int) -> dict[str, Any]:
    """What the router adds to a fused request, by turns with direct access, one request at a time."""
    wanted = prompts(count, seed=6, longest=40)
    direct: list[tuple[float, float]] = []
    routed: list[tuple[float, float]] = []
    with daemon(fleet.folder, PATIENT + fleet.fused()) as router:
        await router.until_ready(1)
        async with grpc.aio.insecure_channel(router.data) as channel, aiohttp.ClientSession() as session:
            for number, prompt in enumerate(wanted):
                turns = [_direct(session, fleet.single, prompt), ask(stub_of(channel), prompt, 8)]
                for which in (0, 1) if number % 2 else (1, 0):
                    outcome = await turns[which]
                    (direct, routed)[which].append((outcome.ttft_s, outcome.e2e_s))
    added = [statistics.median(r[at] - d[at] for r, d in zip(routed, direct, strict=True)) for at in (0, 1)]
    return {
        "requests": count,
        "direct_ttft_ms": _ms(statistics.median(ttft for ttft, _ in direct)),
        "routed_ttft_ms": _ms(statistics.median(ttft for ttft, _ in routed)),
        "added_to_ttft_ms": _ms(added[0]),
        "added_to_e2e_ms": _ms(added[1]),
    }


async def _direct(session: aiohttp.ClientSession, engine: Engine, prompt: Prompt) -> Outcome:
    """As the adapter asks, without the router."""
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": 8,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    outcome, began = Outcome(), time.perf_counter()
    async with session.post(engine.url + "/v1/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data:") and not outcome.ttft_s:
                outcome.ttft_s = time.perf_counter() - began
    outcome.e2e_s = time.perf_counter() - began
    return outcome


def _ms(seconds: float) -> float:
    return round(1000.0 * seconds, 2)


SPLIT: Final = '[policy]\nname = "round_robin"\n'
BRIEF: Final = "[admission]\nmax_queue_s = 20.0\n"
"""A request that has no place for so long is shed: without the default of 60 s, so that the bound is seen."""
PATIENT: Final = "[admission]\nstall_s = 120.0\n[lanes]\ndecode_stall_s = 120.0\n"
"""Of checks in which no engine fails: a machine that is busy with other things is no fault of theirs."""
