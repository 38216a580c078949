"""A worker's counters never go back, however late its driver is."""

import random

from backends.models.messages import RunPrefill, Stop
from backends.models.worker import WorkerMachine
from router.model import BackendKind, BackendSpec, Phase, StepParameters

GROWING = (
    *("busy_prefill_s", "busy_decode_s", "energy_j", "steps", "decode_sequences"),
    *("context_tokens", "prefill_tokens", "attention_pairs"),
)
SPEC = BackendSpec(
    id="w",
    kind=BackendKind.GPU,
    device="test",
    models=("m",),
    phases=frozenset(Phase),
    step=StepParameters(base_s=4e-3, prefill_base_s=4e-3, per_prefill_token_s=1e-4),
    kv_capacity_tokens=100_000,
    max_num_seqs=32,
    max_num_batched_tokens=64,
)


def story(seed: int) -> None:
    """Starts, stops and looks at random times; half the looks come before the machine was told the time."""
    rng = random.Random(seed)
    machine = WorkerMachine(SPEC, "boot", random.Random(0), 0.0)
    now, live, last = 0.0, list[int](), machine.snapshot(0.0)
    for key in range(200):
        now += rng.choice([0.0005, 0.004, 0.02, 0.1]) * rng.random()
        match rng.randrange(8):
            case 0:
                live.append(key)
                prompt, answer = rng.randrange(1, 300), rng.randrange(1, 60)
                here = rng.random() < 0.7
                machine.handle(RunPrefill(key, f"r{key}", 1, prompt, (), answer, True, here, key), now)
            case 1 if live:
                machine.handle(Stop(live.pop(rng.randrange(len(live)))), now)
            case 2 | 3:
                machine.advance(now)
            case _:
                pass
        seen = machine.snapshot(now)
        for name in GROWING:
            assert getattr(seen, name) >= getattr(last, name) - 1e-9, (seed, key, name)
        last = seen


def test_counters_grow() -> None:
    """A step that is over counts from its end on, booked or not."""
    for seed in range(40):
        story(seed)
