"""The workloads that ship with the planner, beside those of the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from router.errors import ConfigError
from router.sim.classes import Workload
from router.sim.workload_file import load_workload, workload_names

WORKLOADS: Final = Path(__file__).parent / "workloads"


def planned_names() -> tuple[str, ...]:
    """Names of the planner's own workloads."""
    return tuple(sorted(path.stem for path in WORKLOADS.glob("*.toml")))


def find_workload(name_or_path: str) -> Workload:
    """A workload of the planner or of the simulator by name, or any by path. Raises ConfigError."""
    if name_or_path in planned_names():
        return load_workload(WORKLOADS / f"{name_or_path}.toml")
    if name_or_path not in workload_names() and not name_or_path.endswith(".toml"):
        known = ", ".join((*planned_names(), *workload_names()))
        raise ConfigError(f"there is no workload {name_or_path!r}; known are {known}, or give a .toml file.")
    return load_workload(name_or_path)
