"""Writes profiles: a prior's text with the step parameters, the origin and the engine's limits replaced.

Everything a fit says nothing about (links, power, prices) stays as the prior has it, and is named as such.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from backends.calibration.limits import UNLIMITED_TOKENS
from backends.calibration.run import Calibration
from backends.calibration.shown import running_of
from backends.catalogue import PROFILES, profile_names
from backends.links import link_table
from backends.models.profile import Profile, Trust, parse_profile
from router.errors import ConfigError
from router.model import StepParameters

MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PriorFile:
    """A profile and the text it was parsed from."""

    profile: Profile
    text: str


def read_prior(name_or_path: str) -> PriorFile:
    """A profile that ships with the project, by name, or any, by path; raise ConfigError for neither."""
    shipped = name_or_path in profile_names()
    path = PROFILES / f"{name_or_path}.toml" if shipped else Path(name_or_path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data[:MAX_BYTES].decode("utf-8")
    except OSError as error:
        raise ConfigError(
            f"no profile {name_or_path}: {error.strerror or error}. Name a file, or one of "
            f"{', '.join(profile_names())}."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"profile {name_or_path} is not a text in UTF-8: {error}.") from error
    return PriorFile(parse_profile(text, path.stem, links=link_table()), text)


def calibrated_text(prior: PriorFile, found: Calibration, name: str, date: str) -> str:
    """A profile of a calibrated run; `date` is the day of the fit."""
    run, errors = found.run, found.held_out
    longest = int(np.max(run.prompts + run.outputs))
    batch = int(min(found.spec.max_num_seqs, running_of(run)[1].max()))
    provenance = {
        "source": f"Fit to {len(run)} requests of a real engine run, {run.name}; prior: {prior.profile.name}",
        "date": date,
        "trust": str(Trust.MEASURED),
        "fit_error": (
            f"latency {errors.latency_mape:.1%}, time per output token {errors.tpot_mape:.1%}, time to "
            f"first token {errors.ttft_mape:.1%} (mean absolute, over the {errors.requests} requests that "
            "the fit did not see)"
        ),
        "valid_range": f"batch 1-{batch}, context {int(run.prompts.min())}-{longest}, "
        f"prompt {int(run.prompts.min())}-{int(run.prompts.max())} tokens",
    }
    spec = found.spec
    backend = {
        "max_num_seqs": spec.max_num_seqs,
        "max_num_batched_tokens": spec.max_num_batched_tokens,
        "block_tokens": spec.block_tokens,
        "async_scheduling": spec.async_scheduling,
    }
    if spec.kv_capacity_tokens < UNLIMITED_TOKENS:
        backend["kv_capacity_tokens"] = spec.kv_capacity_tokens
    notes = [f"inferred: {note}" for note in found.notes]
    return _text(prior, spec.step, provenance, backend, notes, name)


def fitted_text(prior: PriorFile, step: StepParameters, provenance: Mapping[str, str], name: str) -> str:
    """A profile of parameters that were fitted to points; `provenance` lacks assumptions and notes."""
    return _text(prior, step, provenance, {}, [], name)


def _text(
    prior: PriorFile,
    step: StepParameters,
    provenance: Mapping[str, str],
    backend: Mapping[str, Any],
    notes: Sequence[str],
    name: str,
) -> str:
    document = tomllib.loads(prior.text)
    origin = prior.profile.provenance
    kept = "links, power, price and KV sizes are those of the prior"
    document["provenance"] = {
        **provenance,
        "assumptions": [
            f"of a prefill on an idle device the run shows little: prior {prior.profile.name}, scaled",
            kept,
            *(f"prior: {one}" for one in origin.assumptions),
        ],
        "notes": [*notes, *(f"prior: {one}" for one in origin.notes)],
    }
    document["backend"] = {**document.get("backend", {}), **backend}
    fitted = {each.name: getattr(step, each.name) for each in fields(StepParameters)}
    noise = {name: document.get("step", {}).get(name) for name in ("noise_sigma", "stall_probability")}
    document["step"] = {**fitted, **{key: value for key, value in noise.items() if value is not None}}
    text = "\n".join(_lines(document))
    parse_profile(text, name, links=link_table())
    return text


def _lines(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """TOML of a table: its values first, then its sub-tables."""
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (values or not table):
        yield f"[{'.'.join(path)}]"
    for key, value in values.items():
        yield f"{key} = {_value(value)}"
    if values:
        yield ""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines(value, (*path, key))


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case list() | tuple():
            return "[\n" + "".join(f"  {_value(one)},\n" for one in value) + "]" if value else "[]"
        case _:
            return json.dumps(str(value), ensure_ascii=False)
