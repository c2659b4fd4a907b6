"""The benchmark's arithmetic: what it measures depends on the machine, and is nobody's promise."""

import json
from collections import Counter

import pytest

from bench import parts, report
from bench.pace import Answer, percentile
from tests.service import ROOT


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        ("run (hypercorn/run.py:1);_run (x/hypercorn/asyncio/run.py:2)", "loop"),
        ("_run (x/hypercorn/asyncio/run.py:2);handle (x/hypercorn/protocol/h11.py:3)", "server"),
        ("_run (x/hypercorn/asyncio/run.py:2);f (x/site-packages/quart/app.py:3);g (x/asyncio/tasks.py:4)", "routing"),
        ("f (x/quart_schema/validation.py:3);generate (x/quart_ots/api/routes.py:4)", "handlers"),
        (
            "f (x/site-packages/quart/app.py:3);client (x/quart_ots/edge/limits.py:4);get (x/werkzeug/local.py:5)",
            "limiter",
        ),
        ("_log (x/quart_ots/edge/request.py:1);info (x/python3/logging/__init__.py:2)", "log"),
        ("_worker (x/concurrent/futures/thread.py:1);insert_one (x/pymongo/synchronous/collection.py:2)", "driver"),
        ("_worker (x/concurrent/futures/thread.py:1)", "loop"),
    ],
)
def test_stacks_belong_to_parts(stack: str, part: str) -> None:
    """A sample is the part's that does the work, not that of its caller."""
    assert parts.part_of(stack) == part


def test_cpu_time_is_spread() -> None:
    """The parts' times add up to the request's."""
    spread = parts.spread(2.0, Counter(server=3, driver=1))

    assert (spread["server"], spread["driver"], sum(spread.values())) == (1.5, 0.5, 2.0)


def test_percentile() -> None:
    """The p99 of a hundred answers is the time of the slowest but one or so, in ms."""
    answers = [Answer(number / 1000, 200, b"") for number in range(1, 101)]

    assert 98 < percentile(answers, 99) <= 100
    assert percentile(answers, 50) == pytest.approx(50.5)


def test_page_tells_the_results() -> None:
    """What docs/performance.md says was measured is what bench/results.json holds."""
    results = json.loads((ROOT / "bench" / "results.json").read_text())

    assert report.measured(results) in (ROOT / report.PAGE).read_text()
