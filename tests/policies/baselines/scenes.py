"""Steps that the tests of baselines share: a request with prefix blocks, and what happens to it."""

from __future__ import annotations

from router.core.messages import DecodeDone, FirstToken, PrefillDone
from router.core.ports import Policy
from router.model import FinishReason, PhaseCost, Request, RoutePlan
from tests.policies.world import MODEL, Views

BLOCK = 16


def prompt(blocks: int, name: str = "r", output: int = 100, first: int = 0, **more: object) -> Request:
    """A request whose prompt is `blocks` full blocks; equal `first` means an equal prefix."""
    hashes = tuple(range(first + 1, first + blocks + 1))
    return Request(name, MODEL, blocks * BLOCK, output, prefix_hashes=hashes, **more)  # type: ignore[arg-type]


def place(policy: Policy, request: Request, fleet: Views, now: float = 0.0) -> tuple[str, str | None]:
    """Where a request goes."""
    plan = policy.plan(request, fleet, now)
    assert isinstance(plan, RoutePlan), plan
    return plan.prefill, plan.decode


def costs(policy: Policy, request: Request, fleet: Views, now: float = 0.0) -> dict[str, float]:
    """The rule's cost of each prefill backend, as the decision record has it."""
    plan = policy.plan(request, fleet, now)
    assert isinstance(plan, RoutePlan), plan
    return {each.prefill: -each.score for each in plan.decision.candidates}


def prefilled(policy: Policy, request: Request, now: float = 0.0) -> None:
    """The prompt's blocks are there."""
    policy.observe(PrefillDone(request.id, 1, PhaseCost()), now)


def answered(policy: Policy, request: Request, first: float, done: float, tokens: int) -> None:
    """The request got its first token, and its last."""
    policy.observe(FirstToken(request.id, 1), first)
    policy.observe(DecodeDone(request.id, 1, PhaseCost(), tokens, FinishReason.STOP), done)
