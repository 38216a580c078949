"""Models and the devices they are bound to: what is refused, what is loaded, and how long that takes."""

from dataclasses import replace
from typing import Any

import pytest

from backends.models.messages import DecodeFinished, Failed, FailReason, PrefillFinished, Stop
from router.model import BackendSpec, ModelBinding
from tests.models.drive import WATTS, backend, engine, of, prefill, run, tokens_of, until

PREFILL_8 = 0.002 + 0.006 + 32e-6


def loadable(**fields: Any) -> BackendSpec:
    """Two models, a second to load another."""
    return backend(models=("m", "n"), load_s=1.0, **fields)


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        (ModelBinding.FIXED, "b has m in its silicon and can never run x"),
        (ModelBinding.COMPILED, "b has programs for m and none for x"),
        (ModelBinding.LOADABLE, "b serves m, not x"),
    ],
)
def test_another_model_is_refused(binding: ModelBinding, words: str) -> None:
    """At once, as INVALID, with what the backend has."""
    (failed,) = of(run(engine(backend(binding=binding)), [(0.0, prefill(1, model="x"))]), Failed)
    assert failed.reason is FailReason.INVALID
    assert failed.message.startswith(words)


def test_the_first_model_is_there_at_boot() -> None:
    """Named or not."""
    events = run(engine(loadable()), [(0.0, prefill(1, output=1)), (0.0, prefill(2, output=1, model="m"))])
    assert tokens_of(events, 1)[0][0] == pytest.approx(PREFILL_8)


@pytest.mark.parametrize(
    ("binding", "takes_s"),
    [(ModelBinding.LOADABLE, 1.0), (ModelBinding.COMPILED, 61.0), (ModelBinding.FIXED, 0.0)],
)
def test_another_of_its_models_takes_its_time(binding: ModelBinding, takes_s: float) -> None:
    """Loading, or compiling and loading; in silicon it is there."""
    spec = loadable(binding=binding, compile_s=60.0)
    ((at, _),) = tokens_of(run(engine(spec), [(0.0, prefill(1, output=1, model="n"))]), 1)
    assert at == pytest.approx(takes_s + PREFILL_8)


def test_what_runs_ends_before_another_model_is_loaded_and_order_is_kept() -> None:
    """m, then n, then m again: two loads, and nobody overtakes."""
    machine = engine(loadable())
    commands = [prefill(1, output=3), prefill(2, output=3, model="n"), prefill(3, output=3)]
    events = run(machine, [(0.001 * i, command) for i, command in enumerate(commands)])
    assert [done.key for done in of(events, DecodeFinished)] == [1, 2, 3]
    end_of_first = tokens_of(events, 1)[-1][0]
    end_of_second = tokens_of(events, 2)[-1][0]
    assert tokens_of(events, 2)[0][0] == pytest.approx(end_of_first + 1.0 + PREFILL_8)
    assert tokens_of(events, 3)[0][0] == pytest.approx(end_of_second + 1.0 + PREFILL_8)
    assert machine.snapshot(99.0).busy_loading_s == pytest.approx(2.0)


def test_loading_shows_and_counts_while_it_goes_on() -> None:
    """The model's name, growing busy time, idle power, and queues that wait for it."""
    machine = engine(loadable(power=replace(WATTS, idle_w=10.0)))
    machine.handle(prefill(1, output=1, model="n"), 5.0)
    machine.handle(prefill(2, output=1, model="n"), 5.2)
    halfway = machine.snapshot(5.5)
    assert (halfway.loading, halfway.busy_loading_s, halfway.waiting) == ("n", 0.5, 2)
    assert halfway.energy_j == pytest.approx(55.0)
    events = until(machine, 6.1)
    told = machine.snapshot(6.1)
    assert (told.loading, told.busy_loading_s) == ("", 1.0)
    assert len(of(events, PrefillFinished)) == 2


def test_a_load_goes_on_when_nobody_waits_for_it_any_more() -> None:
    """And whoever comes next finds the new model there."""
    machine = engine(loadable())
    machine.handle(prefill(1, model="n"), 0.0)
    machine.handle(Stop(1), 0.1)
    assert machine.deadline() == 1.0
    run(machine)
    ((at, _),) = tokens_of(run(machine, [(2.0, prefill(2, output=1, model="n"))]), 2)
    assert at == pytest.approx(2.0 + PREFILL_8)


def test_models_do_not_share_their_prefix_cache() -> None:
    """The same hashes are other KV in another model."""
    hashes = (11, 12)
    commands = [prefill(1, 9, 1, prefix_hashes=hashes), prefill(2, 9, 1, prefix_hashes=hashes, model="n")]
    commands += [replace(commands[0], key=3)]
    events = run(engine(loadable()), [(float(i * 5), command) for i, command in enumerate(commands)])
    assert [done.cached_tokens for done in of(events, PrefillFinished)] == [0, 0, 8]
