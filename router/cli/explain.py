"""`polyphase explain`: why a request went where it went, and what would have changed it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import grpc
from polyphase.v1 import common_pb2, decisions_pb2, decisions_pb2_grpc, inference_pb2, inference_pb2_grpc
from rich.console import Console
from rich.markup import escape

from router.cli import console
from router.cli.explain_view import shown
from router.cli.fleet import admin_option
from router.cli.options import address
from router.cli.trouble import RUN_FAILED, UNUSABLE, Trouble
from router.grpc_options import channel_options
from router.model import Request

CALL_TIMEOUT_S = 60.0
EPILOG = """
\b
Examples:
  polyphase explain 6f1c...                         a recent request of the daemon
  polyphase explain 6f1c... --save incident.json    keep what the policy was asked
  polyphase explain --dry-run incident.json         decide again, offline
  polyphase explain --dry-run scene.toml --policy least_loaded
  polyphase explain --dry-run scene.toml --router 127.0.0.1:7600

\b
Exit codes: 0 explained; 1 no record of the request; 2 no router there; 78 a bad file or policy.
"""


@click.command(epilog=EPILOG)
@click.argument("request_id", required=False)
@click.option(
    "--dry-run",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Explain what a policy would do with the scene of a TOML or JSON file.",
)
@click.option("--case", "case_name", metavar="NAME", help="With --dry-run: one case of the file.")
@click.option("--policy", metavar="NAME|FILE", help="With --dry-run: another policy than the file's.")
@click.option(
    "--router",
    metavar="HOST:PORT",
    callback=lambda ctx, param, value: value and address(ctx, param, value),
    help="With --dry-run: ask this router what it would do now with the request of the file.",
)
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.json",
    help="Write what the policy was asked, for --dry-run and `policy test`.",
)  # fmt: skip
@click.option("--no-changes", is_flag=True, help="Do not work out what would have let the runner-up win.")
@admin_option
@click.option(
    "--json", "json_to", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE",
    help="Write the explanation as JSON; - is standard output.",
)  # fmt: skip
def command(request_id: str | None, file: Path | None, **given: Any) -> None:
    """Explain why REQUEST_ID went where it went: who was considered, the runner-up, the smallest change.

    A daemon remembers the last 4,096 requests, and what the policy was asked for the last 256.
    """
    if (request_id is None) == (file is None):
        raise click.UsageError("give a REQUEST_ID, or --dry-run FILE")
    out = console.consoles(given["json_to"])
    if file is None:
        told = [_asked(request_id or "", given)]
    elif given["router"]:
        told = _planned(file, given)
    else:
        told = _dry_run(file, given)
    for one in told:
        _print(out, one)
    console.write_json(told[0] if len(told) == 1 else {"cases": told}, given["json_to"])


# --- a running daemon ------------------------------------------------------------------------------


def _asked(request_id: str, given: Mapping[str, Any]) -> dict[str, Any]:
    asked = decisions_pb2.ExplainRequest(
        request_id=request_id, changes=not given["no_changes"], snapshot=given["save"] is not None
    )
    with _channel(given["admin"], "--admin") as channel:
        stub = decisions_pb2_grpc.DecisionServiceStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.Explain(asked, timeout=CALL_TIMEOUT_S)
    if given["save"] is not None:
        _save(given["save"], answer.snapshot)
    return shown(answer)


def _save(path: Path, snapshot: str) -> None:
    if not snapshot:
        raise Trouble(
            "The router no longer keeps what the policy was asked; nothing was written. Ask sooner after the "
            "request.",
            RUN_FAILED,
        )
    path.write_text(json.dumps(json.loads(snapshot), indent=1) + "\n", encoding="utf-8")


def _planned(file: Path, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    from router.tune.scene_file import load_scenes

    cases = [case for case in load_scenes(file).cases if given["case_name"] in (None, case.name)]
    with _channel(given["router"], "--router") as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        return [_plan(stub, case.scene.request, case.name) for case in cases]


def _plan(stub: Any, request: Request, name: str) -> dict[str, Any]:
    answer = stub.Plan(inference_pb2.PlanRequest(request=_to_proto(request)), timeout=CALL_TIMEOUT_S)
    verdicts = inference_pb2.PlanResponse
    places = {verdicts.VERDICT_WAIT: "waits", verdicts.VERDICT_REJECTED: "rejected"}
    decision = answer.decision
    ends = [decision.prefill, decision.decode or "bound after prefill"]
    response = decisions_pb2.ExplainResponse(
        request_id=name,
        model=request.model,
        prompt_tokens=request.prompt_tokens,
        max_new_tokens=request.max_new_tokens,
        verdict=places.get(answer.verdict, " -> ".join(dict.fromkeys(ends))),
        sentence=answer.reason,
        decision=decision,
        changes_note="a router answers what it would do now; it does not say what would change that",
    )
    return shown(response)


def _to_proto(request: Request) -> inference_pb2.GenerateRequest:
    """The request with a prompt of the same length: deciding looks at nothing else of it."""
    slo = request.slo
    return inference_pb2.GenerateRequest(
        model=request.model,
        tokens=common_pb2.TokenIds(ids=[0] * request.prompt_tokens),
        max_new_tokens=request.max_new_tokens,
        workload_class=request.workload_class,
        slo=common_pb2.ServiceLevel(**{key: v for key, v in asdict(slo).items() if v is not None}),
        tenant=request.tenant,
        priority=f"PRIORITY_{request.priority.name}",
        session_key=request.session_key,
        prefix_hashes=request.prefix_hashes,
        max_cost_usd=request.max_cost_usd,
        max_energy_j=request.max_energy_j,
    )


@contextmanager
def _channel(at: str, option: str) -> Iterator[Any]:
    with grpc.insecure_channel(at, options=list(channel_options())) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise _trouble(error, at, option) from error


def _trouble(error: Any, at: str, option: str) -> Trouble:
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Trouble(
            f"No router answers at {at} ({error.code().name}). Is it running, and is this its address? Name"
            f" another with {option}.",
            UNUSABLE,
        )
    return Trouble(f"{error.details()} ({error.code().name})", RUN_FAILED)


# --- offline ---------------------------------------------------------------------------------------


def _dry_run(file: Path, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    from router.cli.explain_view import of_explanation
    from router.observe.scene_json import scene_to_json
    from router.tune.dry_run import explain_case
    from router.tune.scene_file import load_scenes, policy_text

    policy = None if given["policy"] is None else policy_text(given["policy"])
    cases = [one for one in load_scenes(file, policy).cases if given["case_name"] in (None, one.name)]
    if not cases:
        raise click.UsageError(f"{file} has no case named {given['case_name']!r}")
    if given["save"] is not None:
        table = {"name": cases[0].policy.name, **cases[0].policy.params}
        _save(given["save"], json.dumps(scene_to_json(cases[0].scene, table)))
    most = 0 if given["no_changes"] else 2000
    return [of_explanation(explain_case(case, most), case.name) for case in cases]


# --- output ----------------------------------------------------------------------------------------


def _print(out: Console, told: Mapping[str, Any]) -> None:
    from router.cli.explain_view import page

    out.print(page(told))
    if told["changes_note"]:
        out.print(escape(f"({told['changes_note']})"), style="dim")
    out.print()
