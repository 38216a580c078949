"""The configuration file: defaults, overrides, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import MAX_CONFIG_BYTES, DaemonConfig, load_config, parse_config
from router.core.admission import Limits
from router.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_an_empty_file_is_valid() -> None:
    """Everything has a default, all listeners are on loopback, and no backend is configured."""
    config = parse_config("")
    assert (config.listen.data, config.listen.admin) == ("127.0.0.1:7600", "127.0.0.1:7601")
    assert config.listen.metrics == "127.0.0.1:7602"
    assert config.backend == ()
    assert config.policy.name == "predicted"


def test_admission_mirrors_the_core() -> None:
    """The section has the core's keys and defaults, so that neither says something else."""
    assert Limits(**parse_config("").admission.model_dump()) == Limits()


def test_the_sample_is_complete_and_valid() -> None:
    """deploy/polyphase.toml shows every section and key with its default, and loads."""
    path = ROOT / "deploy" / "polyphase.toml"
    sample, text = load_config(path), path.read_text()
    assert sample.model_copy(update={"backend": ()}) == DaemonConfig()
    for section in DaemonConfig.model_fields:
        assert f"[{section}]" in text
    for section in ("listen", "limits", "admission", "lanes", "registration", "drain", "observe"):
        for key in type(getattr(sample, section)).model_fields:
            assert f"\n{key} = " in text or f"\n# {key} = " in text, f"{section}.{key}"


MISTAKES = {
    "listn.data = 'x'": ["listn", "did you mean listen"],
    "[listen]\ndatta = '127.0.0.1:1'": ["listen.datta", "did you mean data"],
    "[lanes]\nsilence = 1": ["lanes.silence", "did you mean silence_s"],
    "[[backend]]\nid = 'a'\naddress = 'h:1'\nadress = 'h:1'": ["backend[0].adress", "did you mean address"],
    "[listen]\ndata = '127.0.0.1'": ["listen.data", "host:port"],
    "[listen]\ndata = '127.0.0.1:99999'": ["listen.data", "65535"],
    "[listen]\ndata = 7600": ["listen.data"],
    "[lanes]\nsilence_s = -1": ["lanes.silence_s", "greater than 0", "-1"],
    "[lanes]\nsilence_s = nan": ["lanes.silence_s"],
    "[lanes]\nsilence_s = inf": ["lanes.silence_s"],
    "[lanes]\nsilence_s = 'soon'": ["lanes.silence_s", "soon"],
    "[lanes]\nbackoff_min_s = 9\nbackoff_max_s = 1": ["lanes", "backoff_min_s"],
    "[limits]\nmax_prompt_tokens = 0": ["limits.max_prompt_tokens"],
    "[limits]\nmax_request_bytes = 99999999999": ["limits.max_request_bytes"],
    "[admission]\nmax_attempts = 6": ["admission.max_attempts"],
    "[registration]\nallowed_networks = ['10.0.0.0/33']": ["registration.allowed_networks[0]"],
    "[registration]\nallowed_networks = ['10.0.0.1/8']": ["registration.allowed_networks[0]"],
    "[registration]\nmax_backends = 5000": ["registration.max_backends"],
    "[policy]\nfile = 'a'\nname = 'b'": ["policy", "either file"],
    "[[backend]]\nid = 'a'": ["backend[0]", "address is missing"],
    "[[backend]]\nid = 'a b'\naddress = 'h:1'": ["backend[0].id"],
    "[[backend]]\nid = 'a'\naddress = 'http://h'": ["backend[0].address"],
    "[[backend]]\nid = 'a'\naddress = 'h:1'\n[[backend]]\nid = 'a'\naddress = 'h:2'": ["'a'", "twice"],
    "backend = 3": ["backend"],
    "x": ["not valid TOML"],
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_named(text: str) -> None:
    """A message has the file, the key, what is wrong, the consequence and where to look."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "my.toml")
    message = caught.value.message
    assert message.startswith("my.toml")
    assert "does not start" in message
    for part in MISTAKES[text]:
        assert part in message


@pytest.mark.parametrize("listener", ["data", "admin"])
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.168.0.1", "router.example"])
def test_other_machines_stay_out_unless_told_otherwise(listener: str, host: str) -> None:
    """Without transport security a reachable listener must be asked for."""
    with pytest.raises(ConfigError, match="no transport security yet"):
        parse_config(f'[listen]\n{listener} = "{host}:7600"')
    parse_config(f'[listen]\n{listener} = "{host}:7600"\ninsecure = true')


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    """All names of this machine alone are fine, and metrics may be anywhere."""
    parse_config(f'[listen]\ndata = "{host}:0"\nadmin = "{host}:0"\nmetrics = "0.0.0.0:7602"')


def test_the_environment_beats_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key changes; the others of its section stay as the file says."""
    monkeypatch.setenv("POLYPHASE_LANES__SILENCE_S", "7")
    monkeypatch.setenv("POLYPHASE_BACKEND", '[{"id": "a", "address": "127.0.0.1:7610"}]')
    config = parse_config("[lanes]\nsilence_s = 2\ndecode_stall_s = 4")
    assert (config.lanes.silence_s, config.lanes.decode_stall_s) == (7.0, 4.0)
    assert config.backend[0].id == "a"


@pytest.mark.parametrize(
    ("name", "value"),
    [("POLYPHASE_LANES__SILNCE_S", "7"), ("POLYPHASE_LANES__SILENCE_S", "x"), ("POLYPHASE_BACKEND", "{")],
)
def test_mistakes_in_the_environment_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A variable of ours that cannot be used is an error, whether or not there is a file."""
    monkeypatch.setenv(name, value)
    for path in (None, ROOT / "deploy" / "polyphase.toml"):
        with pytest.raises(ConfigError):
            load_config(path)


def test_variables_of_others_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets POLYPHASE_PORT and the like for a service of that name."""
    monkeypatch.setenv("POLYPHASE_PORT", "tcp://10.0.0.1:7600")
    monkeypatch.setenv("POLYPHASE_SERVICE_HOST", "10.0.0.1")
    parse_config("")


def test_files_are_found_beside_the_configuration(tmp_path: Path) -> None:
    """Relative paths do not depend on where the daemon was started."""
    path = tmp_path / "polyphase.toml"
    path.write_text('[policy]\nfile = "policy.toml"\n[observe]\nrecord = "/var/run.jsonl"\n')
    config = load_config(path)
    assert config.policy.file == tmp_path / "policy.toml"
    assert config.observe.record == Path("/var/run.jsonl")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """Missing, binary and endless files end in an error with the path."""
    large, binary = tmp_path / "large.toml", tmp_path / "binary.toml"
    large.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    binary.write_bytes(b"\xff\xfe")
    for path in (large, binary, tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert str(path) in caught.value.message


def test_the_configuration_cannot_be_changed() -> None:
    """What was checked is what runs."""
    config = parse_config("")
    with pytest.raises(ValueError, match="frozen"):
        config.lanes.silence_s = 1.0  # type: ignore[misc]
