"""Profiles: the shipped ones hold together, and a wrong one says what is wrong."""

import re
from dataclasses import replace

import pytest

from backends.catalogue import load_profile, profile_names
from backends.models.latency import StepModel
from backends.models.profile import Trust, parse_profile
from router.errors import ConfigError
from router.model import BackendKind, Phase

GOOD = """
[provenance]
source = "a page"
date = "2026"
trust = "B"
fit_error = "2 %"
valid_range = "batch 1"

[backend]
kind = "gpu"
device = "D"
models = ["m"]
phases = ["prefill", "decode"]
kv_bytes_per_token = 1000
kv_capacity_tokens = 100
kv_layout = "x"
usd_per_hour = 1

[step]
base_s = 0.01
"""


def test_a_minimal_profile_gets_the_defaults_of_the_model() -> None:
    """What is not said is as in router/model.py."""
    profile = parse_profile(GOOD, "p")
    assert profile.spec.id == profile.spec.profile == "p"
    assert profile.spec.kind is BackendKind.GPU
    assert (profile.spec.block_tokens, profile.spec.max_num_seqs) == (16, 256)
    assert profile.spec.step.base_s == 0.01
    assert profile.provenance.trust is Trust.REPORTED
    assert profile.backend("b-1") == replace(profile.spec, id="b-1")


def test_an_overlay_replaces_field_by_field() -> None:
    """The other fields of the same table stay."""
    profile = parse_profile(GOOD, "p", {"backend": {"phases": ["decode"]}, "step": {"noise_sigma": 0.1}})
    assert profile.spec.phases == {Phase.DECODE}
    assert (profile.spec.step.base_s, profile.spec.step.noise_sigma) == (0.01, 0.1)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("base_s = 0.01", "base = 0.01", "'base'.*'base_s'"),
        ("base_s = 0.01", "", "'base_s' is missing"),
        ("base_s = 0.01", "base_s = -1", "'base_s' is -1.*at least 0"),
        ("base_s = 0.01", "base_s = inf", "'base_s' is inf.*finite"),
        ("base_s = 0.01", "base_s = nan", "'base_s' is nan"),
        ("base_s = 0.01", "base_s = true", "'base_s' is True"),
        ("base_s = 0.01", 'base_s = "6.4 ms"', "'base_s' is '6.4 ms'.*a number"),
        ("base_s = 0.01", "base_s = 0.01\nprefil_floor_s = 1", "'prefil_floor_s'.*'prefill_floor_s'"),
        ('kind = "gpu"', 'kind = "gpx"', "'kind' is 'gpx'.*one of gpu, lpu"),
        ('kind = "gpu"', "", "'kind' is missing"),
        ('models = ["m"]', "models = []", "'models' is empty"),
        ('models = ["m"]', 'models = "m"', "'models' is 'm'.*list of strings"),
        ('phases = ["prefill", "decode"]', 'phases = ["decoding"]', "'phases'.*list of prefill, decode"),
        ("kv_capacity_tokens = 100", "kv_capacity_tokens = 1.5", "'kv_capacity_tokens' is 1.5.*whole"),
        ("kv_capacity_tokens = 100", "kv_capacity_tokens = 10", "kv_capacity_tokens must hold"),
        ("kv_capacity_tokens = 100", "kv_capacity_tokens = 100\nmax_num_seqs = 9000", "max_num_seqs"),
        ('trust = "B"', 'trust = "D"', "'trust' is 'D'"),
        ('source = "a page"', 'source = ""', "'source' is ''"),
        ("[provenance]", "[provenence]", "'provenence'.*'provenance'"),
        ("[step]", "[step", "not TOML"),
        ("[step]", "[link]\nbandwidth_bytes_per_s = 0\n[step]", "bandwidth_bytes_per_s"),
        ("[step]", "[power]\nidle_w = 9\ncap_w = 3\n[step]", "idle_w is above"),
        ("[step]", "[connector]\nfirst_token_from_prefill = 1\n[step]", "true or false"),
    ],
)
def test_a_wrong_profile_names_the_field(old: str, new: str, words: str) -> None:
    """The message says which field of which profile, what it is and what it must be."""
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse_profile(GOOD.replace(old, new), "p")
    assert re.search(words, caught.value.message, re.DOTALL), caught.value.message


@pytest.mark.parametrize("name", profile_names())
def test_shipped_profiles_say_where_they_come_from(name: str) -> None:
    """Source, date, trust, error and range are required by the parser; assumptions are never absent."""
    profile = load_profile(name)
    assert profile.provenance.assumptions
    assert profile.spec.connector.first_token_from_prefill is (profile.spec.kind in {"gpu", "tpu"})
    assert profile.spec.step.noise_sigma > 0


@pytest.mark.parametrize(
    ("name", "batch", "context", "decode_ms", "prompt", "prefill_ms"),
    [
        ("h100-llama-3.1-8b", 64, 64_000, 9.820, 1155, 25.16),
        ("b200-llama-3.1-8b", 64, 64_000, 4.868, 1155, 13.56),
        ("tpu-v6e-llama-3.1-8b", 8, 8_000, 15.097, 1155, 31.81),
        ("groq-v1-llama-3.1-8b", 32, 32_000, 1.280, 0, 0.0),
        ("xdna2-llama-3.1-8b", 1, 1_000, 132.36, 100, 200.0),
        ("xdna2-llama-3.2-1b", 1, 8_192, 34.08, 0, 0.0),
        # 2.12 + 5.7 (1 - exp(-8 / 13)) + 0.055 x 8 + 0.0053 x 8.192; 7 + 13.4 x 2.048 + 0.406 x 2.048^2 / 2
        ("b200-gpt-oss-120b", 8, 8192, 5.22296, 2048, 35.2946),
    ],
)
def test_shipped_profiles_give_the_anchors(
    name: str, batch: int, context: int, decode_ms: float, prompt: int, prefill_ms: float
) -> None:
    """Step times worked by hand from the published coefficients, in ms."""
    model = StepModel(load_profile(name).spec.step)
    assert 1e3 * model.decode_step_s(batch, context) == pytest.approx(decode_ms, rel=1e-3)
    assert 1e3 * model.prefill_s(prompt) == pytest.approx(prefill_ms, rel=1e-3)


def test_xdna2_reproduces_its_published_speeds() -> None:
    """7.6 to 2.0 tokens/s at 1k to 128k tokens of context, as documented, within 4 %."""
    model = StepModel(load_profile("xdna2-llama-3.1-8b").spec.step)
    published = {1024: 7.6, 4096: 7.1, 16_384: 5.7, 65_536: 3.1, 131_072: 2.0}
    for context, speed in published.items():
        assert 1.0 / model.decode_step_s(1, context) == pytest.approx(speed, rel=0.04)


def test_kv_can_go_from_gpus_and_the_tpu_to_the_lpu_and_between_them() -> None:
    """The assumption on which a mixed fleet splits requests; the NPU's 4-bit weights are left out."""
    specs = {name: load_profile(name).spec for name in profile_names()}
    h100, b200 = specs["h100-llama-3.1-8b"], specs["b200-llama-3.1-8b"]
    tpu, lpu, npu = (specs[f"{one}-llama-3.1-8b"] for one in ("tpu-v6e", "groq-v1", "xdna2"))
    for consumer in (h100, b200, tpu, lpu):
        assert all(consumer.accepts_kv_of(producer) for producer in (h100, b200, tpu))
        assert not consumer.accepts_kv_of(npu)
        assert not npu.accepts_kv_of(consumer)


def test_kv_room_follows_from_memory_and_weights() -> None:
    """(0.9 x memory - weights - 3.5 GB) / bytes a token, to 1 %."""
    for name, gigabytes in (("h100", 80), ("b200", 180), ("tpu-v6e", 32)):
        spec = load_profile(f"{name}-llama-3.1-8b").spec
        room = (0.9 * gigabytes - 16.06 - 3.5) * 1e9 / 131_072
        assert spec.kv_capacity_tokens == pytest.approx(room, rel=0.01)
