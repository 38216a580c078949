"""Engines in the configuration: what is accepted, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.engines.adapters import ADAPTERS
from backends.engines.opener import engine_opener
from backends.engines.settings import OpenAIOptions, VllmPairOptions, read_options
from router.cli.plug_ins import engines
from router.config import StaticBackend, load_config, parse_config
from router.errors import ConfigError
from router.live.assembly import no_engines

GOOD = """
[[backend]]
id = "e1"
engine = "vllm"
url = "https://10.0.0.7:8000/base/"
profile = "h100-llama-3.1-8b"
[backend.spec]
zone = "a"
[backend.spec.step]
base_s = 0.009
[backend.options]
model = "meta-llama/Llama-3.1-8B"
"""

MISTAKES = {
    "engine = 'vlm'\nurl = 'http://h'": ["no engine 'vlm'", "vllm-nixl"],
    "engine = 'vllm'\nurl = 'h:8000'": ["url"],
    "engine = 'vllm'\nurl = 'http://h:99999'": ["url"],
    "engine = 'vllm'\nurl = 'ftp://h'": ["url"],
    "engine = 'vllm'\nurl = 'http://h/?key=1'": ["url"],
    "engine = 'vllm'\nurl = 'http://me:word@h'": ["credential", "api_key_file"],
    "engine = 'vllm'\nurl = 'http://h'": ["spec.models"],
    "engine = 'vllm'\nurl = 'http://h'\nprofile = 'nothing'": ["no profile"],
    "engine = 'vllm'\nurl = 'http://h'\nspec = {models = ['m'], modles = 1}": ["did you mean 'models'"],
    "engine = 'vllm'\nurl = 'http://h'\nspec = {models = ['m']}\noptions = {stal_s = 1}": ["options.stal_s"],
    "engine = 'vllm'\nurl = 'http://h'\nspec = {models = ['m']}\noptions = {stall_s = -1}": [
        "options.stall_s",
        "greater than 0",
    ],
    "engine = 'vllm'\nurl = 'http://h'\nspec = {models = ['m']}\noptions = {pass_options = ['stream']}": [
        "stream"
    ],
    "engine = 'vllm'\nurl = 'http://h'\nspec = {models = ['m']}\noptions = {api_key_env = 'NO_SUCH'}": [
        "clear"
    ],
    "engine = 'vllm'\nurl = 'https://h'\nspec = {models = ['m']}\noptions = {api_key_env = 'NO_SUCH'}": [
        "$NO_SUCH",
        "no credential",
    ],
    "engine = 'vllm'\nurl = 'https://h'\nspec = {models = ['m']}\noptions = {api_key_file = '/no/file'}": [
        "/no/file",
        "No such file",
    ],
    "engine = 'llama.cpp'\nurl = 'http://h'\nspec = {models = ['m']}\noptions = {api = 'chat'}": [
        "options.api"
    ],
}


def _backend(text: str) -> StaticBackend:
    return parse_config(f"[[backend]]\nid = 'e1'\n{text}").backend[0]


def test_a_good_one() -> None:
    """The spec is the profile's, with what differs; the address has no slash at its end."""
    backend = parse_config(GOOD).backend[0]
    assert engine_opener(backend)
    assert engines(backend)


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_named(text: str) -> None:
    """Before the daemon starts, with the backend's id."""
    with pytest.raises(ConfigError) as caught:
        engine_opener(_backend(text))
    for part in ["e1", *MISTAKES[text]]:
        assert part in caught.value.message, caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "engine = 'vllm'",
        "engine = 'vllm'\nurl = 'http://h'\naddress = 'h:1'",
        "address = 'h:1'\nurl = 'http://h'",
        "address = 'h:1'\noptions = {a = 1}",
    ],
)
def test_a_backend_is_a_worker_or_an_engine(text: str) -> None:
    """Keys of both do not mix."""
    with pytest.raises(ConfigError, match=r"backend\[0\]"):
        _backend(text)


def test_every_adapter_has_defaults() -> None:
    """A backend needs no options."""
    for adapter in ADAPTERS.values():
        assert read_options(adapter.shape, {}, "x")


def test_a_router_without_engines_says_so() -> None:
    """The live shell alone knows none."""
    with pytest.raises(ConfigError, match="e1"):
        no_engines(parse_config(GOOD).backend[0])


def test_files_are_found_beside_the_configuration(tmp_path: Path) -> None:
    """Not where the daemon was started."""
    (tmp_path / "my.toml").write_text(
        GOOD.replace('profile = "h100-llama-3.1-8b"', 'profile = "p.toml"') + 'api_key_file = "key"\n'
    )
    backend = load_config(tmp_path / "my.toml").backend[0]
    assert backend.profile == str(tmp_path / "p.toml")
    assert backend.options["api_key_file"] == str(tmp_path / "key")


def test_a_key_is_read_anew_and_never_shown(tmp_path: Path) -> None:
    """It may be rotated while the daemon runs."""
    key = tmp_path / "key"
    options = OpenAIOptions(api_key_file=key)
    for text in ("one", " two\n"):
        key.write_text(text)
        place = options.place("https://h")
        assert place.headers == {"Authorization": f"Bearer {text.strip()}"}
        assert text.strip() not in repr(place)
    for text in ("", "a\nb", "ä"):
        key.write_text(text)
        with pytest.raises(ConfigError, match="no credential"):
            options.place("https://h")
    with pytest.raises(ValueError, match="not both"):
        OpenAIOptions(api_key_file=key, api_key_env="X")


def test_the_lease_is_vllms() -> None:
    """Unless the operator says otherwise."""
    assert VllmPairOptions().lease_s == 30.0
