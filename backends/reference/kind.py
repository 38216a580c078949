"""What the KV of a worker is: its model, its revision, its precision."""

from __future__ import annotations

from dataclasses import dataclass

from backends.models.shape import ModelShape
from backends.reference.precision import Precision


@dataclass(frozen=True, slots=True)
class Kind:
    """Workers of the same shape and revision can take each other's KV over; the precision is converted."""

    shape: ModelShape
    revision: str
    precision: Precision

    def layout(self, precision: Precision, block_tokens: int) -> str:
        """The fingerprint in specs and handles, in one precision. There is no tensor parallelism: tp1."""
        return f"{self.shape.name}@{self.revision}/{precision}/b{block_tokens}/tp1"
