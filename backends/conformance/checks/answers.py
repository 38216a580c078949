"""Equal requests, equal answers: alone, in company, and split. Asked only of workers that promise it."""

from __future__ import annotations

from typing import Final

from polyphase.v1 import inference_pb2

from backends.conformance import commands
from backends.conformance.bench import PROMPT, Bench, Need, Way
from backends.conformance.check import Check
from backends.conformance.verdicts import GUIDE, NotCheckedError, expect

ANSWER: Final = 24
COMPANY: Final = 6
SAME: Final = f"{GUIDE}, Checks"


async def greedy(bench: Bench) -> str:
    """Temperature 0."""
    return await _same(bench, bench.request(ANSWER))


async def seeded(bench: Bench) -> str:
    """Draws with a seed, and with another one."""
    made = bench.request(ANSWER)
    made.sampling.temperature = 0.9
    made.sampling.seed = 7
    evidence = await _same(bench, made)
    other = inference_pb2.GenerateRequest()
    other.CopyFrom(made)
    other.sampling.seed = 8
    _, first = await bench.answered(made, bench.ways[0])
    _, second = await bench.answered(other, bench.ways[0])
    return f"{evidence}; another seed gave {'the same' if first == second else 'another'} answer"


async def _same(bench: Bench, made: inference_pb2.GenerateRequest) -> str:
    if not bench.ways:
        raise NotCheckedError(f"it takes {Need.HERE}, or {Need.SPLIT}")
    answers = {
        f"{way}, {time}": (await bench.answered(made, way))[1] for way in bench.ways for time in (1, 2)
    }
    if Way.HERE in bench.ways:
        answers["in company"] = await _in_company(bench, made)
    first = next(iter(answers.values()))
    other = [name for name, answer in answers.items() if answer != first]
    expect(not other, f"the answer of {next(iter(answers))} differs from that of {', '.join(other)}")
    return f"{len(first)} tokens, the same {len(answers)} times: {', '.join(answers)}"


async def _in_company(bench: Bench, made: inference_pb2.GenerateRequest) -> tuple[int, ...]:
    async with bench.lane(bench.here) as lane:
        crowd = [
            commands.prefill(seq, bench.request(ANSWER, PROMPT + 7 * seq), decode_here=True)
            for seq in range(2, 2 + COMPANY)
        ]
        await lane.send(*crowd, commands.prefill(1, made, decode_here=True))
        await lane.decode_done(1)
        return lane.sequences[1].answer


CHECKS: Final = (
    Check("answer.greedy", "Greedy answers are the same every time", SAME, greedy, (Need.SAME,)),
    Check("answer.seeded", "The same seed draws the same answer", SAME, seeded, (Need.SAME,)),
)
