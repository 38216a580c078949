"""Finds devices and model shapes: those that ship with the project by name, a model also by its "
"config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from backends.models.device import Device, parse_device
from backends.models.hf_config import parse_config
from backends.models.shape import ModelShape
from router.errors import ConfigError

DEVICES: Final = Path(__file__).parent / "models" / "devices"
SHAPES: Final = Path(__file__).parent / "models" / "shapes"
MAX_FILE_BYTES: Final = 1 << 20


def device_names() -> tuple[str, ...]:
    """Names of the devices in the catalogue."""
    return tuple(sorted(path.stem for path in DEVICES.glob("*.toml")))


def shape_names() -> tuple[str, ...]:
    """Names of the models whose configs ship with the project."""
    return tuple(sorted(path.stem for path in SHAPES.glob("*.json")))


def load_device(name: str) -> Device:
    """A device by name; raise ConfigError when there is none or its file is wrong."""
    if name not in device_names():
        raise ConfigError(f"there is no device {name!r}; known are {', '.join(device_names())}.")
    return parse_device(_read(DEVICES / f"{name}.toml"), name)


def load_shape(name_or_path: str, served_as: str | None = None) -> ModelShape:
    """A model by name, or by the path of a Hugging Face style .json config; raise ConfigError for neither.

    A config's model is named after the file, or after its folder where the file is a config.json, unless
    `served_as` names it.
    """
    if name_or_path in shape_names():
        path, name = SHAPES / f"{name_or_path}.json", name_or_path
    else:
        path = Path(name_or_path)
        if path.suffix != ".json":
            raise ConfigError(
                f"there is no model {name_or_path!r}; known are {', '.join(shape_names())}, or give the "
                "path of a config.json."
            )
        name = path.resolve().parent.name if path.stem == "config" else path.stem
    return parse_config(_json(path), served_as or name.lower())


def _json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(_read(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}. Give a Hugging Face style config.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no JSON object. Give a Hugging Face style config.")
    return document


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; it cannot be what is meant.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Check the path.") from error
