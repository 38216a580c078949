"""Which backends may be bought: devices of the catalogue, each in the smallest group that holds the model.

A device is named as in the catalogue, with a format and a number where the default is not wanted:
`h100`, `h100:fp8`, `4xh100:fp8`; or it is the name of a profile. Where a profile was fitted to measurements
of the same device, model and format, it takes the place of the prior.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from backends.catalogue import load_profile, profile_names
from backends.hardware import device_names, load_device, load_shape
from backends.models.device import Device
from backends.models.prior_text import profile_text
from backends.models.profile import parse_profile
from backends.models.roofline import prior
from backends.models.shape import Dtype, ModelShape
from router.errors import ConfigError
from router.model import BackendSpec
from router.plan.supply import Supply

MOST_UNITS: Final = 512
"""Of one type in one fleet."""
DATE: Final = "at the time of the advice"
_NAME: Final = re.compile(r"(?:(\d+)x)?([A-Za-z0-9._-]+?)(?::([A-Za-z0-9]+))?")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A unit that may be bought."""

    supply: Supply
    price_is_assumed: bool
    origin: str
    """Where its speed comes from."""


@dataclass(frozen=True, slots=True)
class Market:
    """What is on offer, and why the rest is not."""

    candidates: tuple[Candidate, ...]
    refused: Mapping[str, str]
    """By device: why it cannot serve any of the models."""

    @property
    def supplies(self) -> tuple[Supply, ...]:
        """Of the candidates."""
        return tuple(one.supply for one in self.candidates)


def market_of(models: Sequence[str], names: Sequence[str] = (), *, assumed: bool = False) -> Market:
    """Candidates for every model; with no names, all devices whose price somebody published.

    `assumed` adds those whose price is an assumption. Raises ConfigError for an unknown device or model, and
    when a model is left without any candidate, with the reason for each device.
    """
    found: list[Candidate] = []
    refused: dict[str, str] = {}
    for model in models:
        before = len(found)
        for name in names or device_names():
            try:
                candidate = _candidate(name, model, len(models) > 1)
            except _Unfit as reason:
                refused[name] = str(reason)
                continue
            if names or assumed or not candidate.price_is_assumed:
                found.append(candidate)
            else:
                refused[name] = "its price is an assumption (--assumed takes it in)"
        if len(found) == before:
            raise ConfigError(f"nothing on offer can serve {model!r}: {_listed(refused)}.")
    return Market(tuple(found), refused)


class _Unfit(Exception):  # noqa: N818 - a reason, not a failure
    """Why a device cannot serve a model."""


def _candidate(name: str, model: str, several: bool) -> Candidate:
    if name in profile_names():
        return _of_profile(name, model, several)
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in device_names():
        known = ", ".join((*device_names(), *profile_names()))
        raise ConfigError(f"there is no device or profile {name!r}; known are {known}.")
    device, count = load_device(match[2]), match[1]
    return _of_device(name, device, model, int(count) if count else None, match[3], several)


def _of_profile(name: str, model: str, several: bool) -> Candidate:
    profile = load_profile(name)
    spec = profile.backend(name)
    if model not in spec.models:
        raise _Unfit(f"the profile serves {', '.join(spec.models)}")
    label = f"{name}/{model}" if several else name
    supply = Supply(label, replace(spec, id=label, models=(model,)), MOST_UNITS)
    return Candidate(supply, any("price" in text for text in profile.provenance.assumptions), "profile")


def _of_device(
    name: str, device: Device, model: str, count: int | None, dtype: str | None, several: bool
) -> Candidate:
    label = f"{name}/{model}" if several else name
    spec, origin = _spec(label, device, load_shape(model), count, _dtype(dtype))
    return Candidate(Supply(label, spec, MOST_UNITS), device.usd_per_hour.is_assumption, origin)


def _spec(
    label: str, device: Device, shape: ModelShape, count: int | None, dtype: Dtype | None
) -> tuple[BackendSpec, str]:
    try:
        made = prior(device, shape, count=count, dtype=dtype)
    except ConfigError as error:
        raise _Unfit(error.message) from error
    spec = parse_profile(profile_text(made, DATE), label).backend(label)
    if (fitted := _fitted(device, spec)) is not None:
        return replace(spec, step=fitted.step), f"profile {fitted.profile}"
    return spec, "anchored prior" if made.anchor else "prior"


def _fitted(device: Device, spec: BackendSpec) -> BackendSpec | None:
    """The backend of a shipped profile of the same device, model, number and KV layout."""
    for name in profile_names():
        other = load_profile(name).backend(name)
        same = other.models == spec.models and other.count == spec.count
        if same and other.kv_layout == spec.kv_layout and name.startswith(f"{device.name}-"):
            return other
    return None


def _dtype(name: str | None) -> Dtype | None:
    if name is None:
        return None
    try:
        return Dtype(name)
    except ValueError:
        known = ", ".join(one.value for one in Dtype)
        raise ConfigError(f"there is no format {name!r}; known are {known}.") from None


def _listed(refused: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {_first_sentence(why)}" for name, why in refused.items())


def _first_sentence(text: str) -> str:
    return text.split(". ", maxsplit=1)[0].rstrip(".")
