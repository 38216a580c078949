"""Names the policies, models and engines a router runs with: where they are plugged into the live shell."""

from __future__ import annotations

from backends.models.tracking import TrackedModels
from policies.registry import build, parse_policy_toml
from router.config import StaticBackend
from router.errors import ConfigError
from router.live.assembly import PlugIns
from router.live.southbound import Opener
from router.plan.prices import prices_of


def plug_ins() -> PlugIns:
    """The built-in policies, step models from the workers' own specs that follow what is observed, the
    adapters to engines, and the solver of prices."""
    return PlugIns(
        models=TrackedModels(), build=build, parse=parse_policy_toml, engines=engines, solve=prices_of
    )


def engines(backend: StaticBackend) -> Opener:
    """How a backend with an engine is reached. Raises ConfigError."""
    try:
        from backends.engines.opener import engine_opener
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"backend {backend.id!r}: engines need {error.name}, which is not installed; the daemon does not "
            "start; install polyphase[engines]."
        ) from error
    return engine_opener(backend)
