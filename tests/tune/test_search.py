"""Search: what it may cost, what it is after, and what it says of what it found."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from policies.declared import declared
from policies.registry import parse_policy_toml
from router.cli.main import cli
from router.errors import ConfigError
from router.sim.result import ClassResult, SimResult, Timeline
from router.tune.lint import lint
from router.tune.pareto import Figures, Prefer, Trial, chosen, front, ranked
from router.tune.policy_file import Provenance, tuned_file
from router.tune.search import Asked, Found, search
from router.tune.space import Point, Space, space_of

SPACE = space_of("predicted", {}, {}, ["ttft_weight", "max_prefill_queue"])


def result(goodput: float, seed: int, usd: float = 1.0) -> SimResult:
    """A run of 100 seconds."""
    met = round(100 * goodput)
    kind = ClassResult("c", max(1, met), met, met, {}, 0, 0, usd, 0.0, {})
    timeline = Timeline(1.0, {}, {}, (), ())
    return SimResult("p", "w", "f", seed, 1.0, 100.0, 100.0, (kind,), {}, 0, (), (), timeline, {})


class World:
    """Goodput is best at a weight of 0.7; the seed adds noise, the same for every setting."""

    def __init__(self, space: Space = SPACE) -> None:
        self.asked: list[tuple[Point, int, float]] = []
        self._at = next(i for i, one in enumerate(space.dimensions) if one.key == "ttft_weight")

    def measure(self, point: Point, seed: int, share: float) -> SimResult:
        self.asked.append((point, seed, share))
        return result(10.0 - 5.0 * abs(point[self._at] - 0.7) + seed / 10, seed)


def found(world: World, budget: int = 40, prefer: Prefer = Prefer.GOODPUT) -> Found:
    """A search of it on two seeds."""
    return search(SPACE, Asked(budget, (1, 2), prefer), world.measure)


def test_a_better_setting_is_found_and_checked_on_seeds_it_was_not_chosen_by() -> None:
    """Within a tenth of the best weight, starting from 0."""
    one = found(World())
    assert abs(one.best.point[0] - 0.7) < 0.1
    assert one.given.point == SPACE.origin
    assert one.fresh_seeds == (3, 4)
    assert one.is_better
    assert one.gain.mean == pytest.approx(3.5, abs=0.6)


def test_the_budget_is_kept_and_the_same_search_asks_the_same() -> None:
    """Short runs count a quarter."""
    one, other = World(), World()
    assert found(one) == found(other)
    assert one.asked == other.asked
    assert sum(share for _, _, share in one.asked) <= 40
    assert len({share for _, _, share in one.asked}) == 2


def test_a_budget_that_tells_nothing_is_refused() -> None:
    """With the least that does."""
    with pytest.raises(ConfigError, match="at least 12"):
        found(World(), budget=11)


def test_no_gain_is_claimed_where_there_is_none() -> None:
    """All settings alike: the start stays, or what replaces it is not called better."""
    one = search(SPACE, Asked(12, (1, 2)), lambda point, seed, share: result(5.0 + seed, seed))
    assert not one.is_better


def test_the_policy_file_loads_and_says_where_it_comes_from() -> None:
    """The figures of the fresh seeds, the seeds, the command."""
    one = found(World())
    text = tuned_file(one, Provenance("1.2", "chat (ab)", "mixed (cd)", 500, "polyphase policy tune ..."))
    name, params = parse_policy_toml(text)
    assert (name, params) == ("predicted", SPACE.params(one.best.point))
    assert not [finding for finding in lint(text) if finding.severity == "error"]
    for part in ("polyphase 1.2", "chat (ab), 500 requests a run", "mixed (cd)", "seeds 3, 4", "95 %"):
        assert part in text


def figures(goodput: float, usd: float, joule: float) -> Figures:
    """Of one run."""
    return Figures(goodput, usd, joule, 1.0, 1)


def test_the_front_has_what_nobody_beats() -> None:
    """Ties are kept once; a setting that is worse in everything is behind."""
    a, b = Trial((1,), figures(10, 5, 5)), Trial((2,), figures(9, 4, 6))
    worse, twin = Trial((3,), figures(9, 5, 6)), Trial((4,), figures(10, 5, 5))
    assert front([worse, a, b, twin]) == [a, b]
    assert ranked([worse, b, a], Prefer.GOODPUT) == [a, b, worse]


def test_what_is_preferred_decides_but_refusing_everybody_is_no_bargain() -> None:
    """A cheap setting needs 98 % of the best goodput."""
    fast, cheap = Trial((1,), figures(10, 5, 5)), Trial((2,), figures(9.9, 3, 6))
    frugal, refuser = Trial((3,), figures(9.85, 4, 2)), Trial((4,), figures(1, 0.1, 0.1))
    trials = [fast, cheap, frugal, refuser]
    assert chosen(trials, Prefer.COST) is cheap
    assert chosen(trials, Prefer.ENERGY) is frugal
    assert chosen([fast, frugal, refuser], Prefer.GOODPUT) is fast
    nothing = Trial((5,), figures(0, math.inf, math.inf))
    assert chosen([nothing, fast], Prefer.GOODPUT) is fast


@given(seed=st.integers(0, 1 << 30), name=st.sampled_from(["predicted", "scored", "dynamo", "llm_d"]))
def test_every_point_of_the_space_is_a_policy_that_loads(seed: int, name: str) -> None:
    """Within the declared ranges, whole where they are whole; so are its neighbours."""
    space = space_of(name, {}, {}, [])
    rng = Random(seed)
    point = space.anywhere(rng)
    for each in (point, space.near(point, rng)):
        try:
            params = space.params(each)
            for one, value in zip(space.dimensions, each, strict=True):
                assert value in one.of if one.of else one.low <= value <= one.high
            complete_again = space_of(name, params, {}, [])
        except ConfigError as error:
            assert "at least one scorer" in error.message  # a rule across parameters
        else:
            assert complete_again.origin == each


def test_a_space_can_be_narrowed() -> None:
    """And what cannot be searched is said."""
    space = space_of("predicted", {}, {"ttft_weight": (0.2, 0.4)}, [])
    assert [one.key for one in space.dimensions] != ["ttft_weight"]
    only = space_of("predicted", {}, {"ttft_weight": (0.2, 0.4)}, ["length_memory"])
    assert {one.key for one in only.dimensions} == {"ttft_weight", "length_memory"}
    assert all(0.2 <= only.anywhere(Random(i))[0] <= 0.4 for i in range(20))
    for narrowed, keys in (({"ttft_weight": (0.2, 7.0)}, []), ({}, ["no_such"]), ({"no_such": (0, 1)}, [])):
        with pytest.raises(ConfigError):
            space_of("predicted", {}, narrowed, keys)
    with pytest.raises(ConfigError, match="nothing to tune"):
        space_of("random", {}, {}, [])
    assert declared("random") == ()


def test_a_policy_is_tuned_from_the_command_line(tmp_path: Path) -> None:
    """The same command writes the same file."""
    written: list[str] = []
    for turn in ("1", "2"):
        out = tmp_path / f"{turn}.toml"
        result = CliRunner().invoke(
            cli,
            [
                *("policy", "tune", "--policy", "scored", "--fleet", "fast-slow", "--workload", "chat"),
                *(
                    "--budget",
                    "6",
                    "--requests",
                    "40",
                    "--seeds",
                    "1",
                    "--param",
                    "decode.weights.drain_time",
                ),
                *("--param", "max_prefill_queue=4:64", "-o", str(out), "--json", "-"),
            ],
        )
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["runs"] > 6
        assert report["front"]
        written.append(out.read_text())
    assert written[0] == written[1]
    assert tomllib.loads(written[0])["policy"]["name"] == "scored"
    bad = CliRunner().invoke(cli, ["policy", "tune", "--param", "ttft_weight=high"])
    assert bad.exit_code == 2
