"""Linear and integer programs by named rows, solved by HiGHS (Huangfu and Hall, 2018) through SciPy.

The only module that touches SciPy, which is optional: without it every command but `bound` and `advise`
works. Rows are scaled to a largest coefficient of 1 before they are solved, since bytes a second and dollars
an hour differ by ten orders of magnitude; duals are given in the units of the row as it was stated.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from router.errors import ConfigError

TIME_LIMIT_S: Final = 120.0
"""HiGHS gives up after it; no bound that takes longer is worth the wait."""
MAX_TERMS: Final = 4_000_000
"""Nonzero coefficients of one program: about 300 MB inside HiGHS."""
INTEGER_GAP: Final = 1e-6

Term = tuple[int, float]
"""A variable and its coefficient."""


class InfeasibleError(ConfigError):
    """No values satisfy the rows; the caller says which demand cannot be met."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The optimum of a program."""

    objective: float
    values: tuple[float, ...]
    duals: Mapping[str, float]
    """By row name: gain of the objective per unit more on the right-hand side. Empty with integers."""

    def __getitem__(self, variable: int) -> float:
        """The value of a variable."""
        return self.values[variable]


class Program:
    """Collects variables and rows; `maximise` or `minimise` solves it."""

    def __init__(self) -> None:
        self._costs: list[float] = []
        self._bounds: list[tuple[float, float]] = []
        self._integer: list[bool] = []
        self._rows: list[_Row] = []
        self._terms = 0

    @property
    def size(self) -> tuple[int, int]:
        """Variables and rows."""
        return len(self._costs), len(self._rows)

    def variable(
        self, value: float = 0.0, *, upper: float = math.inf, lower: float = 0.0, integer: bool = False
    ) -> int:
        """A variable; `value` is what a unit of it adds to the objective."""
        self._costs.append(value)
        self._bounds.append((lower, upper))
        self._integer.append(integer)
        return len(self._costs) - 1

    def at_most(self, terms: Iterable[Term], limit: float, name: str = "") -> None:
        """Sum of the terms <= limit; a row with a name gets a dual. Infinite limits make no row."""
        if limit < math.inf:
            self._row(terms, limit, name, equal=False)

    def equal(self, terms: Iterable[Term], value: float, name: str = "") -> None:
        """Sum of the terms = value."""
        self._row(terms, value, name, equal=True)

    def _row(self, terms: Iterable[Term], limit: float, name: str, *, equal: bool) -> None:
        kept = [(variable, factor) for variable, factor in terms if factor != 0.0]
        scale = max((abs(factor) for _, factor in kept), default=1.0)
        row = _Row(name, [(v, f / scale) for v, f in kept], limit / scale, scale, equal)
        self._rows.append(row)
        self._terms += len(kept)
        if self._terms > MAX_TERMS:
            raise ConfigError(
                f"the program has more than {MAX_TERMS:,} coefficients and was not solved; use longer "
                "windows, fewer requests, or fewer device types."
            )

    def maximise(self, time_limit_s: float = TIME_LIMIT_S) -> Solution:
        """The largest objective. Raises InfeasibleError, or ConfigError for no answer in time."""
        return self._solve(-1.0, time_limit_s)

    def minimise(self, time_limit_s: float = TIME_LIMIT_S) -> Solution:
        """The smallest objective. Raises InfeasibleError, or ConfigError for no answer in time."""
        return self._solve(1.0, time_limit_s)

    def _solve(self, sign: float, time_limit_s: float) -> Solution:
        if not self._costs:
            return Solution(0.0, (), {})  # nothing can run anywhere, so there is nothing to decide
        optimize, sparse = _scipy("optimize"), _scipy("sparse")
        above = [row for row in self._rows if not row.equal]
        equal = [row for row in self._rows if row.equal]
        integers = any(self._integer)
        with _silent() if integers else nullcontext():
            result = optimize.linprog(
                [sign * cost for cost in self._costs],
                A_ub=_matrix(sparse, above, len(self._costs)),
                b_ub=[row.limit for row in above] or None,
                A_eq=_matrix(sparse, equal, len(self._costs)),
                b_eq=[row.limit for row in equal] or None,
                bounds=[(low, None if math.isinf(high) else high) for low, high in self._bounds],
                method="highs",
                integrality=[int(one) for one in self._integer] if integers else None,
                options={"time_limit": time_limit_s, **({"mip_rel_gap": INTEGER_GAP} if integers else {})},
            )
        if result.status != 0:
            raise _no_answer(int(result.status), str(result.message), time_limit_s)
        duals = {} if integers else _duals(sign, above, result.ineqlin) | _duals(sign, equal, result.eqlin)
        return Solution(sign * float(result.fun) + 0.0, tuple(map(float, result.x)), duals)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    terms: list[Term]
    limit: float
    scale: float
    equal: bool


def _matrix(sparse: Any, rows: list[_Row], columns: int) -> Any:
    if not rows:
        return None
    factors = [factor for row in rows for _, factor in row.terms]
    where = [variable for row in rows for variable, _ in row.terms]
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row.terms))
    return sparse.csr_matrix((factors, where, starts), shape=(len(rows), columns))


def _duals(sign: float, rows: list[_Row], result: Any) -> dict[str, float]:
    if not rows:
        return {}
    marginals = (sign * float(value) for value in result.marginals)
    return {row.name: value / row.scale for row, value in zip(rows, marginals, strict=True) if row.name}


@contextmanager
def _silent() -> Iterator[None]:
    """HiGHS writes notes of its integer solver to descriptor 1 whatever it is told, and a command may be
    writing JSON there."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no standard output, so nothing to keep clean
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _no_answer(status: int, message: str, time_limit_s: float) -> ConfigError:
    if status == 2:
        return InfeasibleError("no plan satisfies all limits at once.")
    if status == 1:
        return ConfigError(
            f"HiGHS found no optimum within {time_limit_s:.0f} s; use longer windows or fewer requests."
        )
    return ConfigError(f"HiGHS gave no optimum ({message.strip()}); check the workload's numbers.")


def _scipy(part: str) -> Any:
    try:
        return importlib.import_module(f"scipy.{part}")
    except ImportError as error:
        raise ConfigError(
            "SciPy is not installed, so no linear program can be solved. Install the extra that brings it: "
            "pip install 'polyphase[plan]'."
        ) from error
