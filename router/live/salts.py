"""Keeps tenants apart in the prefix cache: a mark of the tenant changes the hashes that a client sends.

The core and the workers see changed hashes only. Equal prompts of two tenants have different ones, so that
neither learns from the time to its first token what the other has asked, and none can aim at another's blocks
without the secret. Prompts of one tenant still meet, and so do all that name no tenant. An engine that hashes
tokens itself does not see these hashes: there only a cache salt of its own keeps tenants apart.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b
from pathlib import Path
from typing import Final

from polyphase.v1 import inference_pb2

from router.errors import ConfigError

MIN_SECRET_BYTES: Final = 16
MAX_SECRET_BYTES: Final = 64
"""The longest key of BLAKE2b."""


class PrefixSalts:
    """One secret, and a salt of 64 bits for each tenant: BLAKE2b of the name, keyed with the secret."""

    def __init__(self, secret: bytes) -> None:
        """`secret` has from 1 to 64 bytes."""
        self._secret = secret

    def of(self, tenant: str) -> int:
        """The salt of a tenant, from 0 to 2^64 - 1."""
        mark = blake2b(tenant.encode(), digest_size=8, key=self._secret, person=b"prefix")
        return int.from_bytes(mark.digest(), "big")

    def apply(self, payload: inference_pb2.GenerateRequest) -> None:
        """Change the prefix hashes of a request, in place: workers are sent this payload."""
        if payload.prefix_hashes:
            salt = self.of(payload.tenant)
            payload.prefix_hashes[:] = [one ^ salt for one in payload.prefix_hashes]


def salts_of(tenants_share: bool, secret_file: Path | None) -> PrefixSalts | None:
    """As [prefixes] has it: None where tenants share; without a file the secret lasts as long as the process.

    Raises ConfigError for a file that cannot be read, or whose content is no secret.
    """
    if tenants_share:
        return None
    return PrefixSalts(secrets.token_bytes(32) if secret_file is None else _read(secret_file))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            secret = file.read(MAX_SECRET_BYTES + 2).strip()
    except OSError as error:
        raise ConfigError(
            f"prefixes.secret_file {path}: {error.strerror}. The daemon does not start; name a readable file."
        ) from error
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        fault = "short" if len(secret) < MIN_SECRET_BYTES else "long"
        raise ConfigError(
            f"prefixes.secret_file {path} is too {fault}. The daemon does not start; write from "
            f"{MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} random bytes into it."
        )
    return secret
