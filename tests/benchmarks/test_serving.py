"""What the serving benchmark says of a server is what the server did."""

import asyncio
import os
import subprocess
import sys

from benchmarks.open_loop import ask_at_rate
from benchmarks.report import Report
from benchmarks.serving import EMPTY, HINDCAST, add_expectations, build_body, family_of


async def ask_a_server(refuse_every: int, pause: float) -> dict[str, float]:
    answered = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        while head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"":
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            answered += 1
            status = b"503" if refuse_every and answered % refuse_every == 0 else b"200"
            await asyncio.sleep(pause)
            writer.write(b"HTTP/1.1 " + status + b" x\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async def forgive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(forgive, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        found = await ask_at_rate(port, "/", [b"{}", b"[1, 2]"], rate=200, seconds=1.0)
        await asyncio.sleep(0.2)  # the server hears that its clients are gone
        return found


def test_the_open_loop_asks_at_its_rate_and_counts_what_is_refused() -> None:
    found = asyncio.run(ask_a_server(refuse_every=10, pause=0.01))
    assert 100 < found["requests/s"] < 300
    assert 0.05 < found["refused"] / found["requests/s"] < 0.15
    assert found["failed"] == 0
    assert found["p50, ms"] >= 10


def test_expectations_stand_beside_what_was_found() -> None:
    report = Report()
    for system, rate in ((HINDCAST, 3000.0), (EMPTY, 4000.0)):
        report.add("32 connections", system, "requests/s", rate)
    add_expectations(report)
    (row,) = [row for row in report.rows if row.case == "expectations"]
    assert row.value == 0.75
    assert row.metric == f"32 connections: times {EMPTY} (expected 0.8)"


def test_bodies_differ_in_time_and_name() -> None:
    bodies = [build_body(i, [1.0])["series"][0] for i in range(300)]
    assert len({body["start"] for body in bodies}) > 100
    assert len({body["unique_id"] for body in bodies}) == 300


def test_a_family_is_found_in_whatever_sessions_it_lives() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], start_new_session=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        while len(family_of(process.pid)) < 2:
            assert process.poll() is None
        assert os.getpid() not in family_of(process.pid)
        process.communicate(b"\n")
