"""The tokens of a mock worker: a hash of the prompt, the KV it was decoded from, the seed and the index.

A worker computes them from the prompt of its own command and the fingerprint of the KV cache it holds;
a client computes them from the prompt it sent. A token that was lost, doubled, reordered, decoded from
stale or foreign KV, or delivered to the wrong request differs, so every load test checks the whole path.

Pure: no I/O, no clock, no randomness. Not a secret: the hash tells requests apart and hides nothing.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import Final

VOCABULARY: Final = 32_000
"""Token ids lie in [0, VOCABULARY): small enough that a wrong id is never taken for an index or a count."""

_TOKENS_PER_BLOCK: Final = 16
"""One 64-byte digest, the largest of BLAKE2b (RFC 7693), is cut into 16 tokens: a hash call costs about as
much as the arithmetic on its result, so its cost per token vanishes."""

_PREFIX: Final = Struct("<I")
_ONE: Final = Struct("<Q")
_SEED_OF_BLOCK: Final = Struct("<QQQQ")
_BLOCK: Final = Struct(f"<{_TOKENS_PER_BLOCK}I")


def prompt_fingerprint(model: str, prompt: bytes) -> int:
    """64 bits that stand for a prompt to a model.

    `prompt` is the token ids as little-endian uint32, or b"t" and the text in UTF-8. The length of the
    model's name goes first, so that no two (model, prompt) pairs share their bytes.
    """
    name = model.encode()
    digest = blake2b(_PREFIX.pack(len(name)) + name, digest_size=8)
    digest.update(prompt)
    return _ONE.unpack(digest.digest())[0]  # type: ignore[no-any-return]


def kv_fingerprint(prompt_fp: int) -> int:
    """64 bits that stand for the KV cache of a prompt; the same in every layout, so that a cache that was
    converted on its way stays valid."""
    return _ONE.unpack(blake2b(_ONE.pack(prompt_fp), digest_size=8, person=b"kv-cache").digest())[0]  # type: ignore[no-any-return]


def token_at(prompt_fp: int, kv_fp: int, seed: int, index: int) -> int:
    """Token `index` (from 0) of the answer, in [0, VOCABULARY). For many tokens use TokenStream."""
    return TokenStream(prompt_fp, kv_fp, seed).token(index)


class TokenStream:
    """The answer to one prompt; fast in ascending order, right in any.

    Fingerprints and the seed are unsigned 64-bit numbers; a struct.error says that one is not.
    """

    __slots__ = ("_block", "_ids", "_kv_fp", "_prompt_fp", "_seed")

    def __init__(self, prompt_fp: int, kv_fp: int, seed: int) -> None:
        self._prompt_fp = prompt_fp
        self._kv_fp = kv_fp
        self._seed = seed
        self._block = -1
        self._ids: list[int] = []

    def token(self, index: int) -> int:
        """Token `index`, from 0."""
        block = index >> 4
        if block != self._block:
            self._fill(block)
        return self._ids[index & 15]

    def tokens(self, first: int, count: int) -> list[int]:
        """`count` tokens from index `first` on."""
        return [self.token(index) for index in range(first, first + count)]

    def _fill(self, block: int) -> None:
        seed = _SEED_OF_BLOCK.pack(self._prompt_fp, self._kv_fp, self._seed, block)
        self._ids = [word % VOCABULARY for word in _BLOCK.unpack(blake2b(seed).digest())]
        self._block = block
