"""Regenerates the tables of docs/calibration.md: `python -m backends.calibration.report docs/calibration.md`.

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; the prose around it is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from backends.calibration.fit import GroupFit, fit_series, median_errors
from backends.calibration.markdown import markdown, of_rich
from backends.calibration.points import Quantity, read_points, series_of
from backends.calibration.power import PowerFit, draws_of, fit_power
from backends.calibration.report_runs import DATA, priors_table, runs_table, synthetic_table
from backends.calibration.steps import step_of
from backends.calibration.tables import parameters, percent, rejected_table, summary_table, uncovered_table
from router.errors import ConfigError


def main(path: Path) -> None:
    """Rewrite the tables of a file; raise ConfigError for a marker without a table."""
    points = read_points(DATA / "points.csv.gz")
    series, uncovered = series_of(points)
    fits = [fit_series(one) for one in series]
    powers = fit_power(draws_of(points))
    kernels = step_of([fit for fit in fits if _is_pro_kernel(fit)]).step
    tables: dict[str, Callable[[], str]] = {
        "summary": lambda: of_rich(summary_table(fits)),
        "kernels": lambda: _kernels(fits),
        "devices": lambda: _groups(_devices(fits)),
        "serving": lambda: _groups(_serving(fits)),
        "power": lambda: _power(powers),
        "rejected": lambda: of_rich(rejected_table([fit for fit in fits if fit.rejected])),
        "uncovered": lambda: of_rich(uncovered_table(uncovered)),
        "runs": lambda: runs_table(kernels),
        "priors": lambda: priors_table(kernels),
        "synthetic": synthetic_table,
    }
    path.write_text(_filled(path.read_text(encoding="utf-8"), tables), encoding="utf-8")


def _filled(text: str, tables: dict[str, Callable[[], str]]) -> str:
    def table(found: re.Match[str]) -> str:
        name = found[1]
        if name not in tables:
            raise ConfigError(f"no table is called {name!r}; known are {', '.join(tables)}.")
        return f"<!-- begin {name} -->\n{tables[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", table, text, flags=re.DOTALL)


def _kernels(fits: Sequence[GroupFit]) -> str:
    """Decode and prefill of one device, model and precision side by side."""
    rows: dict[tuple[str, str], dict[Quantity, GroupFit]] = {}
    for fit in fits:
        if fit.group.source.startswith(("AIConfigurator", "splitwise")) and fit.fit is not None:
            rows.setdefault((fit.group.label, fit.group.source[:13]), {})[fit.group.quantity] = fit
    head = ("group", "decode (ms, c per 1k tokens)", "error", "held out", "prefill", "error", "held out")
    return markdown(
        head,
        (
            [label, *_pair(pair, Quantity.DECODE), *_pair(pair, Quantity.PREFILL)]
            for (label, _), pair in rows.items()
        ),
        words=2,
    )


def _pair(pair: dict[Quantity, GroupFit], quantity: Quantity) -> Sequence[str]:
    fit = pair.get(quantity)
    if fit is None:
        return ("", "", "")
    shown = "rejected" if fit.rejected else parameters(fit)
    return (shown, percent(fit.error), percent(fit.held_out))


def _groups(fits: Sequence[GroupFit]) -> str:
    rows = [
        [
            _label(fit), str(fit.group.quantity), parameters(fit), f"{len(fit.series.seconds)}",
            percent(fit.error), percent(fit.held_out),
        ]
        for fit in sorted(fits, key=_label)
    ]  # fmt: skip
    if len(rows) > 1:
        error, unseen = median_errors(fits)
        rows.append(["**median**", "", "", "", percent(error), percent(unseen)])
    return markdown(("group", "quantity", "parameters (ms)", "points", "error", "held out"), rows, words=3)


def _label(fit: GroupFit) -> str:
    """The group and the engine its source names."""
    found = re.search(r"\((.*)\)", fit.group.source)
    engine = f", {found[1].removesuffix(' nan')}" if found else ""
    return fit.group.label + engine


def _devices(fits: Sequence[GroupFit]) -> list[GroupFit]:
    return [
        fit for fit in fits if fit.group.source.startswith(("FastFlowLM", "Mooncake")) and not fit.rejected
    ]


def _serving(fits: Sequence[GroupFit]) -> list[GroupFit]:
    return [
        fit
        for fit in fits
        if fit.group.source.startswith("InferenceX")
        and fit.group.model in {"Llama-3.1-70B", "gpt-oss-120b", "DeepSeek-R1"}
        and not fit.rejected
    ]


def _power(powers: Sequence[PowerFit]) -> str:
    rows = [
        [
            power.gpu, power.family, f"{power.points}", f"{power.idle_w:.0f}",
            f"{power.joule_per_tera_byte:.0f}",
            f"{power.joule_per_tera_flop:.2f}", f"{power.cap_w:.0f}",
            percent(power.error), percent(power.held_out),
        ]
        for power in powers
    ]  # fmt: skip
    medians = [percent(float(np.median([getattr(p, n) for p in powers]))) for n in ("error", "held_out")]
    rows.append(["**median**", "", "", "", "", "", "", *medians])
    head = ("gpu", "models", "points", "idle W", "pJ/B", "pJ/FLOP", "cap W", "error", "held out")
    return markdown(head, rows, words=2)


def _is_pro_kernel(fit: GroupFit) -> bool:
    group = fit.group
    return (group.device, group.model, group.precision) == (
        "rtx_pro_6000_server",
        "Meta-Llama-3.1-8B",
        "bf16",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
