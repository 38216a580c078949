"""Groups of points: the form is chosen, the error stated, and what does not fit rejected."""

from __future__ import annotations

import numpy as np
import pytest

from backends.calibration.fit import fit_series, median_errors
from backends.calibration.points import Group, Quantity, Series, read_points, series_of
from backends.calibration.power import draws_of, fit_power
from backends.calibration.report_runs import DATA
from backends.calibration.steps import step_of
from router.errors import ConfigError

GRID = tuple((float(b), float(b * c)) for b in (1, 4, 16, 64, 256) for c in (256, 2048, 8192))


def decode(seconds: np.ndarray[tuple[int], np.dtype[np.float64]], model: str = "m") -> Series:
    """A decode group over GRID."""
    group = Group("d", model, "bf16", "1", "s", Quantity.DECODE)
    return Series(group, GRID, tuple(float(one) for one in seconds), "A")


def linear() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A dense model's steps."""
    batch, context = np.array(GRID).T
    return 6e-3 + 1e-5 * batch + 4e-8 * context


def test_the_simple_form_is_kept_for_a_dense_model() -> None:
    """A term that brings nothing is left out."""
    fit = fit_series(decode(linear()))
    assert fit.fit is not None
    assert fit.fit.law.name == "linear"
    assert fit.fit.values == pytest.approx(
        {"base_s": 6e-3, "per_sequence_s": 1e-5, "per_context_token_s": 4e-8}, rel=1e-3
    )
    assert fit.held_out < 1e-3


def test_a_mixture_of_experts_gets_the_saturating_form() -> None:
    """A step that bends with the batch is told from one that does not."""
    fit = fit_series(decode(linear() + 8e-3 * -np.expm1(-np.array(GRID)[:, 0] / 20.0)))
    assert fit.fit is not None
    assert fit.fit.law.name == "saturating"
    assert fit.fit.values["saturating_s"] == pytest.approx(8e-3, rel=0.05)


def test_nonsense_and_small_groups_are_rejected() -> None:
    """A law that misses its points, and one that would have as many parameters as points, are not used."""
    noise = np.random.default_rng(1).uniform(0.1, 10.0, len(GRID))
    wild, small = (
        fit_series(decode(noise)),
        fit_series(Series(decode(linear()).group, GRID[:5], (1.0,) * 5, "A")),
    )
    assert "misses its own points" in wild.rejected
    assert "fewer than" in small.rejected
    assert np.isnan(median_errors([wild, small])[0])


def test_published_kernels_are_fitted_within_the_targets() -> None:
    """Over a quarter of the groups: decode within 3.5 %, prefill within 3 % (median)."""
    series, _ = series_of(read_points(DATA / "points.csv.gz"))
    kernels = [one for one in series if one.group.source.startswith("AIConfigurator")]
    kernels.sort(key=lambda one: (one.group.quantity, one.group.label))
    fits = [fit_series(one) for one in kernels[::4]]
    for quantity, target in ((Quantity.DECODE, 0.035), (Quantity.PREFILL, 0.03)):
        chosen = [fit for fit in fits if fit.group.quantity is quantity]
        assert len(chosen) >= 15
        assert median_errors(chosen)[0] <= target


def test_tables_of_single_devices_are_reproduced() -> None:
    """XDNA2 within 1 %, Mooncake's transfers within 4 %."""
    series, _ = series_of(read_points(DATA / "points.csv.gz"))
    fits = [fit_series(one) for one in series if one.group.source.startswith(("FastFlowLM", "Mooncake"))]
    worst = {
        quantity: max(f.error for f in fits if f.group.quantity is quantity)
        for quantity in Quantity
        if any(f.group.quantity is quantity for f in fits)
    }
    assert worst[Quantity.DECODE] < 0.01
    assert worst[Quantity.LINK] < 0.04
    npu = next(fit for fit in fits if fit.group.model == "Llama-3.1-8B")
    assert npu.fit is not None
    assert npu.fit.values["base_s"] == pytest.approx(0.1294, rel=0.01)


def test_power_keeps_its_target() -> None:
    """The median over GPUs and families is at most 7 %, and dense models on B200 are at most 4 %."""
    fits = fit_power(draws_of(read_points(DATA / "points.csv.gz")))
    assert np.median([fit.error for fit in fits]) <= 0.07
    dense = {fit.gpu: fit for fit in fits if fit.family == "dense"}
    assert dense["B200"].error <= 0.04
    assert dense["B200"].points == 89
    assert dense["H100"].error <= 0.07


def test_a_profile_needs_one_group_of_each() -> None:
    """Two models cannot become one profile, and none cannot either."""
    two = [fit_series(decode(linear(), model)) for model in ("m", "n")]
    with pytest.raises(ConfigError, match="2 decode groups are left"):
        step_of(two)
    with pytest.raises(ConfigError, match="no decode group"):
        step_of([])
    assert step_of(two[:1]).step.base_s == pytest.approx(6e-3, rel=1e-3)
