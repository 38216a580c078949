"""Filter, score, pick: per phase a weighted sum of scorers, and a picker that chooses by it.

Prefill is placed first, on a backend whose KV some decode backend takes over; then decode, among
those that take over the KV of the one chosen. Weights, pickers and scorers come from the
configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from policies.decision import placed, unplaced
from policies.filters import Eligible, Screen
from policies.parameters import choice, finite, number, read, unknown, wrong
from policies.pickers import PICKERS
from policies.scorers import SCORERS, Scene
from policies.standing import Standing
from router.core.messages import BackendRemoved
from router.core.ports import FleetView, ModelSource
from router.model import Candidate, Phase, Placement, Reject, Request, RoutePlan, Seconds, Wait

NAME: Final = "scored"
MAX_WEIGHT: Final = 1e6
Weights = Mapping[str, float]
PREFILL_WEIGHTS: Final[Weights] = {"drain_time": 3.0, "queue": 1.0, "kv_room": 1.0}
DECODE_WEIGHTS: Final[Weights] = {"drain_time": 3.0, "queue": 1.0, "kv_room": 1.0, "same_backend": 0.5}


@dataclass(frozen=True, slots=True)
class Choosing:
    """How one phase is placed."""

    weights: Weights
    """Weight of each scorer, 0 to 1e6; one that is not named counts nothing."""
    picker: str = choice("max", of=PICKERS, doc="How a backend is picked by its score.")
    temperature: float = number(
        0.1, low=1e-3, high=1e3, doc="Of softmax: the exponent is the score (0 to 1) over this."
    )


@dataclass(frozen=True, slots=True)
class ScoredParameters:
    """Parameters of `scored`: `prefill` and `decode` are nested tables."""

    max_prefill_queue: int = number(
        32, low=1, high=100_000, doc="Prefills in flight per backend; above, requests wait in the router."
    )
    candidates: int = number(4, low=1, high=16, doc="Backends kept in the decision record.")
    prefill: Choosing = Choosing(PREFILL_WEIGHTS)
    decode: Choosing = Choosing(DECODE_WEIGHTS)


def read_scored(values: Mapping[str, object], where: str) -> ScoredParameters:
    """Build the parameters from a table with nested tables. Raises ConfigError."""
    plain = {key: value for key, value in values.items() if key not in ("prefill", "decode")}
    parameters = read(ScoredParameters, plain, where)
    if "prefill" in values:
        parameters = replace(
            parameters, prefill=_choosing(values["prefill"], PREFILL_WEIGHTS, f"{where} prefill")
        )
    if "decode" in values:
        parameters = replace(
            parameters, decode=_choosing(values["decode"], DECODE_WEIGHTS, f"{where} decode")
        )
    return parameters


def _choosing(table: object, default: Weights, where: str) -> Choosing:
    if not isinstance(table, Mapping):
        raise wrong(where, "the value", table, "a table with picker, temperature and weights")
    values: dict[str, object] = dict(table)
    weights = _weights(values["weights"], where) if "weights" in values else default
    return read(Choosing, {**values, "weights": weights}, where)


def _weights(table: object, where: str) -> Weights:
    if not isinstance(table, Mapping):
        raise wrong(where, "weights", table, "a table of scorer = weight")
    weights: dict[str, float] = {}
    for key, value in table.items():
        if key not in SCORERS:
            raise unknown(f"{where} weights", "scorer", str(key), SCORERS)
        weights[key] = finite(value, f"{where} weights", key, 0.0, MAX_WEIGHT)
    if not any(weights.values()):
        raise wrong(where, "weights", dict(table), "at least one scorer with a weight above 0")
    return weights


@dataclass(frozen=True, slots=True)
class Scores:
    """Candidates of one phase with their scores in [0, 1], and the one that was picked."""

    candidates: Sequence[Standing]
    totals: Sequence[float]
    parts: Mapping[str, Sequence[float]]
    picked: int

    @property
    def standing(self) -> Standing:
        """The backend that was picked."""
        return self.candidates[self.picked]

    def best(self, keep: int) -> list[int]:
        """The picked one, then the others from the highest score down."""
        others = sorted(
            (i for i in range(len(self.totals)) if i != self.picked), key=lambda i: (-self.totals[i], i)
        )
        return [self.picked, *others[: keep - 1]]

    def parts_of(self, index: int, phase: Phase) -> dict[str, float]:
        """The scores of one candidate by scorer, named for its phase."""
        return {f"{phase.value}.{name}": scores[index] for name, scores in self.parts.items()}


class Scored:
    """Filters, weighted scorers, pickers. Satisfies core.ports.Policy."""

    name = NAME

    def __init__(self, parameters: ScoredParameters, models: ModelSource, rng: Random) -> None:
        self._p = parameters
        self._rng = rng
        self._screen = Screen(models, parameters.max_prefill_queue)

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        """Place prefill, then decode."""
        views = fleet.for_model(request.model)
        found = self._screen.pass_over(request, views, request.max_new_tokens)
        usable = found.pairable()
        if not usable:
            extra = [(s, "kv_layout") for s in found.prefill if found.decode]
            return unplaced(self.name, request, found, self._screen.standings(views), extra)
        prefill = self._choose(self._p.prefill, self._scene(request, Phase.PREFILL), usable)
        decode = self._choose_decode(request, prefill.standing, found)
        return self._planned(request, found, prefill, decode)

    def bind_decode(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        """Place decode for KV that is at `prefill`."""
        producer, found = self._screen.after_prefill(request, prefill, fleet, request.max_new_tokens)
        if producer is None:
            return Wait("unknown_backend")
        if not found.decode:
            standings = self._screen.standings(fleet.for_model(request.model))
            return unplaced(self.name, request, found, standings)
        decode = self._choose_decode(request, producer, found)
        candidates = self._candidates(None, decode, prefill)
        text = f"decode on {decode.standing.id} ({self._p.decode.picker})"
        return Placement(decode.standing.id, placed(self.name, request, found, candidates, text))

    def observe(self, fact: Any, now: Seconds) -> None:
        """Forget backends that left; nothing else is learned."""
        if isinstance(fact, BackendRemoved):
            self._screen.forget(fact.backend)

    def _scene(self, request: Request, phase: Phase, producer: Standing | None = None) -> Scene:
        return Scene(request, phase, self._p.max_prefill_queue, producer)

    def _choose_decode(self, request: Request, producer: Standing, found: Eligible) -> Scores:
        takers = [s for s in found.decode if s.spec.accepts_kv_of(producer.spec)]
        return self._choose(self._p.decode, self._scene(request, Phase.DECODE, producer), takers)

    def _choose(self, rule: Choosing, scene: Scene, candidates: Sequence[Standing]) -> Scores:
        weights = {name: weight for name, weight in rule.weights.items() if weight > 0}
        parts = {name: SCORERS[name](scene, candidates) for name in weights}
        whole = sum(weights.values())
        totals = [0.0] * len(candidates)
        for name, scores in parts.items():
            share = weights[name] / whole
            totals = [total + share * score for total, score in zip(totals, scores, strict=True)]
        return Scores(candidates, totals, parts, PICKERS[rule.picker](totals, self._rng, rule.temperature))

    def _planned(self, request: Request, found: Eligible, prefill: Scores, decode: Scores) -> RoutePlan:
        producer, consumer = prefill.standing.id, decode.standing.id
        text = (
            f"{producer} for prefill (score {prefill.totals[prefill.picked]:.3f}, {self._p.prefill.picker}), "
            f"{consumer} for decode (score {decode.totals[decode.picked]:.3f}, {self._p.decode.picker})"
        )
        candidates = self._candidates(prefill, decode, producer)
        return RoutePlan(producer, consumer, placed(self.name, request, found, candidates, text))

    def _candidates(self, prefill: Scores | None, decode: Scores, producer: str) -> list[Candidate]:
        """The chosen pair, then its decode alternatives, then its prefill alternatives.

        The score of a pair is the sum of its phases', so it is from 0 to 2.
        """
        base, chosen = (prefill.totals[prefill.picked], prefill.picked) if prefill else (0.0, 0)
        first = prefill.parts_of(chosen, Phase.PREFILL) if prefill else {}
        listed = [
            Candidate(
                producer,
                decode.candidates[i].id,
                base + decode.totals[i],
                {**first, **decode.parts_of(i, Phase.DECODE)},
            )
            for i in decode.best(self._p.candidates)
        ]
        if prefill is not None:
            top = decode.totals[decode.picked]
            listed += [
                Candidate(
                    prefill.candidates[i].id,
                    decode.standing.id,
                    prefill.totals[i] + top,
                    prefill.parts_of(i, Phase.PREFILL),
                )
                for i in prefill.best(self._p.candidates)[1:]
            ]
        return [listed[0], *sorted(listed[1:], key=lambda each: -each.score)]
