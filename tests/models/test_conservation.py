"""Joules and dollars: what requests are charged, and what nobody is, add up to what a backend cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.models.afd import with_serial_law
from backends.models.messages import DecodeFinished, PrefillFinished, Stop
from router.model import AfdLaw, AfdParameters, PowerParameters, Seconds
from tests.models.drive import KINDS, STEP, WATTS, backend, engine, of, prefill, until

AFD = AfdParameters(
    layers=4,
    law=AfdLaw.CONSERVATIVE,
    micro_batches=2,
    attention_base_s=1e-3,
    attention_per_context_token_s=1e-5,
    ffn_base_s=1.2e-3,
    hop_s=1e-4,
)
WAYS: dict[str, dict[str, Any]] = {**KINDS, "afd": {"afd": AFD, "step": with_serial_law(STEP, AFD)}}

requests = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.003, 0.05, 0.4]), st.integers(1, 40), st.integers(1, 40), st.booleans()
    ),
    min_size=1,
    max_size=25,
)  # pause, prompt, answer, whether it is stopped


@settings(max_examples=120, deadline=None)
@given(
    requests, st.sampled_from(sorted(WAYS)), st.sampled_from([0.0, 0.1]), st.sampled_from([13.0, 25.0, 1e9])
)
def test_shares_and_overhead_are_the_whole(
    story: list[tuple[Seconds, int, int, bool]], way: str, sigma: float, cap_w: float
) -> None:
    """Charged + dropped + idle = the backend's energy and its time, to rounding; at list price too."""
    limits = WAYS[way]
    step = replace(limits.get("step", STEP), noise_sigma=sigma)
    power = PowerParameters(**{**as_dict(WATTS), "cap_w": cap_w})
    spec = backend(power=power, usd_per_hour=36.0, **{**limits, "step": step})
    machine, events, now = engine(spec, emit_tokens=False), list[Any](), 0.0
    for key, (pause, prompt, output, stops) in enumerate(story):
        now += pause
        events += until(machine, now)
        events += machine.handle(prefill(key, prompt, output, decode_here=key % 4 != 3), now)
        if stops:
            events += until(machine, now + 0.02)
            now += 0.02
            events += machine.handle(Stop(key // 2), now)
    for key in (-1, *range(len(story))):  # whoever holds KV, or waits for its room, is stopped in the end
        while (due := machine.deadline()) is not None:
            now = due
            events += machine.advance(due)
        events += machine.handle(Stop(key), now)
    now += 1.0
    costs = [event.cost for event in (*of(events, PrefillFinished), *of(events, DecodeFinished))]
    told, overhead = machine.snapshot(now), machine.overhead(now)
    assert sum(cost.energy_j for cost in costs) + overhead.energy_j == pytest.approx(told.energy_j)
    busy_s = told.busy_prefill_s + told.busy_decode_s + told.busy_loading_s
    charged_s = sum(cost.device_s for cost in costs)
    assert charged_s + overhead.stopped_s == pytest.approx(told.busy_prefill_s + told.busy_decode_s)
    assert charged_s + overhead.device_s == pytest.approx(now)
    assert busy_s <= now + 1e-9
    assert told.energy_j <= min(cap_w, 1e9) * now + 1e-9
    assert (charged_s + overhead.device_s) * spec.usd_per_hour / 3600 == pytest.approx(0.01 * now)


def as_dict(power: PowerParameters) -> dict[str, float]:
    """Its fields."""
    return {name: getattr(power, name) for name in power.__dataclass_fields__}


def test_the_cap_holds_in_every_step() -> None:
    """Steps that move ever more KV run into it one after the other: no mean over a stretch hides one."""
    spec = backend(power=replace(WATTS, idle_w=1.0, cap_w=14.0), kv_capacity_tokens=4000)
    machine = engine(spec)
    machine.handle(prefill(1, prompt=16, output=60), 0.0)
    before, at = 0.0, 0.0
    watts = list[float]()
    while (due := machine.deadline()) is not None:
        machine.advance(due)
        joule = machine.snapshot(due).energy_j
        watts.append((joule - before) / (due - at))
        before, at = joule, due
    assert max(watts) <= 14.0 + 1e-9
    capped = [one > 14.0 - 1e-9 for one in watts[1:]]
    assert capped == sorted(capped)
    assert 10 < sum(capped) < 50
