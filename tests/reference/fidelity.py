"""How well the mock stands for the reference worker: probe it, mock the profile, send both the same requests.

    PYTHONPATH=.:protos python -m tests.reference.fidelity --duration 60

The worker runs both phases behind a router of its own. What is compared is a workload that the probe did not
send: Poisson arrivals, lengths drawn from a seed. Run it on a machine that does nothing else: the fit knows
no noise from outside, and the table shows it as an error of the mock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from polyphase.v1 import fleet_pb2, fleet_pb2_grpc

from backends.calibration.document import calibrated_text, read_prior
from backends.calibration.limits import Limits
from backends.calibration.probe import Aim, Probe, Row, calibrate_probe
from backends.calibration.sweep import Bounds
from router.cli.children import child
from router.grpc_options import channel_options
from router.sim.workload import Arrival
from tests.reference.models import SIZES
from tests.reference.stage import MODEL

SHAPE: Mapping[str, Any] = {
    **SIZES,
    "vocab_size": 32_000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 704,
}
"""Small enough for a core; the vocabulary is that of the load generator's prompts."""
CACHE_TOKENS = 32_768
SEQUENCES = 32
STEP_TOKENS = 512
QUANTILES = (50, 90, 99)
ALLOWED = {50: 0.10, 99: 0.20}

PRIOR = f"""
[provenance]
source = "none: only its fields other than the step are used"
date = "2025"
trust = "C"
fit_error = "none"
valid_range = "none"
[backend]
kind = "cpu"
device = "cpu"
models = ["{MODEL}"]
phases = ["prefill", "decode"]
kv_bytes_per_token = {2 * SHAPE["num_hidden_layers"] * SHAPE["num_key_value_heads"] * SHAPE["head_dim"] * 2}
kv_capacity_tokens = {CACHE_TOKENS}
kv_layout = "mock"
max_num_seqs = {SEQUENCES}
max_num_batched_tokens = {STEP_TOKENS}
max_context_tokens = 2048
usd_per_hour = 0.0
[step]
base_s = 0.02
per_sequence_s = 0.001
per_prefill_token_s = 0.0005
prefill_base_s = 0.02
[link]
bandwidth_bytes_per_s = 1e9
[power]
"""


@asynccontextmanager
async def routed(name: str, arguments: Sequence[str], key: str, backend: str) -> AsyncIterator[str]:
    """A worker process and a router in front of it; gives the router's data port."""
    async with child(name, arguments, {}) as worker:
        listen = {f"POLYPHASE_LISTEN__{one}": "127.0.0.1:0" for one in ("DATA", "ADMIN", "METRICS")}
        backends = json.dumps([{"id": backend, "address": worker.ready[key]}])
        async with child(
            "router", ("serve", "--supervised"), {**listen, "POLYPHASE_BACKEND": backends}
        ) as router:
            await _joined(router.ready["admin"])
            yield router.ready["data"]


async def _joined(admin: str) -> None:
    async with grpc.aio.insecure_channel(admin, options=list(channel_options())) as channel:
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        while True:
            found = await stub.ListBackends(fleet_pb2.ListBackendsRequest(), wait_for_ready=True, timeout=60)
            if [one.state for one in found.backends] == [fleet_pb2.BACKEND_STATE_READY]:
                return
            await asyncio.sleep(0.1)


def workload(rate: float, duration_s: float, seed: int) -> list[Arrival]:
    """Poisson arrivals with lengths of their own."""
    rng = random.Random(seed)
    arrivals: list[Arrival] = []
    at_s = rng.expovariate(rate)
    while at_s < duration_s:
        arrivals.append(Arrival(at_s, int(min(rng.lognormvariate(4.8, 0.9), 1500)) + 8, rng.randrange(8, 65)))
        at_s += rng.expovariate(rate)
    return arrivals


async def measured(target: str, arrivals: Sequence[Arrival]) -> list[Row]:
    """The times of a workload, as the probe's own client takes them."""
    probe = Probe(Aim(target, MODEL, Bounds(60.0, 256, 2048), seed=77))
    rows, load = await probe._send(arrivals, 120.0)
    assert len(rows) == len(arrivals), load.tally.failures
    return rows


def quantiles(rows: Sequence[Row]) -> dict[tuple[str, int], float]:
    """TTFT and TPOT in milliseconds."""
    ttft = [1e3 * (row.first_s - row.sent_s) for row in rows]
    tpot = [1e3 * (row.last_s - row.first_s) / (row.output_tokens - 1) for row in rows]
    return {
        (name, q): float(np.percentile(values, q))
        for name, values in (("TTFT", ttft), ("TPOT", tpot))
        for q in QUANTILES
    }


async def run(given: argparse.Namespace, folder: Path) -> bool:
    """Probe, fit, compare; whether all quantiles agree as well as they should."""
    config, prior, fleet = folder / "config.json", folder / "prior.toml", folder / "fleet.toml"
    config.write_text(json.dumps(SHAPE))
    prior.write_text(PRIOR)
    options = {
        "model": config, "name": MODEL, "id": "real", "random-weights": 1, "dtype": "bf16", "threads": 1,
        "listen": "127.0.0.1:0", "kv-tokens": CACHE_TOKENS, "max-num-seqs": SEQUENCES,
        "max-num-batched-tokens": STEP_TOKENS,
    }  # fmt: skip
    worker = (
        "worker",
        "--supervised",
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
    )
    arrivals = workload(given.rate, given.duration, given.seed)
    async with routed("worker", worker, "worker", "real") as target:
        bounds = Bounds(given.duration, SEQUENCES, 1024)
        probed = await Probe(Aim(target, MODEL, bounds, seed=given.seed)).run()
        real = quantiles(await measured(target, arrivals))
        again = quantiles(await measured(target, arrivals))
    limits = Limits(max_num_seqs=SEQUENCES, max_num_batched_tokens=STEP_TOKENS)
    found = calibrate_probe(probed, read_prior(str(prior)).profile, limits)
    today = datetime.now(tz=UTC).date().isoformat()
    (folder / "real.toml").write_text(calibrated_text(read_prior(str(prior)), found, "real", today))
    fleet.write_text('name = "real"\n[[backend]]\nid = "mock"\nprofile = "real.toml"\n')
    mock = ("mock", "--supervised", "--fleet", str(fleet), "--listen", "127.0.0.1:0")
    async with routed("mock", mock, "mock", "mock") as target:
        mocked = quantiles(await measured(target, arrivals))
    print(f"probe: {len(probed)} requests; held out {found.held_out.as_json()}")
    print(f"step: {found.spec.step}")
    print(f"workload: {len(arrivals)} requests at {given.rate}/s")
    return _table(real, again, mocked)


def _table(
    real: Mapping[tuple[str, int], float],
    again: Mapping[tuple[str, int], float],
    mocked: Mapping[tuple[str, int], float],
) -> bool:
    print("| | worker ms | worker again | mock | error | worker against itself |\n|---|--:|--:|--:|--:|--:|")
    good = True
    for key, value in real.items():
        error, itself = mocked[key] / value - 1.0, again[key] / value - 1.0
        good &= abs(error) <= ALLOWED.get(key[1], 1.0)
        cells = f"{value:.1f} | {again[key]:.1f} | {mocked[key]:.1f} | {error:+.1%} | {itself:+.1%}"
        print(f"| {key[0]} p{key[1]} | {cells} |")
    return good


def main() -> None:
    """Run it; exit code 1 when a quantile is further off than it may be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        good = asyncio.run(run(given, Path(place)))
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
