"""Decode split between attention devices and FFN devices (AFD), as a step law. Pure.

A layer of a micro-batch of b sequences with contexts of s tokens in all passes through

    attention    t_A = attention_base + attention_per_sequence b + attention_per_context_token s
    dispatch     t_AF = hop + dispatch_per_sequence b
    FFN          t_F = ffn_base + ffn_per_sequence b
    combine      t_FA = hop + combine_per_sequence b

and a step is `layers` of them for each of `micro_batches` micro-batches, of which the law lets overlap

    serial         nothing                                    t_A + t_F + t_AF + t_FA
    conservative   two micro-batches                          max(t_A + t_AF, t_F + t_FA)
    optimistic     three or more, also on the network         max(t_A, t_F, t_AF + t_FA)

The optimistic law hides the network from 2 + (t_AF + t_FA) / max(t_A, t_F) micro-batches on (the condition
of MegaScale-Infer); with fewer, the network is the longest of the three and is paid in full. With two
micro-batches the conservative law holds, with one the serial law. A batch has at most as many micro-batches
as sequences. Origin: the three laws of NVIDIA AIConfigurator 0.12's AFD estimates.
Prompts run on the attention devices alone, and add to a step as in the step model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import NamedTuple

from backends.models.latency import MAX_TERM, UNBOUNDED, Parts, Price, StepModel
from router.errors import ConfigError
from router.model import AfdLaw, AfdParameters, Seconds, StepParameters


def check_afd(parameters: AfdParameters) -> None:
    """Raise ConfigError unless every parameter is in range, and both sides take time."""
    p = parameters
    for field in fields(p):
        value = getattr(p, field.name)
        if field.name != "law" and (not 0.0 <= value <= MAX_TERM or math.isnan(value)):
            raise ConfigError(f"afd.{field.name} = {value!r} is outside [0, {MAX_TERM:g}]; correct it.")
    if p.layers < 1 or p.micro_batches < 1:
        raise ConfigError(
            f"afd.layers = {p.layers} and afd.micro_batches = {p.micro_batches} must be at least 1: "
            "a step would take no time."
        )
    if p.attention_base_s <= 0.0 or p.ffn_base_s <= 0.0:
        raise ConfigError(
            "afd.attention_base_s and afd.ffn_base_s must be above 0: each side sweeps its weights."
        )


def with_serial_law(step: StepParameters, afd: AfdParameters) -> StepParameters:
    """Step parameters whose decode terms are the serial law of one micro-batch: linear, and never faster."""
    per_sequence_s = afd.attention_per_sequence_s + afd.ffn_per_sequence_s
    per_sequence_s += afd.dispatch_per_sequence_s + afd.combine_per_sequence_s
    return replace(
        step,
        base_s=afd.layers * (afd.attention_base_s + afd.ffn_base_s + 2.0 * afd.hop_s),
        per_sequence_s=afd.layers * per_sequence_s,
        per_context_token_s=afd.layers * afd.attention_per_context_token_s,
        saturating_s=0.0,
    )


class _Path(NamedTuple):
    """Time of one layer and micro-batch along one path: linear in the sequences and the contexts."""

    base_s: Seconds
    per_sequence_s: Seconds
    per_context_token_s: Seconds

    def at(self, sequences: float, context_tokens: float) -> Seconds:
        """The time for a micro-batch."""
        return self.base_s + self.per_sequence_s * sequences + self.per_context_token_s * context_tokens


class AfdModel:
    """Implements latency.StepLaw. Between two thresholds of the context a step is linear."""

    __slots__ = ("_afd", "_attention", "_back", "_ffn", "_hops", "_out", "_serial", "_step")

    def __init__(self, afd: AfdParameters, step: StepParameters) -> None:
        """`step` gives the prefill terms. Raise ConfigError for parameters that give no sensible times."""
        check_afd(afd)
        self._afd = afd
        self._step = StepModel(with_serial_law(step, afd))
        self._attention = _Path(
            afd.attention_base_s, afd.attention_per_sequence_s, afd.attention_per_context_token_s
        )
        self._ffn = _Path(afd.ffn_base_s, afd.ffn_per_sequence_s, 0.0)
        out = _Path(afd.hop_s, afd.dispatch_per_sequence_s, 0.0)
        back = _Path(afd.hop_s, afd.combine_per_sequence_s, 0.0)
        self._hops = _sum(out, back)
        self._out = _sum(self._attention, out)
        self._back = _sum(self._ffn, back)
        self._serial = _sum(self._out, self._back)

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> Seconds:
        """On the attention devices, alone."""
        return self._step.prefill_s(new_tokens, cached_tokens)

    def decode_step_s(self, sequences: int, context_tokens: int) -> Seconds:
        """All layers of all micro-batches, as far as they overlap."""
        if sequences <= 0:
            return 0.0
        m = min(self._afd.micro_batches, sequences)
        path = self._deciding(m, sequences / m, context_tokens / m)
        return self._afd.layers * m * path.at(sequences / m, context_tokens / m)

    def mixed_step_s(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Seconds:
        """Chunks add to a step as in the step model; without decodes they are alone."""
        if sequences <= 0:
            return self._step.mixed_step_s(0, 0, prefill_tokens, attention_pairs)
        p = self._step.parameters
        chunks_s = p.per_prefill_token_s * prefill_tokens + p.per_attention_pair_s * attention_pairs
        return self.decode_step_s(sequences, context_tokens) + chunks_s

    def price(
        self, sequences: int, context_tokens: int, prefill_tokens: int, attention_pairs: float
    ) -> Price:
        """The path that decides, in shares; it holds until the contexts make another one longer."""
        if sequences <= 0:
            return self._step.price(0, 0, prefill_tokens, attention_pairs)
        p, layers, m = self._step.parameters, self._afd.layers, min(self._afd.micro_batches, sequences)
        path = self._deciding(m, sequences / m, context_tokens / m)
        return Price(
            base_s=layers * m * path.base_s,
            per_sequence_s=layers * path.per_sequence_s,
            per_context_token_s=layers * path.per_context_token_s,
            per_prefill_token_s=p.per_prefill_token_s,
            per_attention_pair_s=p.per_attention_pair_s,
            steps=self._steps(m, sequences, context_tokens),
            parts=self._parts(m, sequences, context_tokens),
        )

    def _deciding(self, m: int, sequences: float, context_tokens: float) -> _Path:
        """The path whose time is the layer's, for micro-batches of so many sequences and context tokens."""
        law = self._afd.law
        if m == 1 or law is AfdLaw.SERIAL:
            return self._serial
        paths: tuple[_Path, ...] = (self._out, self._back)
        if law is AfdLaw.OPTIMISTIC and m > 2:
            paths = (self._attention, self._ffn, self._hops)
        return max(paths, key=lambda path: path.at(sequences, context_tokens))

    def _steps(self, m: int, sequences: int, context_tokens: int) -> int:
        """Steps, one context token a sequence each, until another path may decide; at least 1."""
        ahead = [limit - context_tokens for limit in self._thresholds(m, sequences) if limit > context_tokens]
        return max(1, math.ceil(min(ahead) / sequences)) if ahead else UNBOUNDED

    def _thresholds(self, m: int, sequences: int) -> Iterator[float]:
        """Contexts, of all micro-batches together, at which one path overtakes another."""
        per_token_s = self._attention.per_context_token_s
        if m == 1 or self._afd.law is AfdLaw.SERIAL or per_token_s <= 0.0:
            return
        each = sequences / m
        if self._afd.law is AfdLaw.CONSERVATIVE or m == 2:
            rivals = [self._back.at(each, 0.0) - self._out.at(each, 0.0)]
        else:
            rivals = [path.at(each, 0.0) - self._attention.at(each, 0.0) for path in (self._ffn, self._hops)]
        for ahead_s in rivals:
            yield m * ahead_s / per_token_s

    def _parts(self, m: int, sequences: int, context_tokens: int) -> Parts:
        layers, a = self._afd.layers, self._attention
        growth_s = layers * a.per_context_token_s * sequences
        attention_s = layers * m * a.at(sequences / m, context_tokens / m)
        ffn_s = layers * m * self._ffn.at(sequences / m, 0.0)
        return Parts(attention_s, growth_s, ffn_s, layers * m * self._hops.at(sequences / m, 0.0))


def _sum(a: _Path, b: _Path) -> _Path:
    return _Path(
        a.base_s + b.base_s,
        a.per_sequence_s + b.per_sequence_s,
        a.per_context_token_s + b.per_context_token_s,
    )
