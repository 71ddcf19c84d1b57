"""A hostile client: fuzzed requests in every form of framing, decompression bombs, clients that
hang up or stall, and a service without free descriptors.

    python benchmarks/endurance/hostile.py [--requests 20000] [--seconds 600] [--seed 1]
        [--connections 8] [--heavy] [--out FILE.json]

It starts a service on loopback, and stops after this many requests or seconds. Each request is sent
in seven ways: whole on a new connection, again with a header block that is already known, chunked,
as HTTP/1.0, as HTTP/1.0 three times on a connection that it asks to keep, three times in a row, and
cut at random places. All answers must be equal. Streams of altered bytes are sent in different
cuts, and must get the same answers each time. `--heavy` also sends the largest bodies and answers
of every kind, one at a time. A valid request is repeated in between, and its answer must stay the
same.

The exit status is 1 after a 5xx, a difference, a smuggled request, a wrong answer, an event loop
that was held for more than 50 ms, or memory that does not return to within 10 MiB. Before a run,
a table of each format is sent, and the largest inputs are repeated until memory grows no further,
at most six times. On a busy machine, allow an hour for --heavy (--seconds 3600).
"""

import argparse
import asyncio
import contextlib
import json
import random
import resource
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.endurance import hostile_bombs
from benchmarks.endurance import hostile_inputs as inputs
from benchmarks.endurance.hostile_streams import ends_in_body, ends_whole
from benchmarks.rig.processes import Process, service
from tests.support.small_models import FEATURES

MAX_TURN_SECONDS, MAX_GROWTH_MIB = 0.05, 10.0
MAX_ROUNDS = 6
"""The most rounds of the largest inputs until memory grows no further."""
TRIM_SECONDS = 1.0
"""Seconds after a large request until the service has returned the freed memory."""
_ANSWER_SECONDS = 60.0
_THRICE = ("HTTP/1.0, kept", "pipelined")
_HELD = "the event loop was held for"
_RESET = struct.pack("ii", 1, 0)
_GOOD = inputs.Request(
    b"POST",
    b"/models/linear/predict?tau=1",
    [(b"Content-Type", inputs.JSON)],
    json.dumps({"instances": [[0.5] * FEATURES]}).encode(),
)


class Answer(NamedTuple):
    """One answer. Status 0: the connection ended before or within the answer."""

    status: int
    content_type: bytes
    body: bytes


@dataclass
class Found:
    """The result of a run."""

    inputs: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures_5xx: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    smuggled: list[str] = field(default_factory=list)
    wrong_answers: list[str] = field(default_factory=list)
    longest_turn_seconds: float = 0.0
    longest_work_seconds: float = 0.0
    """The most processor time of the loop's own thread in one turn."""
    held: list[str] = field(default_factory=list)
    """Inputs during which the event loop was held too long, with the lines of the service's log."""
    memory_before_mib: float = 0.0
    memory_after_mib: float = 0.0
    memory_peak_mib: float = 0.0
    memory_rounds_mib: list[float] = field(default_factory=list)
    """Memory after each round of the largest inputs before the run itself."""
    grows: bool = False
    """Whether memory grew in each of these rounds."""
    seconds: float = 0.0

    def faults(self) -> list[str]:
        """The faults that were found, in words."""
        lists = {
            "5xx": self.failures_5xx,
            "difference": self.differences,
            "smuggled": self.smuggled,
            "wrong answer": self.wrong_answers,
        }
        return [f"{name}: {each}" for name, found in lists.items() for each in found[:20]]


class Hostile:
    """Sends to one service, which must run without keys and with `--measure-loop-turns`."""

    def __init__(self, server: Process, *, seed: int, connections: int) -> None:
        parts = urlsplit(server.url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.server, self.found = server, Found()
        self._address = parts.hostname, parts.port
        self._rng, self._connections = random.Random(seed), connections
        self._expected: Answer | None = None

    # -- parts

    async def fuzz(self, count: int, deadline: float) -> None:
        """Send requests in every form of framing, and altered streams in different cuts."""

        async def one_connection() -> None:
            while self.found.inputs < count and time.monotonic() < deadline:
                if self._rng.random() < 0.7:
                    await self._every_way(inputs.request(self._rng))
                else:
                    await self._every_cut(inputs.framing(self._rng))
                if self._rng.random() < 0.05:
                    await self.check_good()

        await asyncio.gather(*(one_connection() for _ in range(self._connections)))

    async def bombs(self, deadline: float, *, heavy: bool) -> None:
        """Send, one at a time, small bodies that would become large."""
        for name, request in hostile_bombs.bombs().items():
            await self._alone(name, request.whole())
        for name, data in hostile_bombs.heavy() if heavy else ():
            if time.monotonic() > deadline:
                break
            await self._alone(name, data)

    async def import_libraries(self) -> None:
        """Send a table of each format. The first imports pyarrow, which keeps 40 MiB."""
        for content_type, body in inputs.tables():
            table = inputs.Request(
                b"POST", b"/models/text/predict", [(b"Content-Type", content_type)], body
            )
            await self._alone(content_type.decode(), table.whole())

    async def settle(self, deadline: float, *, heavy: bool) -> None:
        """Repeat the largest inputs until memory grows no further.

        The arenas of the graphs keep what the largest batch needed. The samples of logits, the
        trackers and the resolved priors fill up to their limits, which takes two or three rounds.
        Memory that grows in each of MAX_ROUNDS rounds is a fault.
        """
        before = -MAX_GROWTH_MIB
        for _ in range(MAX_ROUNDS):
            await self.bombs(deadline, heavy=heavy)
            await asyncio.sleep(2 * TRIM_SECONDS)
            now = self.memory_mib()
            self.found.memory_rounds_mib.append(round(now, 1))
            if now - before <= MAX_GROWTH_MIB or time.monotonic() > deadline:
                return
            before = now
        self.found.grows = True

    async def _alone(self, name: str, data: bytes) -> None:
        self._record(name.encode(), await self.exchange([data]))
        self.note_long_turns(name)
        await self.check_good()

    async def leave(self, count: int) -> None:
        """Hang up within a request, right after it, and long before its answer, by FIN and
        by RST.
        """
        for _ in range(count):
            data = inputs.request(self._rng).whole() * self._rng.randint(1, 3)
            writer = await self._connect()
            writer[1].write(data[: self._rng.randint(1, len(data))])
            if self._rng.random() < 0.5:
                await asyncio.sleep(self._rng.random() * 0.005)
            if self._rng.random() < 0.5:
                writer[1].transport.abort()
            else:
                writer[1].close()
            self.found.inputs += 1
        await self.check_good()

    async def stall(self, count: int) -> None:
        """Hold connections that send one byte now and then; valid requests must still be
        answered.
        """
        whole = _GOOD.whole()
        held = [await self._connect() for _ in range(count)]
        for step in range(10):
            for _, writer in held:
                writer.write(whole[step : step + 1])
            await self.check_good()
        for _, writer in held:
            writer.transport.abort()
        self.found.inputs += count

    async def exhaust_descriptors(self, limit: int = 64) -> None:
        """Allow the service few descriptors, take all of them, and release them.

        Afterwards the service must answer again.
        """
        pid = self.server.popen.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        open_now = self._descriptors()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + limit, before[1]))
        held = []
        with contextlib.suppress(OSError):
            for _ in range(2 * limit):
                held.append(await self._connect())  # noqa: PERF401 - those made before an error count
        await asyncio.sleep(0.1)
        for _, writer in held:
            writer.transport.abort()
        await self.check_good()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        self.found.inputs += len(held)

    async def check_good(self) -> None:
        """Send the valid request; its answer must be the one that it got first."""
        (answer,) = await self.exchange([_GOOD.whole()]) or [Answer(0, b"", b"")]
        if self._expected is None and answer.status == 200:
            self._expected = answer
        if answer != self._expected:
            self.found.wrong_answers.append(f"{answer.status} {answer.body[:200]!r}")

    # -- forms of framing

    async def _every_way(self, request: inputs.Request) -> None:
        whole = request.whole()
        ways = {
            "whole": self.exchange([whole]),
            "known": self._again(whole),
            "chunked": self.exchange([request.chunked(self._rng)]),
            "HTTP/1.0": self.exchange([request.whole(b"HTTP/1.0")]),
            "HTTP/1.0, kept": self.exchange([request.kept() * 3]),
            "pipelined": self.exchange([whole * 3]),
            "cut": self.exchange(self._cut(whole)),
        }
        expected: Sequence[Answer] | None = None
        for name, way in ways.items():
            answers = await way
            self._record(whole, answers)
            if expected is None:
                expected = answers
            elif answers != expected * (3 if name in _THRICE else 1):
                self.found.differences.append(
                    f"{name}: {_shown(answers)} for {_shown(expected)} to {whole[:500]!r}"
                )

    async def _every_cut(self, stream: bytes) -> None:
        lists = [
            await self.exchange(parts)
            for parts in (
                [stream],
                self._cut(stream),
                [stream[: len(stream) // 2], stream[len(stream) // 2 :]],
            )
        ]
        for answers in lists:
            self._record(stream, answers)
        ends = {"ends_whole": ends_whole(stream), "ends_in_body": ends_in_body(stream)}
        if not alike(lists, **ends):
            shown = " | ".join(map(_shown, lists))
            self.found.differences.append(f"{shown} to {stream[:800]!r}")

    def _cut(self, data: bytes) -> list[bytes]:
        places = (
            sorted(self._rng.sample(range(1, len(data)), min(4, len(data) - 1)))
            if len(data) > 1
            else []
        )
        return [data[a:b] for a, b in pairwise([0, *places, len(data)])]

    # -- connections

    async def exchange(self, parts: Sequence[bytes]) -> list[Answer]:
        """Send the parts on a new connection, close its sending side, and read every answer."""
        reader, writer = await self._connect()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                reading = asyncio.ensure_future(reader.read())
                with contextlib.suppress(OSError):  # it may have answered and closed before
                    for number, part in enumerate(parts):
                        if number:
                            await asyncio.sleep(0.0005)
                        writer.write(part)
                        await writer.drain()
                    writer.write_eof()
                return _answers(await reading)
        except TimeoutError:
            return [Answer(0, b"", b"no answer")]
        except OSError as error:
            return [Answer(0, b"", str(error).encode())]
        finally:
            writer.transport.abort()

    async def _again(self, whole: bytes) -> list[Answer]:
        """Send the same bytes twice on one connection, and return the second answer.

        The service knows the header block of the second request.
        """
        reader, writer = await self._connect()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                writer.write(whole)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(_length(head))
                if b"connection: close" in head.lower():
                    return await self.exchange([whole])
                writer.write(whole)
                writer.write_eof()
                return _answers(await reader.read())
        except (OSError, EOFError, TimeoutError):
            return await self.exchange([whole])
        finally:
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address, limit=2**26)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        return reader, writer

    # -- results

    def longest(self, what: str) -> float:
        """The longest time, in seconds, for which the service's event loop was held so far
        (what: "turn"), or its own thread worked in such a turn ("work").
        """
        with urlopen(f"{self.server.url}/metrics") as page:
            lines = page.read().decode().splitlines()
        name = f"priordial_loop_{what}_seconds "
        return next(float(line.split()[1]) for line in lines if line.startswith(name))

    def note_long_turns(self, during: str) -> None:
        """Add the long turns that the service has logged since the last call."""
        lines = self.server.new_log().splitlines()
        self.found.held += [f"{during}: {_held(line)}" for line in lines if _HELD in line]

    async def memory_at_rest(self, before: float) -> float:
        """Resident memory once the service has returned freed memory, which it does after
        a second.
        """
        for _ in range(40):
            found = self.memory_mib()
            if found - before <= MAX_GROWTH_MIB:
                break
            await asyncio.sleep(0.1)
        return found

    def memory_mib(self, name: str = "VmRSS") -> float:
        """A figure of /proc/PID/status in MiB: resident memory, or with VmHWM its peak."""
        status = Path(f"/proc/{self.server.popen.pid}/status").read_text()
        return next(
            int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(name)
        )

    def _descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.server.popen.pid}/fd").iterdir())

    def _record(self, sent: bytes, answers: Sequence[Answer]) -> None:
        self.found.inputs += 1
        for answer in answers:
            self.found.statuses[answer.status] += 1
            if answer.status >= 500 or answer.status == 0:
                self.found.failures_5xx.append(
                    f"{answer.status} {answer.body[:200]!r} to {sent[:300]!r}"
                )
            if b"smuggled" in answer.content_type:
                self.found.smuggled.append(f"{sent[:300]!r}")


def alike(lists: Sequence[list[Answer]], *, ends_whole: bool, ends_in_body: bool = False) -> bool:
    """Return whether a stream got the same answers in every cut.

    If a stream ends within a request, that request may be refused for its path or for its framing.
    It may also get no answer, if the service sees the end of the stream first. A route that needs
    no body may answer ahead of it.
    """
    longest = max(lists, key=len)
    if ends_whole or not longest:
        return all(answers == longest for answers in lists)
    sure = longest[:-1]
    return all(answers == longest for answers in lists) or all(
        answers[: len(sure)] == sure
        and (ends_in_body or all(each.status >= 400 for each in answers[len(sure) :]))
        for answers in lists
    )


def _answers(data: bytes) -> list[Answer]:
    found, at = [], 0
    while at < len(data):
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            return [*found, Answer(0, b"", b"a head was cut")]
        head = data[at : end + 4]
        at = end + 4
        status = int(head[9:12])
        if status < 200:
            continue
        length = _length(head)
        if at + length > len(data):
            return [*found, Answer(0, b"", b"a body was cut")]
        request_id = b" smuggled" if b"x-request-id: smuggled" in head else b""
        content_type = next(
            (line[14:] for line in head.split(b"\r\n") if line.startswith(b"content-type: ")), b""
        )
        found.append(Answer(status, content_type + request_id, data[at : at + length]))
        at += length
    return found


def _length(head: bytes) -> int:
    return next(
        (int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), 0
    )


def _held(line: str) -> str:
    """The figures of a logged long turn, and what was seen in it."""
    said = line[line.index(_HELD) + len(_HELD) :]
    figures, _, seen = said.partition(", while requests waited")
    return f"{figures.strip()}{seen.partition('report what was requested then')[2]}"[:900]


def _shown(answers: Sequence[Answer]) -> str:
    return ", ".join(f"{each.status} {each.body[:120]!r}" for each in answers) or "nothing"


async def attack(hostile: Hostile, *, requests: int, seconds: float, heavy: bool = False) -> Found:
    """Run every part. The number of requests decides how long each part is."""
    begun = time.monotonic()
    deadline, few = begun + seconds, max(20, requests // 100)
    await hostile.check_good()
    await hostile.fuzz(min(requests, max(1000, requests // 10)), deadline)
    await hostile.import_libraries()
    await hostile.settle(deadline, heavy=heavy)
    hostile.found.memory_before_mib = hostile.memory_mib()
    parts: list[Callable[[], Awaitable[None]]] = [
        lambda: hostile.bombs(deadline, heavy=heavy),
        lambda: hostile.leave(few),
        lambda: hostile.stall(min(few, 200)),
        hostile.exhaust_descriptors,
        lambda: hostile.fuzz(requests, deadline),
    ]
    for part in parts:
        await part()
    found = hostile.found
    hostile.note_long_turns("many at a time")
    found.longest_turn_seconds = hostile.longest("turn")
    found.longest_work_seconds = hostile.longest("work")
    found.memory_after_mib = await hostile.memory_at_rest(found.memory_before_mib)
    found.memory_peak_mib = hostile.memory_mib("VmHWM")
    found.seconds = time.monotonic() - begun
    return found


def run(
    *, requests: int, seconds: float, seed: int, connections: int = 8, heavy: bool = False
) -> Found:
    """Start a service with small models and attack it."""
    with tempfile.TemporaryDirectory(prefix="priordial-hostile-") as folder:
        models = Path(folder) / "models"
        hostile_bombs.publish(models, heavy=heavy)
        flags = ("--default-model", "linear", "--measure-loop-turns", "--read-seconds", "20")
        with service(models, *flags) as server:
            hostile = Hostile(server, seed=seed, connections=connections)
            return asyncio.run(attack(hostile, requests=requests, seconds=seconds, heavy=heavy))


def report(found: Found) -> str:
    """The result as lines of text."""
    lines = [
        f"inputs tried        {found.inputs:,} in {found.seconds:.0f} s",
        f"answers             {dict(sorted(found.statuses.items()))}",
        f"5xx or no answer    {len(found.failures_5xx)}",
        f"differences         {len(found.differences)}",
        f"smuggled            {len(found.smuggled)}",
        f"wrong answers       {len(found.wrong_answers)}",
        f"longest loop turn   {found.longest_turn_seconds:.3f} s",
        f"most work in a turn {found.longest_work_seconds:.3f} s",
        *found.held,
    ]
    memory = found.memory_before_mib, found.memory_peak_mib, found.memory_after_mib
    lines.append("memory in MiB       {:.0f} before, {:.0f} at most, {:.0f} after".format(*memory))
    if found.memory_rounds_mib:
        rounds = ", ".join(map(str, found.memory_rounds_mib))
        lines.append(f"before, by rounds   {rounds}{' and growing' if found.grows else ''}")
    return "\n".join([*lines, *found.faults()])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--heavy", action="store_true", help="send the largest bodies, too")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = run(
        requests=given.requests,
        seconds=given.seconds,
        seed=given.seed,
        connections=given.connections,
        heavy=given.heavy,
    )
    print(report(found))
    if given.out:
        given.out.write_text(
            json.dumps({**vars(found), "statuses": dict(found.statuses)}, indent=2) + "\n",
            encoding="utf-8",
        )
    held = found.longest_turn_seconds > MAX_TURN_SECONDS
    grown = found.memory_after_mib - found.memory_before_mib > MAX_GROWTH_MIB
    return 1 if found.faults() or held or grown or found.grows else 0


if __name__ == "__main__":
    raise SystemExit(main())
