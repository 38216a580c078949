"""Answer lengths by class, tenant and size of the prompt, with quantiles."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from policies.lengths import ENOUGH, OutputLengths
from router.model import Request
from tests.policies.world import request


def taught(lengths: OutputLengths, tokens: int, times: int = ENOUGH, **more: object) -> None:
    """Answers of one length."""
    for _ in range(times):
        lengths.wait_for(asked(**more))
        lengths.finished("r", tokens)


def asked(**more: object) -> Request:
    """A chat request with room for any answer."""
    return replace(request(output=100_000), workload_class="chat", **more)  # type: ignore[arg-type]


def test_a_tenant_is_known_by_its_own_answers_once_enough_ended() -> None:
    """Seven answers of 10 tokens leave it at the class's mean; the eighth makes it 10."""
    lengths = OutputLengths(1000)
    taught(lengths, 100, 93)
    taught(lengths, 10, ENOUGH - 1, tenant="acme")
    assert lengths.expect(asked(tenant="acme")) == round((93 * 100 + 70) / 100)
    taught(lengths, 10, 1, tenant="acme")
    assert lengths.expect(asked(tenant="acme")) == 10
    assert lengths.expect(asked(tenant="globex")) > 90


def test_the_size_of_the_prompt_tells_answers_apart() -> None:
    """Long prompts have short answers here; a size without answers has those of the class."""
    lengths = OutputLengths(1000)
    taught(lengths, 400, prompt_tokens=1000)
    taught(lengths, 60, prompt_tokens=3000)
    assert lengths.expect(asked(prompt_tokens=1023)) == 400
    assert lengths.expect(asked(prompt_tokens=2049)) == 60
    assert lengths.expect(asked(prompt_tokens=10)) == 230


def test_thirds_are_quantiles_of_the_logarithm() -> None:
    """Half of the answers have 100 tokens and half 400: the middle is 200, the deviation log 2."""
    lengths = OutputLengths(100_000)
    for _ in range(2000):
        taught(lengths, 100, 1)
        taught(lengths, 400, 1)
    found = lengths.lengths(asked()).thirds
    expected = [200 * math.exp(z * math.log(2)) for z in (-0.967, 0.0, 0.967)]
    assert found == pytest.approx(expected, rel=0.01)


def test_no_third_is_beyond_what_is_allowed() -> None:
    """max_new_tokens cuts them, and an answer has a token at least."""
    lengths = OutputLengths(64)
    taught(lengths, 1)
    assert lengths.lengths(asked()).thirds[0] == 1
    assert (
        lengths.lengths(replace(asked(prompt_tokens=7), workload_class="", max_new_tokens=30)).thirds[-1]
        == 30
    )
