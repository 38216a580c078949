"""Workload files: those that ship are good, and a mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.errors import ConfigError
from router.model import Priority
from router.sim.classes import InFlight, Renewal, TraceLengths, TraceTimes
from router.sim.workload_file import load_workload, parse_workload, workload_names, workload_of_trace

GOOD = """
rate = 10
duration_s = 60
[[class]]
name = "chat"
share = 3
lengths = { prompt = 500, output = { mean = 200, cv = 1 } }
[[class]]
name = "agents"
share = 1
priority = "bulk"
tenants = { acme = 2, globex = 1 }
lengths = { prompt = { uniform = [100, 200] }, output = 50 }
session = { turns = 5, pause_s = 2, grows = true }
slo = { ttft_s = 0.5, jitter_ratio = 1.5 }
"""


def parsed(text: str) -> object:
    """A workload from text."""
    return parse_workload(text, "w", Path())


def test_every_shipped_workload_is_good_and_has_the_classes_of_its_name() -> None:
    """One file for each class, and a mix."""
    names = workload_names()
    assert set(names) == {
        *("agents", "batch", "chat", "code", "edge", "mixed", "reasoning", "vision", "voice"),
    }
    for name in set(names) - {"mixed"}:
        (kind,) = load_workload(name).classes
        assert kind.name == name
    assert len(load_workload("mixed").classes) >= 5


def test_shares_divide_the_rate_in_requests_turns_included() -> None:
    """A class of 5 turns a session starts a fifth as many sessions."""
    workload = parse_workload(GOOD, "w", Path())
    chat, agents = workload.classes
    assert chat.arrivals == Renewal(7.5)
    assert agents.arrivals == Renewal(0.5)
    assert agents.priority is Priority.BULK
    assert agents.tenants == (("acme", 2.0), ("globex", 1.0))
    assert workload.has_jitter_objective


def test_a_trace_process_takes_the_rate_asked_for() -> None:
    """The times of the trace are stretched to it."""
    text = '[[class]]\nname="v"\nlengths={trace="azure"}\narrivals={process="trace",rate=20}'
    (kind,) = parse_workload("duration_s=60\n" + text, "w", Path()).classes
    assert isinstance(kind.arrivals, TraceTimes)
    assert isinstance(kind.lengths, TraceLengths)
    assert kind.arrivals.speed == pytest.approx(20 * 424.26 / 2000, rel=1e-3)
    assert kind.lengths.in_order


def test_a_closed_loop_needs_no_rate() -> None:
    """Callers in flight set it themselves."""
    text = '[[class]]\nname="b"\nlengths={prompt=9,output=9}\narrivals={process="in_flight",callers=4}'
    (kind,) = parse_workload("requests=9\n" + text, "w", Path()).classes
    assert kind.arrivals == InFlight(4)


def test_a_trace_by_itself_is_a_workload() -> None:
    """At its own times, or at a rate; one without times needs the rate."""
    workload = workload_of_trace("azure")
    assert isinstance(workload.classes[0].arrivals, TraceTimes)
    assert workload_of_trace("sharegpt", rate=5.0).classes[0].arrivals == Renewal(5.0)
    with pytest.raises(ConfigError, match="no times; give --rate"):
        workload_of_trace("sharegpt")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x =", "is not TOML"),
        ("rate = 1", "needs 1 to 64"),
        (GOOD.replace("share = 3", "shares = 3"), "'share'"),
        (GOOD.replace("prompt = 500, ", ""), "give a trace, or prompt and output"),
        (GOOD.replace("rate = 10", "rate = 0"), "give a rate"),
        (GOOD.replace("uniform = [100, 200]", "uniform = [200, 100]"), "bounds in order"),
        (GOOD.replace("mean = 200", "mean = 0"), "must be at least 1"),
        (GOOD.replace('"bulk"', '"urgent"'), "one of bulk, normal"),
        (GOOD.replace("jitter_ratio = 1.5", "jitter_ratio = 0.5"), "at least 1"),
        (GOOD.replace('"agents"', '"chat"'), "same name"),
        (GOOD.replace("acme = 2", 'acme = "two"'), "must be a number"),
        ('[[class]]\nname="x"\nlengths={trace="absent.csv"}', "Cannot read the trace"),
        ('[[class]]\nname="x"\nlengths={trace="sharegpt"}\narrivals={process="trace"}', "has times"),
    ],
)
def test_a_mistake_is_named(text: str, says: str) -> None:
    """The file, the class and the field; nothing is guessed."""
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert says in caught.value.message
    assert caught.value.message.startswith(("workload w", "Cannot read"))


def test_an_unknown_workload_names_the_known_ones() -> None:
    """And where a trace goes."""
    with pytest.raises(ConfigError, match=r"known are agents.*--trace"):
        load_workload("chta")
