"""From fits of one device, model, precision and parallelism to the step parameters of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from backends.calibration import laws
from backends.calibration.fit import GroupFit
from backends.calibration.points import Quantity, Series
from backends.calibration.regress import LawFit, fit_law, mape
from router.errors import ConfigError
from router.model import StepParameters


@dataclass(frozen=True, slots=True)
class FittedStep:
    """Step parameters and what they rest on."""

    step: StepParameters
    decode: GroupFit
    prefill: GroupFit | None
    prefill_error: float
    """Of the form that profiles have, which for mixtures of experts is not always the best one."""

    @property
    def provenance(self) -> dict[str, str]:
        """The table of a profile, without date, assumptions and notes."""
        group, decode = self.decode.group, self.decode
        errors = f"decode {decode.error:.1%} over {len(decode.series.seconds)} points"
        errors += f" (held out {decode.held_out:.1%})"
        if self.prefill is not None:
            errors += f", prefill {self.prefill_error:.1%} over {len(self.prefill.series.seconds)} points"
        return {
            "source": f"Fit to published points of {group.label}: {group.source}",
            "trust": decode.series.trust if decode.series.trust in {"A", "A-", "B+", "B", "C"} else "C",
            "fit_error": f"{errors} (mean absolute)",
            "valid_range": ", ".join(_ranges(self)),
        }


def step_of(fits: Sequence[GroupFit]) -> FittedStep:
    """The parameters of the groups; raise ConfigError unless there is one usable decode group."""
    decode = _only(fits, Quantity.DECODE)
    if decode is None or decode.fit is None:
        raise ConfigError(
            "no decode group that fits is left, so there is no profile to write. Narrow the choice to points "
            "of one device, model, precision and parallelism: --device, --model, --precision, --tp."
        )
    prefill = _only(fits, Quantity.PREFILL)
    found = decode.fit.values
    step = StepParameters(
        base_s=max(found["base_s"], 1e-9),
        per_sequence_s=found.get("per_sequence_s", 0.0),
        per_context_token_s=found["per_context_token_s"],
        saturating_s=found.get("saturating_s", 0.0),
        saturation_tokens=found.get("saturation_tokens", 1.0),
    )
    if prefill is None:
        return FittedStep(step, decode, None, np.nan)
    law, error = _with_floor(prefill.series)
    return FittedStep(_with_prefill(step, law), decode, prefill, error)


def _only(fits: Sequence[GroupFit], quantity: Quantity) -> GroupFit | None:
    found = [fit for fit in fits if fit.group.quantity is quantity and not fit.rejected]
    if len(found) > 1:
        labels = "; ".join(f"{fit.group.label} ({fit.group.source})" for fit in found[:4])
        raise ConfigError(
            f"{len(found)} {quantity} groups are left, a profile is of one: {labels}. Narrow the choice: "
            "--device, --model, --precision, --tp, --source."
        )
    return found[0] if found else None


def _with_floor(series: Series) -> tuple[LawFit, float]:
    inputs, seconds = np.array(series.inputs), np.array(series.seconds)
    fit = fit_law(laws.PREFILL, inputs, seconds)
    return fit, mape(fit.predict(inputs), seconds)


def _with_prefill(step: StepParameters, fit: LawFit) -> StepParameters:
    values = fit.values
    return replace(
        step,
        prefill_base_s=values["prefill_base_s"],
        prefill_floor_s=values["per_prefill_token_s"] * values["knee_tokens"],
        per_prefill_token_s=values["per_prefill_token_s"],
        per_attention_pair_s=values["per_attention_pair_s"],
    )


def _ranges(fitted: FittedStep) -> Sequence[str]:
    inputs = np.array(fitted.decode.series.inputs)
    batch, context = inputs[:, 0], inputs[:, 1] / inputs[:, 0]
    parts = [f"batch {batch.min():.0f}-{batch.max():.0f}", f"context {context.min():.0f}-{context.max():.0f}"]
    if fitted.prefill is not None:
        tokens = np.array(fitted.prefill.series.inputs)[:, 0]
        parts.append(f"prompt {tokens.min():.0f}-{tokens.max():.0f} tokens")
    return parts
