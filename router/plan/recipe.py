"""The worked example of the fluid bound: Llama-3.1-70B, an hour of Azure traffic, six fleets.

It works with a published recipe, kept as it was published so that its numbers can be checked: mean lengths
stand for a class, every output token is a decode step, a batch has at most 2048 sequences whose contexts
have at least 50 tokens, 15.6 ms pass outside the engine. `polyphase bound` does not use it: work.py has lower
bounds that hold for the engine.

    u = p n + q n^2 / 2                          device time of a prompt of n thousand tokens, ms
    v = O (a / Bmax + b + c ctx)                 of an answer; ctx = (I + O / 2) / 1000
    Bmax = min((TPOT - a - c (ctx - 0.05)) / (b + 0.05 c), M / 50, 2048)
    KV residency of a request: O a (I + O / 2) token-seconds of the unit's M tokens
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from router.model import BackendKind, BackendSpec, Phase, StepParameters
from router.plan.classes import Cell, parse_table
from router.plan.fluid import Plan, capacity
from router.plan.supply import Demand, Effort, Supply

MODEL: Final = "llama-3.1-70b"
TRACE_S: Final = 3500.0
"""Length that the example takes the traces to have."""
OUTSIDE_S: Final = 15.6e-3
"""Time outside the engine (BLIS, trained-physics model)."""
SMALLEST_CONTEXT: Final = 50.0
LARGEST_BATCH: Final = 2048.0
ENGINE_SHARE: Final = 0.9
"""Of the memory, that an engine takes."""
LEVELS: Final[Mapping[str, tuple[float, float]]] = {"conversation": (1.0, 0.050), "code": (0.5, 0.025)}
"""TTFT and TPOT objective of each trace, in seconds."""
FLEETS: Final[Sequence[Mapping[str, int]]] = (
    {"a100": 4},
    {"h100": 2},
    {"h200": 2},
    {"b200": 2},
    {"a100": 2, "h100": 1, "h200": 1, "b200": 1},
    {"a100": 2, "b200": 1},
)


@dataclass(frozen=True, slots=True)
class Row:
    """One fleet of the example."""

    fleet: Mapping[str, int]
    usd_per_hour: float
    goodput: float
    """Requests per second."""
    prefill: Mapping[str, float]
    """By unit: share of all prefills."""
    decode: Mapping[str, float]
    plan: Plan

    @property
    def goodput_per_usd_h(self) -> float:
        """Requests per second for a dollar an hour."""
        return self.goodput / self.usd_per_hour


def azure_rows() -> list[Row]:
    """The six rows. Raises ConfigError without SciPy."""
    units, cells = load_units(), load_classes()
    return [_row(fleet, units, cells) for fleet in FLEETS]


def load_units() -> dict[str, BackendSpec]:
    """The units that ship with the project, by name."""
    document = tomllib.loads(_data("llama_70b_units.toml"))
    return {name: _unit(name, table) for name, table in document.items()}


def load_classes() -> list[Cell]:
    """The classes that ship with the project."""
    return parse_table(_data("azure_2023_classes.csv"))


def demands_of(cells: Sequence[Cell]) -> dict[str, Cell]:
    """The cells by the names of their demands."""
    return {f"{cell.trace}-{number}": cell for number, cell in enumerate(cells)}


def effort(cell: Cell, spec: BackendSpec) -> Effort:
    """What one request of a class takes from a unit, by the recipe."""
    ttft_s, tpot_s = LEVELS[cell.trace]
    p, room = spec.step, spec.kv_capacity_tokens
    prompt, answer = cell.prompt_tokens, cell.output_tokens
    context = prompt + 0.5 * answer
    pairs = 0.5 * prompt * prompt
    compute = p.per_prefill_token_s * prompt
    alone = p.prefill_base_s + max(p.prefill_floor_s, compute + p.per_attention_pair_s * pairs)
    spare = tpot_s - p.base_s - p.per_context_token_s * (context - SMALLEST_CONTEXT)
    batch = spare / (p.per_sequence_s + SMALLEST_CONTEXT * p.per_context_token_s)
    batch = min(batch, room / SMALLEST_CONTEXT, LARGEST_BATCH)
    step = p.base_s / max(batch, 1.0) + p.per_sequence_s + p.per_context_token_s * context
    return Effort(
        prefill_s=compute + p.per_attention_pair_s * pairs,
        decode_s=answer * step,
        kv_token_s=answer * p.base_s * context,
        batch=batch,
        no_prefill="ttft" if OUTSIDE_S + alone > ttft_s else "",
        no_decode="tpot" if batch < 1.0 else "",
    )


def _row(fleet: Mapping[str, int], units: Mapping[str, BackendSpec], cells: Sequence[Cell]) -> Row:
    named = demands_of(cells)
    demands = [Demand(name, cell.requests / TRACE_S, MODEL) for name, cell in named.items()]
    supplies = [Supply(name, units[name], count) for name, count in fleet.items()]
    efforts = {
        (name, supply.name): effort(cell, supply.spec) for name, cell in named.items() for supply in supplies
    }
    plan = capacity(demands, supplies, efforts)
    usd = sum(units[name].usd_per_hour * count for name, count in fleet.items())
    return Row(fleet, usd, plan.served, *_phases(plan, fleet), plan)


def _phases(plan: Plan, fleet: Mapping[str, int]) -> tuple[dict[str, float], dict[str, float]]:
    total = plan.served or 1.0
    prefill = {name: sum(s.prefill for s in plan.shares if s.supply == name) / total for name in fleet}
    decode = {name: sum(s.decode for s in plan.shares if s.supply == name) / total for name in fleet}
    return prefill, decode


def _unit(name: str, table: Mapping[str, Any]) -> BackendSpec:
    bytes_per_token = float(table["kv_bytes_per_token"])
    room_gb = table["devices"] * table["memory_gb"] * ENGINE_SHARE - table["weights_gb"]
    return BackendSpec(
        id=name,
        kind=BackendKind.GPU,
        device=str(table["title"]),
        count=int(table["devices"]),
        models=(MODEL,),
        phases=frozenset(Phase),
        step=StepParameters(
            base_s=table["a"] * 1e-3,
            per_sequence_s=table["b"] * 1e-3,
            per_context_token_s=table["c"] * 1e-6,
            prefill_base_s=table["t0"] * 1e-3,
            prefill_floor_s=table["floor"] * 1e-3,
            per_prefill_token_s=table["p"] * 1e-6,
            per_attention_pair_s=table["q"] * 1e-9,
        ),
        kv_bytes_per_token=bytes_per_token,
        kv_capacity_tokens=int(room_gb * 1e9 / bytes_per_token),
        kv_layout=MODEL,  # the example lets KV move between any two units
        usd_per_hour=float(table["usd_per_hour"]),
    )


def _data(name: str) -> str:
    return (files("router.plan") / "data" / name).read_text(encoding="utf-8")
