"""What can be turned in a question: the load of the backends at issue, the request, the links, and states.

A load is turned in the ledger and in the worker's last report alike, since policies take the larger of the
two; what hangs on it goes with it: prompts that wait hold KV, and so do sequences that decode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from router.core.ports import Policy
from router.model import BackendState, BackendView, Candidate, Decision, InFlight, Request
from router.observe.explain import Knob, Question
from router.observe.scene import Scene, StillFleet

MAX_BACKENDS: Final = 6
"""Backends whose load is turned."""
WAITING_STEPS: Final = 32
"""Prompt tokens ahead are turned up to so many full steps of the backend, or eight times what waits."""
REQUEST_FACTOR: Final = 4
"""A request is made up to so many times longer."""
LINK_DOUBLINGS: Final = 6.0
"""KV links are made up to 64 times as fast, or as slow."""


def knobs_of(policy: Policy, scene: Scene, decision: Decision | None) -> list[Knob]:
    """Everything that can be turned, of the backends that the decision was about."""
    return [
        *(
            knob
            for view in concerned(scene, decision)
            for knob in (*_load(policy, scene, view), *_state(policy, scene, view))
        ),
        *_request(policy, scene),
        _links(policy, scene),
    ]


def concerned(scene: Scene, decision: Decision | None) -> list[BackendView]:
    """The backends of the chosen place and of the runner-up; without these, those that were left out."""
    if decision is None:
        return list(scene.fleet.for_model(scene.request.model))[:MAX_BACKENDS]
    names = [name for each in decision.candidates[:2] for name in _ends(each)]
    if not names:
        names = [name for each in decision.exclusions for name in each.backends]
    views = (scene.fleet.get(name) for name in dict.fromkeys(names))
    return [view for view in views if view is not None][:MAX_BACKENDS]


def _ends(candidate: Candidate) -> tuple[str, str]:
    return candidate.prefill, candidate.decode


# --- load ------------------------------------------------------------------------------------------


def _load(policy: Policy, scene: Scene, view: BackendView) -> Iterator[Knob]:
    backend, spec = view.spec.id, view.spec

    def asked(changed: BackendView) -> Question:
        return Question(policy, replace(scene, fleet=scene.fleet.with_view(changed)))

    waiting = float(waiting_tokens(view))
    most = max(8 * waiting, float(WAITING_STEPS * min(spec.max_num_batched_tokens, spec.kv_capacity_tokens)))
    prompt = max(1, scene.request.prompt_tokens)
    yield Knob(
        f"prompt tokens waiting at {backend}:",
        waiting,
        0.0,
        most,
        lambda value: asked(with_waiting(view, int(value), prompt)),
    )
    yield Knob(
        f"sequences decoding on {backend}:",
        float(min(decoding(view), spec.max_num_seqs)),
        0.0,
        float(spec.max_num_seqs),
        lambda value: asked(with_decoding(view, int(value), scene.request)),
    )
    yield Knob(
        f"KV tokens in use on {backend}:",
        float(min(kv_used(view), spec.kv_capacity_tokens)),
        0.0,
        float(spec.kv_capacity_tokens),
        lambda value: asked(with_kv(view, int(value))),
    )


def waiting_tokens(view: BackendView) -> int:
    """Prompt tokens ahead of a new prefill, by the larger account."""
    told = 0 if view.snapshot is None else view.snapshot.waiting_prefill_tokens
    return max(view.in_flight.prefill_tokens, told)


def decoding(view: BackendView) -> int:
    """Sequences that decode, by the larger account."""
    told = 0 if view.snapshot is None else view.snapshot.running - view.in_flight.prefills
    return max(0, view.in_flight.decodes, told)


def kv_used(view: BackendView) -> int:
    """KV tokens in use, by the larger account."""
    return max(view.in_flight.kv_tokens, 0 if view.snapshot is None else view.snapshot.kv_used_tokens)


def with_waiting(view: BackendView, tokens: int, prompt: int) -> BackendView:
    """The view with so many prompt tokens ahead, in prompts as long as those that wait, or as `prompt`."""
    was, ours = waiting_tokens(view), view.in_flight
    before = max(ours.prefills, 0 if view.snapshot is None else view.snapshot.waiting)
    each = was / before if was and before else float(prompt)
    prefills = math.ceil(tokens / each) if tokens else 0
    kv = max(0, kv_used(view) - ours.prefill_tokens + tokens)
    changed = replace(ours, prefills=prefills, prefill_tokens=tokens, kv_tokens=kv)
    return _both(view, changed, waiting=prefills, waiting_prefill_tokens=tokens, kv_used_tokens=kv)


def with_decoding(view: BackendView, sequences: int, request: Request) -> BackendView:
    """The view with so many sequences, as long as those that decode now, or as the request."""
    was, ours = decoding(view), view.in_flight
    held = max(0, kv_used(view) - ours.prefill_tokens)
    kv_each = held / was if was else float(request.prompt_tokens + request.max_new_tokens)
    out_each = ours.decode_tokens / ours.decodes if ours.decodes else float(request.max_new_tokens)
    kv = ours.prefill_tokens + round(kv_each * sequences)
    tokens = round(out_each * sequences)
    changed = replace(ours, decodes=sequences, decode_tokens=tokens, kv_tokens=kv)
    return _both(view, changed, running=sequences + ours.prefills, kv_used_tokens=kv)


def with_kv(view: BackendView, tokens: int) -> BackendView:
    """The view with so many KV tokens in use, and the work as it is."""
    return _both(view, replace(view.in_flight, kv_tokens=tokens), kv_used_tokens=tokens)


def _both(view: BackendView, ours: InFlight, **told: Any) -> BackendView:
    snapshot = None if view.snapshot is None else replace(view.snapshot, **told)
    return replace(view, in_flight=ours, snapshot=snapshot)


# --- states, the request, the links ----------------------------------------------------------------


def _state(policy: Policy, scene: Scene, view: BackendView) -> Iterator[Knob]:
    """A backend that is not ready, ready: a range of two values, so the whole effort."""
    if view.state is BackendState.READY:
        return

    def turn(value: float) -> Question:
        ready = replace(view, state=BackendState.READY)
        return Question(policy, replace(scene, fleet=scene.fleet.with_view(ready if value else view)))

    def words(value: float) -> str:
        return BackendState.READY.value if value else view.state.value

    yield Knob(f"{view.spec.id}:", 0.0, 0.0, 1.0, turn, words=words, switch=True)


def _request(policy: Policy, scene: Scene) -> Iterator[Knob]:
    request = scene.request

    def asked(changed: Request) -> Question:
        return Question(policy, replace(scene, request=changed))

    prompt, output = request.prompt_tokens, request.max_new_tokens
    yield Knob(
        "prompt tokens of the request:",
        float(prompt),
        1.0,
        float(REQUEST_FACTOR * max(1, prompt)),
        lambda value: asked(replace(request, prompt_tokens=int(value))),
    )
    yield Knob(
        "max_new_tokens of the request:",
        float(output),
        1.0,
        float(REQUEST_FACTOR * max(1, output)),
        lambda value: asked(replace(request, max_new_tokens=int(value))),
    )


def _links(policy: Policy, scene: Scene) -> Knob:
    """All KV links together, since a policy may take alike links for one."""
    views: Sequence[BackendView] = scene.fleet.views
    return Knob(
        "speed of the KV links:",
        0.0,
        -LINK_DOUBLINGS,
        LINK_DOUBLINGS,
        lambda value: Question(policy, replace(scene, fleet=StillFleet(views, 2.0**value))),
        whole=False,
        words=lambda value: f"{2.0**value:.3g} times what it is" if value else "as it is",
    )
