"""How each kind of hardware forms its steps: times worked by hand."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from backends.catalogue import load_profile, profile_names
from backends.models.laws import law_of
from backends.models.messages import DecodeFinished, PrefillFinished, StepTokens
from backends.models.profile import parse_profile
from router.errors import ConfigError
from router.model import BackendSpec, SchedulerKind, StepParameters
from tests.models.drive import STEP, WATTS, backend, engine, of, prefill, run, tokens_of

BASE, B, C = 0.010, 0.001, 0.00001


def bucketed(**fields: Any) -> BackendSpec:
    """Chunks of 4, 8 or 16 tokens, batches of 2 or 4."""
    shapes: dict[str, Any] = {"prompt_buckets": (4, 8, 16), "batch_buckets": (2, 4)}
    return backend(scheduler=SchedulerKind.BUCKETED, **{"kv_capacity_tokens": 1000, **shapes, **fields})


def slots(**fields: Any) -> BackendSpec:
    """Four places, 14 ms a step, 5 prompt tokens a step."""
    step = StepParameters(base_s=0.010, per_sequence_s=0.001, per_prefill_token_s=0.0028)
    return backend(step=step, scheduler=SchedulerKind.SLOTS, kv_capacity_tokens=1000, **fields)


def single(**fields: Any) -> BackendSpec:
    """One place."""
    return backend(scheduler=SchedulerKind.SINGLE, max_num_seqs=1, **fields)


def prefill_s(tokens: int, history: int = 0) -> float:
    """A prefill that has the device to itself, with the drive's round numbers."""
    pairs = tokens * (history + tokens / 2)
    return 0.002 + max(0.006, tokens * 0.0001) + pairs * 0.000001


# --- bucketed --------------------------------------------------------------------------------------


def test_prompts_and_batches_round_up_to_what_was_compiled() -> None:
    """A prompt of 5 costs 8; a lone sequence decodes in a batch of 2, whose other place has no context."""
    (first_at, _), (second_at, _) = tokens_of(run(engine(bucketed()), [(0.0, prefill(1, 5, 2))]), 1)
    assert first_at == pytest.approx(prefill_s(8))
    assert second_at - first_at == pytest.approx(BASE + 2 * B + 6 * C)


def test_a_prompt_longer_than_the_largest_bucket_takes_several_programs() -> None:
    """37 tokens: 16, 16, and 5 that cost 8."""
    ((at, _),) = tokens_of(run(engine(bucketed()), [(0.0, prefill(1, 37, 1))]), 1)
    alone_s = prefill_s(16) + prefill_s(16, 16) + prefill_s(8, 32)
    assert at == pytest.approx(alone_s)
    assert law_of(bucketed()).prefill_s(37) == pytest.approx(alone_s)


def test_prompts_and_decodes_take_turns() -> None:
    """A decodes while B's three chunks are computed: one step of A between any two of them."""
    commands = [(0.0, prefill(1, 5, 9)), (0.001, prefill(2, 37, 2))]
    machine = engine(bucketed(), emit_tokens=True)
    times = [at for at, _ in tokens_of(run(machine, commands), 1)]
    gaps = [after - before for before, after in pairwise(times)]
    decode_s = [BASE + 2 * B + (6 + i) * C for i in range(3)]
    chunks = [prefill_s(16), prefill_s(16, 16), prefill_s(8, 32)]
    # After A's prefill A decodes first; then a chunk of B goes before each of its steps.
    expected = [decode_s[0], chunks[0] + decode_s[1], chunks[1] + decode_s[2]]
    assert gaps[:3] == pytest.approx(expected)


def test_padding_costs_energy_too() -> None:
    """8 tokens computed for a prompt of 5, and one empty place in the decode step, at 1 mJ a token."""
    spec = bucketed(power=replace(WATTS, idle_w=0.0, joule_per_byte=0.0))
    events = run(engine(spec), [(0.0, prefill(1, 5, 2))])
    assert of(events, PrefillFinished)[0].cost.energy_j == pytest.approx(8e-3)
    assert of(events, DecodeFinished)[0].cost.energy_j == pytest.approx(2e-3)


def test_without_named_buckets_they_are_powers_of_two() -> None:
    """From 16 to the token budget."""
    spec = bucketed(prompt_buckets=(), batch_buckets=(), max_num_batched_tokens=48, max_num_seqs=3)
    law = law_of(spec)
    assert law.prefill_s(17) == pytest.approx(prefill_s(32))
    assert law.prefill_s(40) == pytest.approx(prefill_s(48))
    assert law.decode_step_s(3, 30) == pytest.approx(BASE + 3 * B + 30 * C)


# --- slots -----------------------------------------------------------------------------------------


def test_a_step_of_a_static_pipeline_always_takes_the_same_time() -> None:
    """14 ms alone, in company, and while prompts flow through."""
    commands = [(0.0, prefill(1, 5, 40)), (0.1, prefill(2, 33, 3)), (0.1, prefill(3, 12, 9))]
    events = run(engine(slots()), commands)
    ends = [step.at for step in of(events, StepTokens)]
    steps = [at / 0.014 for at in ends]
    assert steps == pytest.approx([round(step) for step in steps])
    times = [at for at, _ in tokens_of(events, 1)]
    assert [b - a for a, b in pairwise(times)] == pytest.approx([0.014] * 39)


def test_a_prompt_flows_through_at_the_speed_of_the_pipeline() -> None:
    """12 tokens at 5 a step: three steps."""
    ((at, _),) = tokens_of(run(engine(slots()), [(0.0, prefill(1, 12, 1))]), 1)
    assert at == pytest.approx(3 * 0.014)
    assert law_of(slots()).prefill_s(12) == pytest.approx(3 * 0.014)


def test_places_are_hard() -> None:
    """The fifth of five waits until one of the four is free."""
    events = run(engine(slots()), [(0.0, prefill(key, 1, 5)) for key in range(5)])
    last = max(done.key for done in of(events, DecodeFinished))
    first_of_last = tokens_of(events, last)[0][0]
    first_end = tokens_of(events, 0)[-1][0]
    assert first_of_last > first_end


# --- single ----------------------------------------------------------------------------------------


def test_one_sequence_at_a_time() -> None:
    """The second prompt begins when the first answer is complete."""
    events = run(engine(single()), [(0.0, prefill(1, 8, 3)), (0.0, prefill(2, 8, 3))])
    end_of_first = tokens_of(events, 1)[-1][0]
    assert tokens_of(events, 2)[0][0] == pytest.approx(end_of_first + prefill_s(8))
    assert of(events, PrefillFinished)[1].cost.queued_s == pytest.approx(end_of_first)


# --- all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [backend(), bucketed(), slots(), single()], ids=lambda spec: spec.scheduler)
def test_a_price_adds_up_to_the_step(spec: BackendSpec) -> None:
    """For decodes alone, prompts alone, and both where a step may hold both."""
    law = law_of(spec)
    works = [(3, 90, 0, 0.0), (1, 5, 0, 0.0), (0, 0, 8, 32.0)]
    if spec.scheduler is not SchedulerKind.BUCKETED:
        works.append((2, 30, 8, 40.0))
    for sequences, context, tokens, pairs in works:
        price = law.price(sequences, context, tokens, pairs)
        total_s = price.base_s + price.per_sequence_s * sequences + price.per_context_token_s * context
        total_s += price.per_prefill_token_s * tokens + price.per_attention_pair_s * pairs
        assert total_s == pytest.approx(law.mixed_step_s(sequences, context, tokens, pairs))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scheduler": SchedulerKind.SINGLE}, "one sequence at a time.*Set max_num_seqs = 1"),
        (
            {"scheduler": SchedulerKind.BUCKETED, "prompt_buckets": (8, 4)},
            "prompt_buckets must be .* ascending",
        ),
        (
            {"scheduler": SchedulerKind.BUCKETED, "batch_buckets": (1, 2)},
            "largest of batch_buckets is 2, below",
        ),
        ({"load_s": -1.0}, "load_s = -1.0"),
        ({"compile_s": float("inf")}, "compile_s = inf"),
    ],
)
def test_limits_that_do_not_fit_the_scheduler_are_explained(fields: dict[str, Any], words: str) -> None:
    """The field, the consequence, and what to write."""
    with pytest.raises(ConfigError, match=words):
        engine(backend(**fields))


def test_a_profile_says_how_steps_are_formed() -> None:
    """Kinds of the shipped profiles, and the buckets of one of them."""
    kinds = {name: load_profile(name).spec.scheduler for name in profile_names()}
    assert kinds["h100-llama-3.1-8b"] is SchedulerKind.CONTINUOUS
    assert kinds["groq-v1-llama-3.1-8b"] is SchedulerKind.SLOTS
    assert kinds["xdna2-llama-3.1-8b"] is SchedulerKind.SINGLE
    tpu = load_profile("tpu-v6e-llama-3.1-8b").spec
    assert tpu.scheduler is SchedulerKind.BUCKETED
    assert tpu.batch_buckets[-1] == tpu.max_num_seqs


@pytest.mark.parametrize("text", ['prompt_buckets = ["a"]', "prompt_buckets = [0]", "batch_buckets = 3"])
def test_buckets_that_are_no_counts_are_refused(text: str) -> None:
    """A list of whole numbers from 1 on."""
    with pytest.raises(ConfigError, match="list of whole numbers"):
        parse_profile(
            f'[backend]\nkind = "tpu"\ndevice = "d"\nmodels = ["m"]\nphases = ["decode"]\n'
            f'kv_bytes_per_token = 1\nkv_capacity_tokens = 16\nkv_layout = "l"\nusd_per_hour = 1\n{text}',
            "p",
        )


def test_the_drive_has_the_round_numbers_used_here() -> None:
    """Or the times above mean nothing."""
    assert (STEP.base_s, STEP.per_sequence_s, STEP.per_context_token_s) == (BASE, B, C)
