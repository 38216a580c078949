"""Tables as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table whose first `words` columns are text, the others numbers."""
    rule = ["---" if place < words else "---:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def of_rich(table: Table) -> str:
    """A table of the command line."""
    words = sum(column.justify == "left" for column in table.columns)
    cells = zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)
    return markdown([str(column.header).lower() for column in table.columns], list(cells), words)
