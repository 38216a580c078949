"""What a class of requests is placed by once objectives are held, as configured, and what that makes of a
decision.

    goodput   the earliest finish
    cost      the fewest dollars of device time
    energy    the fewest joules
    blend     weights of the three, each relative to the best that the fleet offers this request
    latency   the earliest finish whatever it costs others; nobody is refused

    [policy.classes.batch]
    objective = "cost"

Device time is shared by a batch, so the cheapest place is the fullest one that still holds the objectives:
cost and energy pack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from policies import forecast
from policies.aim import Aim
from policies.filters import Eligible
from policies.parameters import choice, clip, number, read, wrong
from policies.standing import Standing
from router.errors import ConfigError
from router.model import Request, Seconds

OBJECTIVES: Final = ("goodput", "latency", "cost", "energy", "blend")
MAX_CLASSES: Final = 256
TIE: Final = 0.01
"""Share of time in cost and energy: of equally dear places the sooner one."""

AT_MOST: Final = 0.15
"""Share of the worth of a good request that dollars and joules of a phase count at most: a dear place that
holds the objectives goes before a cheap one that likely does not (assumption)."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What one class is placed by."""

    objective: str = choice(
        "goodput", of=OBJECTIVES, doc="What decides among places that hold all objectives."
    )
    time_weight: float = number(1.0, low=0.0, high=1e3, doc="Of the finish, in a blend.")
    cost_weight: float = number(0.0, low=0.0, high=1e3, doc="Of dollars of device time, in a blend.")
    energy_weight: float = number(0.0, low=0.0, high=1e3, doc="Of joules of device time, in a blend.")

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of time, dollars and joules; they add up to 1."""
        match self.objective:
            case "cost":
                found = (TIE, 1.0, 0.0)
            case "energy":
                found = (TIE, 0.0, 1.0)
            case "blend":
                found = (self.time_weight, self.cost_weight, self.energy_weight)
            case _:
                found = (1.0, 0.0, 0.0)
        whole = sum(found) or 1.0
        return found[0] / whole, found[1] / whole, found[2] / whole


Classes = Mapping[str, Objective]
"""By workload class."""


def read_classes(table: object, where: str) -> Classes:
    """The objectives of classes that have their own. Raises ConfigError."""
    if not isinstance(table, Mapping):
        raise wrong(where, "classes", table, "a table of workload class = objective")
    if len(table) > MAX_CLASSES:
        raise ConfigError(f"{where}: {len(table)} classes, more than {MAX_CLASSES}. Nothing was changed.")
    found: dict[str, Objective] = {}
    for name, values in table.items():
        place = f"{where} classes.{clip(str(name))}"
        if not isinstance(values, Mapping):
            raise wrong(place, "the value", values, "a table with an objective")
        found[str(name)] = read(Objective, values, place)
    return found


def aim_of(
    objective: Objective,
    ttft_weight: float,
    request: Request,
    found: Eligible,
    tokens: int,
    given_s: Seconds,
    joule_price: float = 0.0,
    worth_s: Seconds = 0.0,
) -> Aim:
    """The weights of one decision. Dollars and joules count relative to the least that the request needs of
    them on this fleet, in multiples of the time that its objectives give it. `joule_price` is what a power
    cap adds to the weight of joules (power.py), `worth_s` what objectives that are held are worth; 0: nothing
    bounds dollars and joules."""
    time, usd, joule = objective.weights
    joule += joule_price
    if not (usd or joule):
        return Aim(1.0, ttft_weight)
    context = request.prompt_tokens + tokens // 2

    def least(prefill: Callable[[Standing, int], float], token: Callable[[Standing, int], float]) -> float:
        first = _least(found.prefill, lambda s: prefill(s, request.prompt_tokens))
        return first + tokens * _least(found.decode, lambda s: token(s, context))

    per_usd_s = usd * given_s / least(forecast.more_prefill_usd, forecast.more_token_usd) if usd else 0.0
    per_joule_s = (
        joule * given_s / least(forecast.prefill_energy_j, forecast.token_energy_j) if joule else 0.0
    )
    return Aim(time, ttft_weight, per_usd_s, per_joule_s, AT_MOST * worth_s or math.inf)


def _least(standings: Sequence[Standing], price: Callable[[Standing], float]) -> float:
    """The lowest price, each load of each kind asked once; infinite where there is none, or it is free."""
    kinds = {(s.load_key, s.spec.usd_per_hour): s for s in standings}
    return min((found for s in kinds.values() if (found := price(s)) > 0), default=math.inf)
