"""How one backend's speed differs from what it declares, and the model in force. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from backends.models.evidence import Evidence, Prior, Terms, Work
from backends.models.latency import MAX_TERM, StepLaw
from backends.models.laws import law_of
from backends.models.ratios import Ratios
from backends.models.surprises import Surprises
from router.model import AfdParameters, BackendSpec, Seconds, StepParameters

REBUILD_AFTER: Final = 8
"""Observations between two models of a backend, unless it has changed at once."""
REBUILD_BEYOND: Final = 0.01
"""A model is built anew when a ratio has moved by 1 %; while none has, the prior's own model stands."""
DECLARED: Terms = (1.0, 1.0, 1.0, 1.0, 1.0)
"""Ratios of a backend that is as it says."""


class Estimate:
    """What the observations say. Starts at the prior."""

    __slots__ = ("_prior", "_ratios", "_since", "_surprises", "built", "law")

    def __init__(self, prior: Prior) -> None:
        self.law: StepLaw = prior.law
        """The model in force; immutable, and the prior's own while nothing has drifted."""
        self.built: Terms = DECLARED
        """Its ratios to the prior."""
        self._prior = prior
        self._ratios = Ratios()
        self._since = 0
        """Observations since the model was built."""
        self._surprises: dict[Work, Surprises] = {}

    def learn(self, evidence: Evidence) -> bool:
        """Take an observation; says whether another model is in force."""
        surprises = self._surprises.get(evidence.work)
        if surprises is None:
            surprises = self._surprises[evidence.work] = Surprises(evidence.work)
        surprise = self._ratios.surprise(evidence.terms, evidence.observed_s)
        surprises.add(evidence, surprise)
        self._since += 1
        if surprises.shifted:
            self._refit(surprises.level[0].at)
            return self._rebuild()
        if surprises.ordinary(surprise):
            self._ratios.update(evidence.terms, surprises.clipped(surprise), surprises.spread)
        return self._since >= REBUILD_AFTER and self._rebuild()

    def fit(self) -> dict[Work, float]:
        """Observed over predicted time, in the median of the last observations. May be read by any thread."""
        return {work: math.exp(each.centre) for work, each in list(self._surprises.items()) if len(each)}

    def _refit(self, onset: Seconds) -> None:
        """The backend has changed: trust what was observed since, of every kind of work, and little else.

        All kinds, because a change seen in one must not be put on terms that the others show unchanged.
        """
        self._ratios.loosen()
        levels = [(surprises, surprises.take_since(onset)) for surprises in self._surprises.values()]
        for surprises, level in levels:
            for each in level:
                surprise = self._ratios.surprise(each.terms, each.observed_s)
                self._ratios.update(each.terms, surprise, surprises.spread)
        for surprises, level in levels:
            for each in level:
                surprises.add(each, self._ratios.surprise(each.terms, each.observed_s))

    def _rebuild(self) -> bool:
        """Build the model anew if it is off."""
        if not apart(self._ratios.values, self.built):
            return False
        self._since = 0
        if apart(self._ratios.values, DECLARED):
            r0, r1, r2, r3, r4 = self._ratios.values
            self.built = (r0, r1, r2, r3, r4)
            self.law = law_of(scaled(self._prior.spec, self.built))
        else:
            self.built, self.law = DECLARED, self._prior.law
        return True


def apart(ratios: list[float] | Terms, others: Terms) -> bool:
    """Whether two sets of ratios differ by more than is worth a new model."""
    return any(abs(a - b) > REBUILD_BEYOND * b for a, b in zip(ratios, others, strict=True))


def scaled(spec: BackendSpec, ratios: Terms) -> BackendSpec:
    """The spec of a backend whose linear terms are so many times those of another."""
    afd = None if spec.afd is None else _scaled_afd(spec.afd, ratios)
    return replace(spec, step=_scaled_step(spec.step, ratios), afd=afd)


def _scaled_step(p: StepParameters, ratios: Terms) -> StepParameters:
    step, sequence, context, token, pair = ratios
    return replace(
        p,
        base_s=_term(p.base_s, step),
        saturating_s=_term(p.saturating_s, step),
        prefill_base_s=_term(p.prefill_base_s, step),
        prefill_floor_s=_term(p.prefill_floor_s, step),
        per_sequence_s=_term(p.per_sequence_s, sequence),
        per_context_token_s=_term(p.per_context_token_s, context),
        per_prefill_token_s=_term(p.per_prefill_token_s, token),
        per_attention_pair_s=_term(p.per_attention_pair_s, pair),
    )


def _scaled_afd(p: AfdParameters, ratios: Terms) -> AfdParameters:
    step, sequence, context, _, _ = ratios
    return replace(
        p,
        attention_base_s=_term(p.attention_base_s, step),
        ffn_base_s=_term(p.ffn_base_s, step),
        hop_s=_term(p.hop_s, step),
        attention_per_sequence_s=_term(p.attention_per_sequence_s, sequence),
        ffn_per_sequence_s=_term(p.ffn_per_sequence_s, sequence),
        dispatch_per_sequence_s=_term(p.dispatch_per_sequence_s, sequence),
        combine_per_sequence_s=_term(p.combine_per_sequence_s, sequence),
        attention_per_context_token_s=_term(p.attention_per_context_token_s, context),
    )


def _term(value: Seconds, ratio: float) -> Seconds:
    """Within what the step model accepts: a spec that is in range must not leave it by learning."""
    return min(MAX_TERM, value * ratio)
