"""Network addresses: their syntax, and which of them a worker may register from.

Pure: names are resolved by the caller, and only resolved addresses are judged here, so that a name
cannot pass the rules and point elsewhere a moment later.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
MIN_WORKER_PORT: Final = 1024
"""Lower ports belong to system services; a worker has no business there."""
MAX_PORT: Final = 65535

# Instance metadata services hand out credentials: AWS, Azure, GCP and OpenStack use the first, AWS over
# IPv6 the second, Alibaba Cloud the third. The link-local networks cover the first as well.
_METADATA: Final[tuple[IPNetwork, ...]] = tuple(
    ipaddress.ip_network(text) for text in ("169.254.0.0/16", "fd00:ec2::254/128", "100.100.100.200/32")
)


@dataclass(frozen=True, slots=True)
class HostPort:
    """A host name or IP address, and a TCP port (0 to 65535; 0 means any free port)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host_port(text: str) -> HostPort:
    """Parse `host:port` or `[v6]:port`. ValueError says what is wrong with it."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text[:80]!r} is not host:port, as in 127.0.0.1:7600 or [::1]:7600")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= MAX_PORT):
        raise ValueError(f"the port in {text[:80]!r} is not a number from 0 to {MAX_PORT}")
    return HostPort(_parse_host(host, text), int(port))


def _parse_host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError as error:
            raise ValueError(f"{host[:80]!r} is not an IPv6 address in brackets") from error
    if not _HOST.fullmatch(host):
        raise ValueError(f"the host in {text[:80]!r} is neither a name nor an IP address")
    return host


def literal_ip(host: str) -> IPAddress | None:
    """The IP address that the text is, with an IPv4 address mapped into IPv6 unwrapped; None for a name."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return _unmapped(ip)


def is_loopback(host: str) -> bool:
    """Whether a listener on this host can be reached from this machine only."""
    ip = literal_ip(host)
    return host == "localhost" if ip is None else ip.is_loopback


def _unmapped(ip: IPAddress) -> IPAddress:
    # ::ffff:169.254.169.254 reaches the metadata service as surely as the plain form does.
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


@dataclass(frozen=True, slots=True)
class AddressRules:
    """Where registered workers may be. Some addresses are refused whatever the allow-list says."""

    allowed: tuple[IPNetwork, ...]

    def objection(self, ips: Sequence[IPAddress], port: int) -> str | None:
        """Why a worker may not be at these addresses (all that its name resolves to); None if it may."""
        if not MIN_WORKER_PORT <= port <= MAX_PORT:
            return f"port {port} is outside {MIN_WORKER_PORT}-{MAX_PORT}"
        if not ips:
            return "the name has no address"
        return next((why for ip in ips if (why := self._objection(_unmapped(ip)))), None)

    def _objection(self, ip: IPAddress) -> str | None:
        if ip.is_unspecified:
            return f"{ip} names no host"
        if ip.is_multicast or (isinstance(ip, ipaddress.IPv4Address) and int(ip) == 0xFFFFFFFF):
            return f"{ip} is a multicast or broadcast address"
        if ip.is_link_local or any(ip in network for network in _METADATA):
            return f"{ip} is a link-local or instance-metadata address"
        if not any(ip in network for network in self.allowed):
            return f"{ip} is in none of registration.allowed_networks"
        return None
