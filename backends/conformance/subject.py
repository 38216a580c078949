"""A worker under test, as it introduced itself."""

from __future__ import annotations

from typing import Final

from polyphase.v1 import worker_pb2

from backends.conformance.verdicts import Target, ViolationError, expect
from router import wire
from router.errors import BackendError
from router.model import BackendSpec, Phase

MAX_INCARNATION: Final = 128
"""Routers refuse a longer one."""


class Subject:
    """A worker under test."""

    def __init__(self, target: Target, welcome: worker_pb2.Welcome) -> None:
        self.target = target
        self.spec = checked_spec(target, welcome)
        self.incarnation = welcome.incarnation
        self.stuck = 0
        """Sequences that earlier checks left behind for good."""
        self.level = 0
        """KV tokens in use when the check in progress began."""

    def offers(self, phase: Phase) -> bool:
        """Whether a phase may be sent to it."""
        return phase in self.spec.phases

    def __str__(self) -> str:
        return self.target.backend


def checked_spec(target: Target, welcome: worker_pb2.Welcome) -> BackendSpec:
    """The spec of a welcome. Raises ViolationError for what a router would refuse."""
    expect(welcome.spec.id == target.backend, f"{target.backend} was called, {welcome.spec.id!r} answered")
    expect(welcome.incarnation, "the welcome names no incarnation")
    expect(
        len(welcome.incarnation) <= MAX_INCARNATION, f"the incarnation is over {MAX_INCARNATION} characters"
    )
    try:
        return wire.spec_from_proto(welcome.spec)
    except BackendError as error:
        raise ViolationError(f"the spec cannot be read: {error.message}") from error
