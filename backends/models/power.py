"""Energy of a backend from what its steps move and compute. Pure.

    P = min(idle + joule_per_byte x bytes/s + joule_per_flop x FLOP/s, cap)

Origin: fitted on the ML.ENERGY v3 measurements of vLLM (GPU power alone, without the server around it):
median error 3.5 % on 89 dense B200 configurations, 6.8 % on 85 of H100. The wall draws 1.2-1.3 times as
much (MLPerf 5.1 power results). FLOPs of attention are left out: below 32k tokens they are within the fit's
error.
"""

from __future__ import annotations

import math
from dataclasses import fields

from router.errors import ConfigError
from router.model import PowerParameters, Seconds


def check_power(parameters: PowerParameters) -> None:
    """Raise ConfigError for a negative or undefined parameter, or an idle power above the cap."""
    for field in fields(parameters):
        value = getattr(parameters, field.name)
        if math.isnan(value) or value < 0.0 or (math.isinf(value) and field.name != "cap_w"):
            raise ConfigError(f"power.{field.name} = {value!r} must be finite and at least 0.")
    if parameters.idle_w > parameters.cap_w:
        raise ConfigError("power.idle_w is above power.cap_w: the backend could never run. Raise cap_w.")


def uncapped_j(parameters: PowerParameters, duration_s: Seconds, moved_bytes: float, flop: float) -> float:
    """Joules before the cap."""
    p = parameters
    return p.idle_w * duration_s + p.joule_per_byte * moved_bytes + p.joule_per_flop * flop


def idle_j(parameters: PowerParameters, duration_s: Seconds) -> float:
    """Joules of `duration_s` seconds without work."""
    return parameters.idle_w * duration_s
