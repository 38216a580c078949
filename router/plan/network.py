"""The rows that every fluid program shares: KV made and used, device time, KV room, links, power, dollars.

Variables are amounts of requests: y of prefill of class k on type d, z of decode, f of KV from d to e. A
network lives on units that are variables of the same program, so that two networks (all types, and those
that can load any model) can ask for the same units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from router.plan.program import InfeasibleError, Program, Solution, Term
from router.plan.steps import BESIDE, overlaps
from router.plan.supply import Demand, Effort, Efforts, Limits, Supply, hands_over
from router.plan.tco import nameplate_w


class Network:
    """Where the phases of all classes may run."""

    def __init__(
        self,
        program: Program,
        demands: Sequence[Demand],
        supplies: Sequence[Supply],
        efforts: Efforts,
        units: Sequence[int],
        span_s: float,
        price_per_j: float = 0.0,
    ) -> None:
        """`units` holds the variable of each supply; an amount is per span of `span_s` seconds."""
        self._program = program
        self._demands = demands
        self._supplies = supplies
        self._efforts = efforts
        self.units = units
        self._span_s = span_s
        self._prefill: dict[tuple[int, int], int] = {}
        self._decode: dict[tuple[int, int], int] = {}
        self._handoff: dict[tuple[int, int, int], int] = {}
        for k, demand in enumerate(demands):
            self._admit(k, demand, price_per_j)
            self._balance(k)

    def _admit(self, k: int, demand: Demand, price_per_j: float) -> None:
        types = range(len(self._supplies))
        for d, supply in enumerate(self._supplies):
            effort = self._efforts[demand.name, supply.name]
            if not effort.no_prefill:
                self._prefill[k, d] = self._program.variable(price_per_j * effort.prefill_j)
            if not effort.no_decode:
                self._decode[k, d] = self._program.variable(price_per_j * effort.decode_j)
        for d, e in ((d, e) for d in types for e in types):
            able = (k, d) in self._prefill and (k, e) in self._decode
            if able and hands_over(self._supplies[d], self._supplies[e]):
                self._handoff[k, d, e] = self._program.variable()

    def _balance(self, k: int) -> None:
        """All KV that prefill makes goes somewhere, and all that decode uses comes from somewhere."""
        out: dict[int, list[Term]] = {}
        into: dict[int, list[Term]] = {}
        types = range(len(self._supplies))
        for d, e in ((d, e) for d in types for e in types):
            if (flow := self._handoff.get((k, d, e))) is not None:
                out.setdefault(d, []).append((flow, 1.0))
                into.setdefault(e, []).append((flow, 1.0))
        for d in types:
            if (made := self._prefill.get((k, d))) is not None:
                self._program.equal([*out.get(d, ()), (made, -1.0)], 0.0)
            if (used := self._decode.get((k, d))) is not None:
                self._program.equal([*into.get(d, ()), (used, -1.0)], 0.0)

    def limit(self, utilisation: float = 1.0, prefix: str = "") -> None:
        """Rows of device time, KV room and links; their names start with `prefix`."""
        for d, supply in enumerate(self._supplies):
            unit, spec, name = self.units[d], supply.spec, supply.name
            prompts = [(v, self._effort(k, d).prefill_s) for (k, a), v in self._prefill.items() if a == d]
            answers = [(v, self._effort(k, d).decode_s) for (k, a), v in self._decode.items() if a == d]
            if overlaps(spec):
                self._within(prompts, unit, utilisation, f"{prefix}prompts:{name}")
                prompts = [(v, BESIDE * time_s) for v, time_s in prompts]
            self._within([*prompts, *answers], unit, utilisation, f"{prefix}device:{name}")
            room = [(v, self._effort(k, d).kv_token_s) for (k, a), v in self._decode.items() if a == d]
            self._within(room, unit, spec.kv_capacity_tokens, f"{prefix}kv:{name}")
            flows = [(k, a, b, v) for (k, a, b), v in self._handoff.items() if a != b]
            sent = [(v, self._effort(k, a).egress_bytes) for k, a, _, v in flows if a == d]
            self._within(sent, unit, spec.link.bandwidth_bytes_per_s, f"{prefix}link:{name}")
            came = [(v, self._effort(k, a).egress_bytes) for k, a, b, v in flows if b == d]
            self._within(came, unit, spec.link.ingress_bytes_per_s, f"{prefix}ingress:{name}")

    def _within(self, used: Sequence[Term], unit: int, per_unit: float, name: str) -> None:
        """`used` is at most what the units have, per second of the span."""
        if used and per_unit < math.inf:
            # Divided by what one unit has: the dual is then the worth of one unit's share of it.
            scale = per_unit * self._span_s
            self._program.at_most([*((v, f / scale) for v, f in used), (unit, -1.0)], 0.0, name)

    def cap(self, limits: Limits) -> None:
        """Rows of power drawn, power provisioned, and dollars."""
        idle = [(u, s.spec.power.idle_w) for u, s in zip(self.units, self._supplies, strict=True)]
        work = [(v, self._effort(k, d).prefill_j / self._span_s) for (k, d), v in self._prefill.items()]
        work += [(v, self._effort(k, d).decode_j / self._span_s) for (k, d), v in self._decode.items()]
        self._program.at_most([*idle, *work], limits.power_w, "power")
        plates = [(u, nameplate_w(s.spec)) for u, s in zip(self.units, self._supplies, strict=True)]
        self._program.at_most(plates, limits.provisioned_w, "provisioned")
        rent = [(u, s.spec.usd_per_hour) for u, s in zip(self.units, self._supplies, strict=True)]
        self._program.at_most(rent, limits.usd_per_hour, "usd")

    def serve(self, k: int, wanted: Sequence[Term], fixed: float = 0.0) -> None:
        """Prefill and decode as much of class k as the terms and `fixed` add up to."""
        for phase in (self.prefill_on(k), self.decode_on(k)):
            done = [(variable, 1.0) for _, variable in phase]
            if fixed and not done:
                raise InfeasibleError(f"class {self._demands[k].name}: no device type can serve it.")
            self._program.equal([*done, *((variable, -factor) for variable, factor in wanted)], fixed)

    def prefill_on(self, k: int) -> Iterator[tuple[int, int]]:
        """Types that can prefill class k, and the variables of how much they do."""
        return ((d, variable) for (j, d), variable in self._prefill.items() if j == k)

    def decode_on(self, k: int) -> Iterator[tuple[int, int]]:
        """Types that can decode class k, and the variables of how much they do."""
        return ((d, variable) for (j, d), variable in self._decode.items() if j == k)

    def amounts(self, solution: Solution, k: int, d: int) -> tuple[float, float]:
        """Prefill and decode of class k on type d."""
        return _value(solution, self._prefill.get((k, d))), _value(solution, self._decode.get((k, d)))

    def _effort(self, k: int, d: int) -> Effort:
        return self._efforts[self._demands[k].name, self._supplies[d].name]


def _value(solution: Solution, variable: int | None) -> float:
    return 0.0 if variable is None else max(0.0, solution[variable])
