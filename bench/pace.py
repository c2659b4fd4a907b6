"""Latency by an open loop: each request is sent when it is due, whether or not the last one was answered."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

Question = tuple[str, str, Any]  # method, path, body


class Answer(NamedTuple):
    """What came back, and when."""

    seconds: float  # since the question was due
    status: int
    body: bytes


async def ask(url: str, question: Question, due: float) -> Answer:
    """Ask by a connection of its own."""
    method, path, content = question
    body = json.dumps(content).encode() if content else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(head.encode() + b"\r\n" + body)
    answer = await reader.read()
    seconds = time.perf_counter() - due
    writer.close()
    return Answer(seconds, int(answer.split(maxsplit=2)[1]), answer.partition(b"\r\n\r\n")[2])


async def paced(url: str, questions: Sequence[Question], interval: float) -> list[Answer]:
    """Ask one question every so many seconds; give the answers in the order of the questions."""
    asked = []
    start = time.perf_counter()
    for number, question in enumerate(questions):
        due = start + number * interval
        await asyncio.sleep(due - time.perf_counter())
        asked.append(asyncio.create_task(ask(url, question, due)))
    return list(await asyncio.gather(*asked))


def percentile(answers: Sequence[Answer], percent: int) -> float:
    """Give the time within which so many of a hundred answers came, ms."""
    return 1000 * statistics.quantiles([answer.seconds for answer in answers], n=100)[percent - 1]
