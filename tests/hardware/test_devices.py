"""The device catalogue: complete, and honest about every figure."""

from __future__ import annotations

import re

import pytest

from backends.hardware import DEVICES, device_names, load_device
from backends.models.device import parse_device
from backends.models.efficiency import FAMILIES
from backends.models.profile import Trust
from backends.models.shape import Dtype
from router.errors import ConfigError
from router.model import BackendKind, ModelBinding, Phase, SchedulerKind

REQUIRED = (
    "a100", "h100", "h200", "b200", "gb200-nvl72", "vr-nvl72", "mi300x", "l40s", "rtx-pro-6000", "rtx-4090",
    "tpu-v5e", "tpu-v5p", "tpu-v6e", "ironwood", "trainium2", "inferentia2", "groq-v1", "groq-lpx", "wse-3",
    "xdna2", "intel-npu", "hexagon", "apple-ane", "llama-asic",
)  # fmt: skip
GOOD = (DEVICES / "h100.toml").read_text()


def test_the_field_is_covered() -> None:
    """GPUs, LPUs, TPUs, NPUs and ASICs."""
    assert set(REQUIRED) <= set(device_names())
    kinds = {load_device(name).kind for name in device_names()}
    assert kinds == {BackendKind.GPU, BackendKind.LPU, BackendKind.TPU, BackendKind.NPU, BackendKind.ASIC}


@pytest.mark.parametrize("name", device_names())
def test_every_figure_has_a_grade_and_an_origin(name: str) -> None:
    """A source with a date, or an assumption with its reasoning; never neither, never both."""
    device = load_device(name)
    figures = dict(device.figures())
    assert len(figures) >= 23 + len(device.flops)
    for field, figure in figures.items():
        assert isinstance(figure.trust, Trust), field
        if figure.is_assumption:
            assert len(figure.why) > 10 and figure.trust is Trust.GUESSED, field
        else:
            assert (
                figure.source is not None and figure.source.title and re.match(r"20\d\d", figure.source.date)
            )
    for anchor in device.anchors:
        assert anchor.times and anchor.source.title


@pytest.mark.parametrize("name", device_names())
def test_figures_are_plausible(name: str) -> None:
    """Units slip by factors of a thousand; these bounds would show it."""
    device = load_device(name)
    assert 1e8 < device.memory_bytes.value < 1e12
    assert 1e11 <= device.bandwidth_bytes_per_s.value < 1e17
    assert all(1e13 <= figure.value < 1e18 for figure in device.flops.values())
    assert 0 <= device.idle_w.value <= device.cap_w.value < 1e5
    assert 0.01 < device.usd_per_hour.value < 1000
    assert 0 < device.jitter_sigma.value <= 0.03
    assert device.efficiency.value in FAMILIES
    assert device.max_sequences.value <= device.max_batched_tokens.value


def test_kinds_bind_and_schedule_as_they_do() -> None:
    """GPUs load and batch; TPUs compile buckets; LPUs have slots; NPUs one stream; silicon is fixed."""
    traits = {name: load_device(name) for name in REQUIRED}
    assert traits["h100"].scheduler.value is SchedulerKind.CONTINUOUS
    assert traits["h100"].binding.value is ModelBinding.LOADABLE
    assert traits["tpu-v6e"].scheduler.value is SchedulerKind.BUCKETED
    assert traits["groq-v1"].scheduler.value is SchedulerKind.SLOTS
    assert traits["groq-v1"].binding.value is ModelBinding.COMPILED
    assert traits["xdna2"].scheduler.value is SchedulerKind.SINGLE
    assert traits["llama-asic"].binding.value is ModelBinding.FIXED
    assert traits["groq-lpx"].phases.value == {Phase.DECODE}


def test_what_was_not_found_is_an_assumption() -> None:
    """Power and price of an LPX rack, Ironwood's price, every TPU's power law."""
    lpx = load_device("groq-lpx")
    for figure in (lpx.cap_w, lpx.idle_w, lpx.usd_per_hour):
        assert figure.is_assumption and "not found" in figure.why
    assert load_device("ironwood").usd_per_hour.is_assumption
    assert load_device("tpu-v6e").joule_per_flop.is_assumption
    assert load_device("groq-v1").max_sequences.is_assumption


@pytest.mark.parametrize(
    ("name", "memory_gb", "bandwidth", "bf16_tflops"),
    [
        ("a100", 80, 2.039e12, 312),
        ("h100", 80, 3.35e12, 989),
        ("b200", 180, 7.7e12, 2250),
        ("tpu-v6e", 32, 1.64e12, 918),
    ],
)
def test_primary_specifications(name: str, memory_gb: float, bandwidth: float, bf16_tflops: float) -> None:
    """Figures that are beyond doubt."""
    device = load_device(name)
    assert device.memory_bytes.value == memory_gb * 1e9
    assert device.bandwidth_bytes_per_s.value == bandwidth
    assert device.flops[Dtype.BF16].value == bf16_tflops * 1e12
    assert device.bandwidth_bytes_per_s.trust is Trust.MEASURED


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "memory_bytes = { value = 8e10, trust",
            "memory_byte = { value = 8e10, trust",
            "'memory_byte'.*'memory_bytes'",
        ),
        (
            'memory_bytes = { value = 8e10, trust = "A", source = "aic" }',
            "",
            "memory_bytes is missing; add it, as an assum",
        ),
        (
            'value = 8e10, trust = "A", source = "aic"',
            'value = 8e10, trust = "A"',
            "memory_bytes.*'source' is missing",
        ),
        (
            'value = 8e10, trust = "A", source = "aic"',
            'value = 8e10, source = "aic"',
            "memory_bytes.*'trust' is missing",
        ),
        (
            'value = 8e10, trust = "A", source = "aic"',
            'value = 8e10, trust = "D", source = "aic"',
            "'trust' is 'D'",
        ),
        (
            'value = 8e10, trust = "A", source = "aic"',
            'value = 8e10, trust = "A", source = "x"',
            "no source 'x'; known",
        ),
        ('value = 8e10, trust = "A", source = "aic"', "value = 8e10, assumption = true", "'why' is missing"),
        (
            'value = 8e10, trust = "A", source = "aic"',
            'value = 8e10, assumption = true, why = "w", trust = "A"',
            "one or the",
        ),
        (
            'value = 8e10, trust = "A", source = "aic"',
            'value = "80 GB", trust = "A", source = "aic"',
            "'80 GB'.*a number",
        ),
        (
            'memory_bytes = { value = 8e10, trust = "A", source = "aic" }',
            "memory_bytes = 8e10",
            "must be a table",
        ),
        ('value = "continuous"', 'value = "contiguous"', "one of continuous"),
        ('value = "hopper"', 'value = "hoper"', "no efficiency family 'hoper'; known"),
        ("fp8 = {", "fp9 = {", "'fp9'.*'fp8'"),
        ('kind = "gpu"', 'kind = "gpx"', "'kind' is 'gpx'"),
        ("[figures]", "[figure]", "'figure'.*'figures'"),
        ("[sources]", "[sources", "not TOML"),
    ],
)
def test_a_wrong_device_file_names_the_figure(old: str, new: str, words: str) -> None:
    """Which figure, what it lacks, and what is known."""
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse_device(GOOD.replace(old, new), "d")
    assert re.search(words, caught.value.message, re.DOTALL), caught.value.message


def test_an_anchor_is_checked_too() -> None:
    """Its times are fields of the step model."""
    anchor = '[[anchors]]\nmodel = "m"\ntimes = { base = 1.0 }\ntrust = "A"\nsource = "aic"\n'
    with pytest.raises(ConfigError, match=r"\[\[anchors\]\] 1 times.*'base'.*'base_s'"):
        parse_device(f"{GOOD}\n{anchor}", "d")


def test_an_unknown_device_lists_the_known_ones() -> None:
    """By name only: no path leads out of the catalogue."""
    with pytest.raises(ConfigError, match=r"no device '\.\./shapes/x'; known are a100"):
        load_device("../shapes/x")
