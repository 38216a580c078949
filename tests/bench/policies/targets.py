"""The targets of the comparison, and for each what was found: reached, short, or not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from tests.bench.policies import jitter
from tests.bench.policies.field import CHAMPION, EQUAL, OUR_VARIANTS, OVERLOAD
from tests.bench.policies.findings import Findings
from tests.bench.policies.monotone import summary
from tests.bench.policies.overload import WITHIN
from tests.bench.policies.rows import Cell, Value, goodput, named, per_device_usd

HARM: Final = 1.02
DYNAMO: Final = 2.5
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target."""

    target: str
    asked: str
    found: str
    reached: bool | None
    """None when it was not measured."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def verdicts(cells: Sequence[Cell], found: Findings) -> list[Verdict]:
    """All targets, in the order of the page."""
    return [
        *_monotone(found),
        *_mixed(cells),
        _equal(cells),
        *_energy(found),
        _jitter(found),
        _peak(cells),
        *_crowd(found),
        *_decisions(found),
        _live(found),
    ]


def fair(cells: Iterable[Cell], equal: bool = False) -> list[Cell]:
    """Cells up to full load, of the fleets that differ within, or of the one that does not."""
    return [cell for cell in cells if cell.load <= 1.0 and (cell.fleet == EQUAL) is equal]


def by_workload(cells: Iterable[Cell], value: Callable[[Cell], float | None]) -> dict[str, float]:
    """Median over the cells of each workload."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        if (each := value(cell)) is not None:
            found.setdefault(cell.workload, []).append(each)
    return {workload: median(values) for workload, values in found.items()}


def of_best_known(cell: Cell) -> float | None:
    """Ours over the most that any schedule is known to reach."""
    return cell.ours.met / cell.best_known if cell.ours and cell.best_known else None


def of_clairvoyant(cell: Cell) -> float | None:
    """Ours over the clairvoyant policy."""
    known = cell.clairvoyant()
    return cell.ours.met / known if cell.ours and known else None


def of_b2(cell: Cell) -> float | None:
    """Ours over the bound B2."""
    return cell.ours.met / cell.b2 if cell.ours and cell.b2 else None


def _monotone(found: Findings) -> Iterator[Verdict]:
    if found.trials:
        ratios = summary(found.trials)
        theirs, ours = ratios["dynamo_rule_ratio"], ratios["ours_ratio"]
        yield Verdict(
            "A worker 8 times slower: Dynamo's rule reproduced",
            f"mean >= {DYNAMO:g} x",
            f"{theirs:.2f} x",
            theirs >= DYNAMO,
        )
        yield Verdict("The same with ours: mean and p99", f"<= {HARM:g} x", f"{ours:.3f} x", ours <= HARM)
    else:
        yield _missing("A worker 8 times slower")
    if not found.added:
        yield _missing("Any backend added to any fleet")
        return
    worst = max(found.added, key=lambda one: max(one.mean_ratio, one.p99_ratio))
    most = max(worst.mean_ratio, worst.p99_ratio)
    text = f"worst {most:.3f} x ({worst.device} to {worst.fleet}), of {len(found.added)} additions"
    yield Verdict("Any backend added to any fleet: mean and p99", f"<= {HARM:g} x", text, most <= HARM)


def _mixed(cells: Sequence[Cell]) -> Iterator[Verdict]:
    some = fair(cells)
    for what, asked, value in (
        ("the clairvoyant policy", 0.9, of_clairvoyant),
        ("the best schedule known", 0.9, of_best_known),
        ("B2", 0.8, of_b2),
    ):
        each = by_workload(some, value)
        target = f"Mixed fleets: goodput of {what}, median over workloads"
        if not each:
            yield _missing(target)
            continue
        middle, worst = median(each.values()), min(each, key=lambda name: each[name])
        text = f"{middle:.3f}; least {each[worst]:.3f} ({worst})"
        yield Verdict(target, f">= {asked:g}", text, middle >= asked)
    yield _dollar("per $ of rent", some, goodput, CHAMPION)
    yield _peaks(cells)
    yield _dollar("per $ of device time", some, per_device_usd, CHAMPION)
    for label in OUR_VARIANTS:
        if label.endswith("cost") and any(label in cell.rows for cell in some):
            yield _dollar(f"per $ of device time, `{label}`", some, per_device_usd, label)


def _dollar(what: str, cells: Sequence[Cell], value: Value, label: str) -> Verdict:
    target = f"Mixed fleets: goodput {what} over the best baseline of the cell, median over workloads"
    each = by_workload(cells, lambda cell: cell.over_best_baseline(value, label))
    return _at_least_15_percent(target, each) if each else _missing(target)


def _at_least_15_percent(target: str, by_workload: dict[str, float]) -> Verdict:
    middle = median(by_workload.values())
    listed = ", ".join(f"{name} {ratio:.2f}" for name, ratio in by_workload.items())
    return Verdict(target, ">= 1.15", f"{middle:.3f} ({listed})", middle >= 1.15)


def _peaks(cells: Sequence[Cell]) -> Verdict:
    """The rent is the same for all, so that what a fleet is good for is its goodput at its best load."""
    target = "Mixed fleets: highest goodput of all loads, per $ of rent, over any baseline's"
    mixed = [cell for cell in cells if cell.fleet != EQUAL]
    ratios: dict[str, list[float]] = {}
    for fleet, workload in dict.fromkeys((cell.fleet, cell.workload) for cell in mixed):
        series = [cell for cell in mixed if (cell.fleet, cell.workload) == (fleet, workload)]
        rivals = [goodput(row) for cell in series if (row := cell.best_baseline(goodput)) is not None]
        own = [goodput(cell.ours) for cell in series if cell.ours is not None]
        if (most := max(rivals, default=0.0)) and own:
            ratios.setdefault(workload, []).append(max(own) / most)
    if not ratios:
        return _missing(target)
    return _at_least_15_percent(target, {name: median(values) for name, values in ratios.items()})


def _equal(cells: Sequence[Cell]) -> Verdict:
    target = "Homogeneous fleet: goodput over the best baseline, worst cell, overload included"
    ratios = {
        cell.name: ratio
        for cell in cells
        if cell.fleet == EQUAL and (ratio := cell.over_best_baseline(goodput)) is not None
    }
    if not ratios:
        return _missing(target)
    worst = min(ratios, key=lambda name: ratios[name])
    return Verdict(target, ">= 0.98", f"{ratios[worst]:.3f} ({worst})", ratios[worst] >= 0.98)


def _energy(found: Findings) -> Iterator[Verdict]:
    target = "Joules per good request saved, mixed fleet below full load, median"
    known = [each.device_saving for each in found.savings if each.device_saving is not None]
    if known:
        fleet = [each.fleet_saving for each in found.savings if each.fleet_saving is not None]
        text = (
            f"{median(known):.0%} of device time's, least {min(known):.0%} (whole fleet {median(fleet):.0%})"
        )
        yield Verdict(target, ">= 30 %", text, median(known) >= 0.3)
    else:
        yield _missing(target)
    held = found.capped
    target = "Power cap held over any 10 s"
    if held is None:
        yield _missing(target)
    else:
        text = f"{held.excess:+.1%} of {held.cap_w / 1e3:.1f} kW ({held.uncapped_w / 1e3:.1f} kW without)"
        yield Verdict(target, "<= +2 %", text, held.excess <= 0.02)


def _jitter(found: Findings) -> Verdict:
    target = "Voices beside documents: p99/p50 TPOT, calls answered"
    ours = {each.fleet: each for each in found.voices if each.policy == CHAMPION}
    if jitter.FLEETS[0] not in ours:
        return _missing(target)
    own = ours[jitter.FLEETS[0]]
    best = jitter.best_baseline(found.voices, own.fleet)
    theirs = "none answers" if best is None else f"{best.tpot_ratio:.2f} ({best.policy})"
    text = f"{own.fleet}: {own.tpot_ratio:.2f}; best baseline {theirs}"
    asked = f"<= {jitter.LIMIT:g}, best baseline above"
    return Verdict(target, asked, text, own.holds and not (best is not None and best.holds))


def _peak(cells: Sequence[Cell]) -> Verdict:
    target = f"Overload, {OVERLOAD:g} x capacity: goodput of the peak, median over fleets and workloads"
    table, ratios = named(cells), dict[str, float]()
    for (fleet, workload, load), cell in table.items():
        if load != OVERLOAD or cell.ours is None:
            continue
        series = [c.ours for (f, w, _), c in table.items() if (f, w) == (fleet, workload) and c.ours]
        peak = max(goodput(row) for row in series)
        if peak and len(series) > 1:
            ratios[f"{fleet} {workload}"] = goodput(cell.ours) / peak
    if not ratios:
        return _missing(target)
    worst = min(ratios, key=lambda name: ratios[name])
    middle, short = median(ratios.values()), sum(ratio < 0.9 for ratio in ratios.values())
    text = f"{middle:.2f}; least {ratios[worst]:.2f} ({worst}); {short} of {len(ratios)} below 0.9"
    return Verdict(target, ">= 0.9", text, short == 0)


def _crowd(found: Findings) -> Iterator[Verdict]:
    ours = next((each for each in found.floods if each.policy == CHAMPION), None)
    target = "A tenant floods: p99 of the others"
    if ours is None:
        yield _missing(target)
    else:
        yield Verdict(target, f"<= {WITHIN:g} x", f"{ours.ratio:.2f} x", ours.ratio <= WITHIN)
    bulk, target = found.starved, "Bulk beside a crowd: longest time without a start"
    if bulk is None:
        yield _missing(target)
    else:
        text = f"{bulk.longest_drought_s:.1f} s; {bulk.served} of {bulk.arrived} served"
        yield Verdict(target, f"<= {bulk.bound_s:g} s", text, bulk.within)


def _decisions(found: Findings) -> Iterator[Verdict]:
    for each in found.decided:
        if each.limit_s is not None:
            yield Verdict(
                f"A decision over {each.backends:,} backends: p99",
                f"< {each.limit_s * 1e3:g} ms",
                f"{each.p99_s * 1e3:.2f} ms of CPU",
                each.p99_s < each.limit_s,
            )


def _live(found: Findings) -> Verdict:
    target = "Live over gRPC, three cells: within the simulator's stated error"
    if not found.live:
        return _missing(target)
    good = sum(bool(each["confirmed"]) for each in found.live)
    worst = max(float(each["error"]) for each in found.live)
    text = f"{good} of {len(found.live)} cells; largest error {worst:.1%}"
    return Verdict(target, "all", text, good == len(found.live))


def _missing(target: str) -> Verdict:
    return Verdict(target, "", NOT_MEASURED, None)
