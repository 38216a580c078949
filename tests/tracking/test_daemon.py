"""A daemon, a worker that is slower than it says, and what an operator sees of it."""

from __future__ import annotations

import asyncio
import json
import urllib.request

from click.testing import CliRunner
from polyphase.v1 import fleet_pb2

from router.cli.main import cli
from tests.live_south.daemons import daemon, fleet_client, until_state
from tests.live_south.scripted import ScriptedWorker, load, serving

SLOWER = 3.0
STEP_S = 0.001
"""As the scripted worker declares it."""


async def test_the_drift_of_a_backend_is_shown() -> None:
    """In the list of backends, in `polyphase fleet ls`, and among the metrics."""
    async with serving(ScriptedWorker()) as worker:
        entry = f'[[backend]]\nid = "w1"\naddress = "{worker.address}"\n'
        async with daemon(entry) as router, fleet_client(router) as fleet:
            assert router.addresses is not None
            await until_state(fleet, "w1", fleet_pb2.BACKEND_STATE_READY)
            [row] = (await fleet.ListBackends(fleet_pb2.ListBackendsRequest(), timeout=10)).backends
            assert (row.model_drift.prefill, row.model_drift.decode) == (1.0, 1.0)
            connection = await worker.connection()
            steps = 0
            async with asyncio.timeout(15):
                while row.model_drift.decode < 2.9:
                    steps += 1
                    connection.send(load(**busy(steps)))
                    await asyncio.sleep(0.06)  # a lane takes 20 reports a second
                    [row] = (await fleet.ListBackends(fleet_pb2.ListBackendsRequest(), timeout=10)).backends
            assert row.model_drift.decode < 3.1
            admin, metrics = router.addresses.admin, router.addresses.metrics
            told = await asyncio.to_thread(CliRunner().invoke, cli, ["fleet", "ls", "--admin", admin])
            assert told.exit_code == 0, told.output
            assert "DRIFT" in told.output
            as_json = ["fleet", "ls", "--json", "--admin", admin]
            [shown] = json.loads((await asyncio.to_thread(CliRunner().invoke, cli, as_json)).output)
            assert 2.9 < shown["model_drift"]["decode"] < 3.1
            page = await asyncio.to_thread(scrape, metrics)
            drift = 'polyphase_backend_model_drift_ratio{backend="w1",kind="gpu",phase="decode"} '
            assert 2.9 < float(page.partition(drift)[2].split()[0]) < 3.1


def busy(steps: int) -> dict[str, float]:
    """Counters of a worker that has run so many steps of one sequence."""
    ran_s = SLOWER * STEP_S * steps
    return {"steps": steps, "decode_sequences": steps, "context_tokens": steps, "busy_decode_s": ran_s}


def scrape(address: str) -> str:
    """The text of a metrics page."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text
