"""The probability that the tokens of one answer come unevenly: p99 over p50 of their gaps above a ratio.

    noise      every step varies; the largest of n is about exp(2.5 sigma) times the median, and a step stalls
               with the backend's stall probability
    prefill    a prefill beside the decode makes one gap longer by its time; how often one came there of late
               says how many come while this answer lasts (Poisson)
    handoff    after a first token from prefill, the second comes after the transfer, the rest of a running
               step and a step of its own

p99 of up to 100 gaps is their largest; of more, one in a hundred may be larger. A static pipeline takes
prompts beside its decodes without a longer step. Where more than half of the steps have a prefill in them,
the median has it too, and nothing is uneven. Approximations, each to the safe side but the last.
"""

from __future__ import annotations

import math
from typing import Final

from policies.standing import Standing
from router.model import SchedulerKind, Seconds

EXTREME: Final = 2.5
"""Standard deviations of the largest of about a hundred normal draws."""
ALLOWED: Final = 0.01
"""Share of the gaps that p99 leaves out."""


def uneven(
    s: Standing,
    ratio: float,
    step_s: Seconds,
    tokens: int,
    prefills_per_s: float,
    prefill_s: Seconds,
    handoff_s: Seconds | None = None,
) -> float:
    """Probability in [0, 1] that an answer of `tokens` breaks the ratio on a backend.

    `prefills_per_s` prefills of `prefill_s` each are expected beside it; `handoff_s` None: no handoff, or the
    first token comes after it.
    """
    step = s.spec.step
    if not 0 < step_s < math.inf or math.exp(EXTREME * step.noise_sigma) > ratio:
        return 1.0
    spare = int(ALLOWED * tokens)
    smooth = 1.0
    if handoff_s is not None and not spare:
        # The rest of the running step is uniform between nothing and a step.
        smooth = min(1.0, max(0.0, ratio - 1.0 - handoff_s / step_s))
    longer = step.stall_probability * tokens
    if s.spec.scheduler is not SchedulerKind.SLOTS and prefill_s > (ratio - 1.0) * step_s:
        beside = prefills_per_s * tokens * step_s
        longer += beside if beside < 0.5 * tokens else 0.0
    return 1.0 - smooth * _at_most(spare, longer)


def _at_most(spare: int, mean: float) -> float:
    """Probability that a Poisson variable is no larger than `spare`."""
    if mean > 700.0:
        return 0.0
    term = whole = math.exp(-mean)
    for k in range(1, spare + 1):
        term *= mean / k
        whole += term
    return min(1.0, whole)
