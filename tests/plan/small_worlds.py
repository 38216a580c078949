"""Random small fleets and bursts of requests, without noise, and what a policy makes of them."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from router.model import (
    AfdLaw,
    AfdParameters,
    BackendKind,
    BackendSpec,
    ConnectorFlags,
    LinkParameters,
    Phase,
    SchedulerKind,
    ServiceLevel,
    StepParameters,
)
from router.sim.classes import DrawnLengths, Renewal, SessionShape, Workload, WorkloadClass
from router.sim.draws import Fixed, Uniform

BOTH = frozenset(Phase)
MODEL = "m"


def random_specs(rng: Random) -> list[BackendSpec]:
    """One to four backends of one to three types; at least one offers both phases."""
    types = [_random_type(rng, number) for number in range(rng.randint(1, 3))]
    types[0] = replace(types[0], phases=BOTH)
    specs: list[BackendSpec] = []
    for number, kind in enumerate(types):
        specs += [replace(kind, id=f"t{number}-{i}") for i in range(rng.randint(1, 2))]
    return specs[:4]


def _random_type(rng: Random, number: int) -> BackendSpec:
    scheduler = rng.choice([SchedulerKind.CONTINUOUS] * 4 + list(SchedulerKind))
    slots = 1 if scheduler is SchedulerKind.SINGLE else rng.choice([1, 2, 4, 16, 64])
    phases = rng.choice([BOTH, BOTH, BOTH, frozenset({Phase.PREFILL}), frozenset({Phase.DECODE})])
    layout = f"layout-{rng.randint(0, 1)}"
    spec = BackendSpec(
        id=f"t{number}",
        kind=BackendKind.GPU,
        device="random",
        models=(MODEL,),
        phases=phases,
        step=_random_step(rng),
        scheduler=scheduler,
        max_num_seqs=slots,
        max_num_batched_tokens=rng.choice([64, 256, 2048]),
        kv_capacity_tokens=rng.choice([1500, 4000, 100_000]),
        kv_bytes_per_token=1000.0,
        kv_layout=layout,
        kv_accepts=rng.choice([(), ("layout-0", "layout-1")]),
        link=LinkParameters(1e-3, rng.choice([1e6, 1e9])),
        connector=ConnectorFlags(first_token_from_prefill=rng.random() < 0.5),
        async_scheduling=rng.random() < 0.3,
    )
    if scheduler is SchedulerKind.CONTINUOUS and rng.random() < 0.15:
        spec = replace(spec, afd=_random_afd(rng, spec.step))
    return spec


def _random_step(rng: Random) -> StepParameters:
    return StepParameters(
        base_s=rng.choice([1e-3, 5e-3, 20e-3]),
        per_sequence_s=rng.choice([0.0, 1e-5, 1e-3]),
        per_context_token_s=rng.choice([0.0, 1e-7, 5e-6]),
        saturating_s=rng.choice([0.0, 0.0, 10e-3]),
        saturation_tokens=rng.choice([1.0, 20.0]),
        prefill_base_s=rng.choice([0.0, 2e-3, 20e-3]),
        prefill_floor_s=rng.choice([0.0, 5e-3, 20e-3]),
        per_prefill_token_s=rng.choice([1e-6, 2e-5, 2e-4]),
        per_attention_pair_s=rng.choice([0.0, 1e-9, 1e-7]),
    )


def _random_afd(rng: Random, step: StepParameters) -> AfdParameters:
    return AfdParameters(
        layers=4,
        law=rng.choice(list(AfdLaw)),
        micro_batches=rng.choice([1, 2, 4]),
        attention_base_s=step.base_s / 10,
        attention_per_sequence_s=step.per_sequence_s / 10,
        attention_per_context_token_s=step.per_context_token_s / 4,
        ffn_base_s=step.base_s / 6,
        ffn_per_sequence_s=step.per_sequence_s / 8,
        hop_s=1e-5,
    )


def random_workload(rng: Random, most: int) -> Workload:
    """A burst of up to `most` requests with objectives that are often hard to keep."""
    classes = [_random_class(rng, number) for number in range(rng.randint(1, 2))]
    return Workload("burst", tuple(classes), requests=rng.randint(2, most))


def _random_class(rng: Random, number: int) -> WorkloadClass:
    prompt = rng.choice([Fixed(1.0), Uniform(10, 100), Uniform(100, 600), Fixed(500.0)])
    output = rng.choice([Fixed(1.0), Fixed(2.0), Uniform(1, 30), Uniform(20, 80)])
    shape = SessionShape(shared_prefix_tokens=rng.choice([0, 0, 64]))
    return WorkloadClass(
        f"c{number}",
        Renewal(rng.choice([5.0, 50.0, 1000.0])),
        DrawnLengths(prompt, output),
        MODEL,
        max_new_tokens=100,
        slo=ServiceLevel(rng.choice([None, 0.03, 0.1, 0.4]), rng.choice([None, 0.006, 0.015, 0.04])),
        deadline_s=rng.choice([0.2, 0.6, 3.0]),
        session=shape,
    )
