"""Decode split between attention and FFN devices: three laws, their sub-phases, and whether a model fits."""

from dataclasses import replace
from typing import Any

import pytest

from backends.catalogue import load_profile
from backends.models.afd import AfdModel, with_serial_law
from backends.models.latency import StepModel
from backends.models.laws import StepModels
from backends.models.profile import parse_profile
from router.errors import ConfigError
from router.model import AfdLaw, AfdParameters, BackendSpec
from tests.models.drive import STEP, backend, engine, prefill, run, until

AFD = AfdParameters(
    layers=10,
    law=AfdLaw.SERIAL,
    micro_batches=1,
    attention_base_s=20e-6,
    attention_per_sequence_s=1e-6,
    attention_per_context_token_s=1e-8,
    ffn_base_s=30e-6,
    ffn_per_sequence_s=2e-6,
    hop_s=5e-6,
    dispatch_per_sequence_s=0.5e-6,
    combine_per_sequence_s=0.25e-6,
)
"""A layer of 4 sequences and 1,000 context tokens: attention 34, FFN 38, dispatch 7, combine 6 us."""


def law(**changes: Any) -> AfdModel:
    """With some parameters changed."""
    return AfdModel(replace(AFD, **changes), STEP)


def afd_backend(**changes: Any) -> BackendSpec:
    """A backend that decodes by it; its KV lasts."""
    afd = replace(AFD, **changes)
    return backend(afd=afd, step=with_serial_law(STEP, afd), kv_capacity_tokens=40_000, max_num_seqs=16)


@pytest.mark.parametrize(
    ("name", "micro_batches", "layer_us"),
    [
        (AfdLaw.SERIAL, 1, 34 + 38 + 7 + 6),
        # Two micro-batches of 4 sequences and 1,000 tokens each.
        (AfdLaw.SERIAL, 2, 2 * (34 + 38 + 7 + 6)),
        (AfdLaw.CONSERVATIVE, 2, 2 * max(34 + 7, 38 + 6)),
        (AfdLaw.OPTIMISTIC, 3, 3 * max(34, 38, 13)),
        # Two are too few for the optimistic law, and one for both.
        (AfdLaw.OPTIMISTIC, 2, 2 * max(34 + 7, 38 + 6)),
        (AfdLaw.OPTIMISTIC, 1, 34 + 38 + 7 + 6),
    ],
)
def test_the_laws_by_hand(name: AfdLaw, micro_batches: int, layer_us: float) -> None:
    """Ten layers of so many microseconds."""
    model = law(law=name, micro_batches=micro_batches)
    step_s = model.decode_step_s(4 * micro_batches, 1000 * micro_batches)
    assert step_s == pytest.approx(10 * layer_us * 1e-6)


def test_a_single_sequence_is_serial_whatever_the_law() -> None:
    """Nothing can overlap with it."""
    assert law(law=AfdLaw.OPTIMISTIC, micro_batches=4).decode_step_s(1, 1000) == law().decode_step_s(1, 1000)


def test_the_optimistic_law_needs_micro_batches_enough_to_fill_the_network() -> None:
    """With 17 us hops, 2 + 37 / 38 are at most 3 and the network hides; with 24 us hops it is paid."""
    hidden = law(law=AfdLaw.OPTIMISTIC, micro_batches=3, hop_s=17e-6).decode_step_s(12, 3000)
    paid = law(law=AfdLaw.OPTIMISTIC, micro_batches=3, hop_s=24e-6).decode_step_s(12, 3000)
    assert hidden == pytest.approx(10 * 3 * 38e-6)
    assert paid == pytest.approx(10 * 3 * 51e-6)


@pytest.mark.parametrize("name", list(AfdLaw))
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5])
@pytest.mark.parametrize("hop_s", [5e-6, 15e-6, 40e-6])
def test_a_price_holds_for_the_steps_it_says(name: AfdLaw, micro_batches: int, hop_s: float) -> None:
    """Its shares add up to each of the steps as the contexts grow, until another path decides."""
    model, sequences, changes = law(law=name, micro_batches=micro_batches, hop_s=hop_s), 10, 0
    context = 10
    while context < 200_000:
        price = model.price(sequences, context, 0, 0.0)
        for j in {0, 1, price.steps // 2, price.steps - 1}:
            if 0 <= j < min(price.steps, 30_000):
                tokens = context + j * sequences
                shared_s = (
                    price.base_s + price.per_sequence_s * sequences + price.per_context_token_s * tokens
                )
                assert shared_s == pytest.approx(model.decode_step_s(sequences, tokens))
        changes += 1
        context += min(price.steps, 20_000) * sequences
    assert changes >= (1 if name is AfdLaw.SERIAL or micro_batches == 1 else 2)


def test_the_serial_law_is_what_the_step_parameters_say() -> None:
    """Readers that know only the step model are right for one micro-batch."""
    plain = StepModel(with_serial_law(STEP, AFD))
    for sequences, context in ((1, 10), (4, 1000), (64, 100_000)):
        assert plain.decode_step_s(sequences, context) == pytest.approx(
            law().decode_step_s(sequences, context)
        )
    assert plain.prefill_s(100) == law().prefill_s(100) == StepModel(STEP).prefill_s(100)


def test_an_engine_steps_by_the_law_and_accounts_for_the_sub_phases() -> None:
    """3 answers in 3 micro-batches: their steps, and the busy time of each side, by hand."""
    spec = afd_backend(law=AfdLaw.OPTIMISTIC, micro_batches=3)
    model = StepModels()(spec)
    machine = engine(spec, emit_tokens=False)
    for key in range(3):
        machine.handle(prefill(key, prompt=4, output=101), 0.0)
    run(machine)
    told = machine.snapshot(1e3)
    # Prompt 0; then its first decode beside prompts 1 and 2; 99 steps of three; and one of the other two.
    mixed_s = model.prefill_s(4) + model.mixed_step_s(1, 5, 8, 16.0)
    rounds = [16 + 3 * j for j in range(99)]
    decode_s = sum(model.decode_step_s(3, tokens) for tokens in rounds) + model.decode_step_s(2, 208)
    assert told.busy_prefill_s + told.busy_decode_s == pytest.approx(mixed_s + decode_s)
    per_layer_s = 21e-6 + 5e-8 + sum(3 * 21e-6 + tokens * 1e-8 for tokens in rounds) + 2 * 21e-6 + 208e-8
    micro_batches = 1 + 99 * 3 + 2
    assert told.busy_attention_s == pytest.approx(10 * per_layer_s)
    assert told.busy_ffn_s == pytest.approx(10 * micro_batches * 32e-6)
    assert told.busy_transfer_s == pytest.approx(10 * micro_batches * 10.75e-6)


def test_jumping_over_a_change_of_paths_equals_stepping() -> None:
    """Long answers, so that attention overtakes the FFN on the way."""
    spec = afd_backend(law=AfdLaw.CONSERVATIVE, micro_batches=2, attention_per_context_token_s=1e-7)
    ends: list[object] = []
    for emit_tokens in (True, False):
        machine = engine(spec, emit_tokens=emit_tokens)
        for key in range(2):
            machine.handle(prefill(key, prompt=4, output=500), 0.0)
        told = []
        for at in (0.01, 0.05, 0.1, 0.2, 0.4, 1e3):
            until(machine, at)
            told.append(machine.snapshot(at))
        ends.append(told)
    assert ends[0] == ends[1]
    model = StepModels()(spec)
    assert model.price(2, 11, 0, 0.0).steps < 400
    # Prompt 0; a decode beside prompt 1; 498 steps of both; one of the second alone.
    expected_s = model.prefill_s(4) + model.mixed_step_s(1, 5, 4, 8.0) + model.decode_step_s(1, 503)
    expected_s += sum(model.decode_step_s(2, 11 + 2 * j) for j in range(498))
    assert told[-1].busy_prefill_s + told[-1].busy_decode_s == pytest.approx(expected_s)


AFD_TOML = """
[provenance]
source = "s"
date = "2026"
trust = "C"
fit_error = "none"
valid_range = "none"
[backend]
kind = "lpu"
device = "d"
models = ["m"]
phases = ["decode"]
kv_bytes_per_token = 1000
kv_capacity_tokens = 1_000_000
kv_layout = "l"
usd_per_hour = 1
[afd]
layers = 60
hop_s = 3e-6
bandwidth_bytes_per_s = 1e9
dispatch_bytes_per_token = 1000
[afd.attention]
device = "Rubin"
memory_bytes_each = 288e9
weight_bytes = 10e9
base_s = 5e-6
[afd.ffn]
device = "LPX rack"
count = 2
memory_bytes_each = 128e9
weight_bytes = 250e9
base_s = 2e-6
"""


def test_a_profile_describes_both_sides() -> None:
    """The step parameters follow from the table: 60 x (5 + 2 + 2 x 3) us, and 1 us a token and layer."""
    spec = parse_profile(AFD_TOML, "p").spec
    assert spec.afd is not None
    assert spec.step.base_s == pytest.approx(60 * 13e-6)
    assert spec.step.per_sequence_s == pytest.approx(60 * 1e-6)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "weight_bytes = 250e9",
            "weight_bytes = 1000e9",
            r"FFN weights take 1,000 GB and 2 x LPX rack of 128 GB hold 256 GB; .* Use 8 of them",
        ),
        (
            "kv_capacity_tokens = 1_000_000",
            "kv_capacity_tokens = 300_000_000",
            "KV of 300 GB .* exceed the 288 GB",
        ),
        ("layers = 60", "layers = 0", "'layers' is 0"),
        ("base_s = 2e-6", "base_s = 0.0", "ffn_base_s must be above 0"),
        ("hop_s = 3e-6", "hops = 3e-6", "'hops'"),
        ("hop_s = 3e-6", 'hop_s = 3e-6\nlaw = "hopeful"', "one of serial, conservative, optimistic"),
        ("bandwidth_bytes_per_s = 1e9", "bandwidth_bytes_per_s = 0", "must be above 0"),
    ],
)
def test_a_split_that_cannot_be_is_explained(old: str, new: str, words: str) -> None:
    """What is too large, by how much, and what to do."""
    assert old in AFD_TOML
    with pytest.raises(ConfigError, match=words):
        parse_profile(AFD_TOML.replace(old, new), "p")


def test_the_shipped_rack_is_what_it_says() -> None:
    """One user gets at least 1,000 tokens a second from it, the speed that NVIDIA names as the goal."""
    spec = load_profile("vr-lpx-gpt-oss-120b").spec
    assert spec.afd is not None
    assert 1000 < 1.0 / StepModels()(spec).decode_step_s(1, 2000) < 4000
