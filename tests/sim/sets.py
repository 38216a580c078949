"""Small fleets and workloads for the tests of the simulator."""

from __future__ import annotations

from backends.catalogue import Fleet, load_fleet
from router.model import ServiceLevel
from router.sim.classes import (
    Arrivals,
    DrawnLengths,
    Renewal,
    SessionShape,
    Workload,
    WorkloadClass,
)
from router.sim.draws import Fixed, Uniform

MODEL = "llama-3.1-8b"
SLO = ServiceLevel(1.0, 0.05)


def a_class(
    name: str = "chat",
    arrivals: Arrivals | None = None,
    *,
    slo: ServiceLevel = SLO,
    session: SessionShape | None = None,
    model: str = MODEL,
    prompt: int = 500,
    deadline_s: float = 300.0,
) -> WorkloadClass:
    """Prompts around `prompt` tokens, answers of 20 to 200."""
    lengths = DrawnLengths(Uniform(prompt / 2, prompt * 1.5), Uniform(20, 200))
    return WorkloadClass(
        name,
        arrivals or Renewal(5.0),
        lengths,
        model,
        1024,
        slo,
        deadline_s,
        session=session or SessionShape(),
    )


def workload(
    *classes: WorkloadClass, requests: int | None = 200, duration_s: float = float("inf")
) -> Workload:
    """A mix, by default of one class."""
    return Workload("test", classes or (a_class(),), duration_s, requests)


def fleet(name: str = "mixed") -> Fleet:
    """A fleet that ships with the project."""
    return load_fleet(name)


ONE = Fixed(1.0)
