"""What a fleet costs an hour: chip-hours or capital, electricity at the wall, racks. Pure.

    a unit's hour = rent, or capital / (years x 8760 h) per device
                  + rack share: provisioned watts x PUE / rack kW x USD per rack and month / 730 h
    electricity   = watts x PUE / 1000 x USD per kWh

Rent usually includes electricity and the rack: set usd_per_kwh to 0 for it. PUE: 1.1 for hyperscale sites to
1.6 for the industry's mean (Uptime Institute); the default of 1.3 is an assumption, and so are 0.10 USD/kWh
(industrial rates of 0.06-0.20) and four years.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from router.model import BackendSpec

HOURS_A_YEAR: Final = 8760.0
HOURS_A_MONTH: Final = 730.0


@dataclass(frozen=True, slots=True)
class Prices:
    """How to count."""

    pue: float = 1.3
    """Power of the site over power of the backends, at least 1."""
    usd_per_kwh: float = 0.10
    capital_usd: Mapping[str, float] = field(default_factory=dict[str, float])
    """By device type: price of one device, in place of its rent."""
    years: float = 4.0
    """Over which capital is written off."""
    rack_kw: float = 0.0
    """What one rack can feed; 0 leaves racks out."""
    usd_per_rack_month: float = 0.0

    def unit_usd_per_hour(self, name: str, spec: BackendSpec) -> float:
        """One unit whether it works or not, without electricity."""
        capital = self.capital_usd.get(name)
        rent = spec.usd_per_hour
        if capital is not None:
            rent = capital * spec.count / (self.years * HOURS_A_YEAR)
        return rent + self._rack_usd_per_hour(spec)

    def power_usd_per_hour(self, watts: float) -> float:
        """Electricity for what the backends draw."""
        return watts * self.usd_per_w

    @property
    def usd_per_w(self) -> float:
        """Dollars an hour for a watt at a backend."""
        return self.pue / 1000.0 * self.usd_per_kwh

    def _rack_usd_per_hour(self, spec: BackendSpec) -> float:
        if self.rack_kw <= 0.0:
            return 0.0
        kw = nameplate_w(spec) * self.pue / 1000.0
        return kw / self.rack_kw * self.usd_per_rack_month / HOURS_A_MONTH


DEFAULT_PRICES: Final = Prices()


def nameplate_w(spec: BackendSpec) -> float:
    """What has to be provisioned for a backend: its cap, or its idle power where no cap is known."""
    return spec.power.cap_w if math.isfinite(spec.power.cap_w) else spec.power.idle_w
