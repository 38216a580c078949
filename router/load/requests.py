"""Turns arrivals into requests for the wire, and knows the answer a mock worker owes to each.

The true output length travels in engine_options["mock.output_tokens"], which the router hands to the
worker unseen; max_new_tokens is only a cap, rounded so that it does not tell the length.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from polyphase.v1 import common_pb2, inference_pb2

from backends.models.tokens import VOCABULARY, TokenStream, kv_fingerprint, prompt_fingerprint
from router.sim.workload import MOONCAKE_BLOCK_TOKENS, Arrival

MIN_CAP: Final = 1024
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1
_POOL_TOKENS: Final = 1 << 16
"""Prompts are cut from one pool: a fresh random number per prompt token would cost more than the rest."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What is the same for every request of a run. None means no objective."""

    model: str
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    deadline_s: float | None = None
    tenant: str = ""
    priority: int = 0
    """A number of polyphase.v1.Priority; 0 leaves it to the router."""
    block_tokens: int = 16
    """Tokens that one prefix hash covers at the backends; a divisor of MOONCAKE_BLOCK_TOKENS."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens a mock worker must send for one request."""

    prompt_fp: int
    seed: int
    tokens: int
    """How many; at least 1."""

    def ids(self, first: int, count: int) -> list[int]:
        """Token ids from index `first` on."""
        return TokenStream(self.prompt_fp, kv_fingerprint(self.prompt_fp), self.seed).tokens(first, count)


class RequestMaker:
    """Makes the requests of one run; the same seed gives the same prompts, seeds and answers."""

    def __init__(self, options: RequestOptions, seed: int, run: str) -> None:
        """`run` starts every request id, so that runs against the same router do not collide."""
        self._options = options
        self._run = run
        self._rng = Random(seed)
        self._pool = array("I", (self._rng.randrange(VOCABULARY) for _ in range(_POOL_TOKENS)))
        self._slo = _service_level(options)

    def make(self, index: int, arrival: Arrival) -> tuple[inference_pb2.GenerateRequest, Answer]:
        """Request number `index` of the run and its answer."""
        prompt = self._prompt(index, arrival)
        seed = self._rng.getrandbits(63)
        request = inference_pb2.GenerateRequest(
            request_id=f"{self._run}-{index}",
            model=self._options.model,
            tokens=common_pb2.TokenIds(ids=prompt),
            max_new_tokens=output_cap(arrival.output_tokens),
            sampling=common_pb2.SamplingParams(seed=seed),
            workload_class=arrival.workload_class,
            slo=self._slo,
            tenant=self._options.tenant,
            priority=common_pb2.Priority.Name(self._options.priority),
            prefix_hashes=split_hashes(arrival.prefix_hashes, self._options.block_tokens),
            engine_options={"mock.output_tokens": str(arrival.output_tokens)},
        )
        fingerprint = prompt_fingerprint(self._options.model, _packed(prompt))
        return request, Answer(fingerprint, seed, arrival.output_tokens)

    def _prompt(self, index: int, arrival: Arrival) -> array[int]:
        """Blocks with the same prefix hash get the same tokens; what follows them is the request's own."""
        prompt = array("I")
        for prefix in arrival.prefix_hashes:
            prompt.extend(self._cut(prefix, MOONCAKE_BLOCK_TOKENS))
        # Two tokens count the requests, so that no two prompts of a run are equal by chance.
        prompt.extend((index // VOCABULARY % VOCABULARY, index % VOCABULARY))
        while len(prompt) < arrival.prompt_tokens:
            prompt.extend(self._cut(self._rng.getrandbits(32), arrival.prompt_tokens - len(prompt)))
        return prompt[: arrival.prompt_tokens]

    def _cut(self, where: int, tokens: int) -> array[int]:
        start = where % (_POOL_TOKENS - MOONCAKE_BLOCK_TOKENS)
        return self._pool[start : start + tokens]


def output_cap(output_tokens: int) -> int:
    """max_new_tokens for a true length: the next power of two, at least 1024."""
    return max(MIN_CAP, 1 << (output_tokens - 1).bit_length())


def split_hashes(prefixes: Sequence[int], block_tokens: int) -> list[int]:
    """Hashes of the trace's large blocks as hashes of the backends' smaller ones.

    A block's hash covers all of it and what came before, so its parts are told apart by a number alone:
    the multiples of an odd constant (2^64 over the golden ratio), which differ modulo 2^64.
    """
    parts = MOONCAKE_BLOCK_TOKENS // block_tokens
    return [(prefix + part * _GOLDEN) & _MASK for prefix in prefixes for part in range(parts)]


def _service_level(options: RequestOptions) -> common_pb2.ServiceLevel:
    return common_pb2.ServiceLevel(
        ttft_s=options.ttft_slo_s, tpot_s=options.tpot_slo_s, deadline_s=options.deadline_s
    )


def _packed(prompt: array[int]) -> bytes:
    """Little-endian uint32, as the worker packs them."""
    if sys.byteorder == "little":
        return prompt.tobytes()
    swapped = prompt[:]
    swapped.byteswap()
    return swapped.tobytes()
