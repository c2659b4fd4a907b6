"""Who a client is: an address that it cannot choose."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_ots.edge.clients import budget_of, peer_of

PEER = "192.0.2.1"


@pytest.mark.parametrize(
    ("scope", "peer"),
    [({"client": (PEER, 4711)}, PEER), ({"client": None}, "local"), ({}, "local")],
    ids=["tcp", "none", "unix socket"],
)
def test_peer_of(scope: dict[str, Any], peer: str) -> None:
    """The peer is the address of the connection, where the server knows one."""
    assert peer_of(scope) == peer


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "trusted_proxies", "budget"),
    [
        (PEER, [], 0, PEER),
        (PEER, ["198.51.100.1"], 0, PEER),
        (PEER, ["198.51.100.1"], 1, "198.51.100.1"),
        (PEER, ["6.6.6.6, 198.51.100.1"], 1, "198.51.100.1"),
        (PEER, ["6.6.6.6", "198.51.100.1"], 1, "198.51.100.1"),
        (PEER, ["6.6.6.6, 198.51.100.1 , 10.0.0.1"], 2, "198.51.100.1"),
        (PEER, ["198.51.100.1"], 2, PEER),
        (PEER, [], 1, PEER),
        (PEER, [""], 1, PEER),
        (PEER, ["unknown"], 1, PEER),
        (PEER, ["198.51.100.1, "], 1, PEER),
        (PEER, ["198.51.100.1:4711"], 1, "198.51.100.1"),
        (PEER, ["[2001:db8:1:2:3::4]:4711"], 1, "2001:db8:1:2::/64"),
        (PEER, ["2001:db8:1:2:ffff::"], 1, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3::4", [], 0, "2001:db8:1:2::/64"),
        ("2001:db8:1:3::4", [], 0, "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.1", [], 0, PEER),
        ("fe80::1%eth0", [], 0, "fe80::/64"),
        ("local", [], 0, "local"),
        (PEER, ["198.51.100.1", "6.6.6.6"], 10, PEER),
        (PEER, ["2001:db8::1%sent"], 1, "2001:db8::/64"),
        (PEER, ["198.51.100.1:4711:1"], 1, PEER),
    ],
)
def test_budget_of(peer: str, forwarded_for: list[str], trusted_proxies: int, budget: str) -> None:
    """A client is the address that the last trusted proxy saw, an IPv6 one its /64."""
    assert budget_of(peer, forwarded_for, trusted_proxies) == budget


@given(st.lists(st.text(max_size=50), max_size=3), st.integers(0, 3))
def test_budget_of_anything(forwarded_for: list[str], trusted_proxies: int) -> None:
    """No header raises an error, nor names a budget that is neither an address nor a /64."""
    budget = budget_of(PEER, forwarded_for, trusted_proxies)

    assert budget_of(budget.removesuffix("/64"), [], 0) == budget
