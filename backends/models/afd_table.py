"""The table [afd] of a profile: decode split between attention and FFN devices, and if it fits them. Pure.

    [afd]             layers, law, micro_batches, hop_s, and for the network between the two sides
                      bandwidth_bytes_per_s, dispatch_bytes_per_token (activations x the copies that go to
                      experts), combine_bytes_per_token
    [afd.attention]   device, count, memory_bytes_each, weight_bytes (of the side as a whole), and the
                      times of one layer for a micro-batch: base_s, per_sequence_s, per_context_token_s
    [afd.ffn]         the same without per_context_token_s

The FFN side holds weights and nothing else; the attention side holds its weights and the KV cache. Reading
the table fails when either does not fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from backends.models.afd import check_afd
from backends.models.fields import Fields, Table
from router.errors import ConfigError
from router.model import AfdLaw, AfdParameters, BackendSpec

_TOP = (
    "layers", "law", "micro_batches", "hop_s", "bandwidth_bytes_per_s", "dispatch_bytes_per_token",
    "combine_bytes_per_token", "attention", "ffn",
)  # fmt: skip
_SIDE = ("device", "count", "memory_bytes_each", "weight_bytes", "base_s", "per_sequence_s")


@dataclass(frozen=True, slots=True)
class Side:
    """The devices of one side."""

    device: str
    count: int
    memory_bytes_each: float
    weight_bytes: float

    @property
    def memory_bytes(self) -> float:
        """Of all of them."""
        return self.count * self.memory_bytes_each

    def __str__(self) -> str:
        return f"{self.count} x {self.device} of {_gigabytes(self.memory_bytes_each)}"


@dataclass(frozen=True, slots=True)
class Split:
    """The parameters of the law, and what they were worked out from."""

    parameters: AfdParameters
    attention: Side
    ffn: Side
    where: str
    """File and table, for messages."""

    def check_room(self, spec: BackendSpec) -> None:
        """Raise ConfigError unless weights and KV fit the devices that hold them."""
        ffn, attention = self.ffn, self.attention
        if ffn.weight_bytes > ffn.memory_bytes:
            needed = math.ceil(ffn.weight_bytes / ffn.memory_bytes_each)
            raise ConfigError(
                f"{self.where}: the FFN weights take {_gigabytes(ffn.weight_bytes)} and {ffn} hold "
                f"{_gigabytes(ffn.memory_bytes)}; the model does not fit the FFN side. Use {needed} of "
                "them, a narrower format, or a smaller model."
            )
        kv_bytes = spec.kv_capacity_tokens * spec.kv_bytes_per_token
        if attention.weight_bytes + kv_bytes > attention.memory_bytes:
            raise ConfigError(
                f"{self.where}: attention weights of {_gigabytes(attention.weight_bytes)} and KV of "
                f"{_gigabytes(kv_bytes)} for {spec.kv_capacity_tokens} tokens exceed the "
                f"{_gigabytes(attention.memory_bytes)} of {attention}. Lower kv_capacity_tokens, or "
                "add devices."
            )


def read_afd(table: Table, where: str) -> Split:
    """Read the table; raise ConfigError naming the field that is wrong."""
    top = Fields(table, where, _TOP)
    attention_table, ffn_table = top.table("attention"), top.table("ffn")
    attention = Fields(attention_table, f"{where[:-1]}.attention]", (*_SIDE, "per_context_token_s"))
    ffn = Fields(ffn_table, f"{where[:-1]}.ffn]", _SIDE)
    bandwidth = top.number("bandwidth_bytes_per_s", math.inf)
    if bandwidth <= 0.0:
        raise ConfigError(f"{where}: bandwidth_bytes_per_s must be above 0: no token would ever arrive.")
    parameters = AfdParameters(
        layers=top.whole("layers", most=1000),
        law=top.choice("law", AfdLaw, AfdLaw.SERIAL),
        micro_batches=top.whole("micro_batches", 1, most=64),
        attention_base_s=attention.number("base_s"),
        attention_per_sequence_s=attention.number("per_sequence_s", 0.0),
        attention_per_context_token_s=attention.number("per_context_token_s", 0.0),
        ffn_base_s=ffn.number("base_s"),
        ffn_per_sequence_s=ffn.number("per_sequence_s", 0.0),
        hop_s=top.number("hop_s"),
        dispatch_per_sequence_s=top.number("dispatch_bytes_per_token", 0.0) / bandwidth,
        combine_per_sequence_s=top.number("combine_bytes_per_token", 0.0) / bandwidth,
    )
    check_afd(parameters)
    return Split(parameters, _side(attention), _side(ffn), where)


def _side(fields: Fields) -> Side:
    return Side(
        device=fields.text("device"),
        count=fields.whole("count", 1),
        memory_bytes_each=fields.number("memory_bytes_each", least=1.0),
        weight_bytes=fields.number("weight_bytes"),
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f} GB"
