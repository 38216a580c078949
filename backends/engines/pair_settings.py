"""[backend.options] of engines that hand KV over by protocols other than NIXL."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from backends.engines.settings import OpenAIOptions, Positive


class SglangPairOptions(OpenAIOptions):
    """SGLang, started with --disaggregation-mode."""

    bootstrap_host: Annotated[str, Field(max_length=255)] = ""
    """Of a prefill engine, as decode engines reach it; empty: the host of its url."""
    bootstrap_port: Annotated[int, Field(ge=1, le=65_535)] = 8998
    """Its --disaggregation-bootstrap-port."""
    dp_size: Annotated[int, Field(ge=1, le=4096)] = 1
    """Its data-parallel ranks."""
    wait_s: Positive = 300.0
    """How long the two engines wait for each other (SGLANG_DISAGGREGATION_WAITING_TIMEOUT)."""
    abort_patience_s: Positive = 5.0
    """A decode that is to be stopped gets so long to its first token before its call is closed."""


class TrtllmPairOptions(OpenAIOptions):
    """TensorRT-LLM, a context or a generation server."""

    lease_s: Positive = 180.0
    """How long a context server keeps KV that nobody has come for; its request timeout by default."""
