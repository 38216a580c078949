"""Mock workers, sound and broken, and runs of the suite against them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from backends.conformance.checks import drains
from backends.conformance.run import conform
from backends.conformance.verdicts import Report, Settings, Target
from backends.shell import outbox, server
from backends.shell.port import Boot
from backends.shell.server import WorkerServer
from router.model import BackendSpec, LinkParameters, Phase, StepParameters
from tests.shell.rig import spec

STEP = StepParameters(base_s=4e-3, prefill_base_s=4e-3, per_prefill_token_s=1e-4)
PATIENCE_S = 40.0
BOTH = frozenset(Phase)


@contextmanager
def quick_reports() -> Iterator[None]:
    """Load reports come often, so that nobody waits long for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox, "LOAD_HEARTBEAT_S", 0.05)
        patch.setattr(outbox, "LOAD_UNDER_WORK_S", 0.05)
        patch.setattr(server, "_BEAT_S", 0.02)
        patch.setattr(drains, "RUNS_S", 0.5)
        yield


def worker(backend: str, phases: frozenset[Phase] = BOTH, **changes: Any) -> BackendSpec:
    """A worker that takes a few milliseconds for a step, and some for a transfer."""
    given: dict[str, Any] = {
        "phases": phases,
        "step": STEP,
        "max_context_tokens": 800,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 32,
        "link": LinkParameters(latency_s=0.02),
    }
    return spec(backend, **{**given, **changes})


async def run(specs: Sequence[BackendSpec], boot: Boot, only: Sequence[str] = (), **settings: Any) -> Report:
    """The suite against workers of one server, which it can restart and drain."""
    async with WorkerServer(specs, boot, first_message_timeout_s=PATIENCE_S) as fleet:

        async def restart(backend: str) -> None:
            fleet.restart(backend)

        async def drain(backend: str) -> None:
            fleet.workers[backend].drain()

        given: dict[str, Any] = {
            "patience_s": PATIENCE_S,
            "longest_lease_s": 0.0,
            "deterministic": True,
            "restart": restart,
            "drain": drain,
        }
        made = Settings(**{**given, **settings})
        return await conform([Target(one.id, fleet.address) for one in specs], made, only)
