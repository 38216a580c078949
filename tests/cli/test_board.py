"""The live table adds up backends by kind, and shows busy shares from growing counters."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from router.cli.board import Board
from tests.cli.test_console import run_of_one


def row(
    id_: str, kind: str, busy: tuple[float, float] = (0.0, 0.0), flights: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """A backend as the fleet listing describes it."""
    return {
        "id": id_,
        "kind": kind,
        "busy_prefill_s": busy[0],
        "busy_decode_s": busy[1],
        "prefills_in_flight": flights[0],
        "decodes_in_flight": flights[1],
    }


def test_kinds_add_up_and_busy_is_a_rate() -> None:
    """Two GPUs: 0.5 s and 0.1 s of prefill within 2 s, 3 in flight together."""
    board = Board()
    board.look([row("a", "gpu", (10.0, 0.0)), row("b", "gpu", (5.0, 1.0))], now=1.0)
    board.look([row("a", "gpu", (10.5, 0.0), (1, 0)), row("b", "gpu", (5.1, 1.4), (2, 4))], now=3.0)
    gpu = board.kinds(run_of_one())["gpu"]
    assert (gpu.backends, gpu.prefills_in_flight, gpu.decodes_in_flight) == (2, 3, 4)
    assert gpu.prefill_busy == pytest.approx(0.3)
    assert gpu.decode_busy == pytest.approx(0.2)
    assert gpu.prefills == 1


def test_a_restarted_worker_is_not_negatively_busy() -> None:
    """Its counters begin at zero again."""
    board = Board()
    board.look([row("a", "gpu", (10.0, 3.0))], now=1.0)
    board.look([row("a", "gpu", (0.1, 0.0))], now=2.0)
    gpu = board.kinds(run_of_one())["gpu"]
    assert (gpu.prefill_busy, gpu.decode_busy) == (0.0, 0.0)


def test_the_table_shows_kinds_without_traffic_too() -> None:
    """A kind that does nothing is part of the picture."""
    board = Board()
    board.look([row("n", "npu"), row("a", "gpu")], now=1.0)
    out = io.StringIO()
    Console(file=out, width=120).print(board.render(run_of_one(), "headline"))
    for part in ("headline", "npu", "gpu", "lpu", "gpu → lpu 1"):
        assert part in out.getvalue()
