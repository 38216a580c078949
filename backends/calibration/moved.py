"""What a serving step moves and computes, for the models whose power was published.

Counts come from the models' public configuration files: parameters in all, active per token and in experts,
KV elements per token. They are known to about 1 %, far below the error of the power law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Parameters in billions."""

    total_b: float
    active_b: float
    kv_elements: int
    """Of one token, over all layers."""
    expert_b: float = 0.0
    """Parameters in routed experts; 0 for a dense model."""
    experts: int = 1
    top_k: int = 1
    family: str = "dense"
    """Models that share a power law; each mixture of experts is a family of its own."""

    def weights_read_b(self, tokens: float) -> float:
        """Parameters, in billions, that a step over `tokens` tokens reads, with tokens routed evenly."""
        missed = math.pow(1.0 - self.top_k / self.experts, tokens)
        return self.total_b - self.expert_b * missed


_GQA_128: Final = 2 * 8 * 128
"""KV elements per layer with 8 heads of 128."""
_QWEN3_30B: Final = Anatomy(30.5, 3.3, 48 * 2 * 4 * 128, 29.0, 128, 8, "Qwen3-30B-A3B")
_QWEN3_235B: Final = Anatomy(235.1, 22.2, 94 * 2 * 4 * 128, 227.1, 128, 8, "Qwen3-235B-A22B")
_DEEPSEEK: Final = Anatomy(671.0, 37.5, 61 * (512 + 64), 653.9, 256, 8, "DeepSeek-V3")

ANATOMIES: Final[Mapping[str, Anatomy]] = {
    "Llama-3.1-8B-Instruct": Anatomy(8.03, 8.03, 32 * _GQA_128),
    "Llama-3.1-70B-Instruct": Anatomy(70.55, 70.55, 80 * _GQA_128),
    "Llama-3.3-70B-Instruct": Anatomy(70.55, 70.55, 80 * _GQA_128),
    "Llama-3.1-405B-Instruct": Anatomy(405.9, 405.9, 126 * _GQA_128),
    "Llama-3.1-405B-Instruct-FP8": Anatomy(405.9, 405.9, 126 * _GQA_128),
    "Qwen3-8B": Anatomy(8.19, 8.19, 36 * _GQA_128),
    "Qwen3-14B": Anatomy(14.77, 14.77, 40 * _GQA_128),
    "Qwen3-32B": Anatomy(32.76, 32.76, 64 * _GQA_128),
    "Qwen3-30B-A3B-Instruct-2507": _QWEN3_30B,
    "Qwen3-30B-A3B-Thinking-2507": _QWEN3_30B,
    "Qwen3-235B-A22B-Instruct-2507": _QWEN3_235B,
    "Qwen3-235B-A22B-Instruct-2507-FP8": _QWEN3_235B,
    "Qwen3-235B-A22B-Thinking-2507": _QWEN3_235B,
    "Qwen3-235B-A22B-Thinking-2507-FP8": _QWEN3_235B,
    "gpt-oss-20b": Anatomy(20.9, 3.6, 24 * 2 * 8 * 64, 19.1, 32, 4, "gpt-oss-20b"),
    "gpt-oss-120b": Anatomy(116.8, 5.1, 36 * 2 * 8 * 64, 114.7, 128, 4, "gpt-oss-120b"),
    "DeepSeek-R1-0528": _DEEPSEEK,
    "DeepSeek-V3.1": _DEEPSEEK,
    "Llama-4-Scout-17B-16E-Instruct": Anatomy(107.8, 17.2, 48 * _GQA_128, 96.6, 16, 1, "Llama-4-Scout"),
    "Llama-4-Maverick-17B-128E-Instruct-FP8": Anatomy(
        400.7, 17.2, 48 * _GQA_128, 386.5, 128, 1, "Llama-4-Maverick"
    ),
}

WEIGHT_BYTES: Final[Mapping[str, float]] = {"bfloat16": 2.0, "fp8": 1.0, "mxfp4": 4.25 / 8.0}
"""Bytes per parameter by published precision; mxfp4 carries a scale of 8 bits per 32 values."""
