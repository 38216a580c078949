"""Options that several commands share. Imports nothing heavy: `polyphase fleet ls` must start quickly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from router.address import parse_host_port

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

POSITIVE = click.FloatRange(min=0, min_open=True, max=1e6)


def address(_: click.Context, param: click.Parameter, value: str) -> str:
    """An option or argument that must be host:port, or a unix socket."""
    try:
        return value if value.startswith("unix:") else str(parse_host_port(value))
    except ValueError as error:
        raise click.BadParameter(str(error), param=param) from error


def seconds(name: str, help_: str, **more: Any) -> Decorator:
    """An option in seconds, above 0."""
    return click.option(name, type=POSITIVE, metavar="S", help=help_, **more)


def workload_options(*, default_trace: str | None = None, default_speed: float = 1.0) -> Decorator:
    """Options of what is sent: shared by `load` and `dev`, with defaults of their own."""
    options = (*_arrival_options(default_trace, default_speed), *_request_options())

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _arrival_options(default_trace: str | None, default_speed: float) -> tuple[Decorator, ...]:
    return (
        click.option(
            "--trace",
            metavar="FILE",
            default=default_trace,
            show_default=default_trace is not None,
            help="Azure CSV, Mooncake JSONL, or timestamp_s,input_tokens,output_tokens; .gz too. "
            "`azure` is bundled.",
        ),
        click.option(
            "--speed",
            type=POSITIVE,
            default=default_speed,
            show_default=True,
            metavar="X",
            help="Replay the trace so many times faster.",
        ),
        click.option(
            "--rate",
            type=POSITIVE,
            metavar="PER_S",
            help="Poisson arrivals at this rate, instead of the trace's times.",
        ),
    )


def _request_options() -> tuple[Decorator, ...]:
    return (
        click.option(
            "--class",
            "workload_class",
            default="chat",
            show_default=True,
            metavar="NAME",
            help="Workload class of the requests.",
        ),
        seconds("--ttft-slo", "Ask for this time to first token."),
        seconds("--tpot-slo", "Ask for this time per output token."),
        seconds("--deadline", "Give each request so long, from its arrival to its last token."),
        click.option(
            "--seed",
            type=click.IntRange(0, 1 << 62),
            default=1,
            show_default=True,
            metavar="N",
            help="Of arrivals, prompts and answers.",
        ),
        click.option(
            "--json",
            "json_to",
            type=click.Path(dir_okay=False, writable=True, allow_dash=True),
            metavar="FILE",
            help="Write the summary as JSON; - is standard output.",
        ),
    )
