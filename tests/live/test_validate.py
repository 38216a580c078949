"""From GenerateRequest to Request: what the core is told of a good request."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyphase.v1 import inference_pb2

from router.errors import CallerError
from router.live.parse import generate_request as parse
from router.live.validate import Limits, validate
from router.model import Priority, ServiceLevel
from tests.live.rig import generate_request

LIMITS = Limits()


def test_every_field_arrives() -> None:
    """Counts, names, objectives and hashes are taken over; the prompt is not."""
    request = validate(
        generate_request(
            request_id="r",
            workload_class="chat",
            slo={"ttft_s": 1.0, "tpot_s": 0.5, "jitter_ratio": 2.0, "deadline_s": 7.0},
            tenant="t",
            priority=3,
            session_key="s",
            prefix_hashes=[5, 2**64 - 1],
            max_cost_usd=0.25,
            max_energy_j=9.0,
        ),
        100.0,
        LIMITS,
    )
    assert (request.id, request.model, request.prompt_tokens, request.max_new_tokens) == ("r", "m", 3, 64)
    assert request.deadline == 107.0 and request.slo == ServiceLevel(1.0, 0.5, 2.0)
    assert (request.tenant, request.workload_class, request.session_key) == ("t", "chat", "s")
    assert request.priority is Priority.INTERACTIVE and request.prefix_hashes == (5, 2**64 - 1)
    assert (request.max_cost_usd, request.max_energy_j) == (0.25, 9.0)
    assert not request.prompt_is_estimate


def test_what_is_left_out_has_its_default() -> None:
    """No objective is None, not zero; no priority is NORMAL."""
    request = validate(generate_request(), 0.0, LIMITS, mint=lambda: "minted")
    assert request.id == "minted" and request.slo == ServiceLevel()
    assert request.priority is Priority.NORMAL
    assert request.max_cost_usd is None and request.max_energy_j is None


@pytest.mark.parametrize(("text", "tokens"), [("a", 1), ("abcd", 1), ("abcde", 2), ("世界", 2)])
def test_text_is_estimated_from_its_bytes(text: str, tokens: int) -> None:
    """A token per four bytes of UTF-8, rounded up, and marked as an estimate."""
    request = validate(generate_request(text=text), 0.0, LIMITS)
    assert request.prompt_tokens == tokens and request.prompt_is_estimate


def test_a_text_that_is_estimated_too_long_is_refused() -> None:
    """Estimates are held to the limit too."""
    with pytest.raises(CallerError) as caught:
        validate(generate_request(text="x" * 41), 0.0, Limits(prompt_tokens=10))
    assert [violation.field for violation in caught.value.violations] == ["text"]


@pytest.mark.parametrize(
    ("own", "calls", "expected"),
    [
        (None, None, 300.0),
        (5.0, None, 5.0),
        (1e9, None, 3600.0),
        (None, 2.0, 2.0),
        (None, 1000.0, 1000.0),
        (None, 1e9, 3600.0),
        (5.0, 2.0, 2.0),
        (2.0, 5.0, 2.0),
        (5.0, 0.0, 0.0),
    ],
)
def test_the_earliest_deadline_counts(own: float | None, calls: float | None, expected: float) -> None:
    """The request's, the call's, the default and the cap."""
    payload = generate_request(slo={} if own is None else {"deadline_s": own})
    assert validate(payload, 50.0, LIMITS, time_remaining_s=calls).deadline == 50.0 + expected


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 200_000), min_size=1, max_size=30))
def test_ids_above_31_bits_are_always_found(ids: list[int]) -> None:
    """The quick look at the encoding agrees with reading every id."""
    payload = generate_request(tokens={"ids": ids})
    try:
        validate(payload, 0.0, LIMITS)
    except CallerError:
        assert max(ids) >= 2**31
    else:
        assert max(ids) < 2**31


@given(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.integers(0, 2**32 - 1),
    st.integers(-(2**31), 2**31 - 1),
)
def test_no_number_gets_through_that_is_not_one(
    value: float, temperature: float, count: int, priority: int
) -> None:
    """Whatever numbers come, the core sees finite ones in range, or the caller a typed error."""
    payload = generate_request(
        max_new_tokens=count,
        priority=priority,
        sampling={"temperature": temperature, "top_p": temperature},
        slo={"ttft_s": value, "deadline_s": value},
        max_cost_usd=value,
    )
    try:
        request = validate(payload, 0.0, LIMITS)
    except CallerError as error:
        assert error.violations
    else:
        assert 0.0 < temperature <= 1.0
        assert request.slo.ttft_s is not None and 0 < request.slo.ttft_s < math.inf
        assert 0 < request.deadline <= 3600 and 1 <= request.max_new_tokens <= 131_072


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(raw: bytes) -> None:
    """Parsing raises nothing but CallerError."""
    try:
        parse(raw)
    except CallerError as error:
        assert error.violations


@given(st.booleans(), st.booleans(), st.lists(st.integers(0, 2**32 - 1), max_size=5), st.text(max_size=9))
def test_two_prompts_are_seen_wherever_they_stand(
    first: bool, twice: bool, ids: list[int], text: str
) -> None:
    """Whatever the order, and with fields in between."""
    tokens: Any = inference_pb2.GenerateRequest(tokens={"ids": ids}).SerializeToString()
    words = inference_pb2.GenerateRequest(text=text).SerializeToString()
    rest = inference_pb2.GenerateRequest(model="m", prefix_hashes=[7], max_cost_usd=1.0).SerializeToString()
    parts = [tokens, rest, words] if first else [words, rest, tokens]
    with pytest.raises(CallerError, match="two prompts"):
        parse(b"".join(parts * (2 if twice else 1)))
    parse(tokens + rest)
    parse(rest + words)
