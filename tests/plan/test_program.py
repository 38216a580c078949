"""Linear and integer programs: optima, duals in the units of their rows, and what is said without one."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

from router.errors import ConfigError
from router.plan.program import InfeasibleError, Program


def test_duals_are_worth_a_unit_of_their_own_row() -> None:
    """Rows of very different sizes: the dual is the gain per unit as stated, not as scaled."""
    program = Program()
    x, y = program.variable(3.0), program.variable(2.0)
    program.at_most([(x, 1e9), (y, 1e9)], 4e9, "bytes")
    program.at_most([(x, 1e-3)], 2e-3, "seconds")
    solution = program.maximise()
    assert solution.objective == pytest.approx(10.0)
    assert (solution[x], solution[y]) == pytest.approx((2.0, 2.0))
    assert solution.duals["bytes"] * 1e9 == pytest.approx(2.0)
    assert solution.duals["seconds"] * 1e-3 == pytest.approx(1.0)


def test_whole_numbers_cost_more_than_shares() -> None:
    """A knapsack whose divisible optimum is not whole."""
    optima = []
    for integer in (False, True):
        program = Program()
        x = program.variable(1.0, integer=integer)
        program.at_most([(x, -1.0)], -2.5)
        optima.append(program.minimise().objective)
    assert optima == pytest.approx([2.5, 3.0])


def test_rows_that_contradict_each_other_are_infeasible() -> None:
    """A typed error, for the caller to explain."""
    program = Program()
    x = program.variable()
    program.at_most([(x, 1.0)], -1.0)
    with pytest.raises(InfeasibleError):
        program.maximise()


def test_a_program_of_nothing_is_worth_nothing() -> None:
    """No backend can run anything, so there is nothing to decide."""
    assert Program().maximise().objective == 0.0


def test_an_unbounded_program_is_no_answer() -> None:
    """An error, not infinity."""
    program = Program()
    program.variable(1.0)
    with pytest.raises(ConfigError, match="no optimum"):
        program.maximise()


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy is optional, and the way to get it is one command."""

    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    program = Program()
    program.variable(1.0, upper=1.0)
    with pytest.raises(ConfigError, match=r"pip install 'polyphase\[plan\]'"):
        program.maximise()


def test_the_solver_writes_nothing_to_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    """A command may be writing JSON there."""
    program = Program()
    items = [program.variable(1.0 + 0.37 * (i % 5), upper=3, integer=True) for i in range(12)]
    program.at_most([(x, 1.0 + 0.61 * (i % 7)) for i, x in enumerate(items)], 17.3)
    program.maximise()
    assert capfd.readouterr().out == ""
