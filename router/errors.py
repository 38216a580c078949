"""Failures by whose fault they are, and the one table that maps each to a gRPC status.

A message says cause, consequence and next step. Nothing here imports gRPC: codes are the numbers of
google.rpc.Code, so that the core and the simulator can speak of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final


class Code(IntEnum):
    """The part of google.rpc.Code that the router uses."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Reason(StrEnum):
    """Stable, public names of failures; sent as google.rpc.ErrorInfo.reason."""

    INVALID_REQUEST = "INVALID_REQUEST"
    REQUEST_TOO_SLOW = "REQUEST_TOO_SLOW"
    DUPLICATE_REQUEST = "DUPLICATE_REQUEST"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNKNOWN_BACKEND = "UNKNOWN_BACKEND"
    UNKNOWN_REQUEST = "UNKNOWN_REQUEST"
    UNKNOWN_SERVICE = "UNKNOWN_SERVICE"
    CANCELLED = "CANCELLED"
    SLOW_READER = "SLOW_READER"
    DEADLINE_EXPIRED = "DEADLINE_EXPIRED"
    DEADLINE_INFEASIBLE = "DEADLINE_INFEASIBLE"
    QUEUE_FULL = "QUEUE_FULL"
    SHED = "SHED"
    NOT_ALLOWED = "NOT_ALLOWED"
    NO_BACKEND = "NO_BACKEND"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    BACKEND_EXISTS = "BACKEND_EXISTS"
    FLEET_FULL = "FLEET_FULL"
    BACKEND_LOST = "BACKEND_LOST"
    BACKEND_STALLED = "BACKEND_STALLED"
    BACKEND_FAILED = "BACKEND_FAILED"
    BACKEND_BROKE_CONTRACT = "BACKEND_BROKE_CONTRACT"
    KV_STALE = "KV_STALE"
    KV_TRANSFER_FAILED = "KV_TRANSFER_FAILED"
    RETRIES_EXHAUSTED = "RETRIES_EXHAUSTED"
    POLICY_REJECTED = "POLICY_REJECTED"
    POLICY_FAILED = "POLICY_FAILED"
    DRAINING = "DRAINING"
    INTERNAL = "INTERNAL"


CODES: Final[Mapping[Reason, Code]] = {
    # The caller's fault.
    Reason.INVALID_REQUEST: Code.INVALID_ARGUMENT,
    Reason.REQUEST_TOO_SLOW: Code.DEADLINE_EXCEEDED,
    Reason.DUPLICATE_REQUEST: Code.ALREADY_EXISTS,
    Reason.UNKNOWN_MODEL: Code.NOT_FOUND,
    Reason.UNKNOWN_BACKEND: Code.NOT_FOUND,
    Reason.UNKNOWN_REQUEST: Code.NOT_FOUND,
    Reason.UNKNOWN_SERVICE: Code.NOT_FOUND,
    Reason.CANCELLED: Code.CANCELLED,
    Reason.SLOW_READER: Code.ABORTED,
    Reason.BACKEND_EXISTS: Code.ALREADY_EXISTS,
    Reason.NOT_ALLOWED: Code.PERMISSION_DENIED,
    Reason.REQUEST_TOO_LARGE: Code.INVALID_ARGUMENT,
    # No room, or no time.
    Reason.DEADLINE_EXPIRED: Code.DEADLINE_EXCEEDED,
    Reason.DEADLINE_INFEASIBLE: Code.DEADLINE_EXCEEDED,
    Reason.QUEUE_FULL: Code.RESOURCE_EXHAUSTED,
    Reason.SHED: Code.RESOURCE_EXHAUSTED,
    Reason.FLEET_FULL: Code.RESOURCE_EXHAUSTED,
    Reason.NO_BACKEND: Code.UNAVAILABLE,
    Reason.DRAINING: Code.UNAVAILABLE,
    # A backend's fault.
    Reason.BACKEND_LOST: Code.UNAVAILABLE,
    Reason.BACKEND_STALLED: Code.UNAVAILABLE,
    Reason.BACKEND_FAILED: Code.UNAVAILABLE,
    Reason.BACKEND_BROKE_CONTRACT: Code.INTERNAL,
    Reason.KV_STALE: Code.ABORTED,
    Reason.KV_TRANSFER_FAILED: Code.UNAVAILABLE,
    Reason.RETRIES_EXHAUSTED: Code.UNAVAILABLE,
    # The policy's fault, or ours.
    Reason.POLICY_REJECTED: Code.FAILED_PRECONDITION,
    Reason.POLICY_FAILED: Code.INTERNAL,
    Reason.INTERNAL: Code.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that breaks a rule."""

    field: str
    description: str


class PolyphaseError(Exception):
    """A failure with a public reason. Subclasses say whose fault it is."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after_s: float = 0.0,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        """Seconds after which a retry may succeed; 0 means that a retry is useless."""
        self.violations = tuple(violations)

    @property
    def code(self) -> Code:
        """The gRPC status code."""
        return CODES[self.reason]


class CallerError(PolyphaseError):
    """The request, or the way it was sent, is at fault."""


class CapacityError(PolyphaseError):
    """Nothing is wrong with the request; there is no room, or no time, for it."""


class BackendError(PolyphaseError):
    """A backend failed and no retry was possible."""


class PolicyError(PolyphaseError):
    """A policy answered with something the core cannot do, or not at all."""


class ConfigError(PolyphaseError):
    """A configuration, fleet, policy or profile file is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.INVALID_REQUEST, message)
