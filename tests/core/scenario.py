"""Runs text scenarios: facts above a rule, the actions they cause below it.

A scenario file is a list of blocks, separated by blank lines. In a block, each line above `----` is a fact
(`TIME verb arguments`), a line that scripts the policy's next answers, or a backend; the lines below are the
actions that came out, and the stage of the requests that are live. `pytest --rewrite-scenarios` writes what
comes out into the files.

    0.0 join gpu                     0.0 arrive r1 prompt=100 max=10 deadline=5 priority=bulk tenant=a
    plan r1 gpu>lpu                  (also gpu (no split), gpu>? (late), wait, full, until=9, reject, raise)
    bind r1 lpu                      (also wait, reject)
    0.1 prefilled r1 kv              0.1 prefilled r1 here            (r1/2: epoch 2; default 1)
    0.2 moved r1   0.2 token r1   0.3 done r1 tokens=10   0.3 failed r1 decode lpu   0.3 cancel r1
    0.4 lost gpu   0.4 removed gpu   0.4 cordon gpu   0.4 drain   0.5 advance
    0.4 report gpu waiting=1 busy=2.5
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from router.core.admission import Limits
from router.core.core import RouterCore
from router.core.messages import (
    Action,
    BackendCordoned,
    BackendJoined,
    BackendLost,
    BackendRemoved,
    BackendReported,
    DecodeDone,
    DrainStarted,
    Fact,
    FailRequest,
    FinishRequest,
    FirstToken,
    KVMoved,
    NoteDecision,
    NotePolicyFault,
    NotePreempted,
    NoteRetry,
    PhaseFailed,
    PolicyOverran,
    PrefillDone,
    ReleaseKV,
    RequestArrived,
    RequestCancelled,
    StartDecode,
    StartPrefill,
    StopPhase,
)
from router.core.ports import FleetView
from router.errors import Reason
from router.model import (
    IDLE,
    BackendSnapshot,
    ConnectorFlags,
    Decision,
    FinishReason,
    KVHandle,
    Phase,
    PhaseCost,
    Placement,
    Priority,
    Reject,
    Request,
    RoutePlan,
    Seconds,
    Wait,
)
from tests.core.fakes import MODEL, FunctionPolicy, first_ready, flat_models, spec

RULE = "----"
PHASES = {
    "prefill": frozenset({Phase.PREFILL}),
    "decode": frozenset({Phase.DECODE}),
    "both": frozenset(Phase),
}


class Scenario:
    """One core, scripted from text."""

    def __init__(self, limits: Limits) -> None:
        self._plans: dict[str, list[str]] = {}
        self._bindings: dict[str, list[str]] = {}
        self._prefills: dict[str, str] = {}
        policy = FunctionPolicy(self._plan, self._bind, "scripted")
        fallback = FunctionPolicy(first_ready, name="fallback")
        self.core = RouterCore(policy, fallback, flat_models, limits)

    def block(self, lines: list[str]) -> list[str]:
        """Run the facts of one block."""
        out: list[str] = []
        for line in lines:
            words = line.split()
            if words[0] in ("plan", "bind"):
                script = self._plans if words[0] == "plan" else self._bindings
                script.setdefault(words[1], []).extend(words[2:])
                continue
            now = float(words[0])
            actions = (
                self.core.advance(now)
                if words[1] == "advance"
                else self.core.handle(self._fact(words[1], words[2:], now), now)
            )
            out.extend(self._show(action) for action in actions)
        out.extend(self._books())
        return out

    # --- the scripted policy ---

    def _plan(self, request: Request, fleet: FleetView, now: Seconds) -> RoutePlan | Wait | Reject:
        word = self._next(self._plans, request.id)
        if word == "raise":
            raise ValueError("scripted")
        if word in ("wait", "full", "reject"):
            return Reject("scripted") if word == "reject" else Wait("scripted", no_room=word == "full")
        if word.startswith("until="):
            return Wait("scripted", until=float(word.removeprefix("until=")))
        prefill, arrow, decode = word.partition(">")
        self._prefills[request.id] = prefill
        return RoutePlan(
            prefill, (None if decode == "?" else decode) if arrow else prefill, Decision("scripted")
        )

    def _bind(
        self, request: Request, prefill: str, fleet: FleetView, now: Seconds
    ) -> Placement | Wait | Reject:
        word = self._next(self._bindings, request.id)
        if word in ("wait", "reject"):
            return Wait("scripted") if word == "wait" else Reject("scripted")
        return Placement(word, Decision("scripted"))

    @staticmethod
    def _next(script: dict[str, list[str]], request_id: str) -> str:
        answers = script.get(request_id, [])
        return answers.pop(0) if answers else "wait"

    # --- text to facts ---

    def _fact(self, verb: str, words: list[str], now: Seconds) -> Fact:
        options = dict(word.split("=", 1) for word in words if "=" in word)
        names = [word for word in words if "=" not in word]
        make: dict[str, Callable[[], Fact]] = {
            "join": lambda: BackendJoined(
                spec(
                    names[0],
                    PHASES[options.get("phases", "both")],
                    kv_layout=options.get("layout", ""),
                    models=(options.get("model", MODEL),),
                    connector=ConnectorFlags(concurrent_handoff="concurrent" in names),
                ),
                options.get("boot", "boot1"),
            ),
            "lost": lambda: BackendLost(names[0], "the lane broke"),
            "removed": lambda: BackendRemoved(names[0]),
            "cordon": lambda: BackendCordoned(names[0]),
            "uncordon": lambda: BackendCordoned(names[0], cordoned=False),
            "drain": DrainStarted,
            "report": lambda: BackendReported(
                names[0],
                BackendSnapshot(
                    now,
                    waiting=int(options.get("waiting", "0")),
                    busy_decode_s=float(options.get("busy", "0")),
                ),
            ),
            "overran": lambda: PolicyOverran(0.02),
            "arrive": lambda: RequestArrived(_request(names[0], options)),
            "cancel": lambda: RequestCancelled(names[0]),
            "token": lambda: FirstToken(*_epoch(names[0])),
            "moved": lambda: KVMoved(*_epoch(names[0]), moved_bytes=1000),
            "prefilled": lambda: self._prefilled(names, options, now),
            "done": lambda: DecodeDone(
                *_epoch(names[0]),
                PhaseCost(device_s=1.0),
                int(options.get("tokens", "10")),
                FinishReason.LENGTH,
                "overran" in names,
            ),
            "failed": lambda: PhaseFailed(
                *_epoch(names[0]),
                Phase(names[1]),
                names[2],
                Reason(options.get("reason", "BACKEND_FAILED")),
                "scripted",
                "final" not in names,
            ),
        }
        return make[verb]()

    def _prefilled(self, names: list[str], options: dict[str, str], now: Seconds) -> PrefillDone:
        request_id, epoch = _epoch(names[0])
        kv = None
        if "kv" in names:
            lease = now + float(options.get("lease", "30"))
            producer = options.get("at", self._prefills.get(request_id, "gpu"))
            kv = KVHandle(producer, "boot1", request_id, epoch, "", 100, 1, lease)
        return PrefillDone(request_id, epoch, PhaseCost(device_s=1.0), kv=kv)

    # --- actions to text ---

    def _show(self, action: Action) -> str:
        match action:
            case StartPrefill():
                where = f"{action.backend}{' decode_here' if action.decode_here else ''}"
                return f"StartPrefill {action.request_id}/{action.epoch} {where}"
            case StartDecode():
                kv = f"kv={action.kv.producer}/{action.kv.epoch}"
                return f"StartDecode {action.request_id}/{action.epoch} {action.backend} {kv}"
            case StopPhase():
                return f"StopPhase {action.request_id}/{action.epoch} {action.backend}"
            case ReleaseKV():
                return f"ReleaseKV {action.kv.request_id}/{action.kv.epoch} {action.backend}"
            case FinishRequest():
                report = action.report
                cost = f"attempts={report.attempts} usd={report.cost_usd:.4f}"
                return f"FinishRequest {action.request_id} tokens={report.usage.output_tokens} {cost}"
            case FailRequest():
                again = "later" if action.retry_after_s else "never"
                return f"FailRequest {action.request_id} {action.reason} retry={again}"
            case NoteDecision():
                return f"NoteDecision {action.request_id} {action.decision.policy}"
            case NoteRetry():
                return f"NoteRetry {action.request_id} {action.phase} {action.backend} {action.reason}"
            case NotePreempted():
                return f"NotePreempted {action.request_id} {action.backend} by={action.by}"
            case NotePolicyFault():
                return f"NotePolicyFault {action.policy} {action.fault}"

    def _books(self) -> list[str]:
        """What is live and what is booked, so that a leak shows in every scenario."""
        live = [f"= {f.request.id}/{f.epoch} {f.stage}" for f in self.core.relay.flights.values()]
        booked = [
            f"= {b.spec.id} {b.state} prefills={b.in_flight.prefills} decodes={b.in_flight.decodes}"
            f" kv={b.in_flight.kv_tokens}"
            for b in self.core.fleet
            if b.in_flight != IDLE
        ]
        return live + booked


def _epoch(name: str) -> tuple[str, int]:
    request_id, _, epoch = name.partition("/")
    return request_id, int(epoch or 1)


def _request(name: str, options: dict[str, str]) -> Request:
    return Request(
        id=name,
        model=options.get("model", MODEL),
        prompt_tokens=int(options.get("prompt", "100")),
        max_new_tokens=int(options.get("max", "10")),
        deadline=float(options.get("deadline", "300")),
        priority=Priority[options.get("priority", "normal").upper()],
        tenant=options.get("tenant", ""),
    )


def run(path: Path) -> str:
    """The scenario with the actions that came out."""
    limits = Limits()
    blocks: list[str] = []
    scenario: Scenario | None = None
    for block in path.read_text().strip().split("\n\n"):
        lines = block.splitlines()
        comments = [line for line in lines if line.startswith("#")]
        facts = [line for line in lines if line and not line.startswith("#")]
        facts = facts[: facts.index(RULE)] if RULE in facts else facts
        if facts and facts[0].startswith("limits "):
            limits = Limits(**{k: json.loads(v) for k, v in (w.split("=") for w in facts[0].split()[1:])})
            blocks.append("\n".join([*comments, facts[0]]))
            continue
        if not facts:
            blocks.append("\n".join(comments))
            continue
        scenario = scenario or Scenario(limits)
        blocks.append("\n".join([*comments, *facts, RULE, *scenario.block(facts)]))
    return "\n\n".join(blocks) + "\n"
