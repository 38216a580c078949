"""`make bench`: what a fact, a request and a token cost. See docs/performance.md."""

import sys
from types import ModuleType

from tests.bench import core_facts, decisions, engine_steps, parity, relay, simulation

ROOMS: dict[str, ModuleType] = {
    "core": core_facts,
    "decisions": decisions,
    "engine": engine_steps,
    "parity": parity,
    "relay": relay,
    "simulation": simulation,
}


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all."""
    for name in names or list(ROOMS):
        for what, value in ROOMS[name].rows():
            print(f"{what:58} {value}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
