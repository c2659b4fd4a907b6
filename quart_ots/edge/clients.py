"""Who a client is: the address that a request counts on, which no client can choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

# The smallest network that an IPv6 customer is given (RFC 6177, section 2), and so can choose addresses from.
IPV6_PREFIX = 64


def peer_of(scope: Mapping[str, Any]) -> str:
    """Return the address that a request's connection comes from; "local" if the server does not say."""
    return str((scope.get("client") or ("local",))[0])


def budget_of(peer: str, forwarded_for: Sequence[str], trusted_proxies: int) -> str:
    """Name the budget that a request counts on: an IPv4 address, or the IPv6 network of the client's address."""
    address = client_address(peer, forwarded_for, trusted_proxies)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), IPV6_PREFIX), strict=False))
    return str(address)


def client_address(peer: str, forwarded_for: Sequence[str], trusted_proxies: int) -> IPv4Address | IPv6Address | str:
    """Return a client's address.

    Args:
        peer: The address that the connection comes from.
        forwarded_for: The X-Forwarded-For headers. Each proxy adds the address of its own peer on the right, so only as
            many entries from the right as there are trusted proxies can be believed.
        trusted_proxies: That number.

    Returns:
        The peer's where the headers have too few entries or no address there; unparsed where that is none either.

    """
    entries = ",".join(forwarded_for).split(",")
    believed = _address(entries[-trusted_proxies].strip()) if 0 < trusted_proxies <= len(entries) else None
    return believed or _address(peer) or peer


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address in a text such as 192.0.2.1, 192.0.2.1:80 or [2001:db8::1]:80, or None."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])  # a zone is any text
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
