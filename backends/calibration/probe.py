"""`calibrate probe`: drives a live backend through a short sweep and fits a profile to what came back.

The client's clock is the only one: a request arrives when it is sent, and its tokens come when they reach the
client. So the way there and back, and the router's work, count as the backend's; nothing here can tell them
from it. Nor does a client see when an engine looks into its inbox (between steps): that is taken from the
engine's replay of the same arrivals, see `with_inbox`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from polyphase.v1 import inference_pb2

from backends.calibration.limits import BARE, Limits, Scheduling, with_limits
from backends.calibration.run import Calibration, calibrate
from backends.calibration.runfile import COLUMNS, LEAST_REQUESTS, EngineRun
from backends.calibration.search import rough
from backends.calibration.sweep import SHORT, Bounds, Pace, sweep
from backends.calibration.timeline import guess
from backends.models.profile import Profile
from router.errors import BackendError, CallerError, CapacityError, ConfigError, PolyphaseError, Reason
from router.load.flight import CLIENT_TIMEOUT, Failed, Flight, Outcome
from router.load.requests import Answer, RequestMaker, RequestOptions
from router.load.run import LoadPlan, LoadRun
from router.model import Seconds
from router.sim.workload import Arrival

SCOUTS: Final = ((SHORT, 12), (SHORT, 12), (512, 2), (512, 2))
"""Prompt and answer of the requests that tell the pace; the first of each shape warms the target up."""
SCOUT_SHARE: Final = 0.25
"""Of the duration, at most, for the scouts; what they leave is the sweep's."""
ANSWER_SHARE: Final = 0.5
"""Of the duration, in which a request of the sweep must have ended: a probe lasts 1.5 times it."""
MOST_FAILED: Final = 0.05
"""Of the requests; more means that the target is not well, and a fit would describe its illness."""
_REFUSALS: Final = frozenset({"UNKNOWN_MODEL", "INVALID_REQUEST", "REQUEST_TOO_LARGE", "NOT_ALLOWED"})


@dataclass(frozen=True, slots=True)
class Row:
    """One request that ended well; seconds on the client's clock."""

    prompt_tokens: int
    output_tokens: int
    sent_s: Seconds
    first_s: Seconds
    last_s: Seconds


@dataclass(frozen=True, slots=True)
class Aim:
    """What to probe, and how much."""

    target: str
    """host:port of an InferenceService in front of the backend to measure, and of no other."""
    model: str
    bounds: Bounds
    seed: int = 1
    """Of the prompts. Another seed gives other prompts, which no prefix cache knows."""

    @property
    def name(self) -> str:
        """For reports."""
        return f"probe of {self.target}, {self.model}"


class Probe:
    """Sends one sweep. Belongs to the running event loop; `stop` may be called at any time."""

    def __init__(self, aim: Aim) -> None:
        self._aim = aim
        self._maker = _Exact(RequestMaker(RequestOptions(aim.model), aim.seed, f"probe-{aim.seed:x}"))
        self._load: LoadRun | None = None
        self._stopped = False
        self._backends: set[str] = set()

    async def run(self) -> EngineRun:
        """Scout, sweep, and give the requests as a run.

        Raise CapacityError when nobody listens or the target is too slow, CallerError when it refuses the
        requests or the probe was stopped, BackendError when requests fail.
        """
        bounds = self._aim.bounds
        pace, took_s = await self._scout(SCOUT_SHARE * bounds.duration_s)
        plan = sweep(pace, replace(bounds, duration_s=bounds.duration_s - took_s))
        rows, load = await self._send(plan, ANSWER_SHARE * bounds.duration_s)
        failed = load.tally.failed + load.tally.not_sent_count
        if failed > MOST_FAILED * len(plan):
            raise _unwell(self._aim, load, failed, len(plan))
        if len(rows) < LEAST_REQUESTS:
            raise self._too_few(len(rows))
        return replace(run_of(rows, self._aim.name), notes=self._notes(failed, len(plan)))

    def stop(self) -> None:
        """End early: cancel what is under way; `run` then raises."""
        self._stopped = True
        if self._load is not None:
            self._load.stop()

    async def _scout(self, within_s: Seconds) -> tuple[Pace, Seconds]:
        """The target's pace, from requests sent one after the other, and how long that took."""
        rows: list[Row] = []
        took_s = 0.0
        for prompt, output in SCOUTS:
            left_s = within_s - took_s
            if left_s <= 0.0:
                raise _slow_scouts(self._aim, len(rows), within_s)
            ended, load = await self._send((Arrival(0.0, prompt, output),), left_s)
            if not ended:
                raise _unwell(self._aim, load, 1, 1)
            rows += ended
            took_s += load.elapsed_s
        return pace_of(rows[1], rows[3]), took_s

    async def _send(self, plan: Sequence[Arrival], timeout_s: Seconds) -> tuple[list[Row], LoadRun]:
        seen = _Recorder()
        load = LoadRun(
            LoadPlan(
                self._aim.target,
                RequestOptions(self._aim.model),
                trace=plan,
                duration_s=None,
                connections=1,
                max_in_flight=self._aim.bounds.max_in_flight,
                timeout_s=timeout_s,
                verify=False,
            ),
            maker=self._maker,
            observer=seen,
        )
        self._load = load
        if not self._stopped:
            await load.run()
        if self._stopped:
            raise CallerError(
                Reason.CANCELLED,
                f"The {self._aim.name} was stopped. Nothing was fitted. Run it again, or for a shorter "
                "--duration.",
            )
        self._backends |= load.tally.backends.keys()
        return seen.rows(), load

    def _notes(self, failed: int, sent: int) -> tuple[str, ...]:
        notes = ["clocks: all times are the client's; the way there and back counts as the backend's"]
        if failed:
            notes.append(f"{failed} of {sent} requests failed and are left out")
        if len(self._backends) > 1:
            names = ", ".join(sorted(self._backends)[:4])
            notes.append(
                f"{len(self._backends)} backends answered ({names}): the fit is of all of them as one"
            )
        return tuple(notes)

    def _too_few(self, ended: int) -> CapacityError:
        return CapacityError(
            Reason.DEADLINE_INFEASIBLE,
            f"{self._aim.target} answered {ended} requests of the sweep; below {LEAST_REQUESTS} a fit says "
            "nothing. Nothing was fitted. Give a longer --duration or a larger --max-in-flight.",
        )


class _Exact:
    """Requests whose answers have exactly the length wanted, of a real engine as of a mock."""

    def __init__(self, maker: RequestMaker) -> None:
        self._maker = maker
        self._made = 0

    def make(self, index: int, arrival: Arrival) -> tuple[inference_pb2.GenerateRequest, Answer]:
        """Numbered through all loops of a probe, so that no prompt comes twice; `index` does not go on."""
        request, answer = self._maker.make(self._made, arrival)
        self._made += 1
        request.max_new_tokens = arrival.output_tokens
        request.sampling.ignore_eos = True
        request.sampling.min_new_tokens = arrival.output_tokens
        request.ClearField("engine_options")
        return request, answer


class _Recorder:
    """Keeps the times of requests that end well."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def sent(self, flight: Flight) -> None:
        """Nothing to keep yet."""

    def not_sent(self) -> None:
        """The tally counts it."""

    def ended(self, flight: Flight, outcome: Outcome) -> None:
        """Keep it unless it failed or had no token."""
        if isinstance(outcome, Failed) or flight.first_s is None:
            return
        prompt = max(outcome.usage.prompt_tokens - outcome.usage.cached_prompt_tokens, 1)
        self._rows.append(Row(prompt, len(flight.transcript), flight.sent_s, flight.first_s, flight.last_s))

    def rows(self) -> list[Row]:
        """In the order in which they were sent, on which odd and even depend."""
        return sorted(self._rows, key=lambda row: row.sent_s)


def pace_of(short: Row, long: Row) -> Pace:
    """The pace from a short prompt with an answer, and a longer prompt.

    The whole time of the longer one goes on its tokens: short prompts take as long as a floor, so a
    difference would make a token look too cheap, and the sweep too full.
    """
    start_s = short.first_s - short.sent_s
    per_token_s = max((long.first_s - long.sent_s) / max(long.prompt_tokens, 1), 1e-7)
    step_s = (short.last_s - short.first_s) / max(short.output_tokens - 1, 1)
    return Pace(max(step_s, 1e-5), start_s, per_token_s)


def run_of(rows: Sequence[Row], name: str) -> EngineRun:
    """The rows as a run. The client does not see queueing: requests count as queued when they are sent."""
    columns = np.array([(r.prompt_tokens, r.output_tokens, r.sent_s, r.first_s, r.last_s) for r in rows]).T
    prompts, outputs, sent, first, last = columns
    zero = sent.min()
    arrived = sent - zero
    return EngineRun(name, prompts, outputs, arrived, arrived, arrived, first - zero, last - zero)


def rows_text(run: EngineRun) -> str:
    """The run as a file that `calibrate run` and `calibrate check` read."""
    lines = [",".join(COLUMNS)]
    for place in range(len(run)):
        sent = f"{run.arrived[place]:.6f}"
        answered = f"{run.first[place]:.6f},{run.last[place]:.6f}"
        lengths = f"{run.prompts[place]:.0f},{run.outputs[place]:.0f}"
        lines.append(f"probe-{place},{lengths},{sent},{sent},{sent},{answered}")
    return "\n".join(lines) + "\n"


def calibrate_probe(run: EngineRun, prior: Profile | None, limits: Limits) -> Calibration:
    """Fit on the odd requests, judge on the even ones, as for the file of an engine.

    The engine's inbox and its way of scheduling do not show at a client: the first is inferred, of the second
    both ways are tried and the better one on the odd requests is kept.
    """
    run = with_inbox(run, limits)
    modes = (
        (Scheduling.SYNC, Scheduling.ASYNC) if limits.scheduling is Scheduling.AUTO else (limits.scheduling,)
    )
    tries = [calibrate(run, prior, replace(limits, scheduling=mode)) for mode in modes]
    return min(tries, key=lambda one: one.fitted_on.loss if one.fitted_on else np.inf)


def with_inbox(run: EngineRun, limits: Limits) -> EngineRun:
    """The run with `queued` at the end of the step in which a request arrived, as a rough fit replays it.

    Otherwise a time to first token would contain up to a step more than the replay's, counted from there.
    """
    spec, _ = with_limits(run, BARE, limits)
    found = rough(run, replace(spec, step=guess(run, spec.step)))
    queued = np.minimum(np.maximum(found.played.queued, run.arrived), run.first)
    return replace(run, queued=queued, scheduled=queued)


def _unwell(aim: Aim, load: LoadRun, failed: int, sent: int) -> PolyphaseError:
    """The commonest failure of a loop, in words."""
    failures = load.tally.failures
    if not failures:
        return ConfigError(
            f"{failed} of {sent} requests of the {aim.name} were due with {aim.bounds.max_in_flight} in "
            "flight, or had no token. Nothing was fitted. Give a larger --max-in-flight."
        )
    reason, _ = failures.most_common(1)[0]
    what = load.tally.messages.get(reason, "").rstrip(".")
    told = (
        f"{aim.target} failed {failed} of {sent} requests for {aim.model}: {reason} ({what}). Nothing was "
        "fitted."
    )
    if reason == CLIENT_TIMEOUT:
        return CapacityError(
            Reason.DEADLINE_INFEASIBLE, f"{told} Give a longer --duration, or a smaller --max-in-flight."
        )
    if reason in _REFUSALS:
        step = "Name a model that it serves with --model, or a smaller --max-prompt-tokens."
        return CallerError(Reason(reason), f"{told} {step}")
    known = Reason(reason) if reason in {*map(str, Reason)} else Reason.BACKEND_FAILED
    return BackendError(known, f"{told} See `polyphase fleet ls` and the backend's log.")


def _slow_scouts(aim: Aim, ended: int, within_s: Seconds) -> CapacityError:
    return CapacityError(
        Reason.DEADLINE_INFEASIBLE,
        f"{aim.target} answered {ended} of {len(SCOUTS)} short requests within {within_s:.3g} s. Nothing was "
        "fitted. It is too slow for so short a probe, or busy: give a longer --duration.",
    )
