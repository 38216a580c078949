"""The live table of `polyphase dev`: what each kind of hardware does, phase by phase.

Numbers in flight and busy shares come from the router's fleet listing, counts of finished phases from the
load generator: watching costs the router one small call now and then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from router.cli.console import grid
from router.load.report import Tally
from router.model import Seconds

Rows = Sequence[Mapping[str, Any]]
"""Backends as router.cli.fleet.described gives them."""

_SHOWN_PAIRS: Final = 6


@dataclass(slots=True)
class KindRow:
    """All backends of one kind together."""

    backends: int = 0
    prefills_in_flight: int = 0
    decodes_in_flight: int = 0
    prefill_busy: float = 0.0
    """Share of the devices' time since the last look, 0 to 1."""
    decode_busy: float = 0.0
    prefills: int = 0
    """Finished in this run."""
    decodes: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Board:
    """Remembers the last two looks at the fleet."""

    rows: Rows = ()
    looked_at: Seconds = 0.0
    _before: dict[str, tuple[float, float]] = field(default_factory=dict)
    _busy: dict[str, tuple[float, float]] = field(default_factory=dict)

    def look(self, rows: Rows, now: Seconds) -> None:
        """Take a fresh listing."""
        passed = max(now - self.looked_at, 1e-6)
        for row in rows:
            busy = (row["busy_prefill_s"], row["busy_decode_s"])
            before = self._before.get(row["id"], busy)
            # A restarted worker counts from zero again: never a negative share.
            self._busy[row["id"]] = (
                max(busy[0] - before[0], 0.0) / passed,
                max(busy[1] - before[1], 0.0) / passed,
            )
            self._before[row["id"]] = busy
        self.rows, self.looked_at = rows, now

    def kinds(self, tally: Tally) -> dict[str, KindRow]:
        """The rows of the table."""
        kinds: dict[str, KindRow] = defaultdict(KindRow)
        for row in self.rows:
            kind = kinds[row["kind"]]
            kind.backends += 1
            kind.prefills_in_flight += row["prefills_in_flight"]
            kind.decodes_in_flight += row["decodes_in_flight"]
            prefill, decode = self._busy.get(row["id"], (0.0, 0.0))
            kind.prefill_busy += prefill
            kind.decode_busy += decode
        for backend in tally.backends.values():
            kind = kinds[backend.kind]
            kind.prefills += backend.prefills
            kind.decodes += backend.decodes
            kind.tokens += backend.tokens
        return kinds

    def render(self, tally: Tally, headline: str) -> RenderableType:
        """Headline, table, who feeds whom."""
        table = grid(
            "Kind", "backends", "prefill now", "done", "busy", "decode now", "done", "busy", "tokens"
        )
        for name, kind in sorted(self.kinds(tally).items()):
            devices = max(kind.backends, 1)
            table.add_row(
                name,
                str(kind.backends),
                str(kind.prefills_in_flight),
                f"{kind.prefills:,}",
                f"{kind.prefill_busy / devices:.0%}",
                str(kind.decodes_in_flight),
                f"{kind.decodes:,}",
                f"{kind.decode_busy / devices:.0%}",
                f"{kind.tokens:,}",
            )
        pairs = [f"{p} → {d} {n:,}" for (p, d), n in tally.pairs.most_common(_SHOWN_PAIRS)]
        return Group(Text(headline), Text(), table, Text(), Text("prefill → decode: " + ", ".join(pairs)))
