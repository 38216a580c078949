"""The daemon's configuration: a TOML file, overridden by the environment, checked before anything starts.

Every key has a default, so an empty file is valid. `POLYPHASE_<SECTION>__<KEY>` in the environment beats
the file, as in POLYPHASE_LISTEN__DATA=127.0.0.1:7700. An unknown key is an error, because a misspelt limit
that is silently ignored shows only under load. Values only: nothing here opens a socket.
"""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from router.address import AddressRules, IPNetwork, is_loopback, parse_host_port
from router.errors import ConfigError
from router.grpc_options import MAX_MESSAGE_BYTES

MAX_CONFIG_BYTES: Final = 1 << 20
"""A larger file is taken for a mistake and not read."""
MAX_BACKENDS: Final = 4096


def _address(text: str) -> str:
    return str(parse_host_port(text))


def _target(text: str) -> str:
    """Static backends may be on a unix socket as well: the operator vouches for them."""
    return text if text.startswith("unix:") else _address(text)


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))


Positive = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
"""Seconds, above 0 and at most a day."""
Address = Annotated[str, AfterValidator(_address)]
Target = Annotated[str, AfterValidator(_target)]
Network = Annotated[str, AfterValidator(_network)]
BackendId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
"""Also a metric label and a file name in reports: hence the plain alphabet."""


class Section(BaseModel):
    """One table of the file: closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Listen(Section):
    """[listen] Where the daemon listens, as host:port; port 0 takes any free port."""

    data: Address = "127.0.0.1:7600"
    """InferenceService."""
    admin: Address = "127.0.0.1:7601"
    """FleetService, health and reflection."""
    metrics: Address = "127.0.0.1:7602"
    """Prometheus, over HTTP. Read-only, hence allowed on any address."""
    insecure: bool = False
    """Allow data and admin on addresses that other machines reach, without transport security."""

    @model_validator(mode="after")
    def _stay_private(self) -> Self:
        for name, text in (("data", self.data), ("admin", self.admin)):
            if not self.insecure and not is_loopback(parse_host_port(text).host):
                raise ValueError(
                    f"{name} = {text!r} is not a loopback address, and the daemon has no transport security "
                    "yet: anyone who reaches the port could read prompts and steer the fleet. Listen on "
                    "127.0.0.1, or set insecure = true if the network itself is trusted"
                )
        return self


class Limits(Section):
    """[limits] What one client may ask for. Beyond it, a typed error."""

    max_request_bytes: Annotated[int, Field(ge=1024, le=MAX_MESSAGE_BYTES)] = MAX_MESSAGE_BYTES
    """One gRPC message; workers accept no more than 4 MiB either."""
    max_prompt_tokens: Annotated[int, Field(ge=1, le=1 << 30)] = 1_048_576
    """Estimates for text included."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1 << 30)] = 131_072
    max_calls: Annotated[int, Field(ge=1, le=1 << 20)] = 20_000
    """Open calls of InferenceService."""
    max_session_requests: Annotated[int, Field(ge=1, le=1 << 20)] = 1024
    """Live requests of one Session."""
    default_deadline_s: Positive = 300.0
    """For a request that names none."""
    max_deadline_s: Positive = 3600.0
    """A later deadline is cut to this."""
    first_message_timeout_s: Positive = 10.0
    """A call whose request has not come by then is ended: half-sent requests would pile up."""
    write_timeout_s: Positive = 30.0
    """A client that reads nothing for so long is dropped."""


Ratio = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class Admission(Section):
    """[admission] The queue in front of the fleet, retries, and when a phase or a policy is given up.

    The keys and defaults are those of router.core.admission.Limits.
    """

    queue_capacity: Annotated[int, Field(ge=0, le=1 << 20)] = 1024
    """Requests that may wait for a place."""
    max_queue_s: Positive = 60.0
    """Longest wait for a place; after it the request is shed."""
    scan: Annotated[int, Field(ge=1, le=4096)] = 8
    """Requests of one class and model looked at without success, each time room comes free."""
    output_weight: Ratio = 2.0
    """What an output token counts in shares; a prompt token counts 1."""
    bulk_share: Share = 0.05
    """Least share of the tokens dispatched, and of the places in the queue, while bulk asks for it."""
    normal_share: Share = 0.1
    """The same of normal."""
    interactive_share: Share = 0.1
    """The same of interactive."""
    starvation_s: Positive = 20.0
    """While somebody of a class has waited this long behind higher classes, the class is offered first."""
    starvation_share: Share = 0.25
    """Most of the tokens dispatched that go to such before higher classes."""
    tenant_reserve: Share = 0.1
    """Share of a model's fleet that a tenant which holds much more than the others leaves free for them."""
    class_reserve: Share = 0.05
    """Share that a class leaves free for each class above it that has requests in flight."""
    prompt_steps: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    """Steps' worth of prompts at each worker that count as a full fleet in these reserves."""
    preempt: bool = False
    """A request for which there is no room takes the place of one of a lower class that has no token yet."""
    max_attempts: Annotated[int, Field(ge=1, le=5)] = 3
    """Runs of one request, the first included; gRPC's own cap is 5 (gRFC A6)."""
    retry_ratio: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.2
    """Retries allowed per admitted request."""
    retry_per_s: Ratio = 3.0
    """Retries per second allowed besides."""
    retry_window_s: Positive = 10.0
    """Time in which an unused budget fades."""
    stall_s: Positive = 10.0
    """A phase silent for longer than this, and than stall_factor times its predicted time, has stalled."""
    stall_factor: Ratio = 5.0
    lease_margin_s: Positive = 1.0
    """A KV lease must outlast the predicted transfer by twice its time and this margin."""
    policy_faults: Annotated[int, Field(ge=1, le=1000)] = 3
    """Faults in a row after which the policy is bypassed."""
    policy_bypass_s: Positive = 30.0

    @model_validator(mode="after")
    def _shares_leave_something(self) -> Self:
        if self.bulk_share + self.normal_share + self.interactive_share >= 1.0:
            raise ValueError(
                "bulk_share, normal_share and interactive_share add up to 1 or more, so that nothing would "
                "be left to give out by priority; lower one of them"
            )
        return self


class LaneSettings(Section):
    """[lanes] The stream to each worker."""

    connect_timeout_s: Positive = 5.0
    """From the call to the worker's welcome."""
    backoff_min_s: Positive = 0.05
    """Wait before the first reconnect; doubles with each failure, with 20 % jitter (gRFC A6)."""
    backoff_max_s: Positive = 5.0
    silence_s: Positive = 3.0
    """A lane without any frame for so long is lost. Workers send one at least every 0.25 s."""
    decode_stall_s: Positive = 10.0
    """A decode that gains no token for so long is failed, unless it waits at a worker that is busy."""
    max_queued_commands: Annotated[int, Field(ge=16, le=1 << 20)] = 8192
    """Commands a worker has not taken yet; beyond it the lane is lost."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.backoff_min_s > self.backoff_max_s:
            raise ValueError("backoff_min_s is above backoff_max_s")
        return self


class Registration(Section):
    """[registration] Workers that announce themselves to FleetService.Register."""

    enabled: bool = True
    allowed_networks: tuple[Network, ...] = ("127.0.0.0/8", "::1/128")
    """Where they may be. Link-local, metadata and multicast addresses stay refused whatever is listed."""
    max_backends: Annotated[int, Field(ge=1, le=MAX_BACKENDS)] = MAX_BACKENDS
    """Static and registered ones together."""
    heartbeat_s: Positive = 5.0
    """Asked of the workers; after three missed ones the registration counts as gone."""
    forget_after_s: Positive = 60.0
    """A backend whose registration and lane have both been gone for so long is removed."""

    def rules(self) -> AddressRules:
        """The allow-list, ready to judge addresses."""
        return AddressRules(tuple(_networks(self.allowed_networks)))


class PolicyChoice(Section):
    """[policy] Which policy decides: a file that is watched and reloaded, or a name with parameters."""

    file: Path | None = None
    """TOML; relative to the configuration file. Reloaded when it changes and on SIGHUP."""
    name: Annotated[str, Field(min_length=1, max_length=64)] = "predicted"
    params: Mapping[str, Any] = Field(default_factory=dict)
    fallback: Annotated[str, Field(min_length=1, max_length=64)] = "least_loaded"
    """Decides when the policy raises, is slow, or names something impossible."""
    budget_s: Positive = 0.005
    """A decision that takes longer counts against the policy."""
    seed: int | None = None
    """Of the policies' random choices; without it they differ from run to run."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.file is not None and {"name", "params"} & self.model_fields_set:
            raise ValueError("give either file, or name and params: two policies cannot both decide")
        return self


class Shadow(Section):
    """[shadow] A second policy that is asked whatever the first is asked, and never heeded."""

    policy: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """A name, or a policy file that ends in .toml; relative to the configuration file. Read at the start."""
    params: Mapping[str, Any] = Field(default_factory=dict)
    """Of the named policy."""
    budget_s: Positive = 0.05
    """CPU time of one decision; a longer one is counted as slow."""
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.1
    """Most of one core that it may take; what does not fit is skipped and counted."""
    max_behind: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Questions that may wait for it."""

    @property
    def file(self) -> Path | None:
        """The policy file, if the policy is one."""
        return Path(self.policy) if self.policy and self.policy.endswith(".toml") else None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.file is not None and self.params:
            raise ValueError("params belong to a named policy; a policy file has its own")
        return self


class Drain(Section):
    """[drain] How the daemon stops on SIGTERM."""

    grace_s: Positive = 30.0
    """Running requests may finish within it; what is left is then cut off with UNAVAILABLE."""
    backend_timeout_s: Positive = 300.0
    """Of DrainBackend when the call names none."""


class Observe(Section):
    """[observe] What is kept for later."""

    record: Path | None = None
    """Write every fact and a digest of the actions to this file, for replay; no prompts, no tokens."""
    record_max_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 40)] = 256 << 20
    """Of one file; then another part begins, and only the newest four are kept."""


class Prefixes(Section):
    """[prefixes] Who shares computed beginnings of prompts."""

    tenants_share: bool = False
    """Tenants reuse one another's, system prompts above all, and may learn from times what others asked."""
    secret_file: Path | None = None
    """From 16 to 64 bytes that keep tenants apart; the same for all routers of a fleet. Without it each start
    has its own, and prefixes that workers hold from before are not found again."""


class StaticBackend(Section):
    """[[backend]] A backend known from the start: a worker, or an engine with its own protocol.

    A worker has an address and tells what it is. An engine has an `engine` and a `url`, and what it is stands
    here (docs/engines.md).
    """

    id: BackendId
    address: Target = ""
    """host:port, or unix:/path. A name is resolved again on every connect."""
    engine: Annotated[str, Field(max_length=64)] = ""
    """Name of the adapter that speaks to it."""
    url: Annotated[str, Field(max_length=2048)] = ""
    """http:// or https:// address of the engine, without credentials."""
    profile: Annotated[str, Field(max_length=1024)] = ""
    """Name of a profile, or a .toml file; without it, times are learned from a guess."""
    spec: Mapping[str, Any] = Field(default_factory=dict)
    """What differs from the profile, as in a fleet file: models, phases, link, ..."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Of the adapter. Keys that end in _file name files, relative to the configuration file."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.engine and (self.address or not self.url):
            raise ValueError("an engine backend has a url, and no address")
        if not self.engine and not self.address:
            raise ValueError("address is missing; a backend has an address, or an engine and a url")
        if not self.engine and {"url", "profile", "spec", "options"} & self.model_fields_set:
            raise ValueError("url, profile, spec and options belong to a backend with an engine")
        return self


class DaemonConfig(BaseSettings):
    """Everything the daemon is told. Immutable; built by `load_config`."""

    model_config = SettingsConfigDict(
        env_prefix="POLYPHASE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    listen: Listen = Listen()
    limits: Limits = Limits()
    admission: Admission = Admission()
    lanes: LaneSettings = LaneSettings()
    registration: Registration = Registration()
    policy: PolicyChoice = PolicyChoice()
    shadow: Shadow = Shadow()
    drain: Drain = Drain()
    observe: Observe = Observe()
    prefixes: Prefixes = Prefixes()
    backend: Annotated[tuple[StaticBackend, ...], Field(max_length=MAX_BACKENDS)] = ()

    @model_validator(mode="after")
    def _distinct_backends(self) -> Self:
        seen: set[str] = set()
        for backend in self.backend:
            if backend.id in seen:
                raise ValueError(f"backend {backend.id!r} is listed twice; ids must differ")
            seen.add(backend.id)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment beats the file, whose content comes in as the initial values."""
        return env_settings, init_settings


def load_config(path: Path | None) -> DaemonConfig:
    """Read and check the file; None takes the defaults and the environment. Raises ConfigError."""
    where = str(path) if path else "the environment"
    values = _read(path) if path else {}
    try:
        config = DaemonConfig(**values)
    except ValidationError as error:
        raise ConfigError(_explain(where, error)) from error
    except ValueError as error:  # pydantic-settings: a variable that should hold JSON does not
        raise ConfigError(f"{where}: {error}. The daemon does not start; correct the variable.") from error
    return _anchored(config, path.parent if path else Path())


def parse_config(text: str, where: str = "configuration") -> DaemonConfig:
    """Like load_config, from text. Relative paths are relative to the working directory."""
    try:
        return DaemonConfig(**_parse(text, where))
    except ValidationError as error:
        raise ConfigError(_explain(where, error)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}. The daemon does not start; name a readable file."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text. The daemon does not start; save it as UTF-8."
        ) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{path} is larger than {MAX_CONFIG_BYTES} bytes, so it was not read; is it the right file?"
        )
    return _parse(text, str(path))


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{where} is not valid TOML: {error}. The daemon does not start; correct that line."
        ) from error


def _anchored(config: DaemonConfig, folder: Path) -> DaemonConfig:
    """With files relative to the file that names them, not to where the daemon was started."""
    policy = config.policy.model_copy(update={"file": _below(folder, config.policy.file)})
    observe = config.observe.model_copy(update={"record": _below(folder, config.observe.record)})
    prefixes = config.prefixes.model_copy(update={"secret_file": _below(folder, config.prefixes.secret_file)})
    shadow = config.shadow
    if (file := _below(folder, shadow.file)) is not None:
        shadow = shadow.model_copy(update={"policy": str(file)})
    backends = tuple(_anchored_backend(folder, backend) for backend in config.backend)
    return config.model_copy(
        update={
            "policy": policy,
            "shadow": shadow,
            "observe": observe,
            "prefixes": prefixes,
            "backend": backends,
        }
    )


def _anchored_backend(folder: Path, backend: StaticBackend) -> StaticBackend:
    profile, options = backend.profile, dict(backend.options)
    if profile.endswith(".toml"):
        profile = str(folder / profile)
    for key, value in options.items():
        if key.endswith("_file") and isinstance(value, str):
            options[key] = str(folder / value)
    return backend.model_copy(update={"profile": profile, "options": options})


def _below(folder: Path, file: Path | None) -> Path | None:
    return None if file is None else folder / file


def _networks(texts: Iterable[str]) -> Iterable[IPNetwork]:
    return (ipaddress.ip_network(text) for text in texts)


# --- explaining what is wrong ----------------------------------------------------------------------


def _explain(where: str, error: ValidationError) -> str:
    faults = [_fault(dict(item)) for item in error.errors(include_url=False)[:8]]
    return (
        f"{where}: {'; '.join(faults)}. The daemon does not start; correct the file, or the variable "
        "POLYPHASE_<SECTION>__<KEY> that overrides it (deploy/polyphase.toml lists every key)."
    )


def _fault(item: Mapping[str, Any]) -> str:
    location: Sequence[str | int] = item["loc"]
    key = _dotted(location)
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggest(location)}"
    if item["type"] == "missing":
        return f"{key} is missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    given = "" if isinstance(item["input"], dict | list | BaseModel) else f", not {item['input']!r:.80}"
    return f"{key}: {message}{given}" if key else message


def _dotted(location: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _suggest(location: Sequence[str | int]) -> str:
    close = difflib.get_close_matches(str(location[-1]), _keys_at(location[:-1]), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """The keys that are known at a place in the file."""
    model: type[BaseModel] = DaemonConfig
    for part in location:
        if isinstance(part, str):
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)
