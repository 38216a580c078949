"""KV on its way between workers: what the chunks of a PullKV hold.

A cache travels as a manifest, then layer by layer, each layer in runs of tokens that fit a message. Every
chunk says what it is and carries a checksum; the consumer takes each cell exactly once, in order, and refuses
anything else, so that KV is either the producer's to the last bit or not used at all. Numbers travel in the
producer's precision; the consumer converts them. All integers are little-endian.

    manifest   "PKV1" 0 precision:u8 layers:u16 kv_heads:u16 head_dim:u16 tokens:u32 count:u16, then count
               token ids:u32 that the producer has chosen already
    cells      "PKV1" 1 0:u8 layer:u16 start:u32 count:u32 crc32:u32, then the keys of the tokens and their
               values, (count, kv_heads, head_dim) each
"""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from struct import error as struct_error
from typing import Any, Final

import torch  # pyright: ignore[reportMissingImports]

from backends.models.messages import FailReason
from backends.models.shape import ModelShape
from backends.reference.precision import Precision
from backends.shell.wire import RefusedCommandError

CHUNK_BYTES: Final = 1 << 20
"""Of a run of cells: far below what a message may hold, and long enough that a message costs little."""
MAX_CHOSEN: Final = 16
"""Token ids in a manifest; this producer sends one."""

_MAGIC: Final = b"PKV1"
_MANIFEST: Final = Struct("<4sBBHHHIH")
_CELLS: Final = Struct("<4sBBHIII")
_PRECISIONS: Final = (Precision.BF16, Precision.FP16, Precision.FP32)


def identity(revision: str, tokens: Sequence[int]) -> int:
    """64 bits that stand for the KV of a prompt in a model, whatever its precision."""
    digest = hashlib.blake2b(revision.encode(), digest_size=8, person=b"kv-identity")
    digest.update(array("I", tokens).tobytes())
    return int.from_bytes(digest.digest(), "little")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the cells will be."""

    precision: Precision
    layers: int
    kv_heads: int
    head_dim: int
    tokens: int
    chosen: tuple[int, ...]
    """Tokens after the prompt that the producer has chosen; they have no KV yet."""

    def pack(self) -> bytes:
        """As the first chunk."""
        code, count = _PRECISIONS.index(self.precision), len(self.chosen)
        sizes = (self.layers, self.kv_heads, self.head_dim, self.tokens)
        return _MANIFEST.pack(_MAGIC, 0, code, *sizes, count) + Struct(f"<{count}I").pack(*self.chosen)


@dataclass(frozen=True, slots=True)
class Cells:
    """Keys and values of tokens start to start + count - 1 in one layer: (2, count, kv_heads, head_dim)."""

    layer: int
    start: int
    values: torch.Tensor

    @property
    def end(self) -> int:
        """The token after the last."""
        return self.start + int(self.values.shape[1])

    def pack(self) -> bytes:
        """As a chunk; copies from the device."""
        flat: bytes = self.values.contiguous().view(torch.uint8).cpu().numpy().tobytes()
        count = self.values.shape[1]
        return _CELLS.pack(_MAGIC, 1, 0, self.layer, self.start, count, zlib.crc32(flat)) + flat


def runs(manifest: Manifest) -> Iterator[tuple[int, int, int]]:
    """Layer, start and end of every chunk of cells, in the order in which they travel."""
    token_bytes = 2 * manifest.kv_heads * manifest.head_dim * manifest.precision.bytes
    count = max(1, CHUNK_BYTES // token_bytes)
    for layer in range(manifest.layers):
        for start in range(0, manifest.tokens, count):
            yield layer, start, min(start + count, manifest.tokens)


class Inflow:
    """One cache that comes in: checks every chunk, and knows when it is complete."""

    def __init__(self, shape: ModelShape, tokens: int) -> None:
        """What the consumer expects: the sizes of its own model, and the tokens of the handle."""
        self._shape = shape
        self._tokens = tokens
        self._expected: Iterator[tuple[int, int, int]] = iter(())
        self._next: tuple[int, int, int] | None = None
        self.manifest: Manifest | None = None

    @property
    def complete(self) -> bool:
        """Whether every cell has come."""
        return self.manifest is not None and self._next is None

    def take(self, chunk: bytes) -> Cells | None:
        """A chunk; gives the cells in it. Raises RefusedCommandError when it is not the next one."""
        if self.manifest is None:
            self.manifest = self._checked(_unpack_manifest(chunk))
            self._expected = runs(self.manifest)
            self._advance()
            return None
        cells = _unpack_cells(chunk, self.manifest)
        if self._next != (cells.layer, cells.start, cells.end):
            raise _broken(f"cells {cells.layer}:{cells.start}-{cells.end} came instead of {self._next}")
        self._advance()
        return cells

    def _advance(self) -> None:
        self._next = next(self._expected, None)

    def _checked(self, manifest: Manifest) -> Manifest:
        shape = self._shape
        sizes = (manifest.layers, manifest.kv_heads, manifest.head_dim, manifest.tokens)
        wanted = (shape.layers, shape.kv_heads, shape.head_dim, self._tokens)
        if sizes != wanted:
            text = f"KV of (layers, heads, size, tokens) {sizes} came where {wanted} was announced"
            raise RefusedCommandError(text, FailReason.KV_LAYOUT)
        return manifest


def _unpack_manifest(chunk: bytes) -> Manifest:
    magic, kind, code, layers, kv_heads, head_dim, tokens, count = _unpacked(_MANIFEST, chunk)
    if (magic, kind) != (_MAGIC, 0) or code >= len(_PRECISIONS) or count > MAX_CHOSEN:
        raise _broken("the first chunk is no manifest")
    chosen = _unpacked(Struct(f"<{count}I"), chunk[_MANIFEST.size :])
    return Manifest(_PRECISIONS[code], layers, kv_heads, head_dim, tokens, tuple(chosen))


def _unpack_cells(chunk: bytes, manifest: Manifest) -> Cells:
    magic, kind, _, layer, start, count, checksum = _unpacked(_CELLS, chunk)
    if (magic, kind) != (_MAGIC, 1):
        raise _broken("a chunk holds no cells")
    flat = bytearray(chunk[_CELLS.size :])  # torch wants memory of its own that may be written to
    size = (2, count, manifest.kv_heads, manifest.head_dim)
    if not count or len(flat) != 2 * count * size[2] * size[3] * manifest.precision.bytes:
        raise _broken(f"a chunk of {count} tokens has {len(flat)} bytes")
    if zlib.crc32(flat) != checksum:
        raise _broken("a chunk's checksum is wrong")
    return Cells(layer, start, torch.frombuffer(flat, dtype=manifest.precision.torch).view(size))


def _unpacked(form: Struct, chunk: bytes) -> tuple[Any, ...]:
    try:
        return form.unpack_from(chunk)
    except struct_error:
        raise _broken(f"a chunk of {len(chunk)} bytes is too short") from None


def _broken(what: str) -> RefusedCommandError:
    return RefusedCommandError(f"the KV that came is broken: {what}", FailReason.KV_TRANSFER)
