"""Names the policies and models that a router runs with: where they are plugged into the live shell."""

from __future__ import annotations

from backends.models.tracking import TrackedModels
from policies.registry import build, parse_policy_toml
from router.live.assembly import PlugIns


def plug_ins() -> PlugIns:
    """The built-in policies, and step models from the workers' own specs that follow what is observed."""
    return PlugIns(models=TrackedModels(), build=build, parse=parse_policy_toml)
