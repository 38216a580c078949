"""`polyphase hardware` and `polyphase profile`: what they print, and what they say when they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backends.catalogue import load_fleet, load_profile, profile_names
from backends.hardware import device_names
from router.cli.hardware import quantity, scaled
from router.cli.main import cli

CONFIG = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151_936,
}


def run(*arguments: str) -> Result:
    """The command, its output parted."""
    return CliRunner().invoke(cli, list(arguments))


def printed(*arguments: str) -> str:
    """The output of a command that works."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_catalogue_fits_eighty_columns() -> None:
    """One line a device; assumptions are marked, measurements are not."""
    lines = [line.rstrip() for line in printed("hardware", "ls").splitlines()]
    rows = {line.split()[0]: line for line in lines[1 : len(device_names()) + 1]}
    assert tuple(sorted(rows)) == device_names()
    assert max(map(len, [lines[0], *rows.values()])) <= 80
    assert rows["h100"].split() == [
        "h100",
        "gpu",
        "80GB",
        "3.35TB/s",
        "989T",
        "602W",
        "2.95",
        "continuous",
        "loadable",
    ]
    assert "~80kW" in rows["groq-lpx"] and "~307" in rows["groq-lpx"]
    assert "assumption" in " ".join(lines[-2:])


def test_the_catalogue_as_json_has_every_origin() -> None:
    """For machines: a grade and an origin for each figure."""
    devices = json.loads(printed("hardware", "ls", "--json"))
    assert [device["name"] for device in devices] == list(device_names())
    for device in devices:
        for figure in device["figures"].values():
            assert figure["trust"]
            assert figure["assumption"] is (figure["source"] is None)
            assert figure["source"] or figure["why"]


def test_one_device_with_all_its_figures() -> None:
    """Value, grade and where from; published speeds and notes below."""
    text = printed("hardware", "show", "groq-v1")
    for part in (
        "230MB",
        "TechPowerUp",
        "usd_per_hour",
        "assumption: cloud only",
        "llama-3.1-70b: base_s 3.6 ms",
    ):
        assert part in text
    shown = json.loads(printed("hardware", "show", "xdna2", "--json"))
    assert shown["figures"]["phases"]["value"] == ["decode", "prefill"]
    assert shown["anchors"][0]["times"]["base_s"] == 0.1294


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("memory_bytes", 80e9, "80GB"),
        ("bandwidth_bytes_per_s", 3.35e12, "3.35TB/s"),
        ("scale_out_latency_s", 0.4e-3, "400 µs"),
        ("joule_per_byte", 159e-12, "159 pJ/B"),
        ("joule_per_flop", 2.05e-12, "2.05 pJ/FLOP"),
        ("flops.bf16", 989e12, "989TFLOP/s"),
        ("usd_per_hour", 2.95, "2.95USD/h"),
        ("jitter_sigma", 0.02, "0.02"),
        ("scale_up_devices", 72, "72"),
        ("phases", frozenset({"decode", "prefill"}), "prefill+decode"),
    ],
)
def test_quantities_have_units(name: str, value: object, text: str) -> None:
    """By what a figure is called."""
    assert quantity(name, value) == text
    assert scaled(999.0) == "999"


def test_profiles_are_listed() -> None:
    """With device, model, grade and price."""
    text = printed("profile", "ls")
    assert all(name in text for name in profile_names())
    listed = json.loads(printed("profile", "ls", "--json"))
    assert [profile["name"] for profile in listed] == list(profile_names())
    assert all(profile["provenance"]["trust"] for profile in listed)


def test_a_profile_is_shown_with_its_predictions() -> None:
    """Inside its data there is nothing to remark."""
    text = printed(
        "profile", "show", "h100-llama-3.1-8b", "--batch", "64", "--context", "1000", "--prompt", "1155"
    )
    assert "9.82 ms" in text
    assert "25.2 ms" in text
    assert "Extrapolated" not in text
    assert "decode 2.2 % over 33 points" in text


def test_beyond_its_data_a_profile_says_so() -> None:
    """And where its KV has no room."""
    text = printed("profile", "show", "h100-llama-3.1-8b", "--batch", "600", "--context", "40000")
    assert "batch 600 lies outside the 1 to 512" in text
    assert "context 40,000 lies outside the 256 to 32,768" in text
    assert "does not fit (400,000 do)" in text
    shown = json.loads(printed("profile", "show", "groq-v1-llama-3.1-8b", "--json"))
    assert all("no data of any context" in row["note"] for row in shown["predictions"])
    assert shown["ranges"] == {}


def test_a_new_profile_serves_a_fleet(tmp_path: Path) -> None:
    """From a config.json to backends; the model is named after the folder of its config."""
    folder = tmp_path / "Own-MoE"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    target = tmp_path / "mine.toml"
    arguments = (
        "--device",
        "rtx-pro-6000",
        "--model",
        str(folder / "config.json"),
        "--tp",
        "2",
        "--dtype",
        "bf16",
    )
    said = printed("profile", "new", *arguments, "--out", str(target))
    assert "2 x NVIDIA RTX PRO 6000" in said and "Grade C" in said
    profile = load_profile(str(target))
    assert profile.name == "mine"
    assert profile.spec.models == ("own-moe",)
    assert profile.spec.count == 2
    assert profile.spec.kv_bytes_per_token == 98_304
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[[backend]]\nprofile = "mine.toml"\nid = "a"\n')
    assert load_fleet(fleet).backends[0].step == profile.spec.step
    assert "mine: 2 x NVIDIA" in printed("profile", "show", str(target))


def test_a_new_profile_goes_to_standard_output() -> None:
    """As text that can be redirected; the factors and their origin are in it."""
    text = printed("profile", "new", "--device", "h100", "--model", "llama-3.1-8b", "--name", "served")
    assert text.startswith("# 1 x NVIDIA H100")
    assert 'models = [\n  "served",\n]' in text
    assert "weights 0.9," in text and "fitted to 29 grids" in text and text.endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("hardware", "show", "h9000"), 78, "no device 'h9000'; known are a100"),
        (("profile", "show", "h9000"), 78, "no profile 'h9000'; known are b200"),
        (("profile", "show", "none.toml"), 78, "none.toml cannot be read"),
        (("profile", "new", "--device", "h9000", "--model", "x"), 2, "h9000"),
        (("profile", "new", "--device", "h100", "--model", "lama"), 78, "no model 'lama'"),
        (("profile", "new", "--device", "h100", "--model", "none.json"), 78, "none.json cannot be read"),
        (
            ("profile", "new", "--device", "xdna2", "--model", "llama-3.1-70b"),
            78,
            "does not fit 1 x AMD XDNA2",
        ),
        (("profile", "new", "--device", "h100", "--model", "llama-3.1-8b", "--tp", "16"), 78, "at most 8"),
        (("profile", "new", "--device", "h100", "--model", "llama-3.1-8b", "--dtype", "fp6"), 2, "fp6"),
    ],
)
def test_what_cannot_be_is_said_in_words(arguments: tuple[str, ...], code: int, words: str) -> None:
    """Cause and next step on standard error, and an exit code by kind; no traceback."""
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output
