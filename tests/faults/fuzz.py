"""A process of atheris: ``python -m tests.faults.fuzz envelope FOLDER RUNS SEED``, or ``address``.

Guided by the coverage of quart_ots. Ends with status 0 unless something was raised that is not documented; the last
line of stdout says how many inputs there were, and what was found on the way.
"""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["quart_ots.vault.crypto", "quart_ots.edge.clients"]):
    from quart_ots.edge.clients import budget_of, client_address
    from quart_ots.vault import crypto, errors

KEY = "k" * 43
RING = crypto.KeyRing([b"1" * 32, b"2" * 32])
SALT = b"$2b$04$" + b"." * 22
SOUND = [crypto.seal_with(RING, KEY, "phrase", "s" * length, SALT, bytes(12)) for length in (1, 300)]
HEADERS = (
    *(b"192.0.2.1", b"2001:db8::1, [2001:db8::1]:80", b"::ffff:192.0.2.1,192.0.2.1:80", b"fe80::1%eth0", b"unknown"),
    *(b",,", b"[::", b"1.2.3.4.5", b"\xff\xfe", b"1:2:3:4:5:6:7:8:9"),
)
counts = {"inputs": 0, "deep": 0}


def envelope(data: bytes) -> None:
    """Open what may look like an envelope."""
    counts["inputs"] += 1
    try:
        # Its rounds are a matter of time alone: no patience for more than 2**4.
        if int(crypto.parse(data, RING).salt[4:6]) == 4:
            counts["deep"] += 1
            crypto.open(RING, KEY, "phrase", data)
            assert data in SOUND, "a changed envelope opened"
    except (errors.EnvelopeError, errors.NotOpenedError):
        pass


def address(data: bytes) -> None:
    """Parse headers: the first byte says how many proxies are trusted."""
    counts["inputs"] += 1
    proxies, headers = data[0] % 4 if data else 0, data[1:].decode("latin-1").split("\n")
    client = client_address("192.0.2.9", headers, proxies)
    budget_of("192.0.2.9", headers, proxies)
    assert isinstance(client, IPv4Address | IPv6Address), "no address"
    if str(client) != "192.0.2.9":
        counts["deep"] += 1
        assert proxies > 0, "an entry was believed without a proxy"
        forged = client_address("192.0.2.9", ["203.0.113.7, 203.0.113.8", *headers], proxies)
        assert forged == client, "a forged entry was believed"


def main(name: str, folder: Path, runs: int, seed: int) -> None:
    """Fuzz one of the two. Does not return: libFuzzer ends the process."""
    inputs = SOUND if name == "envelope" else [b"\1" + header for header in HEADERS]
    for index, data in enumerate(inputs):
        (folder / str(index)).write_bytes(data)

    def one(data: bytes) -> None:
        (envelope if name == "envelope" else address)(data)
        if counts["inputs"] == runs:
            sys.stdout.write(f"{counts['inputs']} {counts['deep']}\n")
            sys.stdout.flush()

    options = [f"-runs={runs + 100}", f"-seed={seed}", "-max_len=700", "-len_control=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(folder), *options, f"-artifact_prefix={folder}/"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
