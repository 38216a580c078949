"""The parts of the reference worker: sampling, scheduling, chunks of KV, configs and weights."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.models.hf_config import parse_config
from backends.models.shape import ModelShape
from backends.reference.attention import Part
from backends.reference.cache import FreeBlocks, KVCache
from backends.reference.config import parse_model, read_config
from backends.reference.model import Llama, rotations
from backends.reference.precision import Precision
from backends.reference.sampler import Sampling, choose, draw
from backends.reference.scheduler import Scheduler
from backends.reference.sequence import Job, Sequence
from backends.reference.transfer import Cells, Inflow, Manifest, identity, runs
from backends.reference.weights import load_weights, random_weights
from backends.shell.wire import RefusedCommandError
from router.errors import ConfigError
from router.model import Phase
from tests.reference.models import LLAMA3, SIZES, make_model, rows_alike

GREEDY = Sampling(0.0, 1.0, 0, 0, frozenset(), 0)
CPU = torch.device("cpu")


def shape(**changes: object) -> ModelShape:
    """Of the tiny model."""
    return parse_config({**SIZES, **changes}, "tiny")


# --- sampling --------------------------------------------------------------------------------------


def test_draws_have_the_chances_asked_for() -> None:
    """With temperature 1 tokens come as often as their softmax says."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    chances = torch.softmax(logits[0], -1).tolist()
    seen = Counter(choose(logits, [(replace(GREEDY, temperature=1.0), index)])[0] for index in range(4000))
    for token, chance in enumerate(chances):
        assert seen[token] / 4000 == pytest.approx(chance, abs=4 * math.sqrt(chance / 4000))


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (replace(GREEDY, temperature=50.0, top_k=2), {1, 2}),
        (replace(GREEDY, temperature=1.0, top_p=0.6), {2}),
        (replace(GREEDY, temperature=1.0, top_p=0.7), {1, 2}),
        (replace(GREEDY, temperature=1.0, top_p=1e-6), {2}),
        (replace(GREEDY, stop_ids=frozenset({2}), min_new_tokens=999), {1}),
        (replace(GREEDY, temperature=9.0, stop_ids=frozenset({2}), min_new_tokens=999), {0, 1, 3}),
    ],
)
def test_filters_keep_the_likeliest(sampling: Sampling, allowed: set[int]) -> None:
    """top_k, top_p and barred stop tokens leave exactly the tokens they should."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    assert {choose(logits, [(sampling, index)])[0] for index in range(300)} == allowed


def test_draws_depend_on_seed_and_index_alone() -> None:
    """A draw is a function of both, and spread over [0, 1)."""
    draws = [draw(seed, index) for seed in (0, (1 << 64) - 1) for index in range(500)]
    assert len(set(draws)) == 1000 and all(0.0 <= one < 1.0 for one in draws)
    assert sum(draws) / 1000 == pytest.approx(0.5, abs=0.05)


# --- scheduling ------------------------------------------------------------------------------------


def sequence(key: int, prompt: int, output: int) -> Sequence:
    """One that waits."""
    job = Job(tuple(range(prompt)), GREEDY, output)
    return Sequence(key, job, Phase.PREFILL, None, 0.0, list(job.prompt), prefill_to=prompt)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(7, 30),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_schedules_keep_their_limits_and_end(
    asked: list[tuple[int, int]], pages: int, slots: int, rng: random.Random
) -> None:
    """Whatever comes: no step exceeds its limits, no page has two owners, and everybody ends."""
    blocks = FreeBlocks(pages, 16)
    scheduler = Scheduler(blocks, slots, 32)
    left = [sequence(key, *one) for key, one in enumerate(asked)]
    ended: set[int] = set()
    for _ in range(5000):
        if left and rng.random() < 0.5:
            scheduler.add(left.pop(), from_peer=False)
        tasks = scheduler.plan(0.0)
        assert len(tasks) <= slots and sum(task.tokens for task in tasks) <= 32
        owned = [page for one in scheduler.sequences.values() for page in one.table]
        assert len(owned) == len(set(owned)) == blocks.used
        for task in tasks:
            one, chooses = task.sequence, task.chooses
            assert len(one.table) * 16 >= task.start + task.tokens
            one.computed += task.tokens
            if chooses:
                one.append(7)
            if one.finish is not None:
                scheduler.remove(one.key)
                ended.add(one.key)
        if len(ended) == len(asked):
            break
    assert len(ended) == len(asked) and blocks.used == 0


def test_pages_are_all_or_none() -> None:
    """A table that cannot have all its pages gets none of them."""
    blocks, table, other = FreeBlocks(4, 16), [], []
    assert blocks.extend(table, 33) and len(table) == 3
    assert not blocks.extend(other, 17) and other == [] and blocks.used == 3
    blocks.give_back(table)
    assert table == [] and blocks.used == 0


# --- KV on its way ---------------------------------------------------------------------------------


def cells_of(manifest: Manifest, seed: int = 0) -> list[Cells]:
    """Random KV, cut as it travels."""
    generator = torch.Generator().manual_seed(seed)
    size = (2, manifest.tokens, manifest.kv_heads, manifest.head_dim)
    layers = [
        torch.randn(size, generator=generator).to(manifest.precision.torch) for _ in range(manifest.layers)
    ]
    return [Cells(layer, start, layers[layer][:, start:end]) for layer, start, end in runs(manifest)]


@pytest.mark.parametrize("precision", list(Precision))
def test_kv_travels_bit_by_bit(precision: Precision) -> None:
    """What is unpacked is what was packed, in every precision, and then nothing is missing."""
    manifest = Manifest(precision, 4, 2, 32, 5000, (9,))
    sent = cells_of(manifest)
    assert len(sent) > 4
    inflow = Inflow(shape(), 5000)
    assert inflow.take(manifest.pack()) is None and inflow.manifest == manifest
    for one in sent:
        assert not inflow.complete
        got = inflow.take(one.pack())
        assert got is not None and (got.layer, got.start) == (one.layer, one.start)
        assert torch.equal(got.values, one.values)
    assert inflow.complete


def test_chunks_out_of_place_are_refused() -> None:
    """Twice, out of order, cut short, of another size, or without a manifest: never taken."""
    manifest = Manifest(Precision.FP32, 4, 2, 32, 40, ())
    chunks = [one.pack() for one in cells_of(manifest)]
    wrong = (chunks[1], chunks[0][:-4], chunks[0][:10], b"", manifest.pack(), b"PKV2" + chunks[0][4:])
    for bad in wrong:
        inflow = Inflow(shape(), 40)
        inflow.take(manifest.pack())
        with pytest.raises(RefusedCommandError):
            inflow.take(bad)
    with pytest.raises(RefusedCommandError):
        Inflow(shape(), 40).take(chunks[0])
    for other in (replace(manifest, tokens=41), replace(manifest, layers=3), replace(manifest, head_dim=64)):
        with pytest.raises(RefusedCommandError, match="announced"):
            Inflow(shape(), 40).take(other.pack())


def test_identity_tells_prompts_and_models_apart() -> None:
    """One token or one digit of the revision makes another KV."""
    assert identity("a", [1, 2]) == identity("a", [1, 2])
    assert len({identity("a", [1, 2]), identity("b", [1, 2]), identity("a", [2, 1]), identity("a", [1])}) == 4


# --- configs, weights, the forward pass ------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "gemma"}, "gemma"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"num_local_experts": 8, "num_experts_per_tok": 2}, "dense"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
    ],
)
def test_other_architectures_are_refused(change: dict[str, object], word: str) -> None:
    """What would be computed nearly right is not computed at all."""
    with pytest.raises(ConfigError, match=word):
        parse_model({**SIZES, **change}, "tiny", frozenset())


def test_weights_must_fit_their_config(tmp_path: Path) -> None:
    """Missing and misshapen tensors are named; shards are found by their index."""
    folder = make_model(tmp_path / "m", torch.bfloat16)
    whole = load_weights(folder, shape(), CPU, torch.bfloat16)
    with pytest.raises(ConfigError, match=r"layers\.4"):
        load_weights(folder, shape(num_hidden_layers=5), CPU, torch.bfloat16)
    with pytest.raises(ConfigError, match="belong together"):
        load_weights(folder, shape(intermediate_size=128), CPU, torch.bfloat16)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_weights(tmp_path, shape(), CPU, torch.bfloat16)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(_names(folder), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_weights(folder, shape(), CPU, torch.bfloat16).revision == whole.revision
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../y"}}')
    with pytest.raises(ConfigError, match="not beside it"):
        load_weights(folder, shape(), CPU, torch.bfloat16)


def _names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model-00001-of-00001.safetensors", framework="pt") as opened:
        return list(opened.keys())


def test_the_revision_is_the_models_and_not_the_precisions(tmp_path: Path) -> None:
    """Precisions share it, other weights do not; random weights have one of their own, by seed."""
    folder = make_model(tmp_path / "m", torch.float32)
    other = make_model(tmp_path / "o", torch.float32, seed=1)
    half, full = (
        load_weights(folder, shape(), CPU, one.torch).revision for one in (Precision.BF16, Precision.FP32)
    )
    assert half == full != load_weights(other, shape(), CPU, torch.float32).revision
    drawn = [random_weights(shape(), seed, CPU, torch.float32).revision for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("scaling", [None, LLAMA3])
def test_rotations_are_transformers(scaling: dict[str, object] | None) -> None:
    """Plain and scaled rotary embeddings, to the last bit."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig

    table = {**SIZES, **({} if scaling is None else {"rope_scaling": scaling})}
    theirs = llama.LlamaRotaryEmbedding(LlamaConfig(**table))
    cos, sin = theirs(torch.zeros(1), torch.arange(600)[None])
    mine = rotations(parse_model(table, "tiny", frozenset()), 600, CPU, torch.float32)
    assert torch.equal(mine[0], cos[0]) and torch.equal(mine[1], sin[0])


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_company_does_not_change_a_sequence(tmp_path: Path, precision: Precision) -> None:
    """A prompt in chunks beside others gives the logits it gives alone in one piece; in bf16 to the bit."""
    if precision is Precision.BF16 and not rows_alike(precision.torch):
        pytest.skip("matrix kernels here give a row other numbers in other batches")
    folder = make_model(tmp_path, precision.torch)
    config = read_config(folder)
    model = Llama(config, load_weights(folder, config.shape, CPU, precision.torch), 1024)
    rng = random.Random(2)
    prompts = [tuple(rng.randrange(3, 8192) for _ in range(length)) for length in (70, 300, 9)]
    tables = [tuple(range(place * 20, place * 20 + 20)) for place in range(3)]
    alone = KVCache(config.shape, 60, 16, CPU, precision.torch)
    crowd = KVCache(config.shape, 60, 16, CPU, precision.torch)
    with torch.inference_mode():
        wanted = [
            model.forward([Part(ids, 0, table, len(ids), True)], alone)[0]
            for ids, table in zip(prompts, tables, strict=True)
        ]
        done, got = [0, 0, 0], {}
        while len(got) < 3:
            parts, who = [], []
            for place, ids in enumerate(prompts):
                count = min(rng.choice((1, 5, 33)), len(ids) - done[place])
                if count:
                    start, done[place] = done[place], done[place] + count
                    ended = done[place] == len(ids)
                    parts.append(Part(ids[start : done[place]], start, tables[place], len(ids), ended))
                    who += [place] if ended else []
            got |= dict(zip(who, model.forward(parts, crowd), strict=True))
    for place in range(3):
        if precision is Precision.BF16:
            assert torch.equal(got[place], wanted[place])
        else:
            assert torch.allclose(got[place], wanted[place], atol=1e-4)


def test_decoding_together_is_decoding_alone(tmp_path: Path) -> None:
    """One call for all sequences that decode gives what a call for each gives, whatever lies beyond them."""
    config = read_config(make_model(tmp_path, torch.float32))
    weights = load_weights(tmp_path, config.shape, CPU, torch.float32)
    alone, together = (Llama(config, weights, 256, batched=batched) for batched in (False, True))
    tables = [tuple(range(place * 8, place * 8 + 8)) for place in range(4)]
    prompts = [(5,) * 3, (9, 8, 7) * 20, (11,), tuple(range(3, 50))]
    with torch.inference_mode():
        cache = KVCache(config.shape, 40, 16, CPU, torch.float32)
        cache.data.fill_(torch.nan)
        for ids, table in zip(prompts, tables, strict=True):
            alone.forward([Part(ids, 0, table, len(ids), False)], cache)
        steps = [
            Part((place + 3,), len(ids), table, len(ids), True)
            for place, (ids, table) in enumerate(zip(prompts, tables, strict=True))
        ]
        steps.insert(2, Part((4, 5), 0, (39,), 3, True))
        assert torch.allclose(together.forward(steps, cache), alone.forward(steps, cache), atol=1e-5)
