"""Bringing another model into a device: how long it takes, and where it cannot be done. Pure.

A loadable backend reads the weights of another of its models (load_s); a compiled one has a compiler run go
before (compile_s). Nothing else runs meanwhile. In silicon there is nothing to load: all models listed are
there. A device draws its idle power while it loads; nobody is charged for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from router.errors import ConfigError
from router.model import BackendSpec, ModelBinding, Seconds


@dataclass(frozen=True, slots=True)
class Loading:
    """A change of models that is under way."""

    model: int
    """Position of the new model among the backend's."""
    began: Seconds
    ends: Seconds


def switch_s(spec: BackendSpec) -> Seconds:
    """Time from one of a backend's models to another."""
    match spec.binding:
        case ModelBinding.FIXED:
            return 0.0
        case ModelBinding.LOADABLE:
            return spec.load_s
        case ModelBinding.COMPILED:
            return spec.compile_s + spec.load_s


def check_loading(spec: BackendSpec) -> None:
    """Raise ConfigError for times that are negative or without end."""
    for name, value in (("load_s", spec.load_s), ("compile_s", spec.compile_s)):
        if not 0.0 <= value < math.inf:
            raise ConfigError(f"{spec.id}: {name} = {value!r} must be finite and at least 0, in seconds.")
