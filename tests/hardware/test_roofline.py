"""The prior: terms worked by hand, shapes that cannot be, profiles that a fleet can use."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.catalogue import load_fleet
from backends.hardware import device_names, load_device, load_shape, shape_names
from backends.models.efficiency import ENGINES, FAMILIES
from backends.models.latency import StepModel
from backends.models.prior_text import profile_text
from backends.models.profile import Trust, parse_profile
from backends.models.roofline import Prior, prior, step_law
from backends.models.shape import Dtype, Experts, ModelShape
from router.errors import ConfigError

TRILLION = ModelShape(
    name="trillion", layers=61, hidden=7168, vocab=163_840, heads=64, kv_heads=8, head_dim=128,
    intermediate=18_432, native=Dtype.FP8,
    experts=Experts(total=384, active=8, intermediate=2048, layers=60, shared_intermediate=2048),
)  # fmt: skip


def worked(device: str, model: str, **how: Any) -> Prior:
    """A prior of shipped parts."""
    return prior(load_device(device), load_shape(model), **how)


def test_an_h100_with_8b_by_hand() -> None:
    """7.505e9 parameters are read at 0.90 of 3.35 TB/s, and so on; kernels alone."""
    step = worked("h100", "llama-3.1-8b", count=1, engine="kernels").step
    read = 2 * (8_030_261_248 - 128_256 * 4096)
    body = 2 * (32 * (2 * 4096 * 128 * 40 + 3 * 4096 * 14_336))
    assert step.base_s == pytest.approx(32 * 40e-6 + read / (0.90 * 3.35e12))
    assert step.per_context_token_s == pytest.approx(131_072 / (0.945 * 3.35e12))
    assert step.per_sequence_s == pytest.approx(0.85 * (body + 2 * 128_256 * 4096) / 989e12)
    assert step.per_prefill_token_s == pytest.approx(body / (0.735 * 989e12))
    assert step.per_attention_pair_s == pytest.approx(4 * 32 * 128 * 32 / (0.67 * 989e12))
    assert step.prefill_base_s == pytest.approx(32 * 82e-6)
    assert step.prefill_floor_s == pytest.approx(read / (0.90 * 3.35e12))
    assert step.saturating_s == 0.0
    assert step.noise_sigma == 0.02


def test_two_cards_on_pcie_by_hand() -> None:
    """128 all-reduces a step; each token moves 10 KB in every one, at 0.62 of 64 GB/s."""
    one = step_law(load_device("rtx-pro-6000"), load_shape("qwen3-32b"), 1, Dtype.BF16, Dtype.BF16, "kernels")
    two = step_law(load_device("rtx-pro-6000"), load_shape("qwen3-32b"), 2, Dtype.BF16, Dtype.BF16, "kernels")
    starts, token = 128 * 6.4e-6, 128 * 5120 * 2 / (0.62 * 64e9)
    sweep = one.prefill_floor_s
    assert two.base_s == pytest.approx(one.base_s - sweep / 2 + starts)
    assert two.per_prefill_token_s == pytest.approx(one.per_prefill_token_s / 2 + token)
    assert two.per_sequence_s == pytest.approx(one.per_sequence_s / 2 + token)
    assert two.per_context_token_s == pytest.approx(one.per_context_token_s / 2)


def test_a_mixture_of_experts_saturates_at_its_experts() -> None:
    """60.9 GB of experts at the full bandwidth; 63 % are hit by 1.09 x 128 / 4 tokens; no floor in "
    "prefill."""
    step = worked("h100", "gpt-oss-120b", count=1, engine="kernels").step
    experts = 36 * 128 * 3 * 2880 * 2880 * 0.53125
    assert step.saturating_s == pytest.approx(experts / 3.35e12)
    assert step.saturation_tokens == pytest.approx(1.09 * 32)
    assert step.prefill_floor_s == 0.0
    assert step.prefill_base_s > step.saturating_s


def test_the_engine_adds_what_its_runs_showed() -> None:
    """vLLM: half a millisecond a step, 10 us a sequence, 13 % a prompt token; 45 us an all-reduce on PCIe."""
    plain, vllm = (
        worked("rtx-pro-6000", "llama-3.1-8b", count=1, engine=one).step for one in ("kernels", "vllm")
    )
    assert vllm.base_s - plain.base_s == pytest.approx(0.5e-3)
    assert vllm.per_sequence_s - plain.per_sequence_s == pytest.approx(10e-6)
    assert vllm.per_prefill_token_s / plain.per_prefill_token_s == pytest.approx(1.13)
    plain, vllm = (
        worked("rtx-pro-6000", "qwen3-32b", count=2, engine=one).step for one in ("kernels", "vllm")
    )
    assert vllm.base_s - plain.base_s == pytest.approx(0.5e-3 + 128 * 45e-6)
    assert worked("h100", "llama-3.1-8b").engine == "vllm"
    assert worked("tpu-v6e", "llama-3.1-8b").engine == "native"


@pytest.mark.parametrize(
    ("device", "model", "dtype", "base_ms"),
    [
        ("groq-v1", "llama-3.1-70b", "int8", 3.6),
        ("wse-3", "gpt-oss-120b", "bf16", 0.59),
        ("xdna2", "llama-3.2-3b", "int4", 59.8),
        ("intel-npu", "llama-3.1-8b", "int4", 163.0),
        ("llama-asic", "llama-3.1-8b", "bf16", 0.0335),
        ("tpu-v6e", "llama-3.1-8b", "bf16", 12.3),
        ("mi300x", "llama-3.1-70b", "fp8", 22.0),
    ],
)
def test_published_times_take_the_place_of_the_law(
    device: str, model: str, dtype: str, base_ms: float
) -> None:
    """And the profile has their grade and names them as its source."""
    found = worked(device, model, dtype=Dtype(dtype))
    assert found.anchor is not None
    assert found.step.base_s * 1e3 == pytest.approx(base_ms)
    profile = parse_profile(profile_text(found, "2026-01-01"), "p")
    assert profile.provenance.trust is found.anchor.trust
    assert found.anchor.source.title in profile.provenance.source


@pytest.mark.parametrize(
    ("device", "model", "dtype", "tolerance"),
    [
        ("xdna2", "llama-3.1-8b", "int4", 0.10),
        ("xdna2", "llama-3.2-3b", "int4", 0.20),
        ("tpu-v6e", "llama-3.1-8b", "bf16", 0.10),
        ("groq-v1", "llama-3.1-8b", "bf16", 0.15),
        ("groq-v1", "llama-3.1-70b", "int8", 0.05),
        ("wse-3", "llama-3.1-8b", "bf16", 0.05),
        ("apple-ane", "llama-3.1-8b", "int4", 0.05),
        ("hexagon", "llama-3.1-8b", "int4", 0.05),
        ("intel-npu", "llama-3.1-8b", "int4", 0.05),
    ],
)
def test_the_law_is_near_what_was_published(device: str, model: str, dtype: str, tolerance: float) -> None:
    """Without its anchors: the families' factors are not at odds with the speeds they were worked from."""
    found = worked(device, model, dtype=Dtype(dtype))
    bare = step_law(found.device, found.shape, found.count, found.dtype, found.kv_dtype, found.engine)
    assert bare.base_s == pytest.approx(found.step.base_s, rel=tolerance)


def test_a_static_schedule_hardly_depends_on_its_load() -> None:
    """Full slots and long contexts cost below a hundredth of a step."""
    law = StepModel(worked("groq-v1", "llama-3.1-8b").step)
    assert law.decode_step_s(32, 32 * 1024) < 1.01 * law.decode_step_s(1, 1)


def test_kv_room_and_copies() -> None:
    """(0.9 x 80 - 3.5) GB x 8 - weights; 8 KV heads over 16 devices are copied, MLA's vector always."""
    eight = worked("h100", "llama-3.1-70b", count=8)
    assert eight.room.capacity_tokens == int(((0.9 * 80e9 - 3.5e9) * 8 - eight.room.weight_bytes) / 327_680)
    rack = load_device("gb200-nvl72")
    sixteen = prior(rack, load_shape("llama-3.1-70b"), count=16)
    free = (0.9 * 186e9 - 3.5e9) * 16 - sixteen.room.weight_bytes
    assert sixteen.room.capacity_tokens == int(free / (2 * 327_680))
    latent = prior(rack, load_shape("deepseek-r1"), count=16)
    free = (0.9 * 186e9 - 3.5e9) * 16 - latent.room.weight_bytes
    assert latent.room.capacity_tokens == int(free / (16 * 35_136))


def test_without_a_count_the_fewest_devices_are_taken() -> None:
    """One for 8B; four H100 for 70B in bf16; a pipeline takes any number."""
    assert worked("h100", "llama-3.1-8b").count == 1
    assert worked("h100", "llama-3.1-70b").count == 4
    assert worked("groq-v1", "llama-3.1-8b").count == 79


@pytest.mark.parametrize(
    ("device", "model", "how", "words"),
    [
        (
            "xdna2",
            "llama-3.1-70b",
            {},
            "70b in int4 does not fit 1 x AMD XDNA2.*39.7 GB.*14.4 GB.*larger device",
        ),
        ("h100", "llama-3.1-70b", {"count": 1}, "141.1 GB.*4 would hold it in bf16"),
        ("h100", "deepseek-r1", {"count": 8}, "672.9 GB.*548.0 GB are there. 8 would hold it in int4"),
        (
            "rtx-4090",
            "llama-3.1-405b",
            {},
            "No more than 4 can be joined, and even in mxfp4 it would take 12",
        ),
        ("h100", "llama-3.1-8b", {"count": 16}, "16 x NVIDIA H100.*nvlink joins at most 8.*replicas"),
        ("h100", "llama-3.1-8b", {"count": 3}, "32 attention heads, which 3 devices.*one of 1, 2, 4, 8"),
        (
            "a100",
            "llama-3.1-8b",
            {"dtype": Dtype.FP8},
            "does not compute in fp8.*supports bf16, mxfp4, int4.*--dtype",
        ),
        ("h100", "llama-3.1-8b", {"kv_dtype": Dtype.NVFP4}, "cache in nvfp4 is not modelled; choose bf16"),
        (
            "llama-asic",
            "qwen3-32b",
            {},
            "wired for llama-3.1-8b in bf16 and can serve nothing else.*hardware ls",
        ),
        (
            "llama-asic",
            "llama-3.1-8b",
            {"dtype": Dtype.BF16, "count": 2},
            "2 x Llama-3.1-8B in silicon.*it works alone.*replicas",
        ),
        ("h100", "llama-3.1-8b", {"engine": "sglang"}, "engine 'sglang'.*known are kernels, vllm, trtllm"),
        ("tpu-v6e", "llama-3.1-8b", {"engine": "vllm"}, "engine 'vllm' on tpu-v6e; known are native"),
        ("inferentia2", "qwen3-235b-a22b", {"dtype": Dtype.INT8}, "8 of them sharing its heads evenly"),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out(
    device: str, model: str, how: dict[str, Any], words: str
) -> None:
    """What does not fit, by how much, and what would do."""
    with pytest.raises(ConfigError) as caught:
        worked(device, model, **how)
    assert re.search(words, caught.value.message, re.DOTALL), caught.value.message


def test_a_trillion_parameters_do_not_fit_one_lpx_rack() -> None:
    """128 GB of SRAM against a terabyte of weights; about nine racks would do, eight can be joined."""
    assert TRILLION.parameters == pytest.approx(1.03e12, rel=0.01)
    with pytest.raises(
        ConfigError, match=r"1,0\d\d\.\d billion parameters take 1,0\d\d\.\d GB.*115\.2 GB are there"
    ):
        prior(load_device("groq-lpx"), TRILLION, count=1)


@pytest.mark.parametrize("name", device_names())
def test_every_device_gives_profiles_that_parse(name: str) -> None:
    """For every model that fits, in every format; the text says all that a profile must."""
    device = load_device(name)
    made = 0
    for model in shape_names():
        for dtype in device.flops:
            try:
                found = prior(device, load_shape(model), dtype=Dtype(dtype))
            except ConfigError:
                continue
            profile = parse_profile(profile_text(found, "2026-01-01"), "p")
            made += 1
            step = profile.spec.step
            assert step.base_s == pytest.approx(found.step.base_s, rel=1e-5)
            assert profile.spec.kv_capacity_tokens == found.room.capacity_tokens
            assert profile.spec.usd_per_hour == pytest.approx(found.usd_per_hour, rel=1e-5)
            assert any("family" in one for one in profile.provenance.assumptions)
            assert any(one.startswith("factors: weights") for one in profile.provenance.notes)
            if found.anchor is None:
                assert profile.provenance.trust is Trust.GUESSED
    assert made > 0


def test_more_devices_decode_faster_and_hold_more() -> None:
    """Over NVLink, for every power of two."""
    priors = [worked("h100", "llama-3.1-70b", count=n, dtype=Dtype.FP8) for n in (2, 4, 8)]
    steps = [StepModel(one.step).decode_step_s(16, 16 * 2048) for one in priors]
    assert steps == sorted(steps, reverse=True)
    rooms = [one.room.capacity_tokens for one in priors]
    assert rooms == sorted(rooms)


def test_power_counts_all_devices_and_the_experts_that_are_hit() -> None:
    """Idle and cap add up; 32 sequences hit 1 - (1 - 4 / 128)^32 of the experts."""
    one, four = (worked("h100", "gpt-oss-120b", count=n) for n in (1, 4))
    assert four.power.idle_w == 4 * one.power.idle_w
    assert four.power.cap_w == 4 * one.power.cap_w
    shape = one.shape
    hit = 1 - (1 - 4 / 128) ** 32
    expected = shape.dense_read_bytes(Dtype.MXFP4) + hit * shape.expert_bytes(Dtype.MXFP4)
    assert one.power.weight_bytes == pytest.approx(expected)


def test_families_and_engines_say_where_their_factors_come_from() -> None:
    """Only families with grids have an error; shares of peaks are shares."""
    for name, family in FAMILIES.items():
        assert len(family.origin) > 30, name
        assert 0 < family.weights <= 1 and 0 < family.kv <= 1 and 0 < family.matmul <= 1
        assert (family.decode_error is None) == (family.trust is not Trust.COMPOSED), name
    assert all(len(engine.origin) > 30 for engine in ENGINES.values())


def test_a_fleet_runs_on_a_profile_that_was_worked_out(tmp_path: Path) -> None:
    """Named by its file, beside the fleet's; overrides apply as to shipped ones."""
    text = profile_text(worked("l40s", "llama-3.1-8b"), "2026-01-01")
    (tmp_path / "mine.toml").write_text(text)
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[[backend]]\nprofile = "mine.toml"\nid = "a"\nreplicas = 2\nzone = "z"\n')
    first, second = load_fleet(fleet).backends
    assert (first.id, second.id, first.zone, first.profile) == ("a-0", "a-1", "z", "mine")
    assert first.device == "NVIDIA L40S"
    assert replace(first, id="") == replace(second, id="")
