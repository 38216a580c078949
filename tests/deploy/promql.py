"""Reads names and labels out of PromQL: enough to say whether a query asks for things that exist.

Not a parser: promtool checks syntax where it is installed. This finds every identifier that stands where a
metric stands, the labels of its selector, and the labels of groupings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_GROUPINGS = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_KEYWORDS = _GROUPINGS | {"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end", "e", "E"}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w:$.])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(\s*\()?")
_MATCHER = re.compile(r"\s*([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)")


@dataclass(frozen=True, slots=True)
class Selector:
    """One metric in a query, with the labels it is selected by."""

    metric: str
    labels: tuple[str, ...]


def selectors(query: str) -> list[Selector]:
    """Every metric that a query reads."""
    return list(_selectors(query))


def _selectors(query: str) -> Iterator[Selector]:
    text = _GROUPING.sub(" ", _RANGE.sub("", _STRING.sub('""', query)))
    for match in _NAME.finditer(text):
        name, braces, call = match.groups()
        if name in _KEYWORDS or call:
            continue
        inside = (braces or "{}")[1:-1]
        yield Selector(name, tuple(_MATCHER.match(part)[1] for part in inside.split(",") if part.strip()))  # type: ignore[index]


def grouped_by(query: str) -> set[str]:
    """Every label that a query groups or matches by."""
    lists = (match[2] for match in _GROUPING.finditer(_STRING.sub('""', query)))
    return {label.strip() for inner in lists for label in inner.split(",") if label.strip()}
