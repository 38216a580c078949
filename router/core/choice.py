"""Asks a policy, checks its answer, and falls back when it cannot be trusted.

A policy is plugged in: it may raise, stall, or name a backend that does not exist. None of that may cost a
request, so every answer is checked against the fleet, a fault is answered by the fallback, and a policy with
several faults in a row is bypassed for a while. Stalls are measured by the driver, which owns a clock.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from router.core.admission import Limits
from router.core.messages import Fact, NotePolicyFault
from router.core.ports import FleetView, Policy
from router.errors import PolicyError, Reason
from router.model import BackendState, Phase, Placement, Reject, Request, RoutePlan, Seconds, Wait

Plan = RoutePlan | Wait | Reject
Binding = Placement | Wait | Reject
Answer = TypeVar("Answer", Plan, Binding)


class Chooser:
    """The policy in force, with its fallback."""

    def __init__(self, policy: Policy, fallback: Policy, limits: Limits) -> None:
        self.policy = policy
        self._fallback = fallback
        self._limits = limits
        self._faults_in_a_row = 0
        self._clean = True
        """The last answer was good, and no stall has been reported of it since."""
        self._bypassed_until: Seconds = 0.0
        self._notes: list[NotePolicyFault] = []

    def replace(self, policy: Policy) -> None:
        """Another policy takes over, with a clean record."""
        self.policy = policy
        self._faults_in_a_row = 0
        self._bypassed_until = 0.0

    def take_notes(self) -> list[NotePolicyFault]:
        """Faults since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def plan(self, request: Request, fleet: FleetView, now: Seconds) -> Plan:
        """Place both phases of a request."""
        return self._ask(
            lambda policy: policy.plan(request, fleet, now),
            lambda answer: check_plan(answer, request, fleet),
            now,
        )

    def bind_decode(self, request: Request, prefill: str, fleet: FleetView, now: Seconds) -> Binding:
        """Place decode after prefill on `prefill`."""
        return self._ask(
            lambda policy: policy.bind_decode(request, prefill, fleet, now),
            lambda answer: check_binding(answer, request, prefill, fleet),
            now,
        )

    def dry_run(self, request: Request, fleet: FleetView, now: Seconds) -> Plan:
        """What `plan` would say, on a copy of the policy: rotation and randomness stay untouched."""
        answer = copy.deepcopy(self.policy).plan(request, fleet, now)
        check_plan(answer, request, fleet)
        return answer

    def observe(self, fact: Fact, now: Seconds) -> None:
        """Let the policies learn."""
        try:
            self.policy.observe(fact, now)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything; see the module docstring
            self.fault("raised", repr(error), now)
        self._fallback.observe(fact, now)

    def fault(self, kind: str, message: str, now: Seconds) -> None:
        """Count a fault against the policy in force."""
        self._notes.append(NotePolicyFault(self.policy.name, kind, message))
        self._clean = False
        self._faults_in_a_row += 1
        if self._faults_in_a_row >= self._limits.policy_faults:
            self._bypassed_until = now + self._limits.policy_bypass_s
            self._faults_in_a_row = 0
            self._notes.append(NotePolicyFault(self.policy.name, "bypassed", message))

    def _ask(self, ask: Callable[[Policy], Answer], check: Callable[[Answer], None], now: Seconds) -> Answer:
        if now >= self._bypassed_until:
            answer = self._try(ask, check, now)
            if answer is not None:
                return answer
        answer = ask(self._fallback)
        check(answer)
        return answer

    def _try(
        self, ask: Callable[[Policy], Answer], check: Callable[[Answer], None], now: Seconds
    ) -> Answer | None:
        if self._clean:
            self._faults_in_a_row = 0
        try:
            answer = ask(self.policy)
            check(answer)
        except PolicyError as error:
            self.fault(error.message.partition(":")[0], error.message, now)
            return None
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything; see the module docstring
            self.fault("raised", repr(error), now)
            return None
        self._clean = True
        return answer


def check_plan(answer: Plan, request: Request, fleet: FleetView) -> None:
    """Refuse a plan that cannot be carried out. Raises PolicyError."""
    if isinstance(answer, RoutePlan):
        _check_backend(answer.prefill, Phase.PREFILL, request, fleet)
        if answer.decode is not None:
            _check_pair(answer.prefill, answer.decode, request, fleet)
    elif not isinstance(answer, Wait | Reject):
        raise PolicyError(Reason.POLICY_FAILED, f"wrong_type: the policy answered {type(answer).__name__}")


def check_binding(answer: Binding, request: Request, prefill: str, fleet: FleetView) -> None:
    """Refuse a place for decode that cannot be used. Raises PolicyError."""
    if isinstance(answer, Placement):
        _check_pair(prefill, answer.backend, request, fleet)
    elif not isinstance(answer, Wait | Reject):
        raise PolicyError(Reason.POLICY_FAILED, f"wrong_type: the policy answered {type(answer).__name__}")


def _check_pair(prefill: str, decode: str, request: Request, fleet: FleetView) -> None:
    _check_backend(decode, Phase.DECODE, request, fleet)
    producer, consumer = fleet.get(prefill), fleet.get(decode)
    if producer is not None and consumer is not None and not consumer.spec.accepts_kv_of(producer.spec):
        raise PolicyError(
            Reason.POLICY_FAILED, f"layout_mismatch: {decode} cannot decode from the KV of {prefill}"
        )


def _check_backend(backend: str, phase: Phase, request: Request, fleet: FleetView) -> None:
    view = fleet.get(backend)
    fault = None
    if view is None:
        fault = f"unknown_backend: there is no {backend!r}"
    elif view.state is not BackendState.READY:
        fault = f"not_ready: {backend} is {view.state}"
    elif phase not in view.spec.phases:
        fault = f"wrong_phase: {backend} does not offer {phase}"
    elif request.model not in view.spec.models:
        fault = f"wrong_model: {backend} does not serve {request.model!r}"
    if fault is not None:
        raise PolicyError(Reason.POLICY_FAILED, fault)
