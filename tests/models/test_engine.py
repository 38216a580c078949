"""The batch engine's rules, with times worked by hand from the round numbers of drive.STEP."""

from dataclasses import replace
from random import Random

import pytest

from backends.models.engine import BatchEngine
from backends.models.messages import (
    DecodeFinished,
    Failed,
    FailReason,
    KVArrived,
    PrefillFinished,
    PullKV,
    StepTokens,
    Stop,
)
from router.core.ports import Machine
from router.errors import ConfigError
from router.model import ConnectorFlags, FinishReason, Phase, PhaseCost
from tests.models.drive import (
    STEP,
    WATTS,
    backend,
    decode,
    engine,
    foreign,
    of,
    prefill,
    run,
    tokens_of,
    until,
)

PREFILL_8 = 0.002 + 0.006 + 32e-6
"""8 tokens alone: the weight sweep hides their compute; 8 x 8 / 2 attention pairs."""


def decode_s(*contexts: int) -> float:
    """One decode step over sequences with these contexts."""
    return 0.010 + 0.001 * len(contexts) + 0.00001 * sum(contexts)


def test_one_request_alone() -> None:
    """Prefill gives token 0, each decode step one more; a context includes the token being computed."""
    machine = engine(backend())
    events = run(machine, [(1.0, prefill(7, prompt=8, output=3, length_capped=True))])
    first, second = 1.0 + PREFILL_8, 1.0 + PREFILL_8 + decode_s(9)
    third = second + decode_s(10)
    assert tokens_of(events, 7) == [(pytest.approx(t), i) for i, t in enumerate((first, second, third))]
    done, end = of(events, PrefillFinished)[0], of(events, DecodeFinished)[0]
    assert done == PrefillFinished(7, PhaseCost(0.0, pytest.approx(PREFILL_8), 0.0), 0, None)
    assert end == DecodeFinished(
        7, PhaseCost(0.0, pytest.approx(decode_s(9) + decode_s(10)), 0.0), 3, FinishReason.LENGTH
    )
    assert machine.deadline() is None
    assert machine.snapshot(9.0).kv_used_tokens == 0


def test_it_is_a_machine() -> None:
    """The engine fits the port that drivers are written against."""
    machine: Machine[object, object] = BatchEngine(backend(), Random(0), 0.0)  # type: ignore[assignment]
    assert machine.deadline() is None


def test_prefill_finished_comes_before_the_first_token_where_decode_goes_on() -> None:
    """A reader that sees token 0 knows that the prefill is over."""
    kinds = [type(event) for event in run(engine(backend()), [(0.0, prefill(1, output=2))])]
    assert kinds == [PrefillFinished, StepTokens, StepTokens, DecodeFinished]


def test_long_prompts_run_in_chunks_of_the_token_budget() -> None:
    """40 tokens at 16 a step: 16, 16 after 16, 8 after 32."""
    events = run(engine(backend()), [(0.0, prefill(1, prompt=40, output=1))])
    chunks = [(16, 0), (16, 16), (8, 32)]
    expected = sum(0.002 + 0.006 + n * (h + n / 2) * 1e-6 for n, h in chunks)
    assert tokens_of(events, 1) == [(pytest.approx(expected), 0)]


def test_a_running_decode_shares_its_step_with_a_chunk() -> None:
    """The newcomer waits for the step in progress; then both are in one mixed step, base split in two."""
    machine = engine(backend())
    events = run(machine, [(0.0, prefill(1, output=3)), (PREFILL_8 + 0.001, prefill(2, output=1))])
    mixed = decode_s(10) + 0.0001 * 8 + 32e-6
    joined = PREFILL_8 + decode_s(9)
    assert tokens_of(events, 1)[-1] == (pytest.approx(joined + mixed), 2)
    assert tokens_of(events, 2) == [(pytest.approx(joined + mixed), 0)]
    second = of(events, PrefillFinished)[1]
    assert second.cost.queued_s == pytest.approx(decode_s(9) - 0.001)
    assert second.cost.device_s == pytest.approx(0.005 + 0.0008 + 32e-6)
    first = of(events, DecodeFinished)
    assert {e.key: e.cost.device_s for e in first}[1] == pytest.approx(decode_s(9) + 0.005 + 0.001 + 0.0001)
    snapshot = machine.snapshot(1.0)
    assert snapshot.busy_prefill_s == pytest.approx(PREFILL_8 + 0.005 + 0.0008 + 32e-6)
    assert snapshot.busy_prefill_s + snapshot.busy_decode_s == pytest.approx(joined + mixed)


def test_two_prompts_alone_share_the_sweep_by_tokens() -> None:
    """12 and 4 tokens in one step: 1 ms of base each, 6 ms of sweep 3 : 1, pairs each its own."""
    machine = engine(backend())
    machine.handle(prefill(0, prompt=16, output=1), 0.0)  # keeps the device busy so that both start together
    events = run(machine, [(0.0, prefill(1, prompt=12, output=1)), (0.0, prefill(2, prompt=4, output=1))])
    costs = {e.key: e.cost.device_s for e in of(events, PrefillFinished)}
    assert costs[1] == pytest.approx(0.001 + 0.0045 + 72e-6)
    assert costs[2] == pytest.approx(0.001 + 0.0015 + 8e-6)


def test_slots_admit_in_order_of_arrival() -> None:
    """With two slots the third waits until the first ends, and the fourth behind it."""
    machine = engine(backend(max_num_seqs=2))
    events = run(machine, [(0.0, prefill(k, prompt=4, output=k)) for k in (2, 3, 4, 5)])
    order = [e.key for e in of(events, PrefillFinished)]
    assert order == [2, 3, 4, 5]
    ends = {e.key: at for e in of(events, DecodeFinished) for at in [tokens_of(events, e.key)[-1][0]]}
    assert tokens_of(events, 4)[0][0] > ends[2]
    assert tokens_of(events, 5)[0][0] > ends[3]


def test_a_late_driver_does_not_shift_the_steps() -> None:
    """Steps start at the model's times; being woken late changes neither times nor costs."""
    commands = [(0.0, prefill(1, output=6)), (0.013, prefill(2, prompt=20, output=5))]
    exact = run(engine(backend()), commands)
    late = engine(backend())
    events = [event for at, command in commands for event in late.handle(command, at)]
    events += late.advance(50.0)
    assert events == exact
    assert late.deadline() is None


def test_preemption_computes_the_last_admitted_again() -> None:
    """10 blocks for two growing sequences: the younger loses its KV, comes back, and loses no token."""
    spec = backend(kv_capacity_tokens=40)
    machine = engine(spec)
    commands = [(0.0, prefill(k, prompt=12, output=16)) for k in (1, 2)]
    events = run(machine, commands)
    assert machine.snapshot(9.0).preemptions == 1
    for key in (1, 2):
        assert [index for _, index in tokens_of(events, key)] == list(range(16))
    ends = [e.key for e in of(events, DecodeFinished)]
    assert ends == [1, 2]
    assert len(of(events, PrefillFinished)) == 2  # the second computation belongs to decode
    snapshot = machine.snapshot(9.0)
    assert snapshot.kv_used_tokens == 0
    told = sum(e.cost.device_s for e in of(events, DecodeFinished))
    assert snapshot.busy_decode_s == pytest.approx(told)


def test_prefix_cache_saves_the_shared_blocks_but_one_token() -> None:
    """The second of two equal prompts finds all full blocks but must compute at least one token."""
    machine = engine(backend())
    hashes = (101, 102)
    first = run(machine, [(0.0, prefill(1, prompt=8, output=1, prefix_hashes=hashes))])
    second = run(machine, [(1.0, prefill(2, prompt=8, output=1, prefix_hashes=hashes))])
    third = run(machine, [(2.0, prefill(3, prompt=11, output=1, prefix_hashes=hashes))])
    assert [of(e, PrefillFinished)[0].cached_tokens for e in (first, second, third)] == [0, 4, 8]
    alone = 0.002 + 0.006 + 3 * (8 + 1.5) * 1e-6
    assert of(third, PrefillFinished)[0].cost.device_s == pytest.approx(alone)
    assert machine.snapshot(3.0).kv_used_tokens == 0


def test_a_split_prefill_keeps_its_blocks_until_it_is_stopped() -> None:
    """Token 0 comes just before PrefillFinished; the two blocks stay held."""
    machine = engine(backend())
    events = run(machine, [(0.0, prefill(1, prompt=8, decode_here=False))])
    assert [type(e) for e in events] == [StepTokens, PrefillFinished]
    assert machine.snapshot(1.0).kv_used_tokens == 8
    assert machine.snapshot(1.0).running == 0
    machine.handle(Stop(1), 1.0)
    assert machine.snapshot(1.0).kv_used_tokens == 0


def test_without_the_flag_a_split_prefill_emits_no_token() -> None:
    """Decode will start at index 0."""
    machine = engine(backend(connector=ConnectorFlags()))
    events = run(machine, [(0.0, prefill(1, decode_here=False))])
    assert [type(e) for e in events] == [PrefillFinished]


def test_a_decode_waits_for_room_then_for_its_kv() -> None:
    """PullKV when blocks are reserved; the first step starts when the KV is here."""
    machine = engine(backend(kv_capacity_tokens=16))
    assert run(machine, [(0.0, prefill(1, prompt=8, decode_here=False))])
    assert of(list(machine.handle(decode(2, foreign(12), output=3), 1.0)), PullKV) == []
    assert machine.snapshot(1.0).waiting == 1
    assert of(list(machine.handle(Stop(1), 2.0)), PullKV) == [PullKV(2, foreign(12))]
    assert machine.deadline() is None
    events = [*machine.handle(KVArrived(2, 8000, 0.1, 77), 3.0), *run(machine)]
    assert tokens_of(events, 2) == [
        (pytest.approx(3.0 + decode_s(13)), 1),
        (pytest.approx(3.0 + decode_s(13) + decode_s(14)), 2),
    ]
    assert of(events, DecodeFinished)[0].cost.queued_s == pytest.approx(2.0)
    assert machine.snapshot(4.0).kv_used_tokens == 0


def test_a_decode_from_index_zero_computes_the_last_prompt_token_again() -> None:
    """Without a first token from prefill, step one runs over the whole prompt: context 8."""
    machine = engine(backend())
    machine.handle(decode(1, foreign(8), output=2, first_index=0), 0.0)
    events = [*machine.handle(KVArrived(1, 8000, 0.1, 77), 0.0), *run(machine)]
    assert tokens_of(events, 1) == [
        (pytest.approx(decode_s(8)), 0),
        (pytest.approx(decode_s(8) + decode_s(9)), 1),
    ]


def test_a_decode_with_nothing_left_to_say_ends_when_its_kv_comes() -> None:
    """The prefill produced the only token."""
    machine = engine(backend())
    machine.handle(decode(1, foreign(8), output=1), 0.0)
    events = machine.handle(KVArrived(1, 8000, 0.1, 77), 0.5)
    assert list(events) == [DecodeFinished(1, PhaseCost(0.5, 0.0, 0.0), 1, FinishReason.STOP)]
    assert machine.snapshot(1.0).kv_used_tokens == 0


@pytest.mark.parametrize("when", [0.0, 0.004, PREFILL_8, PREFILL_8 + 0.005, PREFILL_8 + 0.0112, 0.08])
@pytest.mark.parametrize("emit_tokens", [True, False])
def test_stop_at_any_point_frees_everything_at_once(when: float, emit_tokens: bool) -> None:
    """In prefill, between steps, in a step: the blocks are free at once and nothing more is said."""
    machine = engine(backend(), emit_tokens=emit_tokens)
    machine.handle(prefill(1, output=12), 0.0)
    before = until(machine, when)
    said = [event for event in machine.handle(Stop(1), when) if event not in before]
    assert machine.snapshot(when).kv_used_tokens == 0
    rest = run(machine)
    assert of(said, DecodeFinished) == of(rest, DecodeFinished) == []
    assert all(key != 1 for step in of(rest, StepTokens) for key in step.keys)
    assert 1 not in machine
    again = run(machine, [(1.0, prefill(2, output=12))])
    assert len(of(again, DecodeFinished)) == 1


def test_a_stopped_neighbour_does_not_change_the_step_in_progress() -> None:
    """The device finishes what it began: the other one's token comes when it would have come."""
    machine = engine(backend())
    machine.handle(prefill(1, prompt=4, output=9), 0.0)
    machine.handle(prefill(2, prompt=4, output=9), 0.0)
    until(machine, 0.030)
    due = machine.deadline()
    assert due is not None
    machine.handle(Stop(2), due - 0.001)
    assert machine.deadline() == due
    steps = of(list(machine.advance(due)), StepTokens)
    assert [step.keys for step in steps] == [(1,)]
    after = machine.deadline()
    assert after is not None
    assert after - due < 0.0115  # alone from now on


def test_stopping_what_is_unknown_is_ignored() -> None:
    """Stops and ends cross on the way."""
    assert list(engine(backend()).handle(Stop(3), 0.0)) == []


@pytest.mark.parametrize(
    ("fields", "command", "words"),
    [
        ({"phases": frozenset({Phase.DECODE})}, prefill(1), "does not offer prefill"),
        ({"phases": frozenset({Phase.PREFILL})}, prefill(1), "does not offer decode"),
        ({"phases": frozenset({Phase.PREFILL})}, decode(1, foreign()), "does not offer decode"),
        ({"max_context_tokens": 11}, prefill(1, prompt=8, output=4), "12 tokens of context exceed the 11"),
        ({}, prefill(1, prompt=90, output=20), "exceed the KV room of b, 100"),
        ({}, prefill(1, prompt=0), "at least 1"),
        ({}, prefill(1, output=0), "at least 1"),
        ({}, decode(1, foreign(), output=4, first_index=5), "outside the answer"),
        ({}, decode(1, foreign(0), prompt_tokens=8), "covers no tokens"),
    ],
)
def test_what_can_never_run_is_refused(fields: dict[str, object], command: object, words: str) -> None:
    """INVALID, at once, with the reason; nothing is kept."""
    machine = engine(backend(**fields))
    (event,) = machine.handle(command, 0.0)  # type: ignore[arg-type]
    assert isinstance(event, Failed)
    assert event.reason is FailReason.INVALID
    assert words in event.message
    assert machine.deadline() is None
    assert 1 not in machine


def test_a_prefill_worker_serves_split_prefills_only() -> None:
    """Offering prefill alone is enough for a prefill that hands over."""
    machine = engine(backend(phases=frozenset({Phase.PREFILL})))
    assert of(run(machine, [(0.0, prefill(1, decode_here=False))]), PrefillFinished)


def test_the_largest_request_that_fits_runs() -> None:
    """100 tokens of room: 97 of the prompt and 3 of 4 answer tokens; the last is never computed."""
    machine = engine(backend())
    events = run(machine, [(0.0, prefill(1, prompt=97, output=4))])
    assert of(events, DecodeFinished)[0].output_tokens == 4


def test_a_key_used_twice_ends_both_uses_with_one_failure() -> None:
    """Which of them is meant cannot be told."""
    machine = engine(backend())
    machine.handle(prefill(1), 0.0)
    (event,) = machine.handle(prefill(1), 0.001)
    assert isinstance(event, Failed)
    assert run(machine) == []


def test_energy_adds_idle_steps_and_work() -> None:
    """10 W always; 0.1 J for each sweep of the weights, 1 mJ a KV token read, 1 mJ a token computed."""
    machine = engine(backend(power=WATTS))
    events = run(machine, [(1.0, prefill(1, prompt=8, output=3))])
    spent = 10.0 * 2.0 + 3 * 0.1 + (8 + 9 + 10) * 1e-3 + (8 + 1 + 1) * 1e-3
    assert machine.snapshot(2.0).energy_j == pytest.approx(spent)
    told = sum(e.cost.energy_j for e in (*of(events, PrefillFinished), *of(events, DecodeFinished)))
    busy = machine.snapshot(2.0).busy_prefill_s + machine.snapshot(2.0).busy_decode_s
    assert told == pytest.approx(spent - 10.0 * (2.0 - busy))


def test_the_cap_bounds_the_power_of_a_step() -> None:
    """A step that would draw more is charged the cap times its time."""
    machine = engine(backend(power=replace(WATTS, cap_w=11.0)))
    events = run(machine, [(0.0, prefill(1, prompt=8, output=1))])
    assert of(events, PrefillFinished)[0].cost.energy_j == pytest.approx(11.0 * PREFILL_8)


def test_noise_has_mean_one_and_comes_from_the_rng() -> None:
    """2,000 single-token steps differ, repeat with the seed, and keep the model's mean within a percent."""
    spec = backend(step=replace(STEP, per_context_token_s=0.0, noise_sigma=0.05), kv_capacity_tokens=4000)
    one, two, other = (
        [at for at, _ in tokens_of(run(engine(spec, seed=seed), [(0.0, prefill(1, output=2001))]), 1)]
        for seed in (1, 1, 2)
    )
    assert one == two != other
    assert (one[-1] - one[0]) / 2000 == pytest.approx(0.011, rel=0.01)


def test_snapshot_between_steps() -> None:
    """What waits, what runs, and the prompt tokens still to be computed."""
    machine = engine(backend(max_num_seqs=1))
    machine.handle(prefill(1, prompt=20, output=2), 0.0)
    machine.handle(prefill(2, prompt=9, output=2), 0.0)
    snapshot = machine.snapshot(0.001)
    assert (snapshot.running, snapshot.waiting) == (1, 1)
    assert snapshot.waiting_prefill_tokens == 29
    assert snapshot.kv_used_tokens == 20
    assert snapshot.busy_prefill_s == 0.0


@pytest.mark.parametrize(
    "fields", [{"max_num_seqs": 17}, {"max_num_seqs": 0}, {"kv_capacity_tokens": 3}, {"block_tokens": 0}]
)
def test_an_engine_that_cannot_run_is_refused(fields: dict[str, int]) -> None:
    """Limits that contradict each other are a configuration error, not a deadlock."""
    with pytest.raises(ConfigError):
        engine(backend(**fields))


def test_decodes_with_kv_in_hand_do_not_lock_each_other_out() -> None:
    """All blocks are taken by KV that came, and each lacks one to go on: one gives its room up."""
    machine = engine(backend(kv_capacity_tokens=16))
    events = [*machine.handle(decode(1, foreign(8), output=6), 0.0)]
    events += machine.handle(decode(2, foreign(8), output=6), 0.0)
    assert [event.key for event in of(events, PullKV)] == [1, 2]
    events += machine.handle(KVArrived(1, 1, 0.1, 77), 0.001)
    events += machine.handle(KVArrived(2, 1, 0.1, 77), 0.001)
    events += run(machine)
    assert sorted(event.key for event in of(events, DecodeFinished)) == [1, 2]
    assert machine.snapshot(9.0).preemptions > 0
    assert machine.snapshot(9.0).kv_used_tokens == 0


def test_new_decodes_do_not_starve_a_preempted_sequence() -> None:
    """There is room for the newcomer's KV at once, but the one that lost its own comes first."""
    machine = engine(backend(kv_capacity_tokens=40))
    for key in (1, 2):
        machine.handle(prefill(key, prompt=12, output=16), 0.0)
    while not machine.snapshot(0.0).preemptions:
        due = machine.deadline()
        assert due is not None
        machine.advance(due)
    assert 40 - machine.snapshot(due).kv_used_tokens >= 8
    assert of(list(machine.handle(decode(3, foreign(8)), due)), PullKV) == []
    events = run(machine)
    pulled = events.index(PullKV(3, foreign(8)))
    assert any(isinstance(event, DecodeFinished) and event.key == 1 for event in events[:pulled])
