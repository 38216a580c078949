"""`polyphase calibrate`: fit the models to measurements, and say how far they are off."""

from __future__ import annotations

import asyncio
import datetime
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from router.cli import console
from router.cli.interrupt import stopping
from router.cli.options import address
from router.cli.trouble import UNUSABLE, Trouble

if TYPE_CHECKING:
    from backends.calibration.limits import Limits
    from backends.calibration.points import Point
    from backends.calibration.probe import Aim
    from backends.calibration.run import Calibration
    from backends.calibration.runfile import EngineRun

EPILOG: Final = """
\b
Examples:
  polyphase calibrate run requests.csv --prior h100-llama-3.1-8b --out mine.toml --plot mine.svg
  polyphase calibrate run requests.csv --max-num-seqs 128 --max-num-batched-tokens 2048
  polyphase calibrate check mine.toml requests.csv
  polyphase calibrate probe 127.0.0.1:7600 --model llama-3.1-8b --json probe.json
  polyphase calibrate fit points.csv --device h100_sxm --model Meta-Llama-3.1-8B --json fits.json

\b
Exit codes: 0 done; 2 a package is missing, or a probe came to nothing; 78 a file is wrong.
"""
OUT: Final = click.Path(dir_okay=False, writable=True, path_type=Path)
FILE: Final = click.Path(dir_okay=False, path_type=Path)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

json_option = click.option(
    "--json", "json_to", metavar="FILE", type=click.Path(dir_okay=False, writable=True, allow_dash=True),
    help="Write the result as JSON; - is standard output.",
)  # fmt: skip
plot_option = click.option(
    "--plot", "plot_to", metavar="FILE", type=OUT, help="Draw measured against modelled; .svg or .png."
)
out_option = click.option("--out", "out", metavar="FILE", type=OUT, help="Write the profile there.")


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the engine of a run was started with."""
    options: tuple[Decorator, ...] = (
        click.option(
            "--max-num-seqs", type=click.IntRange(1, 1 << 16), metavar="N",
            help="Slots of the engine. [default: as the run shows, else vLLM's 256]",
        ),
        click.option(
            "--max-num-batched-tokens", type=click.IntRange(1, 1 << 20), metavar="N",
            help="Tokens of a step. [default: vLLM's 2048, unless the run shows another]",
        ),
        click.option(
            "--kv-tokens", type=click.IntRange(1, 1 << 40), metavar="N",
            help="KV room in tokens. [default: the prior's, unless the run shows another]",
        ),
        click.option(
            "--block-size", type=click.IntRange(1, 4096), default=16, show_default=True, metavar="N",
            help="Tokens of a KV block.",
        ),
        click.option(
            "--scheduling", type=click.Choice(["auto", "async", "sync"]), default="auto", show_default=True,
            help="Whether a step is put together while the one before runs.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.group(epilog=EPILOG)
def command() -> None:
    """Fit the hardware models to measurements, and say how far they are off.

    `fit` takes published points, `run` the requests of a real engine run, `probe` a live backend; `check`
    tries a profile as it stands. All errors are means of absolute relative errors; what a fit did not see
    is reported apart.
    """
    try:
        import matplotlib as _matplotlib  # noqa: F401
        import numpy as _numpy  # noqa: F401
        import scipy as _scipy  # noqa: F401
    except ImportError as error:
        raise Trouble(
            f"{error.name} is not installed; nothing can be fitted. Install polyphase[calibrate].", UNUSABLE
        ) from error


@command.command("run")
@click.argument("requests", type=FILE, metavar="REQUESTS.csv")
@click.option(
    "--prior", metavar="NAME|FILE",
    help="Profile to start from; it need not be near. --out takes links, power and prices from it.",
)  # fmt: skip
@engine_options
@out_option
@json_option
@plot_option
def run_(
    requests: Path,
    prior: str | None,
    out: Path | None,
    json_to: str | None,
    plot_to: Path | None,
    **limits: Any,
) -> None:
    """Find the parameters with which the simulated engine reproduces a real run.

    REQUESTS.csv has request_id, input_toks, output_toks, arrival_time, queued_ts, scheduled_ts,
    first_token_ts and last_token_ts, as vLLM records them. The fit looks at the odd requests (counted from
    0); the even ones are held out.
    """
    from backends.calibration.document import calibrated_text, read_prior
    from backends.calibration.run import calibrate
    from backends.calibration.runfile import read_run

    _check_plot(plot_to)
    if out is not None and prior is None:
        raise click.UsageError("--out needs --prior: a run says nothing of links, power and prices.")
    start = None if prior is None else read_prior(prior)
    found = calibrate(read_run(requests), start.profile if start else None, _limits(limits))
    if out is not None and start is not None:
        out.write_text(calibrated_text(start, found, out.stem, _today()), encoding="utf-8")
    _show_run(found, json_to, plot_to)


@command.command("check")
@click.argument("profile", metavar="NAME|FILE")
@click.argument("requests", type=FILE, metavar="REQUESTS.csv")
@engine_options
@json_option
@plot_option
def check_(profile: str, requests: Path, json_to: str | None, plot_to: Path | None, **limits: Any) -> None:
    """Say how far a profile as it stands is from a real run; nothing is fitted."""
    from backends.calibration.document import read_prior
    from backends.calibration.run import check
    from backends.calibration.runfile import read_run

    _check_plot(plot_to)
    found = check(read_run(requests), read_prior(profile).profile, _limits(limits))
    _show_run(found, json_to, plot_to)


@command.command("probe")
@click.argument("target", callback=address)
@click.option("--model", default="llama-3.1-8b", show_default=True, metavar="NAME", help="Model to ask for.")
@click.option(
    "--duration",
    type=click.FloatRange(5, 300),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Send requests for so long; answers may take half as long again.",
)
@click.option(
    "--max-in-flight",
    type=click.IntRange(4, 1024),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests at once, at most.",
)
@click.option(
    "--max-prompt-tokens",
    type=click.IntRange(128, 131_072),
    default=4096,
    show_default=True,
    metavar="N",
    help="The longest prompt.",
)
@click.option("--seed", type=int, metavar="N", help="Of the prompts. [default: another every time]")
@click.option(
    "--prior", metavar="NAME|FILE", help="Profile to start from. --out takes links, power and prices from it."
)
@click.option(
    "--keep", metavar="FILE", type=OUT, help="Write the requests as CSV, for `calibrate run` and `check`."
)
@engine_options
@out_option
@json_option
@plot_option
def probe_(
    target: str,
    prior: str | None,
    keep: Path | None,
    out: Path | None,
    json_to: str | None,
    plot_to: Path | None,
    **given: Any,
) -> None:
    """Drive the live backend behind TARGET with a short sweep, and fit a profile to it.

    TARGET is the host:port of a router's data port; put it in front of the backend to be measured and of no
    other. Times are this client's, so what router and network add counts as the backend's. Ctrl-C stops.
    """
    from backends.calibration.document import calibrated_text, read_prior
    from backends.calibration.probe import Aim, calibrate_probe, rows_text
    from backends.calibration.sweep import Bounds

    _check_plot(plot_to)
    if out is not None and prior is None:
        raise click.UsageError("--out needs --prior: a probe says nothing of links, power and prices.")
    start = None if prior is None else read_prior(prior)
    bounds = Bounds(*(given.pop(name) for name in ("duration", "max_in_flight", "max_prompt_tokens")))
    seed = given.pop("seed")
    aim = Aim(target, given.pop("model"), bounds, secrets.randbits(32) if seed is None else seed)
    run = asyncio.run(_probed(aim))
    if keep is not None:
        keep.write_text(rows_text(run), encoding="utf-8")
    found = calibrate_probe(run, start.profile if start else None, _limits(given))
    if out is not None and start is not None:
        out.write_text(calibrated_text(start, found, out.stem, _today()), encoding="utf-8")
    _show_run(found, json_to, plot_to)


async def _probed(aim: Aim) -> EngineRun:
    from backends.calibration.probe import Probe

    probe = Probe(aim)
    with stopping(probe.stop):
        return await probe.run()


@command.command("fit")
@click.argument("points", type=FILE, metavar="POINTS.csv")
@click.option("--device", metavar="NAME", help="Only points of this device.")
@click.option("--model", metavar="NAME", help="Only points of this model.")
@click.option("--precision", metavar="NAME", help="Only points of this precision.")
@click.option("--tp", metavar="N", help="Only points of this parallelism.")
@click.option("--source", metavar="TEXT", help="Only points whose source contains this.")
@click.option(
    "--prior", metavar="NAME|FILE", help="With --out: links, power, prices and KV sizes come from it."
)
@out_option
@json_option
@plot_option
def fit_(
    points: Path,
    prior: str | None,
    out: Path | None,
    json_to: str | None,
    plot_to: Path | None,
    **wanted: str | None,
) -> None:
    """Fit the laws of the models to points, group by group.

    POINTS.csv has device, model, precision, tp, metric, batch, context_or_prompt_tokens, value, unit, source
    and trust. A group is rejected when its law misses its points; rows without a law are counted.
    """
    from backends.calibration.fit import fit_series
    from backends.calibration.plots import plot_fits
    from backends.calibration.points import read_points, series_of
    from backends.calibration.power import draws_of, fit_power
    from backends.calibration.report_json import fits_as_json
    from backends.calibration.tables import fit_tables

    _check_plot(plot_to)
    if out is not None and prior is None:
        raise click.UsageError("--out needs --prior: points say nothing of links, prices and KV sizes.")
    chosen = [point for point in read_points(points) if _is_wanted(point, wanted)]
    if not chosen:
        raise Trouble(f"{points} has no such points; nothing was fitted. Widen the choice.", UNUSABLE)
    series, uncovered = series_of(chosen)
    fits, powers = [fit_series(one) for one in series], fit_power(draws_of(chosen))
    if out is not None and prior is not None:
        _write_fitted(fits, prior, out)
    if plot_to is not None:
        plot_fits(fits, plot_to)
    _write_json(fits_as_json(fits, powers, uncovered), json_to)
    console.consoles(json_to).print(fit_tables(fits, powers, uncovered))


def _is_wanted(point: Point, wanted: Mapping[str, str | None]) -> bool:
    """Whether a point is of the device, model, precision, parallelism and source asked for."""
    exact = {
        "device": point.device, "model": point.model, "precision": point.precision, "tp": point.parallel,
    }  # fmt: skip
    if any(wanted[name] not in (None, value) for name, value in exact.items()):
        return False
    return (wanted["source"] or "") in point.source


def _write_fitted(fits: Any, prior: str, out: Path) -> None:
    from backends.calibration.document import fitted_text, read_prior
    from backends.calibration.steps import step_of

    fitted = step_of(fits)
    provenance = {**fitted.provenance, "date": _today()}
    out.write_text(fitted_text(read_prior(prior), fitted.step, provenance, out.stem), encoding="utf-8")


def _limits(given: Mapping[str, Any]) -> Limits:
    from backends.calibration.limits import Limits, Scheduling

    return Limits(**{**given, "scheduling": Scheduling(given["scheduling"])})


def _check_plot(path: Path | None) -> None:
    from backends.calibration.plots import check_plot_path

    if path is not None:
        check_plot_path(path)


def _show_run(found: Calibration, json_to: str | None, plot_to: Path | None) -> None:
    from backends.calibration.plots import plot_run
    from backends.calibration.tables import run_table

    if plot_to is not None:
        plot_run(found, plot_to)
    _write_json(found.as_json(), json_to)
    console.consoles(json_to).print(run_table(found))


def _write_json(document: Mapping[str, Any], json_to: str | None) -> None:
    if json_to == "-":
        click.echo(json.dumps(document, indent=2))
    elif json_to is not None:
        Path(json_to).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()
