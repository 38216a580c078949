"""The adapters by name, and how each is put together: where another engine is added."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

from backends.engines.fused import FusedEngine
from backends.engines.http import opened
from backends.engines.llama_cpp import LlamaCppDialect
from backends.engines.nixl import Hosts
from backends.engines.openai import OpenAIDialect
from backends.engines.pair_settings import SglangPairOptions, TrtllmPairOptions
from backends.engines.ports import Engine
from backends.engines.settings import OpenAIOptions, Options, VllmOptions, VllmPairOptions
from backends.engines.sglang import Bootstrap
from backends.engines.sglang_pair import SglangPairEngine
from backends.engines.takeover import Keeper
from backends.engines.trtllm_pair import TrtllmPairEngine
from backends.engines.vllm_pair import Custody, PairEngine
from router.model import BackendSpec, ConnectorFlags, HandoffMint, Seconds

Shape = TypeVar("Shape", bound=Options)


@dataclass(frozen=True, slots=True)
class Site(Generic[Shape]):
    """One engine of the configuration."""

    url: str
    spec: BackendSpec
    options: Shape
    stall_s: Seconds
    """The router's own, for engines whose options name none."""


@dataclass(frozen=True, slots=True)
class Adapter(Generic[Shape]):
    """One way to speak to engines."""

    shape: type[Shape]
    """Of its options."""
    open: Callable[[Site[Shape]], AbstractAsyncContextManager[Engine]]
    connector: ConnectorFlags


@asynccontextmanager
async def _openai(site: Site[OpenAIOptions]) -> AsyncIterator[Engine]:
    options = site.options
    async with opened(options.place(site.url), options.patience(site.stall_s)) as http:
        yield FusedEngine(http, OpenAIDialect(options.words()), options.health_path)


@asynccontextmanager
async def _llama_cpp(site: Site[Options]) -> AsyncIterator[Engine]:
    options = site.options
    async with opened(options.place(site.url), options.patience(site.stall_s)) as http:
        yield FusedEngine(http, LlamaCppDialect(), options.health_path)


@asynccontextmanager
async def _vllm_pair(site: Site[VllmPairOptions]) -> AsyncIterator[Engine]:
    options, spec = site.options, site.spec
    patience = options.patience(site.stall_s)
    custody = Custody(
        spec.id,
        spec.kv_layout,
        spec.kv_bytes_per_token,
        options.lease_s,
        Hosts(frozenset(options.kv_hosts)),
        options.model or spec.models[0],
    )
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(opened(options.place(site.url), patience))
        releaser = None
        if options.release_through:
            place = options.place(options.release_through.rstrip("/"))
            releaser = await stack.enter_async_context(opened(place, patience))
        yield PairEngine(http, OpenAIDialect(options.words()), custody, options.health_path, releaser)


@asynccontextmanager
async def _sglang_pair(site: Site[SglangPairOptions]) -> AsyncIterator[Engine]:
    options = site.options
    host = options.bootstrap_host or urlsplit(site.url).hostname or ""
    bootstrap = Bootstrap(host, options.bootstrap_port, options.dp_size)
    keeper = Keeper(site.spec, options.wait_s)
    async with opened(options.place(site.url), options.patience(site.stall_s)) as http:
        dialect = OpenAIDialect(options.words())
        yield SglangPairEngine(
            http, dialect, keeper, bootstrap, options.health_path, options.abort_patience_s
        )


@asynccontextmanager
async def _trtllm_pair(site: Site[TrtllmPairOptions]) -> AsyncIterator[Engine]:
    options = site.options
    async with opened(options.place(site.url), options.patience(site.stall_s)) as http:
        dialect, keeper = OpenAIDialect(options.words()), Keeper(site.spec, options.lease_s)
        yield TrtllmPairEngine(http, dialect, keeper, options.health_path)


_KEEPS: Final = ConnectorFlags()
"""Of an engine that hands no KV over."""

ADAPTERS: Final[Mapping[str, Adapter[Any]]] = {
    "openai": Adapter(OpenAIOptions, _openai, _KEEPS),
    "vllm": Adapter(VllmOptions, _openai, _KEEPS),
    "llama.cpp": Adapter(Options, _llama_cpp, _KEEPS),
    "vllm-nixl": Adapter(VllmPairOptions, _vllm_pair, ConnectorFlags(requires_peer_binding=True)),
    "sglang-pair": Adapter(
        SglangPairOptions,
        _sglang_pair,
        ConnectorFlags(
            concurrent_handoff=True, requires_peer_binding=True, handoff_minted_by=HandoffMint.ROUTER
        ),
    ),
    "trtllm-pair": Adapter(
        TrtllmPairOptions,
        _trtllm_pair,
        ConnectorFlags(requires_peer_binding=True, first_token_from_prefill=True),
    ),
}
