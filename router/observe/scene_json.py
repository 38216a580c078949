"""Scenes as JSON, with every field of the nouns: what a daemon hands out of a decision that it made, and what
`explain --dry-run` and `policy test` read again.

    {"now_s": 12.5, "policy": {...}, "request": {"__type__": "Request", ...}, "views": [{"spec": {...}}, ...]}

A request holds no prompt. Nothing that is read is executed: types are those of the nouns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from router.errors import ConfigError
from router.model import BackendView, Request
from router.observe.codec import RecordingError, noun_from_json, to_json
from router.observe.scene import Scene

TYPE: Final = "__type__"
"""Marks a request with all fields, as opposed to one written by hand."""


def scene_to_json(scene: Scene, policy: Mapping[str, Any]) -> dict[str, Any]:
    """A scene, with the policy's name and parameters as in a policy file."""
    return {
        "now_s": scene.now,
        "policy": dict(policy),
        "request": {TYPE: Request.__name__, **to_json(scene.request)},
        "views": [to_json(view) for view in scene.fleet.views],
    }


def views_of(value: object, where: str) -> tuple[BackendView, ...]:
    """The backends of a scene. Raises ConfigError."""
    if not isinstance(value, list):
        raise ConfigError(f"{where}: `views` must be a list of backends.")
    views = tuple(_noun(BackendView, one, f"{where}, views[{i}]") for i, one in enumerate(value))
    if len({view.spec.id for view in views}) < len(views):
        raise ConfigError(f"{where}: two of the views have the same backend id; give every backend its own.")
    return views


def request_of(table: Mapping[str, Any], where: str) -> Request:
    """The request of a scene. Raises ConfigError."""
    request: Request = _noun(Request, {key: value for key, value in table.items() if key != TYPE}, where)
    return request


def _noun(kind: type[Any], value: object, where: str) -> Any:
    try:
        return noun_from_json(kind, value)
    except RecordingError as error:
        raise ConfigError(f"{where}: {error.message}") from error
