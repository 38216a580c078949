"""The gRPC options of every server and channel of the project, each with the failure it prevents.

Northbound, southbound and KV channels share them, because the two ends of a connection must agree: a
server that does not permit the pings a client sends closes the connection with "too many pings".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

Options = Sequence[tuple[str, int | str]]

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""gRPC's own default for received messages, applied to sent ones too."""

_CHANNEL_KEEPALIVE_MS: Final = 10_000
_CHANNEL_PING_TIMEOUT_MS: Final = 5_000
_SERVER_KEEPALIVE_MS: Final = 30_000
_SERVER_PING_TIMEOUT_MS: Final = 10_000
_MIN_PING_INTERVAL_MS: Final = 5_000
_SETTINGS_TIMEOUT_MS: Final = 10_000
_PENDING_CALLS: Final = 16_384
_FIRST_RECONNECT_MS: Final = 100
_CONNECT_TIMEOUT_MS: Final = 5_000
_MAX_RECONNECT_MS: Final = 2_000


def server_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Options of a server. `max_message_bytes` bounds one message in either direction."""
    return (
        *_message_limits(max_message_bytes),
        # Finds clients that vanished without closing: their streams would hold slots and KV for ever.
        ("grpc.keepalive_time_ms", _SERVER_KEEPALIVE_MS),
        # The time-out that counts: grpc.keepalive_timeout_ms has no effect in grpcio, and this one's
        # default leaves a black-holed peer unnoticed for a minute.
        ("grpc.http2.ping_timeout_ms", _SERVER_PING_TIMEOUT_MS),
        # Keeps pinging while no call is open; a connection may be idle when its peer dies.
        ("grpc.keepalive_permit_without_calls", 1),
        # The default admits one ping in five minutes and would cut off our own channels.
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        # Without it a second server binds the same port, and clients reach either of them by chance.
        ("grpc.so_reuseport", 0),
        # For the handshake of HTTP/2: a connection that never speaks is held for a minute by default, and
        # until it acknowledges the settings, it may send 16 MiB of metadata with each call instead of 16 KiB.
        ("grpc.http2.settings_timeout", _SETTINGS_TIMEOUT_MS),
        # Calls that the event loop has not picked up yet. Above 1,000 gRPC's default cancels them at random,
        # without a word of why; the bounds of our services are above that, and their refusals are typed.
        ("grpc.server.max_pending_requests", _PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _PENDING_CALLS),
        # channelz keeps a record per call; nothing here serves it.
        ("grpc.enable_channelz", 0),
    )


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Options of a channel. `max_message_bytes` bounds one message in either direction."""
    return (
        *_message_limits(max_message_bytes),
        # Finds a dead peer while a stream waits for its next token, which may take long.
        ("grpc.keepalive_time_ms", _CHANNEL_KEEPALIVE_MS),
        # As at the server: the only time-out of a ping that has an effect.
        ("grpc.http2.ping_timeout_ms", _CHANNEL_PING_TIMEOUT_MS),
        # A lane without work is idle, and its worker may die meanwhile.
        ("grpc.keepalive_permit_without_calls", 1),
        # The default stops after two pings without data, which is how a waiting stream looks.
        ("grpc.http2.max_pings_without_data", 0),
        # A backend that restarts is back within seconds; the default back-off grows to two minutes.
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _MAX_RECONNECT_MS),
        # Despite its name the time-out of one attempt to connect; its default of 20 s would hold a lane
        # on an address that swallows packets.
        ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
        # Channels to the same address would share one connection: closing or stalling one would touch
        # the other, and two routers in one process could not be told apart by their connections.
        ("grpc.use_local_subchannel_pool", 1),
        # Retries are the core's decision; the library's own would hide failures from it.
        ("grpc.enable_retries", 0),
        # A proxy from the environment must not see prompts or KV on their way between our own processes.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_channelz", 0),
    )


def _message_limits(max_message_bytes: int) -> Options:
    """Both directions: the side that sends too much learns it at once instead of from a broken stream."""
    return (
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    )
