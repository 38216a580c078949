"""Mock workers for fault tests, described in one word each, so that another process can be told of them.

`NAME[,step_s=S][,prefill_s=S][,link_s=S][,slots=N]`: the first letter of the name is the role (p prefill,
d decode, b both); the times are those of one decode step, of a prefill, and of a KV transfer.
"""

from __future__ import annotations

from router.model import BackendKind, BackendSpec, LinkParameters, Phase, StepParameters
from tests.shell.rig import MODEL

ROLES = {"p": {Phase.PREFILL}, "d": {Phase.DECODE}, "b": {Phase.PREFILL, Phase.DECODE}}


def worker(text: str) -> BackendSpec:
    """The worker that a word describes."""
    name, *changes = text.split(",")
    values = {key: float(value) for key, _, value in (change.partition("=") for change in changes)}
    unknown = values.keys() - {"step_s", "prefill_s", "link_s", "slots"}
    assert not unknown, unknown
    step_s = values.get("step_s", 1e-3)
    return BackendSpec(
        id=name,
        kind=BackendKind.LPU if name.startswith("d") else BackendKind.GPU,
        device="test",
        models=(MODEL,),
        phases=frozenset(ROLES[name[0]]),
        step=StepParameters(base_s=step_s, prefill_base_s=values.get("prefill_s", step_s)),
        kv_bytes_per_token=1000.0,
        kv_capacity_tokens=1_000_000,
        kv_layout="l",
        max_num_seqs=int(values.get("slots", 256)),
        link=LinkParameters(latency_s=values.get("link_s", 1e-3)),
        usd_per_hour=1.0,
    )
