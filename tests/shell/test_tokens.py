"""The mock's tokens are a hash chain that shows every loss, swap and foreign cache."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from polyphase.v1 import inference_pb2

from backends.models.tokens import (
    VOCABULARY,
    TokenStream,
    kv_fingerprint,
    prompt_fingerprint,
    token_at,
)
from router.wire import prompt_bytes, prompt_length

U64 = st.integers(0, 2**64 - 1)
FROZEN_PROMPT = 16653910393078951037
FROZEN_KV = 13248203194451940912
FROZEN_TOKENS = [18807, 20807, 9391, 23613]
INDEX = st.integers(0, 2**32 - 1)


@given(U64, U64, U64, INDEX, st.integers(0, 100))
def test_stream_and_single_tokens_agree(
    prompt_fp: int, kv_fp: int, seed: int, first: int, count: int
) -> None:
    """Both sides get the same tokens whichever way they ask, all of them in the vocabulary."""
    tokens = TokenStream(prompt_fp, kv_fp, seed).tokens(first, count)
    assert tokens == [token_at(prompt_fp, kv_fp, seed, first + i) for i in range(count)]
    assert all(0 <= token < VOCABULARY for token in tokens)


@given(U64, U64, U64, st.lists(INDEX, max_size=50))
def test_order_of_questions_does_not_matter(p: int, k: int, seed: int, indices: list[int]) -> None:
    """A stream that jumps back gives what it gave before."""
    stream = TokenStream(p, k, seed)
    assert [stream.token(i) for i in indices] == [token_at(p, k, seed, i) for i in indices]


@given(U64, U64, U64, U64)
def test_every_ingredient_matters(p: int, k: int, seed: int, other: int) -> None:
    """Another prompt, another KV or another seed gives another answer."""
    own = TokenStream(p, k, seed).tokens(0, 16)
    for ingredients in ((other, k, seed), (p, other, seed), (p, k, other)):
        same = ingredients == (p, k, seed)
        assert (TokenStream(*ingredients).tokens(0, 16) == own) is same


def test_a_shift_or_a_swap_shows() -> None:
    """A lost or doubled token moves all later ones to indices where they are wrong."""
    own = TokenStream(1, 2, 3).tokens(0, 1000)
    hits = sum(a == b for a, b in pairwise(own))
    assert hits < 5


def test_prompts_have_fingerprints_of_their_own() -> None:
    """Neither the model's name nor the kind of prompt can be traded against prompt bytes."""
    pairs = [("m", b"ab"), ("ma", b"b"), ("", b"mab"), ("m", b"ab\0"), ("m", b""), ("n", b"ab")]
    prints = {prompt_fingerprint(model, prompt) for model, prompt in pairs}
    assert len(prints) == len(pairs)
    assert all(kv_fingerprint(fp) != fp for fp in prints)


def test_the_chain_is_frozen() -> None:
    """Clients and workers of different releases agree: these values never change."""
    prompt_fp = prompt_fingerprint("llama", b"\x01\0\0\0\x02\0\0\0")
    assert prompt_fp == FROZEN_PROMPT
    assert kv_fingerprint(prompt_fp) == FROZEN_KV
    assert TokenStream(prompt_fp, FROZEN_KV, 42).tokens(14, 4) == FROZEN_TOKENS


def test_prompt_bytes_are_little_endian_ids_or_marked_text() -> None:
    """Ids and text have one encoding each, and a length."""
    ids = inference_pb2.GenerateRequest(tokens={"ids": [1, 258]})
    text = inference_pb2.GenerateRequest(text="héllo")
    assert prompt_bytes(ids) == b"\x01\0\0\0\x02\x01\0\0"
    assert prompt_bytes(text) == b"th\xc3\xa9llo"
    assert (prompt_length(ids), prompt_length(text)) == (2, 2)
    assert prompt_length(inference_pb2.GenerateRequest()) == 0
