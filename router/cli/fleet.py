"""`polyphase fleet`: what runs where, and taking backends out of service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import grpc
from polyphase.v1 import common_pb2, fleet_pb2, fleet_pb2_grpc

from router.cli import console
from router.cli.options import address
from router.cli.trouble import RUN_FAILED, UNUSABLE, Trouble
from router.grpc_options import channel_options
from router.load.report import kind_name

CALL_TIMEOUT_S = 5.0
DRAIN_MARGIN_S = 10.0
DEFAULT_ADMIN = "127.0.0.1:7601"
COLUMNS = (
    *("BACKEND", "KIND", "STATE", "PHASES", "PREFILLS", "DECODES", "KV TOKENS", "DRIFT"),
    *("ADDRESS", "MODELS"),
)
WORDS = ("KIND", "STATE", "PHASES", "ADDRESS", "MODELS")
EPILOG = """
\b
Examples:
  polyphase fleet ls
  polyphase fleet ls --json | jq '.[].id'
  polyphase fleet cordon h100-0
  polyphase fleet drain h100-0 --timeout 60
"""

admin_option = click.option(
    "--admin",
    default=DEFAULT_ADMIN,
    show_default=True,
    callback=address,
    envvar="POLYPHASE_ADMIN",
    help="Admin address of the router.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(epilog=EPILOG)
def command() -> None:
    """List, cordon and drain the backends of a running router.

    The commands speak to the router's admin port.
    """


@command.command("ls")
@admin_option
@json_option
def ls(admin: str, as_json: bool) -> None:
    """List the backends, their state and their load.

    DRIFT is learned over declared time of a reference prefill and decode step: 2.00 is twice as slow.
    """
    with stub(admin) as fleet:
        listed = fleet.ListBackends(fleet_pb2.ListBackendsRequest(), timeout=CALL_TIMEOUT_S)
    rows = [described(backend) for backend in listed.backends]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = console.grid(*COLUMNS, words=WORDS)
    for row in rows:
        table.add_row(
            row["id"],
            row["kind"],
            row["state"],
            "+".join(row["phases"]),
            str(row["prefills_in_flight"]),
            str(row["decodes_in_flight"]),
            str(row["kv_tokens_booked"]),
            drift_text(row["model_drift"]),
            row["address"],
            ",".join(row["models"]),
        )
    console.consoles(None).print(
        table if rows else "No backends. Start one with `polyphase mock --register`."
    )


@command.command("cordon")
@click.argument("backend")
@admin_option
@json_option
def cordon(backend: str, admin: str, as_json: bool) -> None:
    """Send no new work to BACKEND; what runs there goes on. `uncordon` undoes it."""
    _cordon(backend, admin, as_json, undo=False)


@command.command("uncordon")
@click.argument("backend")
@admin_option
@json_option
def uncordon(backend: str, admin: str, as_json: bool) -> None:
    """Send work to BACKEND again."""
    _cordon(backend, admin, as_json, undo=True)


@command.command("drain")
@click.argument("backend")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, max=86_400),
    default=0.0,
    metavar="S",
    help="Wait so long. [default: the router's own limit]",
)
@admin_option
@json_option
def drain(backend: str, timeout: float, admin: str, as_json: bool) -> None:
    """Send no new work to BACKEND, wait until nothing runs there, then let it leave.

    Exit code 1 when work was left at the end of the time.
    """
    request = fleet_pb2.DrainBackendRequest(backend=backend, timeout_s=timeout)
    with stub(admin) as fleet:
        answer = fleet.DrainBackend(request, timeout=timeout + DRAIN_MARGIN_S if timeout else None)
    if as_json:
        click.echo(json.dumps({"backend": backend, "drained": answer.drained, "in_flight": answer.in_flight}))
    elif answer.drained:
        click.echo(f"{backend} has left; nothing was in flight.")
    if not answer.drained:
        raise Trouble(
            f"{backend} still has {answer.in_flight} phases in flight. It takes no new work. "
            "Drain it again to wait longer, or uncordon it.",
            RUN_FAILED,
        )


def _cordon(backend: str, admin: str, as_json: bool, *, undo: bool) -> None:
    request = fleet_pb2.CordonBackendRequest(backend=backend, undo=undo)
    with stub(admin) as fleet:
        answer = fleet.CordonBackend(request, timeout=CALL_TIMEOUT_S)
    state = state_name(answer.state)
    click.echo(json.dumps({"backend": backend, "state": state}) if as_json else f"{backend} is {state}.")


@contextmanager
def stub(admin: str) -> Iterator[Any]:
    """FleetService of a router; its errors in words."""
    with grpc.insecure_channel(admin, options=list(channel_options())) as channel:
        try:
            yield fleet_pb2_grpc.FleetServiceStub(channel)  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            raise _trouble(error, admin) from error


def _trouble(error: Any, admin: str) -> Trouble:
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Trouble(
            f"No router answers at {admin} ({error.code().name}). Nothing was changed. Is it running, and "
            "is this its admin address? Name another with --admin.",
            UNUSABLE,
        )
    return Trouble(f"{error.details()} ({error.code().name})", RUN_FAILED)


def described(backend: fleet_pb2.Backend) -> dict[str, Any]:
    """A backend as JSON values."""
    spec, load = backend.spec, backend.load
    return {
        "id": spec.id,
        "kind": kind_name(spec.kind),
        "device": spec.device,
        "count": spec.count,
        "models": list(spec.models),
        "phases": [common_pb2.Phase.Name(phase).removeprefix("PHASE_").lower() for phase in spec.phases],
        "state": state_name(backend.state),
        "address": backend.address,
        "zone": spec.zone,
        "usd_per_hour": spec.usd_per_hour,
        "prefills_in_flight": backend.prefills_in_flight,
        "decodes_in_flight": backend.decodes_in_flight,
        "kv_tokens_booked": backend.kv_tokens_booked,
        "kv_capacity_tokens": spec.kv_capacity_tokens,
        "load_age_s": backend.load_age_s,
        "running": load.running,
        "waiting": load.waiting,
        "kv_used_tokens": load.kv_used_tokens,
        "busy_prefill_s": load.busy_prefill_s,
        "busy_decode_s": load.busy_decode_s,
        "loading": load.loading,
        "busy_loading_s": load.busy_loading_s,
        "sub_phases": sub_phases_of(backend),
        "energy_j": load.energy_j,
        "preemptions": load.preemptions,
        "model_drift": drift_of(backend),
    }


def sub_phases_of(backend: fleet_pb2.Backend) -> dict[str, float]:
    """Busy seconds of the parts of a decode that is split; empty where it is not."""
    if not backend.spec.HasField("afd"):
        return {}
    load = backend.load
    return {"attention": load.busy_attention_s, "ffn": load.busy_ffn_s, "transfer": load.busy_transfer_s}


def drift_of(backend: fleet_pb2.Backend) -> dict[str, float]:
    """Learned over declared time, by phase; a phase that is not offered, or not known, is missing."""
    drift = backend.model_drift
    return {phase: getattr(drift, phase) for phase in ("prefill", "decode") if drift.HasField(phase)}


def drift_text(drift: dict[str, float]) -> str:
    """For the table: one number, or two with the prefill's first where they differ."""
    return "/".join(dict.fromkeys(f"{ratio:.2f}" for ratio in drift.values())) or "-"


def state_name(state: int) -> str:
    """A BackendState of the wire by its short name, as in `ready`."""
    if state in fleet_pb2.BackendState.values():
        return fleet_pb2.BackendState.Name(state).removeprefix("BACKEND_STATE_").lower()
    return str(state)
