"""Run the checks: `python -m tests.engines_real --python VLLM_PYTHON [--only NAME ...]`.

Needs the Python of an environment in which vLLM runs on this machine's CPU, with NIXL. Prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.engines_real import checks
from tests.engines_real.checks import Fleet
from tests.engines_real.engines import Engine, Side, killed

FIRST_PORT = 18_400
SIDE_PORT = 18_450

Check = Callable[[Fleet], Awaitable[dict[str, Any]]]


class Stand:
    """The three engines; those that a check has killed are started anew."""

    def __init__(self, python: str, folder: Path, connector: str) -> None:
        self._python = python
        self._connector = connector
        self._folder = folder
        self._started = 0
        self._model = folder / "model"
        subprocess.run(
            [python, str(Path(__file__).parent / "make_model.py"), str(self._model)],
            check=True,
            capture_output=True,
        )

    def engine(self, name: str, *, connects: bool) -> Engine:
        """A vLLM that is about to start, on ports of its own: those of one that was killed may linger."""
        self._started += 1
        log = self._folder / f"{name}-{self._started}.log"
        side = Side(self._connector, SIDE_PORT + self._started) if connects else None
        return Engine(self._python, self._model, FIRST_PORT + self._started, log, side)

    def fleet(self, single: Engine | None = None) -> Fleet:
        """All three, serving."""
        new = single if single is not None else self.engine("single", connects=False)
        prefill, decode = self.engine("prefill", connects=True), self.engine("decode", connects=True)
        return Fleet(new.wait(), prefill.wait(), decode.wait(), self._folder)


GENTLE: dict[str, Check] = {
    "exact": lambda fleet: checks.exact(fleet, 200),
    "short": lambda fleet: checks.exact(fleet, 30),
    "mixed": lambda fleet: checks.mixed(fleet, 40),
    "overhead": lambda fleet: checks.overhead(fleet, 200),
    "lease": checks.leases,
    "cancel, released": lambda fleet: checks.cancelled(fleet, 60, release=True),
    "cancel, leased": lambda fleet: checks.cancelled(fleet, 60, release=False),
}
DEADLY: dict[str, Check] = {
    "kill prefill, alone": lambda fleet: checks.kills(fleet, fleet.prefill, fused=False),
    "kill prefill, fused beside": lambda fleet: checks.kills(fleet, fleet.prefill, fused=True),
    "kill decode, alone": lambda fleet: checks.kills(fleet, fleet.decode, fused=False),
    "kill decode, fused beside": lambda fleet: checks.kills(fleet, fleet.decode, fused=True),
}


def run(python: str, folder: Path, connector: str, only: list[str]) -> bool:
    """All checks, or those whose names begin as asked. Whether all held."""
    stand, good = Stand(python, folder, connector), True
    chosen = [name for name in (*GENTLE, *DEADLY) if any(name.startswith(one) for one in only)]
    chosen = chosen or [name for name in (*GENTLE, *DEADLY) if name != "short"]
    with ExitStack() as stack:
        fleet = stand.fleet()
        stack.enter_context(killed(fleet.single, fleet.prefill, fleet.decode))
        print(f"vLLM {fleet.single.version()}, {connector}, Python {sys.version.split()[0]}", flush=True)
        for name in chosen:
            good = _one(name, fleet) and good
            if name in DEADLY and name != chosen[-1]:
                fleet.prefill.kill()
                fleet.decode.kill()
                fleet = stand.fleet(fleet.single)
                stack.enter_context(killed(fleet.prefill, fleet.decode))
    return good


def _one(name: str, fleet: Fleet) -> bool:
    began = time.monotonic()
    try:
        result = asyncio.run((GENTLE | DEADLY)[name](fleet))  # type: ignore[arg-type]
    except checks.CheckError as error:
        print(f"| {name} | FAILED: {error} |", flush=True)
        return False
    print(f"| {name} | {json.dumps(result)} | {time.monotonic() - began:.0f} s |", flush=True)
    return True


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="of the environment that has vLLM")
    parser.add_argument("--folder", type=Path, help="for the model and the logs; a temporary one otherwise")
    parser.add_argument("--connector", default="NixlConnector", help="or NixlPushConnector")
    parser.add_argument("--only", nargs="*", default=[], help="names of checks, or how they begin")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        sys.exit(0 if run(options.python, folder, options.connector, options.only) else 1)


if __name__ == "__main__":
    main()
