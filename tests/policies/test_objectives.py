"""Objectives held, others' objectives spared, and what becomes of those for whom that cannot be done."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from policies.predicted import Predicted
from policies.registry import build
from policies.waits import RECHECK_S
from router.core.messages import PrefillDone
from router.core.ports import Policy
from router.errors import ConfigError
from router.model import (
    BackendView,
    ConnectorFlags,
    LinkParameters,
    PhaseCost,
    Placement,
    Reject,
    RoutePlan,
    SchedulerKind,
    ServiceLevel,
    StepParameters,
    Wait,
)
from tests.policies.world import DECODE, PREFILL, Models, Views, policy, request, spec, view

CHAT = ServiceLevel(ttft_s=1.0, tpot_s=0.05)
TIGHT = ServiceLevel(tpot_s=0.012)


def asking(name: str, slo: ServiceLevel = CHAT, prompt: int = 1000, output: int = 100, **more: object):
    """A request by name."""
    return replace(request(prompt, output, slo=slo), id=name, **more)  # type: ignore[arg-type]


def decoding(name: str, **more: object) -> BackendView:
    """A backend with steps of 10 ms in which one sequence decodes."""
    return view(spec(name, **more), decodes=1, decode_tokens=100, kv_tokens=1100)


def settle(chosen: Policy, name: str, at: float, *, slo: ServiceLevel = TIGHT, backend: str = "a") -> None:
    """Let a request decode on a backend: 99 steps of 10 ms with 12 ms allowed leave 0.2 s to spare."""
    plan = chosen.plan(asking(name, slo), Views([view(spec(backend))]), at)
    assert isinstance(plan, RoutePlan)
    chosen.observe(PrefillDone(name, 1, PhaseCost()), at)


def places(answer: object) -> tuple[str, str | None]:
    """Where both phases go."""
    assert isinstance(answer, RoutePlan), answer
    return answer.prefill, answer.decode


def test_a_prefill_is_kept_off_a_backend_whose_decode_it_would_break() -> None:
    """0.4 s of prefill are more than the 0.2 s that the resident of `a` can bear; `b` is slower, and free."""
    chosen = policy("predicted")
    settle(chosen, "resident", 0.0)
    fleet = Views([decoding("a"), view(spec("b", step_ms=20, prefill_us=150, kv_layout="B"))])
    assert places(chosen.plan(asking("long", prompt=4000), fleet, 0.05)) == ("b", "b")
    assert places(chosen.plan(asking("short", prompt=100), fleet, 0.05))[0] == "a"


def test_who_would_break_others_waits_until_its_own_objective_ends_its_hope() -> None:
    """Alone it takes 0.4 s, which has to be within 0.8 of what is left of 1 s: hope ends after 0.5 s."""
    chosen = policy("predicted")
    settle(chosen, "resident", 0.0)
    fleet, long = Views([decoding("a")]), asking("long", prompt=4000)
    answer = chosen.plan(long, fleet, 0.05)
    assert isinstance(answer, Wait)
    assert (answer.reason, answer.until) == ("objectives", pytest.approx(0.05 + 1.0 - 0.4 / 0.8))
    assert answer.decision is not None
    assert "waits" in answer.decision.reason


def test_who_has_no_hope_is_refused_early_and_told_to_come_again() -> None:
    """After 0.6 s of waiting its own first token cannot be in time any more."""
    chosen = policy("predicted")
    settle(chosen, "resident", 0.0)
    fleet, long = Views([decoding("a")]), asking("long", prompt=4000)
    assert isinstance(chosen.plan(long, fleet, 0.05), Wait)
    answer = chosen.plan(long, fleet, 0.65)
    assert isinstance(answer, Reject)
    assert answer.retry_after_s > 0
    assert not answer.infeasible_deadline
    assert "objectives" in answer.reason


def test_without_refusals_the_hopeless_are_served_when_it_harms_nobody() -> None:
    """`hopeless = "last"`: it waits for the resident, and goes once that has ended, late as it is."""
    chosen = policy("predicted", hopeless="last")
    settle(chosen, "resident", 0.0)
    long = asking("long", prompt=4000)
    assert isinstance(chosen.plan(long, Views([decoding("a")]), 0.05), Wait)
    late = chosen.plan(long, Views([decoding("a")]), 0.65)
    assert isinstance(late, Wait)
    assert late.reason == "objectives_of_others"
    assert places(chosen.plan(long, Views([view(spec("b"))]), 0.7))[0] == "b"


def test_without_objectives_nobody_is_refused() -> None:
    """A bulk prompt waits for the resident, at most as long as patience."""
    chosen = policy("predicted", patience_s=3.0)
    settle(chosen, "resident", 0.0)
    fleet, bulk = Views([decoding("a")]), asking("bulk", ServiceLevel(), prompt=4000)
    answer = chosen.plan(bulk, fleet, 0.05)
    assert isinstance(answer, Wait)
    assert (answer.reason, answer.until) == ("objectives_of_others", pytest.approx(3.05))
    settle(chosen, "next", 3.0)
    assert places(chosen.plan(bulk, fleet, 3.06))[0] == "a"


def test_what_no_backend_could_ever_hold_is_served_as_well_as_can_be() -> None:
    """5 ms a token on backends that take 10 ms: to refuse everybody would help nobody."""
    fleet = Views([view(spec("a")), view(spec("b", step_ms=20))])
    answer = policy("predicted").plan(asking("fast", ServiceLevel(tpot_s=0.005)), fleet, 0.0)
    assert places(answer) == ("a", "a")


def test_one_who_asks_again_at_once_is_told_the_same_without_the_work() -> None:
    """Within the time of a recheck; the second answer asks to be asked again."""
    chosen = policy("predicted")
    settle(chosen, "resident", 0.0)
    long = asking("long", prompt=4000)
    assert isinstance(chosen.plan(long, Views([decoding("a")]), 0.05), Wait)
    again = chosen.plan(long, Views([]), 0.05)  # nobody looks at the fleet
    assert again == Wait("objectives", None, False, 0.05 + RECHECK_S)
    assert places(chosen.plan(long, Views([view(spec("b"))]), 0.05 + RECHECK_S))[0] == "b"


def test_want_of_room_is_explained_once() -> None:
    """The same reason again, without its record; when backends leave, it is looked at anew."""
    chosen = policy("predicted")
    full = view(spec("a", max_num_seqs=1), decodes=1)
    first = chosen.plan(asking("r"), Views([full]), 0.0)
    second = chosen.plan(asking("r"), Views([full]), 1.0)
    assert isinstance(first, Wait) and isinstance(second, Wait)
    assert (first.reason, first.no_room) == (second.reason, second.no_room) == ("slots_full", True)
    assert first.decision is not None
    assert second.decision is None
    assert isinstance(chosen.plan(asking("r"), Views([]), 2.0), Reject)


def test_a_decode_may_wait_for_a_slot_that_comes_free_soon() -> None:
    """Two slots, each free after 100 steps of 1 ms: the third waits 50 ms, which is less than 99 x 9 ms.
    Without overbooking it stays on the slow backend."""
    lpu = view(spec("lpu", DECODE, step_ms=1, max_num_seqs=2), decodes=2, decode_tokens=200, kv_tokens=2200)
    fleet = Views([view(spec("gpu")), lpu])
    plan = policy("predicted").plan(asking("r"), fleet, 0.0)
    assert places(plan) == ("gpu", "lpu")
    assert isinstance(plan, RoutePlan)
    assert plan.decision.candidates[0].parts["decode_s"] == pytest.approx(0.0005 + 0.05 + 0.099)
    assert places(policy("predicted", overbook=0.0).plan(asking("r"), fleet, 0.0)) == ("gpu", "gpu")


def test_the_decode_of_a_long_prefill_is_bound_after_it() -> None:
    """0.6 s of prefill: the decode is left open; the first candidate says where it would go by now."""
    chosen = policy("predicted")
    fleet = Views([view(spec("gpu", PREFILL)), view(spec("lpu", DECODE, step_ms=1))])
    plan = chosen.plan(asking("r", prompt=6000), fleet, 0.0)
    assert places(plan) == ("gpu", None)
    assert isinstance(plan, RoutePlan)
    assert plan.decision.candidates[0].decode == "lpu"
    bound = chosen.bind_decode(asking("r", prompt=6000), "gpu", fleet, 0.6)
    assert isinstance(bound, Placement)
    assert bound.backend == "lpu"
    assert places(policy("predicted", bind_late_s=1.0).plan(asking("r", prompt=6000), fleet, 0.0)) == (
        "gpu",
        "lpu",
    )


def priced(name: str, usd_per_hour: float, load: int = 0, **more: object) -> BackendView:
    """A backend with a price and a batch of equal sequences; each makes a step 0.1 ms longer."""
    step = StepParameters(base_s=0.01, per_sequence_s=1e-4, per_prefill_token_s=1e-5)
    own = spec(name, usd_per_hour=usd_per_hour, step=step, kv_layout=name, **more)
    return view(own, decodes=load, decode_tokens=100 * load, kv_tokens=1100 * load)


def test_the_objective_decides_among_places_that_hold_all() -> None:
    """Time goes to the idle backend; cost to the busy one, where a decode adds 0.1 ms to each step that runs
    anyway instead of a step of its own."""
    fleet = Views([priced("idle", 3.0), priced("busy", 3.0, load=9)])
    chat = asking("r", prompt=10)
    assert places(policy("predicted").plan(chat, fleet, 0.0)) == ("idle", "idle")
    assert places(policy("predicted", objective="cost").plan(chat, fleet, 0.0)) == ("busy", "busy")


def test_a_class_may_have_an_objective_of_its_own() -> None:
    """Batch is cheap, chat is soon."""
    chosen = policy("predicted", classes={"batch": {"objective": "cost"}})
    fleet = Views([priced("idle", 3.0), priced("busy", 3.0, load=9)])
    assert places(chosen.plan(asking("r", prompt=10), fleet, 0.0))[0] == "idle"
    assert places(chosen.plan(asking("s", prompt=10, workload_class="batch"), fleet, 0.0))[0] == "busy"


def test_no_price_is_worth_an_objective() -> None:
    """The cheap backend would break 15 ms a token."""
    fleet = Views([view(spec("dear", usd_per_hour=9.0)), view(spec("cheap", step_ms=20, usd_per_hour=0.1))])
    answer = policy("predicted", objective="cost").plan(asking("r", ServiceLevel(tpot_s=0.015)), fleet, 0.0)
    assert places(answer)[1] == "dear"


def test_latency_looks_at_nobody_else() -> None:
    """The soonest finish, whatever it breaks."""
    chosen = policy("predicted", objective="latency")
    settle(chosen, "resident", 0.0)
    fleet = Views([decoding("a"), view(spec("b", step_ms=20, prefill_us=150))])
    assert places(chosen.plan(asking("long", prompt=4000), fleet, 0.05)) == ("a", "a")


@pytest.mark.parametrize(
    ("table", "part"),
    [
        ({"classes": 3}, "a table of workload class"),
        ({"classes": {"batch": 3}}, "a table with an objective"),
        ({"classes": {"batch": {"objective": "speed"}}}, "one of goodput, latency"),
        ({"classes": {"batch": {"objektive": "cost"}}}, 'did you mean "objective"'),
        ({"classes": {f"c{i}": {} for i in range(300)}}, "more than 256"),
    ],
)
def test_a_wrong_table_of_classes_is_explained(table: dict[str, object], part: str) -> None:
    """By what is wrong and what is allowed."""
    with pytest.raises(ConfigError, match=part):
        policy("predicted", **table)


VOICE = ServiceLevel(ttft_s=1.0, jitter_ratio=1.5)


def test_an_even_voice_goes_to_the_static_pipeline() -> None:
    """Both keep the pace; on the GPU, prefills of others come between the tokens."""
    late = ConnectorFlags(first_token_from_prefill=False)
    fast = LinkParameters(0.0, 1e12)
    gpu = spec("gpu", step_ms=5, connector=late, link=fast)
    slots = spec("lpu", DECODE, step_ms=6, scheduler=SchedulerKind.SLOTS)
    chosen, fleet = policy("predicted"), Views([view(gpu), view(slots)])
    for number in range(6):
        chosen.plan(asking(f"noise-{number}", ServiceLevel()), Views([view(gpu)]), 0.1 * number)
    assert places(chosen.plan(asking("voice", VOICE), fleet, 1.0)) == ("gpu", "lpu")
    assert places(chosen.plan(asking("chat", ServiceLevel()), fleet, 1.0)) == ("gpu", "gpu")


def test_prefills_stay_off_a_backend_that_holds_an_even_voice() -> None:
    """The other one is slower, and holds nobody."""
    chosen = policy("predicted")
    settle(chosen, "voice", 0.0, slo=VOICE)
    fleet = Views([decoding("a"), view(spec("b", step_ms=15, prefill_us=150, kv_layout="B"))])
    assert places(chosen.plan(asking("chat"), fleet, 0.05)) == ("b", "b")


def test_a_voice_that_is_torn_already_keeps_nobody_off() -> None:
    """After one prefill beside it there is nothing left to lose."""
    chosen = policy("predicted", patience_s=0.0)
    settle(chosen, "voice", 0.0, slo=VOICE)
    assert places(chosen.plan(asking("first", ServiceLevel()), Views([decoding("a")]), 0.9))[0] == "a"
    fleet = Views([decoding("a"), view(spec("b", step_ms=15, prefill_us=150, kv_layout="B"))])
    assert places(chosen.plan(asking("second"), fleet, 0.95))[0] == "a"


def test_a_policy_is_built_from_its_file_with_nested_tables() -> None:
    """As the registry reads it."""
    made = build("predicted", {"classes": {"batch": {"objective": "energy"}}}, Models(), Random(1))
    assert isinstance(made, Predicted)
