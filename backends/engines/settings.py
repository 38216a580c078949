"""[backend.options] of the configuration: how one engine is spoken to. Checked before anything starts.

Credentials come from a file or the environment, are read anew for each connection, and go into one header.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from backends.engines.http import Patience, Place
from backends.engines.lane import Rules
from backends.engines.nixl import LEASE_S
from backends.engines.openai import OpenAIWords, check_options
from router.address import is_loopback
from router.errors import ConfigError

MAX_CREDENTIAL_BYTES: Final = 16_384

Positive = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
"""Seconds."""


class Options(BaseModel):
    """What every adapter takes. Closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    health_path: Annotated[str, Field(pattern=r"^/[!-~]{0,255}$")] = "/health"
    """Answers 200 while the engine serves; for hosted services /v1/models."""
    health_interval_s: Positive = 1.0
    health_timeout_s: Positive = 5.0
    health_misses: Annotated[int, Field(ge=1, le=100)] = 3
    """Missed in a row, the engine is lost; at once when it refuses connections."""
    connect_timeout_s: Positive = 5.0
    answer_s: Positive = 600.0
    """Bound of last resort on the wait for the first token."""
    stall_s: Positive | None = None
    """An answer silent for so long has stalled; lanes.decode_stall_s when not given."""
    max_calls: Annotated[int, Field(ge=1, le=65_536)] = 1024
    """Calls under way at the engine."""
    api_key_file: Path | None = None
    """The file holds nothing but the key."""
    api_key_env: Annotated[str, Field(max_length=256)] = ""
    """Name of the environment variable that holds the key."""
    api_key_header: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$")] = "Authorization"
    """With this default the key is sent as `Bearer KEY`, with another header as it is."""
    ca_file: Path | None = None
    """Certificates to trust instead of the system's."""
    insecure: bool = False
    """Send the key over plain HTTP to other machines."""

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key_file is not None and self.api_key_env:
            raise ValueError("give api_key_file or api_key_env, not both")
        return self

    @property
    def has_key(self) -> bool:
        """Whether a credential is sent."""
        return self.api_key_file is not None or bool(self.api_key_env)

    def rules(self) -> Rules:
        """For the lane."""
        return Rules(self.health_interval_s, self.health_misses, self.max_calls)

    def patience(self, stall_s: float) -> Patience:
        """For HTTP; `stall_s` is the router's own."""
        stall_s = stall_s if self.stall_s is None else self.stall_s
        return Patience(self.connect_timeout_s, self.health_timeout_s, self.answer_s, stall_s)

    def place(self, url: str) -> Place:
        """Where the engine is, with its credential as it is now. Raises ConfigError when there is none."""
        if not self.has_key:
            return Place(url, {}, self.ca_file)
        key = self._key()
        value = f"Bearer {key}" if self.api_key_header == "Authorization" else key
        return Place(url, {self.api_key_header: value}, self.ca_file)

    def _key(self) -> str:
        where = str(self.api_key_file) if self.api_key_file is not None else f"${self.api_key_env}"
        key = self._read_key(where).strip()
        if not key or not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{where} holds no credential: it is empty, or has characters no header takes.")
        return key

    def _read_key(self, where: str) -> str:
        if self.api_key_file is None:
            return os.environ.get(self.api_key_env, "")
        try:
            with self.api_key_file.open(encoding="ascii", errors="replace") as file:
                return file.read(MAX_CREDENTIAL_BYTES)
        except OSError as error:
            raise ConfigError(
                f"{where}: {error.strerror}; the engine cannot be reached without it."
            ) from error


class OpenAIOptions(Options):
    """Servers of the OpenAI API."""

    api: Literal["completions", "chat"] = "completions"
    model: Annotated[str, Field(max_length=256)] = ""
    """What the server calls the model; empty: as requests do."""
    token_ids: bool = False
    """It takes prompts as ids and tells the ids of its tokens, as vLLM does."""
    usage: bool = True
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    pass_options: tuple[str, ...] = ()
    """Keys of engine_options that clients may set."""

    @model_validator(mode="after")
    def _nothing_reserved(self) -> Self:
        if why := check_options(self.pass_options):
            raise ValueError(f"pass_options: {why}")
        return self

    def words(self) -> OpenAIWords:
        """For the dialect."""
        return OpenAIWords(
            self.api, self.model, self.token_ids, self.usage, self.max_tokens_field, self.pass_options
        )


class VllmOptions(OpenAIOptions):
    """vLLM, which has all of it."""

    token_ids: bool = True


class VllmPairOptions(VllmOptions):
    """vLLM with a connector that hands KV over."""

    lease_s: Positive = LEASE_S
    """How long prefill keeps KV for decode: its kv_lease_duration."""
    kv_hosts: tuple[str, ...] = ()
    """Hosts decode may be sent to for KV (VLLM_NIXL_SIDE_CHANNEL_HOST); empty: any that prefill names."""
    release_through: Annotated[str, Field(max_length=2048)] = ""
    """URL of a decode engine by which KV that nobody wants is freed at once, not at the end of its lease."""


def checked_url(url: str, options: Options, where: str) -> str:
    """An engine's address, without a slash at its end. Raises ConfigError."""
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(f"{where}: url is no http:// or https:// address of an engine; correct it.")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{where}: url holds a credential, which logs would show; use api_key_file.")
    if parts.scheme == "http" and options.has_key and not options.insecure and not is_loopback(host):
        raise ConfigError(
            f"{where}: the key would cross the network in the clear; use https, or set options.insecure = "
            "true if the network itself is trusted."
        )
    return url.rstrip("/")


def read_options(shape: type[Options], table: Mapping[str, Any], where: str) -> Options:
    """The options of one backend. Raises ConfigError naming what is wrong."""
    try:
        return shape(**table)
    except ValidationError as error:
        faults = [_fault(dict(item)) for item in error.errors(include_url=False, include_input=False)[:8]]
        raise ConfigError(f"{where}: {'; '.join(faults)}. The daemon does not start.") from None


def _fault(item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key options.{key}"
    return f"options.{key}: {str(item['msg']).removeprefix('Value error, ')}".replace("options.:", "options:")
