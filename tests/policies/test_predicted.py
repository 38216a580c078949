"""Hand-worked predictions, and what must follow when the fleet or the load changes."""

from __future__ import annotations

import math
from random import Random

import pytest

from policies.predicted import Predicted
from policies.registry import build
from router.core.messages import BackendRemoved, BackendReported, DecodeDone, RequestCancelled
from router.model import (
    BackendSnapshot,
    ConnectorFlags,
    FinishReason,
    LinkParameters,
    PhaseCost,
    Placement,
    PowerParameters,
    Reject,
    RoutePlan,
    StepParameters,
    Wait,
)
from tests.policies.world import DECODE, PREFILL, Models, Views, policy, reported, request, spec, view


def planned(*views: object, asked=None, **params: object) -> RoutePlan:
    """The plan for a request of 1,000 prompt tokens and 100 new ones."""
    plan = policy("predicted", **params).plan(asked or request(), Views(views), 0.0)
    assert isinstance(plan, RoutePlan), plan
    return plan


def parts(plan: RoutePlan) -> dict[str, float]:
    """The predicted times of the chosen placement."""
    return dict(plan.decision.candidates[0].parts)


def test_one_idle_backend_does_both() -> None:
    """1,000 x 0.1 ms of prefill gives the first token; 99 steps of 10 ms the others."""
    plan = planned(view(spec("gpu")))
    assert (plan.prefill, plan.decode, plan.is_split) == ("gpu", "gpu", False)
    assert parts(plan) == pytest.approx(
        {
            "queue_s": 0.0,
            "prefill_s": 0.1,
            "handoff_s": 0.0,
            "decode_s": 0.99,
            "ttft_s": 0.1,
            "finish_s": 1.09,
        }
    )
    prediction = plan.decision.prediction
    assert prediction is not None
    assert (prediction.ttft_s, prediction.e2e_s) == pytest.approx((0.1, 1.09))
    assert prediction.tpot_s == pytest.approx(0.01)


def test_a_fast_decoder_is_worth_a_handoff() -> None:
    """0.1 s of prefill + (1 ms + 1 MB at 1 GB/s) + 99 steps of 1 ms beat 1.09 s on one backend."""
    plan = planned(view(spec("gpu")), view(spec("lpu", DECODE, step_ms=1)))
    assert (plan.prefill, plan.decode) == ("gpu", "lpu")
    assert parts(plan)["handoff_s"] == pytest.approx(0.002)
    assert parts(plan)["finish_s"] == pytest.approx(0.1 + 0.002 + 0.099)
    assert parts(plan)["ttft_s"] == pytest.approx(0.1)
    runner_up = plan.decision.runner_up
    assert runner_up is not None
    assert (runner_up.decode, runner_up.score) == ("gpu", pytest.approx(-1.09))


def test_without_a_token_from_prefill_the_first_step_is_waited_for() -> None:
    """Decode then makes all 100 tokens, and the first comes after prefill, transfer and one step."""
    late = ConnectorFlags(first_token_from_prefill=False)
    plan = planned(view(spec("gpu", PREFILL, connector=late)), view(spec("lpu", DECODE, step_ms=1)))
    assert parts(plan)["ttft_s"] == pytest.approx(0.1 + 0.002 + 0.001)
    assert parts(plan)["finish_s"] == pytest.approx(0.1 + 0.002 + 0.1)


def test_a_slow_link_keeps_decode_at_home() -> None:
    """At 1 MB/s the megabyte of KV takes a second: more than the faster steps save."""
    slow = LinkParameters(latency_s=0.001, bandwidth_bytes_per_s=1e6)
    plan = planned(view(spec("gpu", link=slow)), view(spec("lpu", DECODE, step_ms=1)))
    assert (plan.prefill, plan.decode) == ("gpu", "gpu")


def test_a_link_without_bandwidth_is_no_link() -> None:
    """It is no division by zero either."""
    dead = LinkParameters(latency_s=0.0, bandwidth_bytes_per_s=0.0)
    plan = planned(view(spec("gpu", link=dead)), view(spec("lpu", DECODE, step_ms=1)))
    assert (plan.prefill, plan.decode) == ("gpu", "gpu")


def test_prefill_waits_for_the_prompt_tokens_ahead() -> None:
    """3,000 tokens ahead and 1,000 of ours share one step of 0.4 s."""
    plan = planned(view(spec("gpu"), prefills=2, prefill_tokens=3000, kv_tokens=3000))
    assert parts(plan)["queue_s"] == pytest.approx(0.3)
    assert parts(plan)["prefill_s"] == pytest.approx(0.1)


def test_prefill_is_chunked_beside_decoding_sequences() -> None:
    """Chunks of 504 - 4 = 500: two steps of 10 ms + 50 ms, and half of the step that is running."""
    busy = view(spec("gpu", max_num_batched_tokens=504), decodes=4, decode_tokens=40, kv_tokens=400)
    assert parts(planned(busy))["ttft_s"] == pytest.approx(0.005 + 2 * (0.010 + 0.050))


def test_attention_of_the_queue_is_counted_per_prompt() -> None:
    """Two prompts of 1,000 ahead and ours have 3 x 1,000 x 500 pairs at 0.1 us each."""
    step = StepParameters(base_s=0.01, per_attention_pair_s=1e-7)
    queued = view(spec("gpu", step=step), prefills=2, prefill_tokens=2000, kv_tokens=2000)
    assert parts(planned(queued))["ttft_s"] == pytest.approx(3 * 1000 * 500 * 1e-7)


def test_a_step_is_that_of_the_batch_after_joining() -> None:
    """10 ms + 5 sequences x 1 ms + (1,880 + 1,050) tokens x 1 us."""
    step = StepParameters(base_s=0.01, per_sequence_s=0.001, per_context_token_s=1e-6)
    # Four sequences of 420 + 100 booked: half of the output is there on average, so 470 each.
    busy = view(spec("lpu", DECODE, step=step), decodes=4, decode_tokens=400, kv_tokens=4 * 520)
    plan = planned(view(spec("gpu", PREFILL)), busy)
    joined = 0.010 + 5 * 0.001 + (4 * 470 + 1050) * 1e-6
    half = (0.010 + 4 * 0.001 + 4 * 470 * 1e-6) / 2
    assert parts(plan)["decode_s"] == pytest.approx(half + 99 * joined)


def test_the_snapshot_counts_where_it_exceeds_the_ledger() -> None:
    """Another router's 3,000 waiting prompt tokens delay ours as our own would."""
    seen = reported(view(spec("gpu")), waiting=2, waiting_prefill_tokens=3000, kv_used_tokens=3000)
    assert parts(planned(seen))["queue_s"] == pytest.approx(0.3)


def test_prefill_work_on_the_decode_backend_slows_decode_down() -> None:
    """A backend that spent half of its time on prefill decodes at half its speed."""
    chosen = policy("predicted")
    for at, busy in ((0.0, 0.0), (1000.0, 500.0)):
        chosen.observe(BackendReported("gpu", BackendSnapshot(observed_at=at, busy_prefill_s=busy)), at)
    plan = chosen.plan(request(), Views([view(spec("gpu"))]), 1000.0)
    assert isinstance(plan, RoutePlan)
    assert parts(plan)["decode_s"] == pytest.approx(2 * 0.99)


def test_a_prefill_backlog_on_the_decode_backend_is_added() -> None:
    """2,000 prompt tokens of 0.1 ms wait there: 0.2 s more than the 99 steps."""
    source = view(spec("a", PREFILL, prefill_us=1))
    plan = planned(source, view(spec("b", prefill_us=100), prefills=1, prefill_tokens=2000, kv_tokens=2000))
    assert (plan.prefill, plan.decode) == ("a", "b")
    assert parts(plan)["decode_s"] == pytest.approx(0.99 + 0.2)


def test_a_slow_newcomer_does_not_attract_the_request() -> None:
    """As long as the fast backend is free, a slower one changes nothing."""
    fast, slow = view(spec("fast")), view(spec("slow", step_ms=40, prefill_us=900))
    assert planned(fast).prefill == planned(slow, fast).prefill == planned(fast, slow).prefill == "fast"
    assert planned(slow, fast).decode == "fast"


def test_the_slow_backend_helps_when_the_fast_one_is_deep_in_work() -> None:
    """10 s of prefill ahead on the fast one exceed 1.99 s on the slow one."""
    deep = view(spec("fast"), prefills=10, prefill_tokens=100_000, kv_tokens=100_000)
    assert planned(deep, view(spec("slow", step_ms=19))).prefill == "slow"


def test_the_weight_trades_the_finish_for_the_first_token() -> None:
    """`sprinter` gives the first token sooner, `runner` the last."""
    fleet = (view(spec("sprinter", step_ms=20)), view(spec("runner", step_ms=10, prefill_us=200)))
    # The layouts differ, so that no pair mixes the two.
    fleet = (fleet[0], view(spec("runner", step_ms=10, prefill_us=200, kv_layout="other")))
    assert planned(*fleet, ttft_weight=0.0).prefill == "runner"
    assert planned(*fleet, ttft_weight=1.0).prefill == "sprinter"


def test_price_and_energy_of_the_device_time_are_predicted() -> None:
    """3,600 $/h is 1 $ a second: 0.1 s of prefill and 100 steps of 10 ms; 50 W for the same time."""
    power = PowerParameters(idle_w=50.0)
    plan = planned(view(spec("gpu", usd_per_hour=3600.0, power=power)))
    prediction = plan.decision.prediction
    assert prediction is not None
    assert prediction.cost_usd == pytest.approx(1.1)
    assert prediction.energy_j == pytest.approx(55.0)


def finish(chosen: object, number: int, tokens: int, **more: object) -> None:
    """Plan one request and let it finish with some tokens."""
    asked = request(**{"output": 1000, **more})
    fleet = Views([view(spec("gpu"))])
    assert isinstance(chosen, Predicted)
    chosen.plan(asked, fleet, float(number))
    chosen.observe(DecodeDone("r", 0, PhaseCost(), tokens, FinishReason.STOP), float(number))


def expected(chosen: Predicted, **more: object) -> int | None:
    """The output length booked for the next request."""
    plan = chosen.plan(request(**{"output": 1000, **more}), Views([view(spec("gpu"))]), 0.0)
    assert isinstance(plan, RoutePlan)
    return plan.expected_output_tokens


def test_output_lengths_are_learned_per_class() -> None:
    """Before the first answer 256 is assumed, or max_new_tokens if that is less."""
    chosen = policy("predicted")
    assert isinstance(chosen, Predicted)
    assert (expected(chosen), expected(chosen, output=40)) == (256, 40)
    for number, tokens in enumerate((100, 200, 300)):
        finish(chosen, number, tokens, workload_class="chat")
    assert expected(chosen, workload_class="chat") == 200
    assert expected(chosen, workload_class="chat", output=150) == 150
    assert expected(chosen, workload_class="code") == 256


def test_old_answers_fade() -> None:
    """With a memory of 4, thirty answers of 10 tokens outweigh one of 900."""
    chosen = policy("predicted", length_memory=4)
    assert isinstance(chosen, Predicted)
    finish(chosen, 0, 900)
    for number in range(30):
        finish(chosen, number, 10)
    assert expected(chosen) == 10


def test_facts_about_strangers_and_nonsense_teach_nothing() -> None:
    """An unknown request, a cancelled one, a length of 0 and a busy counter that is no number."""
    chosen = policy("predicted")
    assert isinstance(chosen, Predicted)
    chosen.observe(DecodeDone("who", 0, PhaseCost(), 5, FinishReason.STOP), 0.0)
    expected(chosen)
    chosen.observe(RequestCancelled("r"), 0.0)
    chosen.observe(DecodeDone("r", 0, PhaseCost(), 5, FinishReason.STOP), 0.0)
    finish(chosen, 1, 0)
    for at, busy in ((0.0, 0.0), (1.0, math.nan), (math.inf, 1.0), (2.0, -1.0)):
        chosen.observe(BackendReported("gpu", BackendSnapshot(observed_at=at, busy_prefill_s=busy)), 0.0)
    chosen.observe(BackendRemoved("nobody"), 0.0)
    assert expected(chosen) == 256
    assert planned(view(spec("gpu"))).decision.prediction is not None


def test_a_hopeless_deadline_is_refused() -> None:
    """Prefill takes 0.1 s; refused with 40 ms left, since twice that is too little, but not with 60 ms."""
    plan = policy("predicted").plan(request(deadline=10.0), Views([view(spec("gpu"))]), 9.96)
    assert isinstance(plan, Reject)
    assert plan.infeasible_deadline
    assert "deadline" in plan.reason
    assert isinstance(
        policy("predicted").plan(request(deadline=10.0), Views([view(spec("gpu"))]), 9.94), RoutePlan
    )


def test_a_backend_that_cannot_be_predicted_is_never_the_fastest() -> None:
    """A model that answers NaN must not win, nor cost the others the decision."""

    class Broken(Models):
        """NaN for one backend."""

        def __call__(self, spec):  # type: ignore[no-untyped-def]
            return Nonsense() if spec.id == "broken" else super().__call__(spec)

    chosen = build("predicted", {}, Broken(), Random(1))
    fleet = [view(spec("broken")), view(spec("gpu"))]
    plan = chosen.plan(request(), Views(fleet), 0.0)
    assert isinstance(plan, RoutePlan)
    assert (plan.prefill, plan.decode) == ("gpu", "gpu")
    alone = chosen.plan(request(), Views(fleet[:1]), 0.0)
    assert isinstance(alone, Wait)
    assert alone.reason == "prediction"


class Nonsense:
    """A latency model gone wrong."""

    def prefill_s(self, new_tokens: int, cached_tokens: int = 0) -> float:
        """Not a number."""
        return math.nan

    def decode_step_s(self, sequences: int, context_tokens: int) -> float:
        """Not a number."""
        return math.nan

    def mixed_step_s(self, sequences: int, context_tokens: int, prefill_tokens: int, pairs: float) -> float:
        """Not a number."""
        return math.nan


def test_late_binding_takes_the_earliest_finish_from_here() -> None:
    """KV is at `gpu`: 2 ms of transfer and 1 ms steps beat staying with 10 ms steps."""
    fleet = Views([view(spec("gpu")), view(spec("lpu", DECODE, step_ms=1)), view(spec("old", step_ms=99))])
    bound = policy("predicted").bind_decode(request(), "gpu", fleet, 0.0)
    assert isinstance(bound, Placement)
    assert bound.backend == "lpu"
    assert bound.decision.candidates[0].score == pytest.approx(-(0.002 + 0.099))
    assert [each.decode for each in bound.decision.candidates] == ["lpu", "gpu", "old"]


def test_late_binding_may_stay_where_the_prompt_fills_the_memory() -> None:
    """Only the output needs new room at the producer, whose KV is booked already."""
    full = view(spec("gpu", kv_capacity_tokens=1200), kv_tokens=1000)
    bound = policy("predicted").bind_decode(request(), "gpu", Views([full]), 0.0)
    assert isinstance(bound, Placement)
    assert bound.backend == "gpu"


def test_late_binding_without_a_taker_waits() -> None:
    """A decoder whose slot and queue are full frees up; a producer that is gone is the core's affair."""
    fleet = Views([view(spec("gpu", PREFILL)), view(spec("lpu", DECODE, max_num_seqs=1), decodes=2)])
    full = policy("predicted").bind_decode(request(), "gpu", fleet, 0.0)
    assert isinstance(full, Wait)
    assert full.reason == "slots_full"
    gone = policy("predicted").bind_decode(request(), "nobody", fleet, 0.0)
    assert isinstance(gone, Wait)


def test_a_lone_pair_of_specialists_works() -> None:
    """One backend per phase, of the same class but for the phases."""
    plan = planned(view(spec("a", PREFILL)), view(spec("b", DECODE)))
    assert (plan.prefill, plan.decode) == ("a", "b")
