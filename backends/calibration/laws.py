"""The forms that measurements are fitted to: those of backends/models, with numpy columns.

    decode    base + per_sequence B + per_context_token S (+ saturating (1 - exp(-B / saturation)))
    prefill   prefill_base + per_token max(knee, N) + per_pair P
              or, as mixtures of experts often do,
              prefill_base + per_token N + per_pair P + saturating (1 - exp(-N / saturation))
    serving   decode at C requests in flight and their mean context, plus the prefills each step carries:
              C / osl times (per_token isl)
    link      latency + bytes / bandwidth

B sequences with S tokens of context in all; N new prompt tokens with P = sum of n (h + n / 2).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from backends.calibration.regress import FloatArray, Law

SATURATIONS: Final = (1.5, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 192.0, 400.0, 800.0)
KNEES: Final = (32.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0, 512.0, 768.0, 1024.0, 2048.0)
PREFILL_SATURATIONS: Final = (32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)


def _ones(inputs: FloatArray) -> FloatArray:
    return np.ones(len(inputs))


def _saturation(tokens: FloatArray, shape: float) -> FloatArray:
    return np.asarray(-np.expm1(-tokens / shape), dtype=np.float64)


def _decode(inputs: FloatArray, _: float) -> FloatArray:
    batch, context = inputs.T
    return np.column_stack([_ones(inputs), batch, context])


def _single_stream(inputs: FloatArray, _: float) -> FloatArray:
    return np.column_stack([_ones(inputs), inputs[:, 1]])


def _decode_saturating(inputs: FloatArray, shape: float) -> FloatArray:
    return np.column_stack([_decode(inputs, shape), _saturation(inputs[:, 0], shape)])


def _prefill(inputs: FloatArray, knee: float) -> FloatArray:
    tokens, pairs = inputs.T
    return np.column_stack([_ones(inputs), np.maximum(tokens, knee), pairs])


def _prefill_saturating(inputs: FloatArray, shape: float) -> FloatArray:
    tokens, pairs = inputs.T
    return np.column_stack([_ones(inputs), tokens, pairs, _saturation(tokens, shape)])


def _serving(inputs: FloatArray, _: float) -> FloatArray:
    flight, prompt, answer = inputs.T
    context, prefills = flight * (prompt + 0.5 * answer), flight / answer
    return np.column_stack([_ones(inputs), flight, context, prefills * prompt])


def _serving_saturating(inputs: FloatArray, shape: float) -> FloatArray:
    return np.column_stack([_serving(inputs, shape), _saturation(inputs[:, 0], shape)])


def _link(inputs: FloatArray, _: float) -> FloatArray:
    return np.column_stack([_ones(inputs), inputs[:, 0]])


_DECODE_TERMS: Final = ("base_s", "per_sequence_s", "per_context_token_s")
DECODE: Final = Law("linear", _DECODE_TERMS, _decode)
SINGLE_STREAM: Final = Law("single stream", ("base_s", "per_context_token_s"), _single_stream)
DECODE_SATURATING: Final = Law(
    "saturating", (*_DECODE_TERMS, "saturating_s"), _decode_saturating, "saturation_tokens", SATURATIONS
)
_PREFILL_TERMS: Final = ("prefill_base_s", "per_prefill_token_s", "per_attention_pair_s")
PREFILL: Final = Law("floor", _PREFILL_TERMS, _prefill, "knee_tokens", KNEES)
PREFILL_SATURATING: Final = Law(
    "saturating",
    (*_PREFILL_TERMS, "prefill_saturating_s"),
    _prefill_saturating,
    "prefill_saturation_tokens",
    PREFILL_SATURATIONS,
)
SERVING: Final = Law("linear", (*_DECODE_TERMS, "per_prefill_token_s"), _serving)
SERVING_SATURATING: Final = Law(
    "saturating",
    (*SERVING.terms, "saturating_s"),
    _serving_saturating,
    "saturation_tokens",
    SATURATIONS,
)
LINK: Final = Law("latency and bandwidth", ("latency_s", "seconds_per_byte"), _link)
