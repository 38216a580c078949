"""Finds profiles and fleets: those that ship with the project by name, a fleet also by path.

A fleet is a TOML file: a `name` and a list of [[backend]] entries. An entry names a profile, an id (with
replicas > 1 the prefix of their ids) and may override phases, zone and any other field of the profile, either
beside these or in the sub-tables [backend.step], [backend.link], [backend.connector], [backend.power] and
[backend.afd]. A profile that ends in .toml is a file of one's own, beside the fleet's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.links import link_table
from backends.models.fields import Fields
from backends.models.profile import Profile, backend_fields, parse_profile
from router.errors import ConfigError
from router.model import BackendSpec

PROFILES: Final = Path(__file__).parent / "models" / "profiles"
FLEETS: Final = Path(__file__).parent / "fleets"
MAX_FILE_BYTES: Final = 1 << 20
MAX_BACKENDS: Final = 10_000

_OWN: Final = frozenset({"profile", "id", "replicas"})
_TABLES: Final = frozenset({"step", "link", "connector", "power", "afd"})


@dataclass(frozen=True, slots=True)
class Fleet:
    """Backends to mock, in the order of the file; ids are unique."""

    name: str
    backends: tuple[BackendSpec, ...]


def profile_names() -> tuple[str, ...]:
    """Names of the profiles that ship with the project."""
    return _names(PROFILES)


def fleet_names() -> tuple[str, ...]:
    """Names of the fleets that ship with the project."""
    return _names(FLEETS)


def load_profile(name_or_path: str) -> Profile:
    """A profile by name, or by the path of a .toml file; raise ConfigError for none or a wrong one."""
    text = _profile_text(name_or_path, Path())
    return parse_profile(text, _plain_name(name_or_path), links=link_table())


def load_fleet(name_or_path: str | Path) -> Fleet:
    """A fleet by name, or by the path of a .toml file; raise ConfigError for none or a wrong one."""
    path = _fleet_path(name_or_path)
    try:
        document = tomllib.loads(_read(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"fleet {path} is not TOML: {error}. Correct the file.") from error
    where = f"fleet {path.name}"
    top = Fields(document, where, ("name", "backend"))
    entries = document.get("backend")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{where} has no [[backend]] entry; a fleet needs at least one.")
    backends: list[BackendSpec] = []
    for number, entry in enumerate(entries, start=1):
        backends.extend(_backends(entry, f"{where} [[backend]] {number}", path.parent))
    _check_ids(backends, where)
    return Fleet(top.text("name", path.stem), tuple(backends))


def engine_backend(
    backend: str, profile: str, overrides: Mapping[str, Any], unknown: str, where: str
) -> BackendSpec:
    """The spec of one backend whose engine does not tell it; raise ConfigError naming the field.

    `profile` is a name or the path of a .toml file; without one, the text `unknown` stands in. `overrides`
    are those of a fleet's entry.
    """
    try:
        text = _profile_text(profile, Path()) if profile else unknown
        return parse_profile(text, _plain_name(profile), _overlay(overrides), link_table()).backend(backend)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error


def _backends(entry: object, where: str, folder: Path) -> list[BackendSpec]:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} must be a table; write [[backend]].")
    fields = Fields(entry, where, _OWN | _TABLES | backend_fields())
    name, prefix = fields.text("profile"), fields.text("id")
    replicas = fields.whole("replicas", 1, most=MAX_BACKENDS)
    text = _profile_text(name, folder)
    try:
        profile = parse_profile(text, _plain_name(name), _overlay(entry), link_table())
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.message}") from error
    ids = [prefix] if replicas == 1 else [f"{prefix}-{i}" for i in range(replicas)]
    return [profile.backend(one) for one in ids]


def _overlay(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry's overrides in the shape of a profile."""
    overlay: dict[str, Any] = {key: value for key, value in entry.items() if key in _TABLES}
    overlay["backend"] = {key: value for key, value in entry.items() if key not in _TABLES | _OWN}
    return overlay


def _check_ids(backends: list[BackendSpec], where: str) -> None:
    if len(backends) > MAX_BACKENDS:
        raise ConfigError(f"{where} has {len(backends)} backends; at most {MAX_BACKENDS} fit one process.")
    seen: set[str] = set()
    for spec in backends:
        if spec.id in seen:
            raise ConfigError(f"{where}: the id {spec.id!r} is used twice; give every entry its own id.")
        seen.add(spec.id)


def _is_file(name: str) -> bool:
    return name.endswith(".toml")


def _plain_name(name: str) -> str:
    """Of a shipped profile its name, of a file its stem."""
    return Path(name).stem if _is_file(name) else name


def _profile_text(name: str, folder: Path) -> str:
    if _is_file(name):
        return _read(folder / name)
    if name not in profile_names():
        known = ", ".join(profile_names())
        raise ConfigError(f"there is no profile {name!r}; known are {known}, or give a .toml file.")
    return _read(PROFILES / f"{name}.toml")


def _fleet_path(name_or_path: str | Path) -> Path:
    if str(name_or_path) in fleet_names():
        return FLEETS / f"{name_or_path}.toml"
    path = Path(name_or_path)
    if path.suffix != ".toml":
        known = ", ".join(fleet_names())
        raise ConfigError(
            f"there is no fleet {str(name_or_path)!r}; known are {known}, or give a .toml file."
        )
    return path


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; it cannot be what is meant.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Check the path.") from error
