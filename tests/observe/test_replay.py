"""A recording replayed into a fresh core gives the same actions; differences and damage are named."""

from __future__ import annotations

import json
import random
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from router.core.admission import Limits
from router.core.core import RouterCore
from router.core.messages import (
    Action,
    BackendJoined,
    BackendLost,
    DecodeDone,
    Fact,
    FirstToken,
    KVMoved,
    NoteDecision,
    PhaseFailed,
    PolicyReplaced,
    PrefillDone,
    RequestArrived,
    RequestCancelled,
    StartDecode,
    StartPrefill,
)
from router.core.ports import FleetView, Machine
from router.errors import Reason
from router.model import (
    BackendKind,
    Decision,
    FinishReason,
    KVHandle,
    Phase,
    PhaseCost,
    Request,
    RoutePlan,
    Wait,
)
from router.observe.codec import RecordingError
from router.observe.record import Recorder, parts
from router.observe.replay import replay
from tests.core.fakes import FunctionPolicy, first_ready, flat_models
from tests.observe.stories import request, spec


class Echo:
    """A machine that answers every request with a decision in its favourite word."""

    def __init__(self, word: str = "yes") -> None:
        self._word = word

    def handle(self, message: Fact, now: float) -> Sequence[Action]:
        """Decide at once."""
        if isinstance(message, RequestArrived):
            return [NoteDecision(message.request.id, Decision(self._word))]
        return []

    def advance(self, now: float) -> Sequence[Action]:
        """Say that time passed."""
        return [NoteDecision("clock", Decision(self._word, f"{now}"))]

    def deadline(self) -> float | None:
        """Never."""
        return None


def record(
    path: Path, machine: Machine[Fact, Action], facts: Sequence[tuple[float, Fact | None]]
) -> list[str]:
    """Run facts through a machine under a recorder; the lines of all parts."""
    recorder = Recorder(path, meta={"policy": "echo"})
    for now, fact in facts:
        actions = machine.advance(now) if fact is None else machine.handle(fact, now)
        recorder.seen(fact, now, actions)
    assert recorder.close()
    return lines_of(path)


def lines_of(path: Path) -> list[str]:
    """All lines, over all parts."""
    return [line for part in parts(path) for line in part.read_text().splitlines(keepends=True)]


FACTS: list[tuple[float, Fact | None]] = [
    (1.0, BackendJoined(spec("gpu-0"), "boot-1")),
    (1.5, RequestArrived(request("r1"))),
    (2.0, None),
    (2.25, RequestArrived(request("r2"))),
]


def test_the_same_machine_gives_the_same_answers(tmp_path: Path) -> None:
    """Deadlines between facts are entries too."""
    lines = record(tmp_path / "run.jsonl", Echo(), FACTS)
    result = replay(lines, Echo)
    assert (result.facts, result.identical, result.same) == (4, 4, True)
    assert result.first_difference is None


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    """Entry, time, fact, and both answers."""
    lines = record(tmp_path / "run.jsonl", Echo(), FACTS)
    result = replay(lines, lambda: Echo("no"))
    assert (result.facts, result.identical, result.same) == (4, 1, False)
    difference = result.first_difference
    assert difference is not None
    assert (difference.n, difference.now, difference.fact) == (1, 1.5, "RequestArrived")
    assert difference.recorded == difference.replayed == ("NoteDecision r1",)


def test_a_recording_is_for_its_owner_and_holds_no_surprises(tmp_path: Path) -> None:
    """Tenants and session keys are in it; every line is plain JSON; the head says what runs."""
    path = tmp_path / "run.jsonl"
    lines = record(path, Echo(), FACTS)
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert json.loads(lines[0]) == {"recording": 1, "part": 0, "first": 0, "meta": {"policy": "echo"}}
    entry = json.loads(lines[2])
    assert entry["n"] == 1
    assert entry["do"] == ["NoteDecision r1"]


def test_files_rotate_and_the_oldest_go(tmp_path: Path) -> None:
    """Two files are kept; what is left says where it begins, and a replay of it is refused."""
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path, max_bytes=2000, max_files=2)
    for i in range(100):
        recorder.seen(RequestArrived(request(f"r{i}")), float(i), [])
    assert recorder.close()
    kept = parts(path)
    assert len(kept) == 2
    assert recorder.stats.parts > 2
    assert recorder.stats.written == 100
    assert all(part.stat().st_size < 2500 for part in kept)
    with pytest.raises(RecordingError, match="older ones were rotated away"):
        replay(lines_of(path), Echo)


def test_parts_are_replayed_as_one(tmp_path: Path) -> None:
    """In order of their numbers, ten after nine."""
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path, max_bytes=300, max_files=100)
    machine = Echo()
    for i in range(40):
        fact = RequestArrived(request(f"r{i}"))
        recorder.seen(fact, float(i), machine.handle(fact, float(i)))
    assert recorder.close()
    assert len(parts(path)) > 11
    assert replay(lines_of(path), Echo).identical == 40


def test_a_new_recording_replaces_an_old_one(tmp_path: Path) -> None:
    """Parts left over would be taken for parts of the new one."""
    path = tmp_path / "run.jsonl"
    (tmp_path / "run.jsonl.7").write_text("old\n")
    (tmp_path / "run.jsonl.bak").write_text("mine\n")
    record(path, Echo(), FACTS)
    assert [part.name for part in parts(path)] == ["run.jsonl"]
    assert (tmp_path / "run.jsonl.bak").exists()


def test_a_slow_disk_costs_entries_not_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is bounded; what found it full is counted, and a gap says so in the file."""
    stalled, go = threading.Event(), threading.Event()
    path = tmp_path / "run.jsonl"
    recorder = Recorder(path, max_queued=2)
    write = recorder._files.write

    def slow(*entry: Any) -> None:
        stalled.set()
        assert go.wait(30)
        write(*entry)

    monkeypatch.setattr(recorder._files, "write", slow)
    recorder.seen(FACTS[0][1], 1.0, [])
    assert stalled.wait(30)  # the first entry is with the writer; two more fill the queue
    for i in range(6):
        recorder.seen(RequestArrived(request(f"r{i}")), 2.0, [])
    assert recorder.stats.dropped == 4
    go.set()
    assert recorder.close()
    assert [json.loads(line) for line in lines_of(path) if "gap" in json.loads(line)] == [{"gap": 4}]
    with pytest.raises(RecordingError, match="4 entries are missing after entry 2"):
        replay(lines_of(path), Echo)


def test_a_full_disk_does_not_stop_the_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written is counted and logged once."""
    recorder = Recorder(tmp_path / "run.jsonl")

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder._files, "_line", full)
    recorder.seen(FACTS[0][1], 1.0, [])
    recorder.seen(None, 2.0, [])
    assert recorder.close()
    assert recorder.stats.dropped == 2
    recorder.seen(None, 3.0, [])  # closed: ignored
    assert recorder.stats.dropped == 2


HEAD = '{"recording":1,"part":0,"first":0,"meta":{}}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"n":0}\n{"n":1}\n', "before the head"),
        ('{"recording":9,"first":0}\n', "format 9"),
        (HEAD + '{"n":1,"now":1,"fact":null,"do":[],"digest":""}\n', "0 is next"),
        (HEAD + '{"n":0,"now":1}\n', "not an entry"),
        (HEAD + "[]\n" + HEAD, "not an object"),
        (HEAD + "{broken\n" + HEAD, "line 2 is not JSON"),
        (HEAD + '{"n":0,"now":1,"fact":{"Nope":{}},"do":[],"digest":""}\n', "not a fact of this version"),
    ],
)
def test_damage_is_a_typed_error(text: str, says: str) -> None:
    """With the line it was found in."""
    with pytest.raises(RecordingError, match=says):
        replay(text.splitlines(keepends=True), Echo)


def test_a_last_line_that_a_crash_cut_off_ends_the_recording(tmp_path: Path) -> None:
    """The rest is good, and the most interesting recording is that of a crash."""
    lines = record(tmp_path / "run.jsonl", Echo(), FACTS)
    lines[-1] = lines[-1][:40]
    assert replay(lines, Echo).identical == 3


# --- the real core ---------------------------------------------------------------------------------


class Drawn:
    """A policy that draws its backends, from a generator with a seed: replay has to meet the same draws."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.name = "drawn"

    def plan(self, asked: Request, fleet: FleetView, now: float) -> RoutePlan | Wait:
        """Any pair of ready backends."""
        ready = [view.spec.id for view in fleet.for_model(asked.model) if view.state == "ready"]
        if not ready:
            return Wait("nobody is ready")
        return RoutePlan(self._random.choice(ready), self._random.choice(ready), Decision(self.name))

    def bind_decode(self, asked: Request, prefill: str, fleet: FleetView, now: float) -> Wait:
        """Never asked: every plan names both."""
        return Wait("no")

    def observe(self, fact: Any, now: float) -> None:
        """Learns nothing."""


def core(seed: int = 1) -> RouterCore:
    """A fresh core, equal to every other of its seed."""
    return RouterCore(Drawn(seed), FunctionPolicy(first_ready, name="first"), flat_models, Limits())


def drive(machine: RouterCore, recorder: Recorder, rounds: int = 60) -> None:
    """A world with a will of its own: answers commands or fails them, loses a backend, passes deadlines."""
    chance = random.Random(7)
    now = 0.0
    todo: list[Fact] = [BackendJoined(spec(f"b{i}", list(BackendKind)[i]), "boot") for i in range(3)]
    todo += [RequestArrived(request(f"r{i}", deadline=5.0 + i)) for i in range(rounds)]
    todo.insert(rounds // 2, BackendLost("b1", "gone"))
    todo.insert(rounds // 2 + 5, BackendJoined(spec("b1", BackendKind.LPU), "boot again"))
    while todo or machine.live_requests:
        now += chance.random() * 0.2
        due = machine.deadline()
        if due is not None and due <= now:
            recorder.seen(None, now, actions := machine.advance(now))
        elif todo:
            fact = todo.pop(0)
            recorder.seen(fact, now, actions := machine.handle(fact, now))
        else:
            assert due is not None
            now, actions = due, []
        for action in actions:
            todo.extend(_answers(action, chance, now))


def _answers(action: Action, chance: random.Random, now: float) -> list[Fact]:
    luck = chance.random()
    match action:
        case StartPrefill(request_id=rid, epoch=epoch, backend=backend) if luck < 0.2:
            return [PhaseFailed(rid, epoch, Phase.PREFILL, backend, Reason.BACKEND_FAILED)]
        case StartPrefill(request_id=rid) if luck < 0.3:
            return [RequestCancelled(rid)]
        case StartPrefill(request_id=rid, epoch=epoch, backend=backend, decode_here=here):
            kv = None if here else KVHandle(backend, "boot", rid, epoch, "", 100, 0, now + 30.0)
            cost = PhaseCost(0.01, 0.1, 5.0)
            ending = DecodeDone(rid, epoch, PhaseCost(0, 0.3, 9.0), 20, FinishReason.STOP)
            done: list[Fact] = [PrefillDone(rid, epoch, cost, 0, kv)]
            return [*done, FirstToken(rid, epoch), ending] if here else done
        case StartDecode(request_id=rid, epoch=epoch):
            ending = DecodeDone(rid, epoch, PhaseCost(0, 0.3, 9.0), 20, FinishReason.STOP)
            return [KVMoved(rid, epoch, 4096, 0.01), FirstToken(rid, epoch), ending]
        case _:
            return []


@pytest.fixture
def recording(tmp_path: Path) -> list[str]:
    """Sixty requests through a real core in a world that fails and cancels."""
    recorder = Recorder(tmp_path / "core.jsonl")
    drive(core(), recorder)
    assert recorder.close()
    return lines_of(tmp_path / "core.jsonl")


def test_a_recorded_core_replays_to_the_last_field(recording: list[str]) -> None:
    """Failures, retries, cancels, a lost backend, deadlines, a policy that draws: all is as it was."""
    result = replay(recording, core)
    assert result.first_difference is None
    assert result.identical == result.facts > 150
    text = "".join(recording)
    for witness in ("NoteRetry", "StartDecode", "FinishRequest", "FailRequest", "BackendLost", '"fact":null'):
        assert witness in text, f"the recording has no {witness}, so its replay shows less than it says"


def test_a_core_of_another_seed_is_found_out(recording: list[str]) -> None:
    """The comparison can fail."""
    result = replay(recording, lambda: core(seed=2))
    assert not result.same
    assert result.first_difference is not None


def test_a_replaced_policy_is_rebuilt_from_its_text(tmp_path: Path) -> None:
    """The recording holds the text; the caller knows how to build a policy from it."""
    facts: list[tuple[float, Fact | None]] = [
        (0.0, BackendJoined(spec("b0"), "boot")),
        (0.0, BackendJoined(spec("b1"), "boot")),
        (1.0, PolicyReplaced(Drawn(5), "5")),
        *((2.0 + i, RequestArrived(request(f"r{i}"))) for i in range(8)),
    ]
    lines = record(tmp_path / "run.jsonl", core(), facts)
    assert replay(lines, core, rebuild=lambda text: Drawn(int(text))).same
    assert not replay(lines, core, rebuild=lambda text: Drawn(int(text) + 1)).same
