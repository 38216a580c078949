"""KV on its way: the consumer's ingress, overlap with prefill, conversion, and the named links."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.catalogue import load_fleet
from backends.links import link_presets
from backends.models.link import exposed_bytes, transfer_s
from backends.models.messages import KVArrived, KVServed, KVTaken, PrefillFinished, PullKV, ServeKV, Stop
from backends.models.worker import WorkerMachine
from router.errors import ConfigError
from router.model import BackendSpec, LinkParameters, Phase, Seconds
from tests.models.drive import backend, decode, foreign, of, prefill, until, worker


def consumer(**fields: Any) -> WorkerMachine:
    """A decode worker that takes in 1 MB/s; 8 tokens are 8,000 bytes."""
    link = LinkParameters(ingress_bytes_per_s=1e6)
    return worker(backend("d", **{"link": link, "kv_accepts": ("foreign",), **fields}))


def arrived(key: int, transfer_s: Seconds = 0.001) -> KVArrived:
    """As the producer of `foreign` sends it."""
    return KVArrived(key, 8000, transfer_s, 77)


def taken(machine: WorkerMachine, limit: Seconds = 10.0) -> list[tuple[Seconds, int, Seconds]]:
    """Time, key and transfer time of KV that was taken."""
    found: list[tuple[Seconds, int, Seconds]] = []
    while (due := machine.deadline()) is not None and due <= limit:
        found += [(due, one.key, one.transfer_s) for one in of(machine.advance(due), KVTaken)]
    return found


def pull(machine: WorkerMachine, key: int, at: Seconds, layout: str = "a") -> None:
    """Have a decode ask for its KV."""
    events = machine.handle(decode(key, foreign(8, layout=layout), request_id=f"r{key}"), at)
    assert of(events, PullKV)


def test_the_ingress_bounds_a_pull_whose_producer_is_faster() -> None:
    """8,000 bytes at 1 MB/s take 8 ms, though the producer was done after 1."""
    machine = consumer()
    pull(machine, 1, 0.0)
    assert not of(machine.handle(arrived(1), 0.001), KVTaken)
    assert taken(machine) == [(pytest.approx(0.008), 1, pytest.approx(0.008))]


def test_pulls_share_the_ingress() -> None:
    """Three at once: 24 ms for each."""
    machine = consumer()
    for key in range(3):
        pull(machine, key, 0.0)
    for key in range(3):
        machine.handle(arrived(key), 0.001)
    assert [(at, key) for at, key, _ in taken(machine)] == [(pytest.approx(0.024), key) for key in range(3)]


def test_a_slower_producer_decides() -> None:
    """The ingress was through after 8 ms; the KV comes after 50."""
    machine = consumer()
    pull(machine, 1, 0.0)
    until(machine, 0.05)
    assert of(machine.handle(arrived(1, 0.05), 0.05), KVTaken) == [KVTaken(1, 8000, pytest.approx(0.05))]


def test_a_pull_that_is_stopped_gives_its_share_back() -> None:
    """The other one has 6,000 of 8,000 bytes left at 4 ms and is alone from then on."""
    machine = consumer()
    pull(machine, 1, 0.0)
    pull(machine, 2, 0.0)
    machine.handle(arrived(1), 0.001)
    machine.handle(Stop(2), 0.004)
    assert taken(machine) == [(pytest.approx(0.010), 1, pytest.approx(0.010))]
    assert machine.deadline() is None


def test_kv_of_another_layout_is_converted() -> None:
    """Half as long again, on top of 8 ms; KV of the own layout is not."""
    machine = consumer(kv_conversion=1.5)
    pull(machine, 1, 0.0, layout="foreign")
    machine.handle(arrived(1), 0.001)
    assert taken(machine) == [(pytest.approx(0.012), 1, pytest.approx(0.012))]
    pull(machine, 2, 1.0)
    machine.handle(arrived(2), 1.001)
    assert taken(machine)[0][0] == pytest.approx(1.008)


def test_without_limits_kv_is_taken_as_it_arrives() -> None:
    """No wake-up in between."""
    machine = worker(backend("d"))
    pull(machine, 1, 0.0)
    assert machine.deadline() is None
    assert of(machine.handle(arrived(1), 0.001), KVTaken) == [KVTaken(1, 8000, 0.001)]


# --- overlap with prefill --------------------------------------------------------------------------


def producer(overlap_layers: int) -> BackendSpec:
    """1 ms and 1 MB/s out."""
    link = LinkParameters(0.001, 1e6, overlap_layers=overlap_layers)
    return backend("p", phases=frozenset({Phase.PREFILL}), link=link)


@pytest.mark.parametrize(
    ("layers", "exposed_s"),
    # The prefill takes 8.032 ms, the transfer alone 8 ms: with 2 layers 4 ms of it are
    # hidden; with 4 it could be 6.024, but the last layer has 2 of its own.
    [(0, 0.008), (1, 0.008), (2, 0.004), (4, 0.002), (1000, 0.000008)],
)
def test_layers_that_are_done_leave_while_prefill_goes_on(layers: int, exposed_s: Seconds) -> None:
    """latency + max(bytes / bw - T (L - 1) / L, bytes / (L bw)); all bytes are reported as moved."""
    machine = worker(producer(layers))
    machine.handle(prefill(1, prompt=8, decode_here=False), 0.0)
    (done,) = of(until(machine, 1.0), PrefillFinished)
    assert done.kv is not None
    machine.handle(ServeKV(5, done.kv, "d"), 1.0)
    (served,) = of(until(machine, 2.0), KVServed)
    assert served.transfer_s == pytest.approx(0.001 + exposed_s)
    assert served.moved_bytes == 8000


@given(st.integers(0, 10**9), st.floats(0, 10), st.integers(0, 200), st.floats(1e3, 1e12))
def test_overlap_never_costs_and_never_hides_the_last_layer(
    size: int, prefill_s: Seconds, layers: int, bandwidth: float
) -> None:
    """The law of the exposed time, for any sizes."""
    link = LinkParameters(0.001, bandwidth, overlap_layers=layers)
    exposed_s = transfer_s(exposed_bytes(size, prefill_s, link), link)
    if layers == 0:
        assert exposed_s == transfer_s(size, link)
        return
    wanted_s = 0.001 + max(size / bandwidth - prefill_s * (layers - 1) / layers, size / (layers * bandwidth))
    assert exposed_s == pytest.approx(wanted_s, abs=1.0 / bandwidth)
    assert exposed_s <= transfer_s(size, link) + 1.0 / bandwidth


# --- named links -----------------------------------------------------------------------------------


def test_the_measured_links_give_the_measured_times() -> None:
    """32k tokens of Qwen3-8B (147,456 bytes each) over 8 x RoCE: 0.4 ms + 4.83 GB / 145.8 GB/s."""
    presets = link_presets()
    assert transfer_s(32_768 * 147_456, presets["mooncake-8x-roce"].parameters) == pytest.approx(
        0.0335, rel=0.01
    )
    rates = {name: preset.parameters.bandwidth_bytes_per_s for name, preset in presets.items()}
    assert (rates["mooncake-4x200g"], rates["mooncake-8x400g"]) == (87e9, 190e9)
    assert all(preset.source for preset in presets.values())


def test_a_fleet_names_a_link_and_may_change_it(tmp_path: Path) -> None:
    """What stands beside the preset goes before it."""
    path = tmp_path / "own.toml"
    entry = '[[backend]]\nprofile = "groq-v1-llama-3.1-8b"\nid = "g"\n'
    path.write_text(f'{entry}link = {{ preset = "mooncake-4x200g", latency_s = 1.0, overlap_layers = 32 }}')
    link = load_fleet(path).backends[0].link
    assert link.overlap_layers == 32
    assert (link.latency_s, link.bandwidth_bytes_per_s) == (1.0, 87e9)
    path.write_text(f'{entry}link.preset = "carrier pigeon"')
    with pytest.raises(ConfigError, match="no link preset 'carrier pigeon'; known are nvlink, mooncake"):
        load_fleet(path)
