"""Which fleet to buy: programs propose, simulation disposes.

For each goal the program sizes a fleet (sizing.py), and the simulation says whether it holds the objectives
(verify.py). While it does not, the share of each unit that may be planned for shrinks, so that devices are
added where the program wants them; when it holds, units are taken away one by one, dearest first, as long as
it still holds. The best fleets of one kind are tried as well. Of all that was verified, the best by each goal
is the answer to it; ranked by total cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Final

from router.errors import ConfigError
from router.plan.advice import MERITS, Advice, Answer, Brief
from router.plan.candidates import Market, market_of
from router.plan.playback import Asked, play
from router.plan.program import InfeasibleError
from router.plan.sensitivity import Costed, Flip, demand_flips, price_flips
from router.plan.sizing import (
    Fleet,
    Goal,
    Sizing,
    capacity_of_fleet,
    fleet_of,
    kept_when_the_model_changes,
    size,
    sizing_of,
    unit_prices,
    why_infeasible,
)
from router.plan.supply import NO_LIMITS
from router.plan.tco import nameplate_w
from router.plan.verify import Trial, Verifier, named

UTILISATIONS: Final = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.32, 0.25, 0.2, 0.16, 0.12, 0.08, 0.05)
"""Shares of a unit that are planned for, tried in this order."""
MOST_TRIMS: Final = 10
"""Simulations spent on taking units away."""
PEERS: Final = 2
"""Fleets of one kind shown for comparison."""
PEER_LEEWAY: Final = 1.5
"""They are tried as long as they do not cost so many times as much as the best known."""


def advise(brief: Brief, tell: Callable[[str], None] = lambda text: None) -> Advice:
    """Answer a brief. Raises ConfigError when nothing on offer can serve the workload, with what binds."""
    market = market_of(brief.workload.models, brief.devices, assumed=brief.assumed)
    asked = play(brief.workload, brief.seed, brief.rate_scale)
    sizing = sizing_of(asked, market.supplies, brief.prices, brief.limits, brief.min_flexible)
    try:
        size(sizing, Goal.CHEAPEST, whole=False)
    except InfeasibleError as error:
        raise why_infeasible(sizing) from error
    return _Search(brief, market, asked, sizing, tell).advice()


class _Search:
    def __init__(
        self, brief: Brief, market: Market, asked: Asked, sizing: Sizing, tell: Callable[[str], None]
    ) -> None:
        self._brief = brief
        self._market = market
        self._asked = asked
        self._sizing = sizing
        self._tell = tell
        self._verifier = Verifier(
            brief.workload,
            asked,
            market.supplies,
            brief.policy,
            brief.seed,
            brief.target,
            brief.rate_scale,
            tell,
        )
        self._held_at = UTILISATIONS[-1]
        """The largest share of the units that could be planned for."""
        self._specs = {supply.name: supply.spec for supply in market.supplies}

    def advice(self) -> Advice:
        """Search for each goal, then rank everything that was verified."""
        unmet: dict[str, str] = {}
        for goal in Goal:
            self._reach(goal, self._sizing, str(goal), unmet)
        for name in self._peers():
            self._reach(Goal.CHEAPEST, self._sizing.only([name]), "", unmet)
        answers = self._answers()
        brief = self._brief
        flipped = self._flips(answers[0]) if brief.sensitivity and answers else ()
        return Advice(brief, self._asked, self._market, answers, unmet, flipped, self._verifier.trials)

    def _flips(self, best: Answer) -> tuple[Flip, ...]:
        others = [self._costed(self._answer(one)) for one in self._verifier.known if one.holds]
        others = [one for one in others if one.name != named(best.fleet)]
        prices = price_flips(self._costed(best), others)
        return (*prices, *demand_flips(self._asked, self._sizing, self._held_at, self._tell))

    def _costed(self, one: Answer) -> Costed:
        prices = self._brief.prices
        parts = {n: k * prices.unit_usd_per_hour(n, self._specs[n]) for n, k in one.fleet.items()}
        return Costed(named(one.fleet), parts | {"electricity": one.power_usd_per_hour})

    def _reach(self, goal: Goal, sizing: Sizing, label: str, unmet: dict[str, str]) -> None:
        self._tell(f"sizing: {label or sizing.supplies[0].name + ' alone'}")
        try:
            self._grow(goal, sizing)
        except ConfigError as error:
            if label:
                unmet[label] = error.message

    def _grow(self, goal: Goal, sizing: Sizing) -> None:
        """Size with ever more room until a fleet holds, then trim it. Fleets dearer than one that is known
        to hold are not tried."""
        fleet: Fleet = {}
        why = ""
        for utilisation in UTILISATIONS:
            try:
                plan = size(sizing, goal, utilisation)
            except InfeasibleError as error:
                raise self._stuck(sizing, fleet, why) from error
            if fleet_of(plan) == fleet:
                continue
            fleet = fleet_of(plan)
            leeway = 1.0 if len(sizing.supplies) > 1 else PEER_LEEWAY
            if self._is_beaten(goal, plan.objective / leeway):
                return
            trial = self._verifier.trial(fleet)
            if trial.holds:
                self._held_at = max(self._held_at, utilisation)
                self._trim(goal, sizing, fleet)
                return
            why = trial.why_not
        raise self._stuck(sizing, fleet, why)

    def _is_beaten(self, goal: Goal, least: float) -> bool:
        """Whether a fleet is known to hold that is better than this one can be, by this goal."""
        known = (self._answer(one) for one in self._verifier.known if one.holds)
        return any(MERITS[goal](one) < least for one in known if self._allowed(goal, one.fleet))

    def _stuck(self, sizing: Sizing, fleet: Fleet, why: str) -> ConfigError:
        if not fleet:
            return why_infeasible(sizing)
        larger = "" if self._sizing.limits == NO_LIMITS else " A larger one breaks a limit."
        return ConfigError(
            "no fleet within the limits was found that holds the objectives in simulation; the largest tried "
            f"was {named(fleet)}: {why}.{larger} Relax the objectives or the limits, or try another policy."
        )

    def _trim(self, goal: Goal, sizing: Sizing, fleet: Fleet) -> None:
        """Take units away, dearest first, while the rest holds."""
        prices = unit_prices(self._sizing, goal)
        budget = MOST_TRIMS
        for name in sorted(fleet, key=lambda one: -prices[one]):
            while fleet.get(name) and budget > 0:
                smaller = {k: n - (k == name) for k, n in fleet.items() if n > (k == name)}
                if not smaller or not self._could(goal, sizing, smaller):
                    break
                budget -= 1
                if not self._verifier.trial(smaller).holds:
                    break
                fleet = smaller

    def _could(self, goal: Goal, sizing: Sizing, fleet: Fleet) -> bool:
        return capacity_of_fleet(sizing, fleet).objective >= 1.0 and self._allowed(goal, fleet)

    def _allowed(self, goal: Goal, fleet: Fleet) -> bool:
        """Whether a fleet keeps as much as has to be flexible; the limits hold for whatever was sized."""
        wanted = self._most_flexible if goal is Goal.MOST_FLEXIBLE else self._sizing.min_flexible
        return wanted <= 0.0 or kept_when_the_model_changes(self._sizing, fleet) >= wanted - 1e-9

    @cached_property
    def _most_flexible(self) -> float:
        """The largest share that any fleet can keep, on the grid of the program."""
        fleet = fleet_of(size(self._sizing, Goal.MOST_FLEXIBLE))
        return kept_when_the_model_changes(self._sizing, fleet)

    def _peers(self) -> list[str]:
        """Types that could serve all of it alone, cheapest first, without those that were tried alone."""
        alone = {next(iter(one.fleet)) for one in self._verifier.known if len(one.fleet) == 1 and one.holds}
        priced: list[tuple[float, str]] = []
        for supply in self._sizing.supplies:
            if supply.name not in alone:
                try:
                    plan = size(self._sizing.only([supply.name]), Goal.CHEAPEST, UTILISATIONS[0])
                    priced.append((plan.objective, supply.name))
                except InfeasibleError:
                    continue
        return [name for _, name in sorted(priced)[:PEERS]]

    # --- ranking ---

    def _answers(self) -> tuple[Answer, ...]:
        """What is best at something, and the best of one kind; cheapest first."""
        holding = [self._answer(one) for one in self._verifier.known if one.holds]
        chosen: dict[str, Answer] = {}
        for goal, merit in MERITS.items():
            fit = [one for one in holding if self._allowed(goal, one.fleet)]
            if fit and (goal is not Goal.MOST_FLEXIBLE or self._most_flexible > 0.0):
                chosen[str(goal)] = min(fit, key=merit)
        alone = sorted((one for one in holding if not one.is_mixed), key=MERITS[Goal.CHEAPEST])
        best_of: dict[str, Answer] = {}
        for one in alone:
            best_of.setdefault(next(iter(one.fleet)), one)
        picked = [*chosen.values(), *list(best_of.values())[: PEERS + 1]]
        unique = {named(one.fleet): one for one in picked}
        labelled = [
            replace(one, goals=tuple(goal for goal, best in chosen.items() if best.fleet == one.fleet))
            for one in unique.values()
        ]
        return tuple(sorted(labelled, key=MERITS[Goal.CHEAPEST]))

    def _answer(self, trial: Trial) -> Answer:
        fleet, prices, sizing = trial.fleet, self._brief.prices, self._sizing
        rent = sum(count * prices.unit_usd_per_hour(n, self._specs[n]) for n, count in fleet.items())
        plates = sum(count * nameplate_w(self._specs[name]) for name, count in fleet.items())
        whole = capacity_of_fleet(sizing, fleet).objective
        silos = sum(capacity_of_fleet(sizing, {name: count}).objective for name, count in fleet.items())
        return Answer(
            (),
            fleet,
            trial,
            rent,
            prices.power_usd_per_hour(trial.watts),
            plates * prices.pue / 1000.0,
            1.0 - kept_when_the_model_changes(sizing, fleet),
            whole,
            whole / silos if silos > 0.0 and len(fleet) > 1 else 1.0,
        )
