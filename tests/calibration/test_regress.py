"""The regression finds planted coefficients, and says honestly how far it is off."""

from __future__ import annotations

import numpy as np
import pytest

from backends.calibration import laws
from backends.calibration.regress import fit_law, held_out, mape, relative_fit

RNG = np.random.default_rng(3)
GRID = np.array([(b, b * c) for b in (1, 2, 4, 8, 16, 32, 64, 128) for c in (256.0, 2048.0, 8192.0)])


def test_planted_coefficients_are_found() -> None:
    """Exact data gives exact coefficients, whatever their scale."""
    columns = np.column_stack([np.ones(len(GRID)), GRID])
    truth = np.array([6e-3, 1.2e-5, 4e-8])
    assert relative_fit(columns, columns @ truth) == pytest.approx(truth, rel=1e-6)


def test_outliers_do_not_drag_the_fit() -> None:
    """A tenth of the points being three times too slow moves no coefficient by more than 3 %."""
    columns = np.column_stack([np.ones(len(GRID)), GRID])
    truth = np.array([6e-3, 1.2e-5, 4e-8])
    measured = columns @ truth
    measured[::10] *= 3.0
    assert relative_fit(columns, measured) == pytest.approx(truth, rel=0.03)


def test_coefficients_keep_the_signs_of_physics() -> None:
    """A cost that falls with the batch is not believed: the coefficient is 0, never negative."""
    batch = np.arange(1.0, 20.0)
    found = relative_fit(np.column_stack([np.ones(19), batch]), 0.1 - 0.001 * batch)
    assert found[1] == 0.0
    assert found[0] > 0.0


def test_the_shape_of_a_saturating_law_is_found() -> None:
    """The saturating term comes back with its scale, from noisy points."""
    columns = laws.DECODE_SATURATING.design(GRID, 20.0)
    measured = columns @ np.array([3e-3, 3e-5, 6e-9, 8e-3]) * np.exp(RNG.normal(0.0, 0.005, len(GRID)))
    fit = fit_law(laws.DECODE_SATURATING, GRID, measured)
    assert fit.shape == pytest.approx(20.0, rel=0.25)
    assert fit.values["saturating_s"] == pytest.approx(8e-3, rel=0.1)
    assert mape(fit.predict(GRID), measured) < 0.01


def test_held_out_error_sees_overfitting() -> None:
    """On pure noise a law that explains its own points well does not explain others."""
    inputs = np.column_stack([RNG.uniform(1, 100, 7), RNG.uniform(1, 1e5, 7)])
    measured = RNG.uniform(0.5, 1.5, 7)
    law = laws.DECODE_SATURATING
    assert held_out(law, inputs, measured) > mape(fit_law(law, inputs, measured).predict(inputs), measured)
