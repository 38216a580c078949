"""Builds a copy of the packages in which all that decides and simulates is machine code: `make compiled`.

mypyc, which comes with the type checker, translates the annotated source as it is: there is one set of files,
and a simulation gives the same bytes (every build ends with a comparison). The copy is in build/compiled, and
nothing in the tree refers to it: an edit is never shadowed by what was compiled before it. It goes before the
tree for whoever asks for it:

    PYTHONPATH=build/compiled polyphase simulate ...

It takes a C compiler and one to two minutes. What is not listed below stays Python: ports, parameters (their
defaults are fields), and whatever waits for I/O. See docs/performance.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
COPY: Final = ROOT / "build" / "compiled"
PACKAGES: Final = ("router", "policies", "backends", "protos/polyphase")
LIMIT_S: Final = 1800.0
"""A compiler that has not ended by then never will."""

VALUES: Final = ("router/model.py", "router/core/messages.py", "backends/models/messages.py")
"""mypyc knows `dataclass` but not decorators made of it."""
ROOMS: Final = {
    "router/core": (
        "admission", "choice", "core", "fairness", "feasible", "fleet", "flight", "handoff", "lessons",
        "places", "placing", "queue", "relay", "reserve", "timeline", "timers",
    ),
    "router/observe": ("reports",),
    "router/sim": ("heap", "histogram", "tally", "traffic", "worker", "world"),
    "backends/models": (
        "account", "batch", "blocks", "custody", "engine", "estimate", "evidence", "forming", "intake",
        "kvcache", "latency", "laws", "link", "loading", "metering", "ratios", "schedule", "sequence",
        "stretch", "surprises", "tracking", "worker",
    ),
    "policies": ("decision", "filters", "forecast", "outlook", "search", "standing"),
}  # fmt: skip
FILES: Final = (*VALUES, *(f"{room}/{name}.py" for room, names in ROOMS.items() for name in names))

PROJECT: Final = '[project]\nname = "compiled"\nversion = "0"\n[tool.setuptools]\npackages = []\n'
PROBE: Final = (
    *("simulate", "--fleet", "gpu-lpu", "--workload", "chat", "--requests", "300"),
    *("--policy", "predicted", "--policy", "round_robin", "--json", "-"),
)


def main() -> None:
    """Copy, compile, and compare; end with a status other than 0 when any of it fails."""
    shutil.rmtree(COPY, ignore_errors=True)
    for package in PACKAGES:
        to = COPY / package.rpartition("/")[2]
        shutil.copytree(ROOT / package, to, ignore=shutil.ignore_patterns("__pycache__"))
    (COPY / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    for name in VALUES:
        _spell_out(COPY / name)
    _run("mypyc", *FILES, at=COPY)
    if _run("router.cli.main", *PROBE, at=COPY) != _run("router.cli.main", *PROBE, at=ROOT):
        raise SystemExit("the compiled copy simulates something else than the source; do not use it")
    sys.stdout.write(f"the same results as the source; use it with PYTHONPATH={COPY.relative_to(ROOT)}\n")


def _spell_out(path: Path) -> None:
    """Write `@value` as the dataclass that it is."""
    text = path.read_text(encoding="utf-8").replace("\n@value\n", "\n@dataclass(unsafe_hash=True)\n")
    imported = "from router.value import value\n"
    path.write_text(text.replace(imported, "from dataclasses import dataclass\n"), encoding="utf-8")


def _run(module: str, *args: str, at: Path) -> bytes:
    """What a module says when it runs in a folder, whose packages come first."""
    environment = {**os.environ, "MYPYC_OPT_LEVEL": "2", "PYTHONPATH": str(at)}
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(  # noqa: S603 - our own interpreter, on our own files
        command, cwd=at, env=environment, stdout=subprocess.PIPE, timeout=LIMIT_S, check=False
    )
    if done.returncode:
        sys.stdout.buffer.write(done.stdout)
        raise SystemExit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main()
