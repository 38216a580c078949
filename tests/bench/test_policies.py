"""The comparison of policies, small: the slow-worker experiment, a cell with its bounds, both files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.policies.additions import Addition, additions
from tests.bench.policies.field import CHAMPION, Spot, contestants, fleets, is_baseline
from tests.bench.policies.grid import Outcome, gather, run_spot, scale_of, spots
from tests.bench.policies.monotone import RATES, Trial, summary, trial
from tests.bench.policies.report import best_baseline, cells, goodput, markdown, overall, write
from tests.bench.policies.rows import Row

LABELS = ["predicted", "dynamo", "round_robin"]
ADDED = [Addition("mixed", "npu", 0.99, 1.01)]


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    """The experiment with few requests."""
    return [trial(name, rate, 500) for name in ("dynamo", "predicted") for rate in RATES]


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """Three policies and the bounds at one spot, at a light load."""
    return run_spot(Spot("homogeneous", "chat", 0.1, 1), LABELS)


def test_a_slow_worker_hurts_dynamos_rule_and_not_ours(trials: list[Trial]) -> None:
    """Its rule sends a good part of the requests to a worker 8 times slower; ours never does worse for it."""
    found = summary(trials)
    assert found["dynamo_rule_ratio"] >= 2.3
    assert found["ours_ratio"] <= 1.02
    assert all(each.slow_share > 0.15 for each in trials if each.policy == "dynamo")


def test_the_experiment_gives_the_times_that_were_measured(trials: list[Trial]) -> None:
    """Dynamo 1.6.1, mean end to end at 4 and 12 requests/s: 204 and 172 ms; the fast one alone 65 and 69."""
    theirs = [each for each in trials if each.policy == "dynamo"]
    assert [each.mean_s for each in theirs] == pytest.approx([0.204, 0.172], rel=0.15)
    assert [each.alone_mean_s for each in theirs] == pytest.approx([0.065, 0.069], rel=0.15)


def test_bounds_bound(outcome: Outcome) -> None:
    """No policy does better than B2; at a tenth of the capacity everybody meets the objectives."""
    assert outcome.b2 is not None
    assert outcome.clairvoyant is not None
    assert all(result.met <= outcome.b2 + 0.5 for result in outcome.results)
    assert all(result.attainment > 0.9 for result in outcome.results)
    assert [result.arrived for result in outcome.results] == [outcome.results[0].arrived] * len(LABELS)


def test_both_files_have_what_was_found(outcome: Outcome, trials: list[Trial], tmp_path: Path) -> None:
    """A row per cell and policy, the experiment, and a page that names them."""
    rows: dict[tuple[str, str, float, str], Row] = {}
    gather(rows, outcome)
    write(tmp_path, list(rows.values()), trials, ADDED, {"spots": 1, "policies": 3, "wall_s": 1.0})
    found = json.loads((tmp_path / "policies.json").read_text(encoding="utf-8"))
    assert set(found["monotone"]) == {"dynamo_rule_ratio", "ours_ratio", "trials", "additions"}
    assert [row["policy"] for row in found["rows"]] == LABELS
    first = found["rows"][0]
    assert 0 < first["goodput_per_s"] <= first["rate_per_s"] * 1.5
    assert 0 < first["b2_ratio"] <= 1.0
    assert first["ttft_p50_s"] <= first["ttft_p99_s"]
    page = (tmp_path / "policies.md").read_text(encoding="utf-8")
    assert "| homogeneous | chat | 0.1 | predicted |" in page
    assert overall(list(rows.values()))["homogeneous"]["cells"] == 1


def test_each_device_is_added_once() -> None:
    """Two kinds of GPU, each with and without one of them; the older ones do no harm in the mean."""
    found = additions(["fast-slow"], requests=300)
    assert [one.backend for one in found] == ["b200-1", "h100-1"]
    assert all(0.3 < one.mean_ratio < 1.1 for one in found)


def made(policy: str, met: int) -> Row:
    """A row by hand: 100 requests came in 10 s."""
    row = Row("f", "w", 0.5, policy, 10.0, [1], 10.0, 100, met)
    row.device_usd, row.rent_usd = 0.5, 2.0
    return row


def test_what_a_row_says_by_hand() -> None:
    """80 of 100 in 10 s: 8 per second; half a dollar of device time is 6.25 $ per 1,000 good ones."""
    row = made(CHAMPION, 80)
    row.bound(90.0, 85)
    said = row.as_dict()
    assert said["goodput_per_s"] == 8.0
    assert said["device_usd_per_1000_good"] == 6.25
    assert said["b2_ratio"] == pytest.approx(80 / 90)
    row.seeds.append(2)
    row.bound(None, None)
    assert row.as_dict()["b2_ratio"] is None


def test_losses_are_listed(trials: list[Trial]) -> None:
    """A cell in which a baseline is more than 2 % ahead appears with its name and ratio."""
    rows = [made(CHAMPION, 80), made("dynamo", 100), made("least_loaded", 100)]
    assert best_baseline(cells(rows)["f", "w", 0.5], goodput) == ("dynamo", 10.0)
    page = markdown(rows, trials, ADDED, {"spots": 1, "policies": 3, "wall_s": 1.0})
    assert "| f | w | 0.5 | 0.80 | dynamo |" in page


def test_the_field() -> None:
    """Everybody competes; ours are no baselines; the grid is the product of its parts."""
    labels = [who.label for who in contestants()]
    assert len(labels) == len(set(labels)) >= 16
    assert not is_baseline(CHAMPION)
    assert is_baseline("dynamo, conditional")
    assert is_baseline("round_robin")
    assert len(spots(fleets(), ["chat", "code"], [0.3, 0.6], 2)) == len(fleets()) * 8
    assert scale_of("homogeneous", "chat").rate_per_s > 10
