"""Makes contestants from what the user names: a policy of the registry, or a policy file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from backends.models.laws import StepModels
from policies.registry import build, parse_policy_toml
from router.errors import ConfigError
from router.sim.run import Contestant


def contestant(name_or_file: str, label: str = "") -> Contestant:
    """A policy by name, with default parameters, or from a TOML file. Raises ConfigError."""
    if not name_or_file.endswith(".toml"):
        return _of(name_or_file, {}, label or name_or_file)
    path = Path(name_or_file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Check the path.") from error
    return of_text(text, label or path.stem)


def of_text(text: str, label: str = "") -> Contestant:
    """A policy from the text of its file, or as a recording names it. Raises ConfigError."""
    name, params = read_text(text)
    return _of(name, params, label or name)


def read_text(text: str) -> tuple[str, Mapping[str, Any]]:
    """Name and parameters out of the text of a policy file, or of the JSON in the head of a recording.

    Raises ConfigError.
    """
    if not text.lstrip().startswith("{"):
        return parse_policy_toml(text)
    try:
        value = json.loads(text)
        name, params = value["name"], value.get("params", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"the policy {text[:80]!r} cannot be read: {error!r}.") from error
    return str(name), dict(params)


def _of(name: str, params: Mapping[str, Any], label: str) -> Contestant:
    build(name, params, StepModels(), Random(0))  # a mistake shows before the first run, not in the third
    return Contestant(label, lambda outlook: build(name, params, outlook.models, outlook.rng))
