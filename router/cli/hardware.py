"""`polyphase hardware`: the catalogue of accelerators, with where each figure comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import click
from rich.console import Group
from rich.text import Text

from backends.hardware import device_names, load_device
from backends.models.device import Device, Figure
from router.cli import console

EPILOG = """
\b
Examples:
  polyphase hardware ls
  polyphase hardware show h100
  polyphase hardware show groq-lpx --json | jq '.figures.cap_w'
"""
COLUMNS = ("DEVICE", "KIND", "MEMORY", "BANDWIDTH", "PEAK", "POWER", "$/H", "STEPS", "MODELS")
WORDS = ("KIND", "STEPS", "MODELS")
LEGEND = (
    "Per device. PEAK is dense, in 16 bits where the device has them, else i8. POWER is the cap. ~ marks an "
    "assumption: nobody published it. `polyphase hardware show DEVICE` gives every source and grade."
)
GRADES = (
    "A measured and published with data, or a primary specification; A- on old software; B+ composed from "
    "measured kernels; B a vendor's or the press's figure; C a model's output or recalled; ~ an assumption."
)
_PREFIXES: Final = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_UNITS: Final[Mapping[str, str]] = {
    "_bytes_per_s": "B/s", "_bytes": "B", "_w": "W", "_s": "s", "joule_per_byte": "J/B",
    "joule_per_flop": "J/FLOP", "usd_per_hour": "USD/h",
}  # fmt: skip

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(epilog=EPILOG)
def command() -> None:
    """List accelerators and show where each of their figures comes from."""


@command.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List the devices of the catalogue, in 80 columns."""
    devices = [load_device(name) for name in device_names()]
    if as_json:
        click.echo(json.dumps([described(device) for device in devices], indent=2))
        return
    table = console.grid(*COLUMNS, words=WORDS)
    table.padding = (0, 1, 0, 0)
    for device in devices:
        table.add_row(*_row(device))
    console.consoles(None).print(Group(table, Text(LEGEND, style="dim")))


@command.command("show")
@click.argument("device")
@json_option
def show(device: str, as_json: bool) -> None:
    """Show every figure of DEVICE with its grade, source and date."""
    found = load_device(device)
    if as_json:
        click.echo(json.dumps(described(found), indent=2))
        return
    table = console.grid("FIGURE", "VALUE", "GRADE", "WHERE FROM", words=("GRADE", "WHERE FROM"))
    table.columns[-1].no_wrap = False
    for name, figure in found.figures():
        table.add_row(name, quantity(name, figure.value), _grade(figure), figure.origin())
    parts: list[Any] = [Text(f"{found.name}: {found.title} ({found.kind})", style="bold"), table]
    parts += [Text(f"Published for {anchor}") for anchor in _anchors(found)]
    parts += [Text(f"Note: {note}.") for note in found.notes]
    console.consoles(None).print(Group(*parts, Text(GRADES, style="dim")))


def _anchors(device: Device) -> list[str]:
    lines: list[str] = []
    for one in device.anchors:
        times = ", ".join(f"{name} {console.duration(value)}" for name, value in one.times.items())
        where = f"{one.source.title}, {one.source.date}{f'; {one.why}' if one.why else ''}"
        lines.append(f"{one.model}{f' in {one.dtype}' if one.dtype else ''}: {times} ({one.trust}; {where})")
    return lines


def _row(device: Device) -> tuple[str, ...]:
    peak = device.flops.get("bf16")
    wide = peak or device.flops["int8"]
    return (
        device.name,
        str(device.kind),
        _cell(device.memory_bytes, "B"),
        _cell(device.bandwidth_bytes_per_s, "B/s"),
        _cell(wide, "" if peak else " i8"),
        _cell(device.cap_w, "W"),
        f"{'~' if device.usd_per_hour.is_assumption else ''}{device.usd_per_hour.value:.3g}",
        str(device.scheduler.value),
        str(device.binding.value),
    )


def _cell(figure: Figure[float], unit: str) -> str:
    return f"{'~' if figure.is_assumption else ''}{scaled(figure.value)}{unit}"


def _grade(figure: Figure[Any]) -> str:
    return "~" if figure.is_assumption else str(figure.trust)


def scaled(value: float) -> str:
    """Three digits and a prefix, as in 3.35T."""
    for scale, prefix in _PREFIXES:
        if value >= scale:
            return f"{value / scale:.3g}{prefix}"
    return f"{value:.3g}"


def quantity(name: str, value: object) -> str:
    """A figure's value with the unit that its name implies."""
    if isinstance(value, frozenset):
        return "+".join(sorted(map(str, value), reverse=True))
    if isinstance(value, float) and name.endswith("_s") and not name.endswith("per_s"):
        return console.duration(value)
    if isinstance(value, float) and name.startswith("joule"):
        return f"{value * 1e12:.4g} p{_UNITS[name]}"
    if isinstance(value, float):
        unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
        unit = "FLOP/s" if name.startswith("flops.") else unit
        return f"{scaled(value)}{unit}" if unit else f"{value:g}"
    return str(value)


def described(device: Device) -> dict[str, Any]:
    """A device as JSON values."""
    figures: dict[str, Any] = {name: _described(figure) for name, figure in device.figures()}
    anchors: list[dict[str, Any]] = [
        {
            "model": one.model,
            "dtype": one.dtype,
            "count": one.count,
            "times": dict(one.times),
            "trust": one.trust,
            "source": one.source.title,
            "date": one.source.date,
            "why": one.why,
        }
        for one in device.anchors
    ]
    return {
        "name": device.name,
        "title": device.title,
        "kind": device.kind,
        "figures": figures,
        "anchors": anchors,
        "notes": list(device.notes),
    }


def _described(figure: Figure[Any]) -> dict[str, Any]:
    value = sorted(figure.value) if isinstance(figure.value, frozenset) else figure.value
    source = figure.source
    return {
        "value": value,
        "trust": figure.trust,
        "assumption": figure.is_assumption,
        "source": source.title if source else None,
        "date": source.date if source else None,
        "why": figure.why,
    }
