"""The number formats a worker computes in and keeps KV in."""

from __future__ import annotations

from enum import StrEnum

import torch  # pyright: ignore[reportMissingImports]


class Precision(StrEnum):
    """By the names of the command line, of KV layouts, and of the wire between workers."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"

    @property
    def torch(self) -> torch.dtype:
        """As torch names it."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.value]

    @property
    def bytes(self) -> int:
        """Of one number."""
        return 4 if self is Precision.FP32 else 2
