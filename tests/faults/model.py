"""A small model of a secret's life, and a machine that drives the real service at random and compares.

The clock is the suite's own, and stands still but for the machine's own steps: so each time in an answer is known to
the millisecond.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from quart_ots.api.bodies import DEFAULT_TTL, rfc3339
from quart_ots.vault.store import MAX_ATTEMPTS
from tests.faults import clocked
from tests.faults.finding import Finding
from tests.mongod import Mongod
from tests.service import EVERY, Service, draw_master_key, running

STEPS = 50
# The step of a run at which the service may be started anew, and one run in how many: it takes a second and a half.
RESTART = 25
RESTARTED = 4
TEXTS = st.sampled_from(["s", "a\r\n\0\ufeff ", "x" * 255]) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60
)
PHRASES = ("x", "correct horse battery staple", "Caf\u00e9 \u212b", "\0", "\U0001f511" * 255)


@dataclass
class Life:
    """What should be true of one secret."""

    text: str
    phrase: str
    keys: dict[str, str]
    sealed_under: str
    created_at: datetime
    expires_at: datetime
    state: str = "pending"
    attempts_left: int = MAX_ATTEMPTS
    ended_at: datetime | None = None

    def pass_time(self, now: datetime) -> None:
        """Expire if it is time."""
        if self.state == "pending" and now >= self.expires_at:
            self.end("expired", self.expires_at)

    def end(self, state: str, now: datetime) -> None:
        """End in one of four ways, for good."""
        self.state, self.ended_at = state, now

    def guess(self, now: datetime) -> None:
        """Fail once."""
        self.attempts_left -= 1
        if self.attempts_left == 0:
            self.end("locked", now)

    def receipt(self) -> dict[str, Any]:
        """Return what the receipt should say."""
        return {
            "state": self.state,
            "created_at": rfc3339(self.created_at),
            "expires_at": rfc3339(self.expires_at),
            "ended_at": rfc3339(self.ended_at) if self.ended_at else None,
            "attempts_left": self.attempts_left,
        }


class World:
    """One service, its database, its clock and its key ring, for all runs of a machine."""

    def __init__(self, service: Service, clock: clocked.FileClock, ring: Path) -> None:
        self.service, self.clock, self.ring = service, clock, ring
        self.runs = self.steps = self.restarts = 0
        self.keys = ring.read_text().split()
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        """Ask the service, and return the status and the body."""
        data = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        answer = self._connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else {}

    def restart(self, keys: list[str]) -> None:
        """Stop the service and start it with a key ring."""
        self.restarts += 1
        self.ring.write_text("\n".join(keys))
        self._connection.close()  # opens itself anew
        assert self.service.stop() == 0
        self.service.start()


class Machine(RuleBasedStateMachine):
    """Random steps of clients, the clock and the operator. Each answer must be the model's."""

    world: ClassVar[World]
    lives = Bundle("lives")

    @initialize(chance=st.integers(1, RESTARTED))
    def begin(self, chance: int) -> None:
        """Start with no secrets of this run's."""
        self.world.runs += 1
        self.may_restart = chance == 1
        self.number = 0
        self.known: list[Life] = []
        self.ring = self.world.ring.read_text().split()

    @property
    def now(self) -> datetime:
        """The time."""
        return self.world.clock()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask the service."""
        return self.world.ask(method, path, body)

    def step(self) -> None:
        """Count a step."""
        self.number += 1
        self.world.steps += 1

    @rule(
        target=lives,
        text=TEXTS,
        phrase=st.sampled_from(PHRASES),
        ttl=st.sampled_from([60, 61, 120, 3600, None]),
    )
    def create(self, text: str, phrase: str, ttl: int | None) -> Life:
        """Create a secret."""
        self.step()
        body = {"secret": text, "passphrase": phrase} | ({"ttl": ttl} if ttl else {})
        status, keys = self.ask("POST", "/generate", body)
        expires_at = self.now + timedelta(seconds=ttl or DEFAULT_TTL)
        assert (status, keys.pop("expires_at")) == (201, rfc3339(expires_at))
        self.world.service.sent |= {*keys.values()}
        life = Life(text, phrase, keys, self.ring[0], self.now, expires_at)
        self.known.append(life)
        return life

    def read(self, life: Life, phrase: str) -> None:
        """Try to read, and compare."""
        status, body = self.ask("POST", f"/secrets/{life.keys['secret_key']}", {"passphrase": phrase})
        if life.state != "pending":
            assert (status, body["type"]) == (404, "urn:quart-ots:problem:secret-not-found")
        elif life.sealed_under not in self.ring:
            assert (status, body["type"]) == (503, "urn:quart-ots:problem:unreadable-secret")
        elif unicodedata.normalize("NFC", phrase) == unicodedata.normalize("NFC", life.phrase):
            assert (status, body) == (200, {"secret": life.text})
            life.attempts_left -= 1
            life.end("read", self.now)
        else:
            life.guess(self.now)
            assert (status, body["attempts_left"]) == (403, life.attempts_left)

    @rule(life=lives, form=st.sampled_from(["NFC", "NFD"]))
    def read_right(self, life: Life, form: Any) -> None:
        """Read with the right passphrase, as either of two systems writes it."""
        self.step()
        self.read(life, unicodedata.normalize(form, life.phrase))

    @rule(life=lives, times=st.sampled_from([1, 1, 3, 9, 10]))
    def read_wrong(self, life: Life, times: int) -> None:
        """Guess wrong, once or often."""
        self.step()
        for _ in range(times):
            self.read(life, life.phrase + "!")

    @rule(life=lives, body=st.sampled_from([{}, {"passphrase": ""}, {"passphrase": "x", "ttl": 60}, [], "x"]))
    def read_malformed(self, life: Life, body: Any) -> None:
        """Send what is no reading: it counts for nothing."""
        self.step()
        assert self.ask("POST", f"/secrets/{life.keys['secret_key']}", body)[0] == 400

    @rule(life=lives)
    def mix_up_keys(self, life: Life) -> None:
        """Take one key for the other."""
        self.step()
        assert self.ask("POST", f"/secrets/{life.keys['receipt_key']}", {"passphrase": life.phrase})[0] == 404
        assert self.ask("DELETE", f"/receipts/{life.keys['secret_key']}")[0] == 404

    @rule(life=lives, method=st.sampled_from(["GET", "HEAD"]))
    def look(self, life: Life, method: str) -> None:
        """See whether it waits."""
        self.step()
        status, body = self.ask(method, f"/secrets/{life.keys['secret_key']}")
        assert status == (200 if life.state == "pending" else 404)
        if method == "GET" and status == 200:
            assert body == {"expires_at": rfc3339(life.expires_at), "attempts_left": life.attempts_left}

    @rule(life=lives)
    def receipt(self, life: Life) -> None:
        """See what became of it."""
        self.step()
        assert self.ask("GET", f"/receipts/{life.keys['receipt_key']}") == (200, life.receipt())

    @rule(life=lives)
    def burn(self, life: Life) -> None:
        """Burn it."""
        self.step()
        status, body = self.ask("DELETE", f"/receipts/{life.keys['receipt_key']}")
        if life.state == "pending":
            life.end("burned", self.now)
        if life.state == "burned":
            assert (status, body) == (200, life.receipt())
        else:
            assert (status, body["state"]) == (409, life.state)

    @rule(life=consumes(lives))
    def forget(self, life: Life) -> None:
        """Leave a secret alone, so that others are played with; it is looked at once more in the end."""
        self.step()

    @rule(seconds=st.sampled_from([0.001, 1, 29, 60, 61, 3600]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.step()
        now = self.now + timedelta(seconds=seconds)
        self.world.clock.set(now)
        for life in self.known:
            life.pass_time(now)

    @precondition(lambda self: self.may_restart and self.number == RESTART)
    @rule(ring=st.sampled_from(["as it is", "a new key first", "the first alone", "all there were"]))
    def restart(self, ring: str) -> None:
        """Stop the service, change its keys, start it."""
        self.step()
        if ring == "a new key first":
            self.ring = [draw_master_key(), *self.ring]
            self.world.keys = [self.ring[0], *self.world.keys]
        elif ring == "the first alone":
            self.ring = self.ring[:1]
        elif ring == "all there were":
            self.ring = [*self.ring[:1], *(key for key in self.world.keys if key != self.ring[0])]
        self.world.restart(self.ring)

    def teardown(self) -> None:
        """See that all receipts of the run agree in the end."""
        for life in getattr(self, "known", []):
            assert self.ask("GET", f"/receipts/{life.keys['receipt_key']}") == (200, life.receipt())


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """Make a world for the time of a block."""
    clock, ring = clocked.FileClock(folder / "clock"), folder / "ring"
    # Ahead of the database's own clock, whose reaper would take part otherwise.
    clock.set(datetime.now(UTC).replace(microsecond=0) + timedelta(days=1))
    ring.write_text(draw_master_key())
    with Mongod(folder / "mongod") as mongod, clock.told():
        given = {"MONGODB_URL": mongod.url, "MASTER_KEYS_FILE": str(ring)}
        with running(folder, given, clocked.SERVE_CLOCKED) as service:
            yield World(service, clock, ring)
        EVERY.remove(service)  # its log goes with the folder


def run_part(runs: int, seed: int) -> tuple[int, int, int, list[str]]:
    """Run the machine; return how many runs, steps and restarts there were, and a line if an answer was wrong."""

    class Seeded(Machine):
        pass

    violations = []
    with tempfile.TemporaryDirectory() as folder, world(Path(folder)) as Seeded.world:
        try:
            run_state_machine_as_test(
                hypothesis.seed(seed)(Seeded),
                settings=settings(
                    max_examples=runs,
                    stateful_step_count=STEPS,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
                _min_steps=STEPS,  # hypothesis would end many runs sooner
            )
        except Exception as error:
            violations.append(f"an answer was not the model's: {type(error).__name__}")
            sys.stderr.write("\n".join(map(str, [*getattr(error, "__notes__", []), error, ""])))
        return Seeded.world.runs, Seeded.world.steps, Seeded.world.restarts, violations


def model(runs: int, seed: int, processes: int = 2) -> Finding:
    """Compare the service with the model, in as many worlds as processes."""
    finding = Finding("every answer is the one that a secret's life calls for", "")
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        parts = list(pool.map(run_part, [runs // processes] * processes, range(seed, seed + processes)))
    played, steps, restarts, violations = zip(*parts, strict=True)
    finding.trials = sum(steps)
    finding.violations = list(chain.from_iterable(violations))
    runs_told = f"{sum(played):,} random runs of at most {STEPS} steps"
    finding.attack = f"a model of a secret's life, {runs_told}; a trial is a step"
    finding.note = f"{sum(restarts)} restarts"
    return finding
