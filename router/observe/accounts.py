"""The account of every request that ended: latencies, outcomes, objectives, tokens, cost, energy.

Latencies are those of core/timeline.py, as the report has them; nothing is measured here.
"""

from __future__ import annotations

from router.core.messages import FailRequest
from router.errors import CODES, Reason
from router.model import Phase, PhaseUse, Prediction, Report, Seconds
from router.observe.instruments import Instruments
from router.observe.names import Names
from router.observe.progress import Progress
from router.observe.reports import Outcome, last_use, objectives_met, outcome_of
from router.observe.series import NONE


class Accounts:
    """Books reports into instruments."""

    def __init__(self, instruments: Instruments, names: Names, progress: Progress) -> None:
        self._to = instruments
        self._names = names
        self._progress = progress
        for reason in Reason:  # from zero, or increase() would not see the first failure of a kind
            self._to.requests.add(0, outcome_of(reason, started=True), CODES[reason].name, reason)

    def finished(self, report: Report, now: Seconds) -> None:
        """A request ended well."""
        prefill, decode = last_use(report, Phase.PREFILL), last_use(report, Phase.DECODE)
        self._count_end(Outcome.OK, report.finish or NONE)
        self._time(report, prefill, decode)
        self._bill(report)
        self._to.request_tokens.observe(report.usage.prompt_tokens, "prompt")
        self._to.request_tokens.observe(report.usage.output_tokens, "output")
        if prefill and decode:
            split = "true" if prefill.backend != decode.backend else "false"
            self._to.splits.add(1, prefill.kind, decode.kind, split)
        if report.decision and report.decision.prediction:
            self._check_prediction(report, report.decision.policy, report.decision.prediction)
        self._judge(report, now)

    def failed(self, action: FailRequest, now: Seconds) -> None:
        """A request ended without its answer. Called while its journey is still known."""
        report, reason = action.report, action.reason
        outcome = outcome_of(reason, started=report.attempts > 0)
        self._count_end(outcome, reason)
        queue = last_use(report, Phase.PREFILL)
        self._to.phase_duration.observe(report.times.queue_s, "queue", *self._where(queue, report))
        self._to.queue_wait.observe(report.times.queue_s, report.request.priority.name.lower())
        self._bill(report)
        if outcome is Outcome.SHED:
            self._to.sheds.add(1, reason)
        if outcome is Outcome.CANCELLED:
            journey = self._progress.of(action.request_id)
            self._to.cancels.add(1, reason, journey.stage if journey else NONE)
        if outcome in (Outcome.SHED, Outcome.FAILED):
            # Whoever left, or sent nonsense, was not let down: neither counts against an objective.
            self._judge(report, now)

    def refused(self, reason: Reason) -> None:
        """A request was refused before it became a fact."""
        self._count_end(outcome_of(reason, started=False), reason)

    def _count_end(self, outcome: Outcome, reason: str) -> None:
        code = CODES[Reason(reason)].name if outcome is not Outcome.OK else "OK"
        self._to.requests.add(1, outcome, code, reason)

    def _time(self, report: Report, prefill: PhaseUse | None, decode: PhaseUse | None) -> None:
        times = report.times
        at_prefill, at_decode = self._where(prefill, report), self._where(decode or prefill, report)
        self._to.phase_duration.observe(times.queue_s, "queue", *at_prefill)
        self._to.queue_wait.observe(times.queue_s, report.request.priority.name.lower())
        self._to.phase_duration.observe(times.prefill_s, Phase.PREFILL, *at_prefill)
        if prefill and decode and prefill.backend != decode.backend:
            # Only where there was one: zeros of unsplit requests would hide what a handoff costs.
            self._to.phase_duration.observe(times.handoff_s, "handoff", *at_decode)
        self._to.phase_duration.observe(times.decode_s, Phase.DECODE, *at_decode)
        if times.ttft_s is not None:
            self._to.ttft.observe(times.ttft_s, *at_prefill)
        if times.tpot_s is not None:
            self._to.tpot.observe(times.tpot_s, *at_decode)
        self._to.e2e.observe(times.e2e_s, *at_decode)

    def _where(self, use: PhaseUse | None, report: Report) -> tuple[str, str, str]:
        return *self._names.place(use), self._names.model(report.request.model)

    def _bill(self, report: Report) -> None:
        """Tokens, cost and energy, of every attempt, whether the request ended well or not."""
        usage = report.usage
        self._to.tokens.add(usage.prompt_tokens, "prompt")
        self._to.tokens.add(usage.cached_prompt_tokens, "cached")
        self._to.tokens.add(usage.output_tokens, "output")
        for use in report.uses:
            backend = self._names.backend(use)
            self._to.cost.add(use.cost_usd, use.kind, backend, use.phase)
            self._to.energy.add(use.cost.energy_j, use.kind, backend, use.phase)
        computed = usage.prompt_tokens - usage.cached_prompt_tokens
        self._credit(last_use(report, Phase.PREFILL), max(0, computed))
        self._credit(last_use(report, Phase.DECODE), usage.output_tokens)

    def _credit(self, use: PhaseUse | None, tokens: int) -> None:
        if use is not None:
            self._to.backend_tokens.add(tokens, self._names.backend(use), use.kind, use.phase)

    def _check_prediction(self, report: Report, policy: str, prediction: Prediction) -> None:
        name, times = self._names.policy(policy), report.times
        if times.ttft_s is not None and prediction.ttft_s > 0:
            self._to.prediction.observe(times.ttft_s / prediction.ttft_s, name, "ttft")
        if prediction.e2e_s > 0:
            self._to.prediction.observe(times.e2e_s / prediction.e2e_s, name, "e2e")

    def _judge(self, report: Report, now: Seconds) -> None:
        workload = self._names.workload_class(report.request.workload_class)
        met = objectives_met(report, now)
        for objective, kept in met.items():
            self._to.slo.add(kept, workload, objective, "true")
            self._to.slo.add(not kept, workload, objective, "false")
        self._to.goodput.add(float(met["all"]), workload)
