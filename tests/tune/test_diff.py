"""`polyphase policy diff`: parameters, placements on the same snapshots, outcomes on the same arrivals."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from backends.catalogue import load_fleet
from router.cli.main import cli
from router.observe.shadow import Verdict
from router.sim.contest import contestant
from router.sim.run import simulate
from router.sim.workload_file import load_workload
from router.tune.diff import parameter_differences, placement_differences
from router.tune.scene_file import PolicyText


def test_values_in_force_are_compared_not_texts() -> None:
    """A default that is written out is no difference."""
    plain, written = PolicyText("least_loaded", {}), PolicyText("least_loaded", {"candidates": 4})
    assert parameter_differences(plain, written) == []
    (one,) = parameter_differences(plain, PolicyText("least_loaded", {"candidates": 2}))
    assert (one.key, one.first, one.second) == ("candidates", 4, 2)
    names = parameter_differences(plain, PolicyText("round_robin", {}))
    assert (names[0].key, names[0].first, names[0].second) == ("name", "least_loaded", "round_robin")


def test_a_policy_agrees_with_itself_and_its_companion_changes_nothing() -> None:
    """Every decision the same, and the run is the run without a companion."""
    fleet, workload = load_fleet("fast-slow"), load_workload("chat")
    same = PolicyText("least_loaded", {})
    placed = placement_differences(same, same, fleet, workload, requests=60)
    assert placed.agreement.ratio == 1.0
    assert placed.agreement.asked >= 60
    assert placed.moves == ()
    alone = simulate(fleet, workload, contestant("least_loaded"), 1, requests=60)
    assert alone.arrived == 60


def test_different_policies_are_told_apart_move_by_move() -> None:
    """Round robin sends every other request to a slow GPU."""
    fleet, workload = load_fleet("fast-slow"), load_workload("chat")
    first, second = PolicyText("least_loaded", {}), PolicyText("round_robin", {})
    placed = placement_differences(first, second, fleet, workload, requests=60)
    assert 0.2 < placed.agreement.ratio < 0.8
    assert placed.verdicts[Verdict.OTHER_PLACE] == sum(count for _, count in placed.moves)
    (one, other), count = placed.moves[0]
    assert one != other
    assert count > 1


def test_the_command_shows_all_three(tmp_path: Path) -> None:
    """And the same in JSON."""
    (mine := tmp_path / "mine.toml").write_text('[policy]\nname = "least_loaded"\nmax_prefill_queue = 1\n')
    arguments = ["policy", "diff", "least_loaded", str(mine), "--fleet", "fast-slow"]
    alone = CliRunner().invoke(cli, arguments)
    assert alone.exit_code == 0, alone.output
    assert "max_prefill_queue" in alone.output
    assert "Outcomes" not in alone.output
    more = [*arguments, "--workload", "chat", "--requests", "60", "--seeds", "2"]
    shown = CliRunner().invoke(cli, more)
    assert "decisions of A would differ under B" in shown.output
    assert "Outcomes over 2 seeds" in shown.output
    report = json.loads(CliRunner().invoke(cli, [*more, "--json", "-"]).stdout)
    assert report["parameters"] == [{"key": "max_prefill_queue", "first": 32, "second": 1}]
    assert report["placements"]["decisions"] >= 60
    assert "goodput_per_s" in report["outcomes"]["differences"]
