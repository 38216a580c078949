"""The step model against numbers worked by hand."""

from dataclasses import replace

import pytest

from backends.models.latency import StepModel
from backends.models.laws import StepModels
from router.core.ports import LatencyModel, ModelSource
from router.errors import ConfigError
from router.model import StepParameters
from tests.models.drive import STEP, backend

MODEL = StepModel(STEP)


def test_implements_the_ports() -> None:
    """The model and its source fit the ports that policies are written against."""
    model: LatencyModel = MODEL
    source: ModelSource = StepModels()
    assert model.decode_step_s(1, 0) == source(backend()).decode_step_s(1, 0)


def test_decode_step_adds_base_sequences_and_context() -> None:
    """10 ms + 3 x 1 ms + 500 x 0.01 ms."""
    assert MODEL.decode_step_s(3, 500) == pytest.approx(0.018)
    assert MODEL.decode_step_s(0, 0) == 0.0


def test_prefill_alone_hides_compute_behind_the_weight_sweep() -> None:
    """2 ms + max(6, 0.1 n) ms + n (h + n / 2) x 1 us."""
    assert MODEL.prefill_s(40) == pytest.approx(0.002 + 0.006 + 0.0008)
    assert MODEL.prefill_s(100) == pytest.approx(0.002 + 0.010 + 0.005)
    assert MODEL.prefill_s(100, cached_tokens=50) == pytest.approx(0.002 + 0.010 + 0.010)
    assert MODEL.prefill_s(0, cached_tokens=50) == 0.0


def test_mixed_step_is_additive_and_falls_back_to_the_pure_forms() -> None:
    """10 ms + 2 + 1 + 0.1 x 20 + pairs; without decodes or chunks the forms above."""
    assert MODEL.mixed_step_s(2, 100, 20, 200.0) == pytest.approx(0.010 + 0.002 + 0.001 + 0.002 + 0.0002)
    assert MODEL.mixed_step_s(2, 100, 0, 0.0) == MODEL.decode_step_s(2, 100)
    assert MODEL.mixed_step_s(0, 0, 100, 5000.0) == MODEL.prefill_s(100)


def test_saturating_term_counts_all_tokens_of_the_step() -> None:
    """m (1 - exp(-(B + N) / B0)): 8 ms x (1 - 1/e) at 20 tokens with B0 = 20."""
    model = StepModel(StepParameters(base_s=0.001, saturating_s=0.008, saturation_tokens=20))
    assert model.decode_step_s(20, 0) == pytest.approx(0.001 + 0.008 * 0.6321205588)
    assert model.mixed_step_s(5, 0, 15, 0.0) == pytest.approx(0.001 + 0.008 * 0.6321205588)


def test_h100_anchor() -> None:
    """Llama-3.1-8B on an H100: 64 sequences of 1,000 tokens take 6.39 + 0.755 + 2.675 ms."""
    model = StepModel(StepParameters(6.39e-3, per_sequence_s=1.18e-5, per_context_token_s=4.18e-8))
    assert model.decode_step_s(64, 64_000) == pytest.approx(9.82e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("base_s", 0.0), ("per_sequence_s", -1e-9), ("base_s", 7.0e3), ("noise_sigma", 1.5),
     ("saturation_tokens", 0.0), ("per_prefill_token_s", float("nan"))],
)  # fmt: skip
def test_refuses_parameters_out_of_range(field: str, value: float) -> None:
    """A unit mistake or a nonsense value is named, not simulated."""
    with pytest.raises(ConfigError, match=field):
        StepModel(replace(STEP, **{field: value}))


def test_source_gives_the_same_model_for_the_same_parameters() -> None:
    """Policies may keep state per model, so identity matters."""
    models = StepModels()
    assert models(backend("x")) is models(backend("y"))
    assert models(backend("z", step=replace(STEP, base_s=0.02))) is not models(backend("x"))
