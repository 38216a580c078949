"""What a policy was asked: a request and the fleet as it stood at that moment, kept without copying anything.

Backend views are immutable, so a tuple of references is a snapshot. Asking again leaves the policy as it is:
every question goes to a copy of it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from router.core.choice import Plan, check_plan
from router.core.fleet import link_between
from router.core.messages import BackendCordoned, BackendJoined, BackendLost, BackendRemoved
from router.core.ports import FleetView, Policy
from router.model import BackendView, LinkParameters, Request, RoutePlan, Seconds

Place = tuple[str, str | None]
"""Prefill backend and decode backend; None when decode is bound after prefill."""


class StillFleet:
    """A core.ports.FleetView that never changes."""

    __slots__ = ("_by_id", "_models", "link_speed", "views")

    def __init__(self, views: Sequence[BackendView], link_speed: float = 1.0) -> None:
        """`link_speed` is how many times as fast every KV link is taken to be."""
        self.views = tuple(views)
        self.link_speed = link_speed
        self._by_id: dict[str, BackendView] = {}
        self._models: dict[str, tuple[BackendView, ...]] = {}

    def for_model(self, model: str) -> Sequence[BackendView]:
        """As core.fleet.Fleet.for_model."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = tuple(v for v in self.views if model in v.spec.models)
        return found

    def get(self, backend: str) -> BackendView | None:
        """One backend by id."""
        if not self._by_id:
            self._by_id.update({view.spec.id: view for view in self.views})
        return self._by_id.get(backend)

    def link(self, producer: str, consumer: str) -> LinkParameters:
        """By the rule of the live fleet. Raises KeyError for a backend that is not there."""
        giver, taker = self.get(producer), self.get(consumer)
        if giver is None or taker is None:
            raise KeyError(producer if giver is None else consumer)
        link = link_between(giver.spec, taker.spec)
        if self.link_speed == 1.0:
            return link
        bandwidth, ingress = link.bandwidth_bytes_per_s, link.ingress_bytes_per_s
        return replace(
            link,
            latency_s=link.latency_s / self.link_speed,
            bandwidth_bytes_per_s=bandwidth * self.link_speed,
            ingress_bytes_per_s=ingress * self.link_speed,
        )

    def with_view(self, view: BackendView) -> StillFleet:
        """The same fleet but for one backend."""
        views = tuple(view if each.spec.id == view.spec.id else each for each in self.views)
        return StillFleet(views, self.link_speed)


@dataclass(frozen=True, slots=True)
class Scene:
    """One question to a policy."""

    request: Request
    fleet: StillFleet
    now: Seconds


@dataclass(frozen=True, slots=True)
class Kept:
    """A question that was asked, and what was answered."""

    scene: Scene
    answer: Plan
    policy: Policy
    """That answered."""


def decide(policy: Policy, scene: Scene) -> Plan:
    """What the policy would answer. The policy is left as it is. Raises whatever the policy raises, and
    PolicyError for an answer that cannot be carried out."""
    answer = copy.deepcopy(policy).plan(scene.request, scene.fleet, scene.now)
    check_plan(answer, scene.request, scene.fleet)
    return answer


def place_of(answer: Plan) -> Place | None:
    """Where an answer puts the request; None when it puts it nowhere."""
    return (answer.prefill, answer.decode) if isinstance(answer, RoutePlan) else None


class SceneLog:
    """The last `capacity` questions by request id, and since when each backend is in its state. In memory.

    A scene of a thousand backends holds a thousand references, and the views that have changed since.
    """

    def __init__(self, capacity: int = 256) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self.since: dict[str, Seconds] = {}
        """Backend -> when it joined, was lost, or was cordoned last; of backends that are there."""

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, request_id: str) -> Kept | None:
        """The last question about a request, if it is recent enough."""
        return self._kept.get(request_id)

    def decided(self, policy: Policy, request: Request, fleet: FleetView, now: Seconds, answer: Plan) -> None:
        """Keep a question with its answer; an earlier one about the same request is replaced."""
        views = tuple(fleet.for_model(request.model))
        self._kept.pop(request.id, None)
        self._kept[request.id] = Kept(Scene(request, StillFleet(views), now), answer, policy)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def observed(self, fact: Any, now: Seconds) -> None:
        """Follow the states of the backends."""
        match fact:
            case BackendJoined(spec=spec):
                self.since[spec.id] = now
            case BackendLost(backend=backend) | BackendCordoned(backend=backend):
                self.since[backend] = now
            case BackendRemoved(backend=backend):
                self.since.pop(backend, None)
            case _:
                pass
