"""Bodies that no client should send: each gets a clear 4xx, and none is repeated in answer or log."""

from __future__ import annotations

import json
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quart import Response
from quart.typing import TestClientProtocol as Client

from quart_ots.api.bodies import MAX_BODY_BYTES
from quart_ots.api.problems import MalformedBodyError
from quart_ots.api.strict_json import parse_json
from tests.conftest import PHRASE, Created, post, receipt
from tests.test_api.conftest import check_problem

UNTIMED = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
MARK = "SENT5"  # stands in most bodies: to be found nowhere after
TEXT = f'"{MARK}"'.encode()


def body(**members: Any) -> bytes:
    """Return a body for /generate with members changed; None in place of a value leaves it out."""
    merged = {"secret": MARK, "passphrase": MARK} | members
    return json.dumps({name: value for name, value in merged.items() if value is not None}).encode()


def raw(secret: bytes = TEXT, passphrase: bytes = TEXT, more: bytes = b"") -> bytes:
    """Return a body for /generate with parts that json.dumps would not write."""
    return b'{"secret": ' + secret + b', "passphrase": ' + passphrase + more + b"}"


WRONG_TYPES: list[Any] = [0, 1, -1, 1.5, True, False, [], [MARK], {}, {MARK: MARK}]
WRONG_TTLS: list[Any] = [59, 0, -1, 2_592_001, 10**30, 60.0, 3600.5, True, False, "3600", "", MARK, [], [3600], {}]

INVALID: dict[str, tuple[bytes, list[str | None]]] = {
    **{f"secret {value!r}": (body(secret=value), ["secret"]) for value in WRONG_TYPES},
    **{f"passphrase {value!r}": (body(passphrase=value), ["passphrase"]) for value in WRONG_TYPES},
    **{f"ttl {value!r}": (body(ttl=value), ["ttl"]) for value in WRONG_TTLS},
    "secret null": (raw(secret=b"null"), ["secret"]),
    "passphrase null": (raw(passphrase=b"null"), ["passphrase"]),
    "ttl null": (raw(more=b', "ttl": null'), ["ttl"]),
    "ttl 1e3": (raw(more=b', "ttl": 1e3'), ["ttl"]),
    "ttl 1e999": (raw(more=b', "ttl": 1e999'), ["ttl"]),
    "ttl -0": (raw(more=b', "ttl": -0'), ["ttl"]),
    "ttl -0.0": (raw(more=b', "ttl": -0.0'), ["ttl"]),
    "ttl of 4000 digits": (raw(more=b', "ttl": ' + b"9" * 4000), ["ttl"]),
    "secret missing": (body(secret=None), ["secret"]),
    "passphrase missing": (body(passphrase=None), ["passphrase"]),
    "both missing": (b"{}", ["secret", "passphrase"]),
    "secret empty": (body(secret=""), ["secret"]),
    "passphrase empty": (body(passphrase=""), ["passphrase"]),
    "secret a byte too long": (body(secret="x" * 65_537), ["secret"]),
    "secret a byte too long in UTF-8": (body(secret="é" * 32_768 + "x"), ["secret"]),
    "secret too long in emoji": (body(secret="\U0001f511" * 16_385), ["secret"]),
    "passphrase a byte too long": (body(passphrase="x" * 1025), ["passphrase"]),
    "passphrase too long in UTF-8": (body(passphrase="é" * 513), ["passphrase"]),
    "high surrogate in secret": (raw(secret=b'"\\ud83d"'), ["secret"]),
    "low surrogate in secret": (raw(secret=b'"\\udd11"'), ["secret"]),
    "surrogates in reverse": (raw(secret=b'"\\udd11\\ud83d"'), ["secret"]),
    "surrogate in text": (raw(secret=b'"SENT5 \\ud83d SENT5"'), ["secret"]),
    "surrogate in passphrase": (raw(passphrase=b'"\\ud800"'), ["passphrase"]),
    "unknown field": (body(tll=3600), [None]),
    "unknown field with the mark": (body(**{MARK: MARK}), [None]),
    "unknown field with a surrogate": (raw(more=b', "\\ud800SENT5": 1'), [None]),
    "unknown field empty": (raw(more=b', "": 1'), [None]),
    "field in capitals": (body(TTL=3600), [None]),
    "field with a space": (body(**{"ttl ": 3600}), [None]),
    "secret_key sent": (body(secret_key="a" * 43), [None]),
    "prototype": (body(__proto__={}), [None]),
    "all wrong": (b'{"secret": 1, "passphrase": 2, "ttl": 3, "SENT5": 4}', ["secret", "passphrase", "ttl", None]),
    **{
        f"top level {text.decode()}": (text, [None])
        for text in (b"[]", b"[{}]", b"null", b"true", b"0", b"1.5", b'""', TEXT, b"[" + TEXT + b"]")
    },
}
MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "white space": b" \r\n\t ",
    "truncated object": b'{"secret": "SENT5"',
    "truncated text": b'{"secret": "SENT5',
    "truncated escape": b'{"secret": "\\u00',
    "bad escape": raw(secret=b'"\\xSENT5"'),
    "trailing comma": raw(more=b","),
    "comment": raw(more=b"/* SENT5 */"),
    "single quotes": b"{'secret': 'SENT5'}",
    "no quotes": b"{secret: SENT5}",
    "two values": raw() + raw(),
    "rubbish after": raw() + b"SENT5",
    "raw line end in text": raw(secret=b'"SENT5\n"'),
    "raw NUL in text": raw(secret=b'"SENT5\0"'),
    "NUL before": b"\0" + raw(),
    "NaN": raw(more=b', "ttl": NaN'),
    "Infinity": raw(more=b', "ttl": Infinity'),
    "-Infinity": raw(more=b', "ttl": -Infinity'),
    "NaN as the body": b"NaN",
    "hexadecimal": raw(more=b', "ttl": 0xE10'),
    "leading zero": raw(more=b', "ttl": 03600'),
    "plus sign": raw(more=b', "ttl": +3600'),
    "bare point": raw(more=b', "ttl": 3600.'),
    "number of 5000 digits": raw(more=b', "ttl": ' + b"9" * 5000),
    "name twice": raw(more=b', "secret": "SENT5"'),
    "name twice, once escaped": raw(more=b', "\\u0073ecret": "SENT5"'),
    "unknown name twice": raw(more=b', "SENT5": 1, "SENT5": 1'),
    "name twice further down": raw(more=b', "x": {"SENT5": 1, "SENT5": 2}'),
    "UTF-8 BOM": b"\xef\xbb\xbf" + raw(),
    "UTF-16": body().decode().encode("utf-16"),
    "UTF-16 without BOM": body().decode().encode("utf-16-le"),
    "UTF-32": body().decode().encode("utf-32"),
    "Latin-1": raw(secret=b'"SENT5 \xe9"'),
    "overlong UTF-8": raw(secret=b'"SENT5 \xc0\xaf"'),
    "surrogate in UTF-8": raw(secret=b'"SENT5 \xed\xa0\x80"'),
    "beyond Unicode": raw(secret=b'"SENT5 \xf4\x90\x80\x80"'),
    "cut UTF-8": raw(secret=b'"SENT5 \xf0\x9f"'),
    "byte FF": b"\xff",
    "nested lists": b"[" * 100_000,
    "nested lists, closed": b"[" * 100_000 + b"]" * 100_000,
    "nested objects": b'{"a":' * 60_000 + b"1" + b"}" * 60_000,
    "nested in a field": raw(secret=b"[" * 50_000 + b"]" * 50_000),
    "form": b"secret=SENT5&passphrase=SENT5",
    "XML": b"<secret>SENT5</secret>",
    "binary": bytes(range(256)),
}
READ_INVALID: dict[str, bytes] = {
    "passphrase missing": b"{}",
    "passphrase null": b'{"passphrase": null}',
    "passphrase a number": b'{"passphrase": 5}',
    "passphrase empty": b'{"passphrase": ""}',
    "passphrase too long": json.dumps({"passphrase": "x" * 1025}).encode(),
    "passphrase a surrogate": b'{"passphrase": "\\ud800"}',
    "unknown field": json.dumps({"passphrase": PHRASE, MARK: 1}).encode(),
    "a secret as well": json.dumps({"passphrase": PHRASE, "secret": MARK}).encode(),
    "a list": b"[]",
    "not JSON": b"SENT5",
}


async def check_refused(answer: Response, status: int, name: str, caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """Check that an answer is the problem named, and that neither it nor the log repeats the body; return its body."""
    problem = await check_problem(answer, status, name)
    assert MARK not in await answer.get_data(as_text=True) + str(answer.headers) + caplog.text
    return problem


def test_corpus_is_large() -> None:
    """The corpus has more than a hundred bodies."""
    assert len(INVALID) + len(MALFORMED) + len(READ_INVALID) > 100


@pytest.mark.parametrize(("sent", "fields"), INVALID.values(), ids=INVALID.keys())
async def test_invalid_body(client: Client, caplog: pytest.LogCaptureFixture, sent: bytes, fields: list[Any]) -> None:
    """JSON that does not fit is a 400 that names each field at fault and the reason."""
    answer = await post(client, "/generate", sent)

    problem = await check_refused(answer, 400, "invalid-body", caplog)
    assert [fault["field"] for fault in problem["errors"]] == fields
    assert all(fault["reason"] not in ("", "is not valid") for fault in problem["errors"])


async def test_list_of_errors_is_bounded(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """A body of thousands of faults is not answered by as many."""
    answer = await post(client, "/generate", {f"{MARK}{number}": 1 for number in range(10_000)})

    problem = await check_refused(answer, 400, "invalid-body", caplog)
    assert len(problem["errors"]) == 20


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_body(client: Client, caplog: pytest.LogCaptureFixture, sent: bytes) -> None:
    """What is no JSON, or ambiguous, is a 400."""
    answer = await post(client, "/generate", sent)

    await check_refused(answer, 400, "malformed-body", caplog)


@pytest.mark.parametrize("sent", READ_INVALID.values(), ids=READ_INVALID.keys())
async def test_bad_body_takes_no_attempt(
    client: Client, created: Created, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    """A reader's bad body costs no attempt, and is judged before the key is looked up."""
    known = await post(client, f"/secrets/{created.secret_key}", sent)
    unknown = await post(client, f"/secrets/{'a' * 43}", sent)

    assert known.status_code == unknown.status_code == 400
    assert await known.get_data() == await unknown.get_data()
    assert MARK not in await known.get_data(as_text=True)
    assert (await receipt(client, created))["attempts_left"] == 10


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/problem+json"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": MARK},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": f"application/json; charset={MARK}"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "identity"},
        {"Content-Encoding": MARK},
    ],
    ids=str,
)
async def test_unsupported_media_type(
    client: Client, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    """Another content type, charset or any content coding is a 415."""
    answer = await post(client, "/generate", body(), **headers)

    await check_refused(answer, 415, "unsupported-media-type", caplog)


@pytest.mark.parametrize("content_type", ["application/json;charset=UTF-8", 'Application/JSON; charset="utf-8"'])
async def test_supported_media_type(client: Client, content_type: str) -> None:
    """JSON in UTF-8 may say so in any case."""
    answer = await post(client, "/generate", body(), **{"Content-Type": content_type})

    assert answer.status_code == 201


async def test_body_at_and_over_the_limit(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """A body is taken to the last byte of the limit, and a 413 from the next on."""
    sent = body() + b" " * (MAX_BODY_BYTES - len(body()))

    assert (await post(client, "/generate", sent)).status_code == 201
    await check_refused(await post(client, "/generate", sent + b" "), 413, "body-too-large", caplog)


@UNTIMED
@given(st.binary(max_size=200))
def test_parser_raises_nothing_else(sent: bytes) -> None:
    """Any bytes are JSON or a MalformedBodyError."""
    try:
        parse_json(sent)
    except MalformedBodyError as error:
        assert error.detail.startswith("The body ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@UNTIMED
@given(json_values)
def test_parser_reads_all_json(value: Any) -> None:
    """What json.dumps writes is read as it was."""
    assert parse_json(json.dumps(value).encode()) == value
