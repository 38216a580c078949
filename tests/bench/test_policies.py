"""The comparison of policies, small: a cell with its bounds, what is kept, the targets, both files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from router.errors import ConfigError
from tests.bench.policies.field import (
    CHAMPION,
    CLAIRVOYANTS,
    Spot,
    contestants,
    fleets,
    is_baseline,
    labels_of,
)
from tests.bench.policies.findings import Findings
from tests.bench.policies.grid import Outcome, outcome_of, run_all, spots_of
from tests.bench.policies.kept import Kept
from tests.bench.policies.obstacles import obstacle, obstacles
from tests.bench.policies.page import page
from tests.bench.policies.report import write
from tests.bench.policies.rows import Cell, cells_of, goodput
from tests.bench.policies.scale import scale_of
from tests.bench.policies.score import LATENCIES, Score
from tests.bench.policies.targets import verdicts
from tests.bench.policies.terminal import table, targets

LABELS = [CHAMPION, "dynamo", "round_robin", *CLAIRVOYANTS, "B2"]
SPOT = Spot("homogeneous", "chat", 0.1, 1)
ABOUT = {"spots": 1, "policies": 3, "kept": 0}
LENGTHS = CLAIRVOYANTS[0]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three policies and the bounds at one spot, at a light load, in a file."""
    path = tmp_path_factory.mktemp("kept") / "policies.jsonl"
    run_all([SPOT], LABELS, Kept(path, "now"), workers=1)
    return path


@pytest.fixture(scope="module")
def outcome(path: Path) -> Outcome:
    """What is in the file."""
    return outcome_of(SPOT, LABELS, Kept(path, "now"))


def test_bounds_bound(outcome: Outcome) -> None:
    """No policy does better than B2; at a tenth of the capacity everybody meets the objectives."""
    assert outcome.b2 is not None
    arrived = {score.arrived for score in outcome.scores.values()}
    assert len(arrived) == 1
    assert all(
        0.9 * score.arrived < score.met <= (outcome.b2 or 0.0) + 0.5 for score in outcome.scores.values()
    )
    assert 0.05 < arrived.pop() / scale_of("homogeneous", "chat").window_s / outcome.rate_per_s < 0.2


def test_what_is_kept_is_not_run_again(path: Path) -> None:
    """The second time nothing is written; another state of the code counts only if it may; what is asked for
    anew runs whatever is there, and a line that was cut off is passed over."""
    size = path.stat().st_size
    again = run_all([SPOT], LABELS, Kept(path, "now"))
    assert path.stat().st_size == size
    later = Kept(path, "later", any_state=True)
    assert run_all([SPOT], LABELS, later) == again
    assert later.others([SPOT], LABELS) == len(LABELS)
    assert Kept(path, "later").get(SPOT, "dynamo") is None
    path.write_text(path.read_text(encoding="utf-8") + '["later", ["homog', encoding="utf-8")
    assert run_all([SPOT], LABELS, later, anew=["round_robin"], workers=1) == again
    assert later.others([SPOT], LABELS) == len(LABELS) - 1


def made(met: int, times: float = 0.1, usd: float = 0.5) -> Score:
    """A score by hand: 100 requests came in 10 s."""
    latencies = dict.fromkeys(LATENCIES, (times, times, times))
    missed = {"ttft": 100 - met}
    return Score(100, 100, met, 10.0, usd, 50.0, 200.0, 2.0, 0, 0, {}, missed, latencies)


def cell(load: float = 0.5, fleet: str = "mixed", b2: float | None = 100.0, **met: int) -> Cell:
    """A cell of one seed; `told` is ours that knows lengths."""
    names = {"ours": CHAMPION, "told": LENGTHS}
    scores = {names.get(name, name): made(count) for name, count in met.items()}
    return cells_of([Outcome(Spot(fleet, "chat", load, 1), 20.0, scores, b2)])[0]


def test_what_a_row_says_by_hand() -> None:
    """80 of 100 in 10 s: 8 per second; half a dollar of device time is 6.25 $ per 1,000 good ones."""
    one = cell(ours=80, dynamo=100)
    ours = one.rows[CHAMPION]
    assert goodput(ours) == 8.0
    assert ours.per_1000_good("device_usd") == 6.25
    assert ours.values()[:3] == [80, 0.8, 8.0]
    assert one.over_best_baseline(goodput) == pytest.approx(0.8)


def test_seeds_add_up_and_a_seed_without_a_bound_leaves_none() -> None:
    """80 of 100 and 60 of 100 are 140 of 200; the mean of 0.1 and 0.3 s is 0.2 s."""
    outcomes = [
        Outcome(Spot("f", "w", 1.0, seed), 20.0, {CHAMPION: made(met, times), "preble": made(70)}, b2)
        for seed, met, times, b2 in ((1, 80, 0.1, 90.0), (2, 60, 0.3, 95.0))
    ]
    both = cells_of(outcomes)[0]
    assert (both.rows[CHAMPION].met, both.b2, both.seeds) == (140, 185.0, [1, 2])
    assert both.best_known == 80 + 70
    assert both.rows[CHAMPION].latency("ttft", 2) == pytest.approx(0.2)
    assert cells_of([outcomes[0], replace(outcomes[1], b2=None)])[0].b2 is None


def test_what_stands_in_the_way_by_hand() -> None:
    """60 of 100: told lengths it is 75, somebody reaches 90, the bound is 100. 0.8 x 0.83 x 0.9 = 0.6."""
    found = obstacle(cell(ours=60, told=75, mooncake=90))
    assert found is not None
    assert found.factors == pytest.approx({"lost information": 0.8, "policy": 75 / 90, "bound": 0.9})
    assert (found.name, found.best) == ("lost information", "mooncake")
    assert found.of_b2 == pytest.approx(0.6)
    assert obstacles([cell(ours=95, told=96, mooncake=97)]) == []
    assert obstacle(cell(ours=60, told=75, b2=None)) is None


def test_targets_by_hand() -> None:
    """Every target has a verdict; what was not measured is neither reached nor short."""
    cells = [
        cell(ours=80, told=84, dynamo=78),
        cell(3.0, ours=64, told=84, dynamo=70),
        cell(0.5, "homogeneous", ours=97, told=97, dynamo=100),
    ]
    found = {each.target: each for each in verdicts(cells, Findings())}
    by = {
        name: next(v for t, v in found.items() if name in t)
        for name in ("of B2", "best schedule", "Overload")
    }
    assert (by["of B2"].reached, by["best schedule"].reached) == (True, True)
    assert by["Overload"].reached is False
    assert "0.80" in by["Overload"].found
    assert next(v for t, v in found.items() if "Homogeneous" in t).reached is False
    assert next(v for t, v in found.items() if "floods" in t).reached is None


def test_both_files_have_what_was_found(outcome: Outcome, tmp_path: Path) -> None:
    """A row per cell with every policy, the targets, and a page that names them."""
    cells = cells_of([outcome])
    write(tmp_path, cells, Findings(), ABOUT)
    found = json.loads((tmp_path / "policies.json").read_text(encoding="utf-8"))
    assert list(found["rows"][0]["policies"]) == [label for label in LABELS if label != "B2"]
    assert len(found["rows"][0]["policies"]["dynamo"]) == len(found["columns"])
    assert 0 < found["rows"][0]["b2_ratio"] <= 1.0
    text = (tmp_path / "policies.md").read_text(encoding="utf-8")
    assert f"| homogeneous | chat | 0.1 | {CHAMPION} |" in text
    assert "homogeneous chat 0.1" in table(cells, LABELS)
    assert "SHORT    Homogeneous fleet" in targets(
        verdicts([cell(fleet="homogeneous", ours=9, dynamo=10)], Findings())
    )


def test_losses_are_listed() -> None:
    """A cell in which a baseline is more than 2 % ahead appears with its name and ratio."""
    text = page([cell(ours=80, dynamo=100, least_loaded=100)], Findings(), ABOUT)
    assert "| mixed chat 0.5 | 0.80 | dynamo | 0.800 / 1.000 |" in text


def test_the_field() -> None:
    """Everybody competes; ours are no baselines; the grid is the product of its parts."""
    labels = [who.label for who in contestants()]
    assert len(labels) == len(set(labels)) >= 16
    assert not is_baseline(CHAMPION)
    assert not is_baseline(CLAIRVOYANTS[0])
    assert is_baseline("dynamo, conditional")
    assert is_baseline("round_robin")
    assert labels_of(["clairvoyants", "dynamo"]) == [*CLAIRVOYANTS, "dynamo"]
    assert len(spots_of(fleets(), ["chat", "code"], [0.3, 0.6], 2)) == len(fleets()) * 8
    with pytest.raises(ConfigError, match="nothing is called 'mooncace'"):
        labels_of(["mooncace"])
