"""The service as a process, over a real socket, on a real database: atomicity, durability, rudeness."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pymongo
import pytest

from quart_ots.schemas import MAX_BODY_BYTES
from tests.faults.database import disarm, failpoint
from tests.service import HYPERCORN, PHRASE, ROOT, Mongo, Service, running, wait_for

T = TypeVar("T")
ROUNDS = 20
# What the reaper may delete at any moment, see waiting.
UNREAPED = {"_id": {"$ne": "over"}}
READERS = 100


def at_once(number: int, act: Callable[[int], T]) -> list[T]:
    """Call a function so often, in as many threads that start together."""
    start = threading.Barrier(number)

    def wait_and_act(index: int) -> T:
        start.wait()
        return act(index)

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(wait_and_act, range(number)))


@pytest.fixture(scope="module", autouse=True)
def waiting(service: Service, mongo: Mongo) -> dict[str, str]:
    """Put documents into the database whose time is over: its reaper has the time of all tests to find them."""
    past, future = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    with pymongo.MongoClient[dict[str, Any]](mongo.url) as client:
        secrets, envelopes = (client.get_default_database()[name] for name in ("secrets", "envelopes"))
        envelopes.insert_one({"_id": "over", "expires_at": past})
        secrets.insert_one({"_id": "over", "receipt_id": "over", "expires_at": past, "purge_at": past})
        secrets.insert_one({"_id": "expired", "receipt_id": "expired", "expires_at": past, "purge_at": future})
    return service.generate()


@pytest.fixture(scope="module")
def pair(service: Service, mongo: Mongo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Service]]:
    """Two service processes with one database and one key ring."""
    keys = (service.folder / "instance" / "master.key").read_text().strip()
    folder = tmp_path_factory.mktemp("second")
    with running(folder, {"MONGODB_URL": mongo.url, "MASTER_KEYS": keys}, covered=False) as second:
        yield [service, second]


@pytest.mark.parametrize("processes", [1, 2])
def test_hundred_readers_one_secret(pair: list[Service], processes: int) -> None:
    """Of 100 readers at once, over one process or two, exactly one gets the secret; in 20 rounds of 20."""
    for number in range(ROUNDS):
        secret = f"the secret of round {number}"
        created = pair[0].generate(secret)

        answers = at_once(READERS, lambda index: pair[index % processes].read(created["secret_key"]))  # noqa: B023

        statuses = Counter(answer.status_code for answer in answers)
        assert statuses[200] == 1
        assert set(statuses) <= {200, 404, 503}
        assert [answer.json() for answer in answers if answer.status_code == 200] == [{"secret": secret}]
        assert pair[-1].receipt(created["receipt_key"])["state"] == "read"


def test_parallel_guesses_count_each(pair: list[Service]) -> None:
    """Of 60 wrong guesses at once, over two processes, ten are judged; the rest find the secret locked."""
    created = pair[0].generate()

    answers = at_once(60, lambda index: pair[index % 2].read(created["secret_key"], "wrong guess"))

    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[403] == 10
    assert statuses[404] == 50
    assert pair[1].receipt(created["receipt_key"])["state"] == "locked"
    assert pair[0].read(created["secret_key"]).status_code == 404


def test_reader_against_burner(pair: list[Service]) -> None:
    """When a reader and a burner race, one of them wins and the receipt agrees with it."""
    for _ in range(ROUNDS):
        created = pair[0].generate()

        def act(index: int) -> httpx.Response:
            if index == 0:
                return pair[0].read(created["secret_key"])  # noqa: B023
            return httpx.delete(f"{pair[1].url}/receipts/{created['receipt_key']}", timeout=30)  # noqa: B023

        reading, burning = at_once(2, act)

        state = pair[0].receipt(created["receipt_key"])["state"]
        assert (reading.status_code, burning.status_code, state) in ((200, 409, "read"), (404, 200, "burned"))


@pytest.mark.parametrize("text", ["a\r\nb\0 \U0001f511 e\u0301\u202e \ufeff ", "\0" * 65_536, "é" * 32_768])
def test_round_trip_over_a_socket(service: Service, text: str) -> None:
    """A secret comes back to the byte."""
    created = service.generate(text)

    assert service.read(created["secret_key"]).json() == {"secret": text}


def test_head_has_no_body(service: Service) -> None:
    """HEAD answers as GET does, without the body, and consumes nothing."""
    created = service.generate()
    url = f"{service.url}/secrets/{created['secret_key']}"

    head, get = httpx.head(url), httpx.get(url)

    assert head.status_code == get.status_code == 200
    assert head.headers["Content-Length"] == get.headers["Content-Length"]
    assert head.content == b""
    assert get.json()["attempts_left"] == 10


def exchange(service: Service, sent: bytes, half_close: bool = False) -> bytes:
    """Send bytes as they are, and give all that comes back until the server closes or is silent."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(sent)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while not received.endswith((b"}", b"}\n")):
            try:
                part = connection.recv(65_536)
            except ConnectionResetError:
                break
            if not part:
                break
            received += part
        return received


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Write a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: h", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunk(body: bytes) -> bytes:
    """Write a chunk of a chunked body."""
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


H2C = (
    b"GET /secrets/SENT5 HTTP/1.1\r\nHost: h\r\nAuthorization: SENT5\r\nUpgrade: h2c\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: %s\r\n\r\n"
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BODY = json.dumps({"secret": "a raw secret", "passphrase": PHRASE}).encode()


def test_chunked_body(service: Service) -> None:
    """A chunked body without a length is read like any other."""
    received = exchange(service, post("/generate", chunk(BODY[:9]) + chunk(BODY[9:]) + chunk(b""), CHUNKED))

    assert received.startswith(b"HTTP/1.1 201")
    service.sent.add("a raw secret")


CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    "sent",
    [
        post("/generate", b"", f"Content-Length: {MAX_BODY_BYTES + 1}"),
        post("/generate", b"", "Content-Length: 99999999999999999999"),
        post("/generate", chunk(b" " * (MAX_BODY_BYTES + 1)), CHUNKED),
    ],
    ids=["announced", "announced beyond 64 bits", "chunked"],
)
def test_body_over_the_limit_is_refused_unread(service: Service, sent: bytes) -> None:
    """A body over the limit is answered before its end: by its length, or when a chunk goes beyond."""
    assert exchange(service, sent).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (post("/generate", BODY[:-1], f"Content-Length: {len(BODY) - 1}"), {"400"}),
        (post("/generate", BODY, f"Content-Length: {len(BODY)}", "Content-Encoding: gzip"), {"415"}),
        (post("/generate", BODY, "Content-Length: -1"), {"400"}),
        (post("/generate", BODY, "Content-Length: SENT5"), {"400"}),
        (post("/generate", BODY, f"Content-Length: {len(BODY)}", "Content-Length: 1"), {"400"}),
        (post("/generate", b"zz\r\n", CHUNKED), {"400", ""}),
        (post("/generate", b"", f"X: {'SENT5' * 8000}"), {"400", "431"}),
        (b"GET /SENT5 HTTP/1.1\r\nHost: [SENT5\r\n\r\n", {"400", "404"}),
        (b"GET /SENT5 HTTP/1.1\r\nHost: a b,c\r\n\r\n", {"400", "404"}),
        (b"GET /SENT5 HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", {"400", "404"}),
        (b"GET /SENT5 HTTP/1.1\r\nHost: SENT5:99999999\r\n\r\n", {"400", "404"}),
        (b"GET /SENT5 HTTP/1.1\r\n\r\n", {"400"}),
        (b"GET /SENT5 HTTP/1.0\r\n\r\n", {"404"}),
        (b"GET /secrets/SENT5%00%ff%f0%9f HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"GET /secrets/SENT5\xff HTTP/1.1\r\nHost: h\r\n\r\n", {"400", "404"}),
        (b"GET //secrets//SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"POST //generate HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", {"415"}),
        (b"GET http://SENT5/secrets/SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"GET secrets/SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"400", "404"}),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"SENT5 /secrets/SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"405"}),
        (b"GET /secrets/SENT5?SENT5=SENT5 HTTP/1.1\r\nHost: h\r\nReferer: SENT5\r\nUser-Agent: SENT5\r\n\r\n", {"404"}),
        (
            b"GET /secrets/SENT5 HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            {"405"},
        ),
        (b"GET ?SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"GET http://[SENT5/ HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"GET http://SENT5 HTTP/1.1\r\nHost: h\r\n\r\n", {"404"}),
        (b"\x16\x03\x01\x02\x00\x01SENT5", {"400", ""}),
        (b"SENT5\r\n\r\n", {"400", ""}),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, bytes) else "",
)
def test_rude_request(service: Service, sent: bytes, statuses: set[str]) -> None:
    """What is hardly HTTP gets a 4xx or a closed connection, and nothing of it is repeated."""
    service.sent.add("SENT5")

    received = exchange(service, sent, half_close=not (sent.startswith(b"POST") or b"websocket" in sent))

    assert received[9:12].decode() in statuses
    assert b"SENT5" not in received
    assert received[9:12] in (b"400", b"431", b"") or b"cache-control: no-store" in received
    assert "SENT5" not in service.log.read_text(errors="replace")


@pytest.mark.parametrize(
    "sent",
    [
        H2C % b"A",
        H2C % b"SENT5====",
        PREFACE + b"SENT5" + bytes(40) + b"SENT5",
        # A HEADERS frame whose :path (index 4) is no ASCII, and a DATA frame with what must not be logged.
        PREFACE + b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x0d\1\4\0\0\0\1" + b"\x83\x86\4\x08/gen\xc3\xa9SE" + b"NT5",
        PREFACE + b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x05\0\1\0\0\0\1SENT5",
    ],
    ids=["upgrade with bad settings", "upgrade with other bad settings", "rubbish", "path beyond ASCII", "data first"],
)
def test_broken_http2(service: Service, sent: bytes) -> None:
    """Broken HTTP/2 ends its connection and no more; the errors that Hypercorn then logs quote nothing of it."""
    service.sent.add("SENT5")

    received = exchange(service, sent, half_close=True)

    assert b"SENT5" not in received
    assert b" 500 " not in received
    assert "SENT5" not in service.log.read_text(errors="replace")
    assert service.client.get("/health/live").status_code == 200


def test_truncated_body_creates_nothing(service: Service, mongo: Mongo) -> None:
    """A body that ends before its length is no request: nothing is answered, logged as an error, or kept."""
    before = service.log.read_text()
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo.url)
    with client:
        kept = client.get_default_database().envelopes.count_documents(UNREAPED)

    received = exchange(service, post("/generate", BODY[:20], f"Content-Length: {len(BODY)}"), half_close=True)

    assert b"HTTP/1.1 20" not in received
    assert b"HTTP/1.1 5" not in received
    client = pymongo.MongoClient(mongo.url)
    with client:
        assert client.get_default_database().envelopes.count_documents(UNREAPED) == kept
    assert "rror" not in service.log.read_text()[len(before) :]


def test_client_who_hangs_up_leaves_no_path_in_the_log(service: Service) -> None:
    """A client that sends its request and hangs up at once leaves no key in the access log."""
    created = service.generate()
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(f"GET /secrets/{created['secret_key']} HTTP/1.1\r\nHost: h\r\n\r\n".encode())

    assert httpx.get(f"{service.url}/health/live").status_code == 200
    assert created["secret_key"] not in service.log.read_text()


def test_access_log_shows_routes(service: Service) -> None:
    """An access log of Hypercorn's in a file shows routes and statuses, and no address or key."""
    before = len(service.logged())
    created = service.generate()
    httpx.get(f"{service.url}/secrets/{created['secret_key']}?a=b", headers={"User-Agent": "an agent"})
    httpx.get(f"{service.url}/elsewhere/{created['secret_key']}")

    wait_for(lambda: '"GET - 1.1" - 404' in service.logged()[before:])  # written after the answer
    log = service.logged()[before:]
    assert '"POST /generate 1.1" /generate 201 - -' in log
    assert '"GET /secrets/<secret_key> 1.1" /secrets/<secret_key> 200 - -' in log
    assert '"GET - 1.1" - 404 - -' in log
    assert "127.0.0.1" not in log


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-m", "quart", "--app", "quart_ots", "--debug", "run", "--port", "{port}", "--no-reload"),
        (*HYPERCORN[:-1], "--worker-class", "uvloop", "--log-level", "debug", "quart_ots:create_app()"),
        tuple("1" if part == "0" else part for part in HYPERCORN),
    ],
    ids=["quart run --debug", "hypercorn with uvloop", "hypercorn with a worker process"],
)
def test_other_servers(mongo: Mongo, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Under each server the service works, stops with status 0, and logs no key; `running` checks the log."""
    with running(tmp_path, {"MONGODB_URL": mongo.url}, *command) as service:
        created = service.generate()
        looks = httpx.get(f"{service.url}/secrets/{created['secret_key']}?q={created['secret_key']}")
        answers = [service.read(created["secret_key"], "wrong"), *(service.read(created["secret_key"]) for _ in "ab")]
        assert service.stop() == 0

    assert looks.status_code == 200
    assert [answer.status_code for answer in answers] == [403, 200, 404]


def test_limit_over_a_socket(mongo: Mongo, tmp_path: Path) -> None:
    """A client gets its 600 at once and is then told when to come back; forged addresses gain nothing."""
    with running(tmp_path, {"MONGODB_URL": mongo.url, "RATE_LIMIT": "600"}) as service:
        started = time.monotonic()
        with httpx.Client(base_url=service.url) as client:
            passed = 0
            while (
                answer := client.get("/receipts/none", headers={"X-Forwarded-For": f"10.0.0.{passed}"})
            ).is_client_error:
                if answer.status_code == 429:
                    break
                passed += 1
        regained = 10 * (time.monotonic() - started)

        assert 600 <= passed <= 600 + regained + 1
        assert answer.headers["Retry-After"] == "1"
        assert httpx.get(f"{service.url}/health/live").status_code == 200


@pytest.mark.own_database
def test_database_killed_and_back(tmp_path: Path) -> None:
    """While its database is dead the service answers 503 within seconds, lives, and recovers by itself; all is kept."""
    mongo = Mongo(tmp_path)
    try:
        with running(tmp_path, {"MONGODB_URL": mongo.url}, covered=False) as service:
            waiting, was_read = service.generate("waits"), service.generate("was read")
            service.read(was_read["secret_key"])
            mongo.kill()

            started = time.monotonic()
            away = service.read(waiting["secret_key"])
            took = time.monotonic() - started
            live = httpx.get(f"{service.url}/health/live")
            ready = httpx.get(f"{service.url}/health/ready", timeout=10)

            assert (away.status_code, live.status_code, ready.status_code) == (503, 200, 503)
            assert away.headers["Retry-After"]
            assert took < 10

            mongo.start()
            service.wait_until_ready()
            assert service.read(was_read["secret_key"]).status_code == 404
            assert service.read(waiting["secret_key"]).json() == {"secret": "waits"}
    finally:
        mongo.kill()


@pytest.mark.own_database
def test_slow_database_is_503(tmp_path: Path) -> None:
    """A database that does not answer is a 503 after the socket's time-out, not a hang; then work goes on."""
    mongo = Mongo(tmp_path)
    try:
        with running(tmp_path, {"MONGODB_URL": mongo.url}, covered=False) as service:
            created = service.generate()
            mongo.pause()
            try:
                answer = service.read(created["secret_key"])
            finally:
                mongo.resume()

            assert answer.status_code == 503
            service.wait_until_ready()
            assert service.read(created["secret_key"]).status_code == 200
    finally:
        mongo.kill()


@pytest.mark.own_database
def test_service_starts_before_its_database(tmp_path: Path) -> None:
    """A service whose database is late starts, answers 503, and serves once it is there."""
    mongo = Mongo(tmp_path)
    mongo.kill()
    try:
        with running(tmp_path, {"MONGODB_URL": mongo.url}, wait=False, covered=False) as service:
            assert service.wait_until_up() == 503

            mongo.start()

            service.wait_until_ready()
            assert service.read(service.generate()["secret_key"]).status_code == 200
    finally:
        mongo.kill()


@pytest.mark.own_database
def test_not_ready_before_its_indexes(tmp_path: Path) -> None:
    """A service whose indexes can't be made is not ready; once they are, the first secret is taken."""
    mongo = Mongo(tmp_path, "--enable-test-commands")
    try:
        with pymongo.MongoClient[dict[str, Any]](mongo.url) as admin:
            failpoint(admin, ["createIndexes"], skip=0, times=1_000, data={"errorCode": 1})
            with running(tmp_path, {"MONGODB_URL": mongo.url}, wait=False) as service:
                assert service.wait_until_up() == 503

                disarm(admin)

                service.wait_until_ready()
                assert service.read(service.generate()["secret_key"]).status_code == 200
                assert "the database is not ready: OperationFailure 1" in service.log.read_text()
    finally:
        mongo.kill()


def test_kill_of_the_service_loses_nothing(mongo: Mongo, tmp_path: Path) -> None:
    """After kill -9 of the service unread secrets are there, read ones stay read, and attempts stay taken."""
    with running(tmp_path, {"MONGODB_URL": mongo.url}, covered=False) as service:
        for number in range(3):
            waiting, was_read = service.generate(f"waits {number}"), service.generate()
            service.read(was_read["secret_key"])
            service.read(waiting["secret_key"], "wrong")

            service.kill()
            service.start()

            assert service.receipt(waiting["receipt_key"])["attempts_left"] == 9
            assert service.read(was_read["secret_key"]).status_code == 404
            assert service.read(waiting["secret_key"]).json() == {"secret": f"waits {number}"}


def test_master_key_is_needed(service: Service, mongo: Mongo, tmp_path: Path) -> None:
    """A service without the key that sealed a secret counts it in its log, and can't open it at no attempt's cost."""
    created = service.generate()

    with running(tmp_path, {"MONGODB_URL": mongo.url}) as other:
        answer = other.read(created["secret_key"])
        wait_for(lambda: "which the ring lacks" in other.log.read_text())  # counted in the background
        log = other.log.read_text()

    assert answer.status_code == 503
    assert re.search(r"[0-9]+ secrets wait under master key [0-9a-f]{16}, which the ring lacks", log)
    assert re.search(r"can't be opened: the key ring lacks the envelope's master key \(key id [0-9a-f]{16}\)", log)
    assert service.receipt(created["receipt_key"])["attempts_left"] == 10
    assert service.read(created["secret_key"]).status_code == 200


def test_busy_pool_leaves_health_alone(mongo: Mongo, tmp_path: Path) -> None:
    """With the KDF pool full, creators beyond its queue get 503, health answers, and the queue is served."""
    settings = {"MONGODB_URL": mongo.url, "BCRYPT_COST": "12", "KDF_THREADS": "1", "KDF_QUEUE": "3"}
    with running(tmp_path, settings) as service:
        body = {"secret": "s", "passphrase": PHRASE}
        with ThreadPoolExecutor(30) as threads:
            posts = [threads.submit(httpx.post, f"{service.url}/generate", json=body, timeout=60) for _ in range(30)]
            live = httpx.get(f"{service.url}/health/live", timeout=60)
            answers = [post.result() for post in posts]

        statuses = Counter(answer.status_code for answer in answers)
        assert live.status_code == 200
        assert set(statuses) == {201, 503}
        assert statuses[201] >= 4
        assert all(answer.headers["Retry-After"] for answer in answers if answer.status_code == 503)


def test_reaper_removes_what_is_over(service: Service, mongo: Mongo, waiting: dict[str, str]) -> None:
    """The database itself deletes envelopes past expires_at and secrets past purge_at, and keeps the others."""
    with pymongo.MongoClient[dict[str, Any]](mongo.url) as client:
        database = client.get_default_database()
        secrets, envelopes = database.secrets, database.envelopes
        assert secrets.index_information()["receipt_id_1"]["unique"] is True

        deadline = time.monotonic() + 100  # SecantusDB looks once a minute, as mongod does
        while time.monotonic() < deadline and (envelopes.find_one("over") or secrets.find_one("over")):
            time.sleep(1)

        assert envelopes.find_one("over") is secrets.find_one("over") is None
        assert secrets.find_one("expired")
    assert service.read(waiting["secret_key"]).status_code == 200


@pytest.mark.own_database
def test_installed_package_runs_from_an_empty_folder(tmp_path: Path) -> None:
    """An installed package holds all that the service needs; its instance folder is made where it is started."""
    for name in ("quart_ots", "setup.py", "pyproject.toml", "README.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (tmp_path / "source").mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / "source" / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), "."], cwd=tmp_path / "source", check=True)
    folder = tmp_path / "empty"
    folder.mkdir()

    with running(folder, {"INSTANCE_PATH": "instance"}, source=tmp_path / "site") as service:
        assert httpx.get(f"{service.url}/docs/docs.js").status_code == 200
        assert service.read(service.generate()["secret_key"]).status_code == 200

    assert (folder / "instance" / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "site" / "quart_ots" / "py.typed").exists()


def test_leaks_are_found(tmp_path: Path) -> None:
    """What the suite looks for in logs it finds: a key within other characters, and any other text."""
    service = Service.__new__(Service)
    service.folder, service.log = tmp_path, tmp_path / "log"
    service.sent = {"k" * 43, "u" * 43, "a phrase", "not there"}
    service.log.write_text(f'{{"path": "/x{"k" * 43}"}}\na phrase\n')

    assert sorted(service.leaks()) == ["a phrase", "k" * 43]
