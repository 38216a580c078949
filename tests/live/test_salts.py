"""Tenants do not meet in the prefix cache, unless they are to."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import load_config
from router.errors import ConfigError
from router.live.salts import PrefixSalts, salts_of
from router.live.validate import Limits, validate
from tests.live.rig import generate_request

HASHES = [5, 2**64 - 1, 0]


def seen(salts: PrefixSalts | None, tenant: str) -> tuple[int, ...]:
    """What the core sees of HASHES; the worker is sent the same."""
    payload = generate_request(tenant=tenant, prefix_hashes=HASHES)
    request = validate(payload, 0.0, Limits(), salts=salts)
    assert tuple(payload.prefix_hashes) == request.prefix_hashes
    return request.prefix_hashes


def test_equal_prompts_meet_within_a_tenant_only() -> None:
    """The same each time for one tenant; nothing in common with another, or under another secret."""
    salts = PrefixSalts(b"s" * 16)
    ann = seen(salts, "ann")
    assert ann == seen(salts, "ann") == seen(PrefixSalts(b"s" * 16), "ann")
    assert len(set(ann)) == 3 and all(0 <= one < 2**64 for one in ann)
    others = (seen(salts, "bob"), seen(salts, ""), seen(PrefixSalts(b"t" * 16), "ann"), tuple(HASHES))
    assert not any(set(ann) & set(other) for other in others)


def test_tenants_share_if_they_are_to() -> None:
    """Without salts hashes pass as they came."""
    assert salts_of(True, None) is None
    assert seen(None, "ann") == seen(None, "bob") == tuple(HASHES)


def test_each_start_has_its_own_secret_unless_a_file_says_it(tmp_path: Path) -> None:
    """Routers of one fleet agree by a file, named relative to the configuration."""
    (tmp_path / "secret").write_bytes(b"0123456789abcdef\n")
    config = tmp_path / "p.toml"
    config.write_text('[prefixes]\nsecret_file = "secret"\n')
    file = load_config(config).prefixes.secret_file
    assert seen(salts_of(False, file), "a") == seen(PrefixSalts(b"0123456789abcdef"), "a")
    assert seen(salts_of(False, None), "a") != seen(salts_of(False, None), "a")


@pytest.mark.parametrize("content", [b"short", b"x" * 65, None])
def test_what_is_no_secret_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Too short to be one, too long, not there."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"prefixes\.secret_file .* does not start"):
        salts_of(False, path)
