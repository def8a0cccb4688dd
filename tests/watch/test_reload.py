"""A new plan from a fresh process: whatever that process does, the old plan stays until a sound one is there."""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from oomreaper.config.load import load_plan
from oomreaper.watch.plan import encode_plan
from oomreaper.watch.reload import Reloader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oomreaper.model.plan import Plan

SECOND = 1_000_000_000
PLAN, _ = load_plan(None)
LIMIT_S = 20.0


class Reading:
    """A reloader, and what came of it."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.faults: list[str] = []
        self.reloader = Reloader(
            lambda plan, _now_ns: self.plans.append(plan), lambda text, _now_ns: self.faults.append(text)
        )
        self.ahead_ns = 0  # how far the test's clock is ahead

    def start(self, program: str) -> None:
        """SIGHUP."""
        self.reloader.start((sys.executable, "-I", "-S", "-c", program), time.monotonic_ns() + self.ahead_ns)

    def turn(self) -> None:
        """One turn of a loop."""
        wakes = self.reloader.wakes()
        poll = select.poll()
        for fileno in wakes:
            poll.register(fileno, select.POLLIN)
        for fileno, mask in poll.poll(10):
            wakes[fileno].on_ready(mask, time.monotonic_ns() + self.ahead_ns)
        self.reloader.on_time(time.monotonic_ns() + self.ahead_ns)

    def await_results(self, count: int) -> None:
        """Turn until there are so many."""
        until = time.monotonic() + LIMIT_S
        while len(self.plans) + len(self.faults) < count:
            assert time.monotonic() < until
            self.turn()


@pytest.fixture
def reading() -> Iterator[Reading]:
    """That leaves no process and no descriptor."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    made = Reading()
    yield made
    made.reloader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def _printing(content: bytes) -> str:
    return f"import sys; sys.stdout.buffer.write({content!r})"


def test_a_sound_plan_is_taken(reading: Reading) -> None:
    """What the command prints is decoded and handed over; nothing is due any more."""
    reading.start(_printing(encode_plan(PLAN)))
    reading.await_results(1)

    assert reading.plans == [PLAN]
    assert reading.faults == []
    assert reading.reloader.next_deadline_ns() is None
    assert reading.reloader.wakes() == {}


@pytest.mark.parametrize(
    ("program", "word"),
    [
        ("import sys; sys.exit(2)", "faults are named above"),
        ("import sys; sys.exit(3)", "wait status"),
        ("import os; os.kill(os.getpid(), 9)", "wait status 9"),
        ("", "makes no sense"),
        ("print('{}')", "makes no sense"),
        ("print('[' * 100000)", "makes no sense"),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)))", "makes no sense"),
        ("while True: print('x' * 65536)", "wait status"),
        (_printing(encode_plan(PLAN)[:-1]), "makes no sense"),
    ],
)
def test_whatever_else_it_says_changes_nothing(reading: Reading, program: str, word: str) -> None:
    """Exit statuses, a death, nonsense, half a plan, an endless one: one fault in words, no plan, bounded."""
    reading.start(program)
    reading.await_results(1)

    assert reading.plans == []
    assert word in reading.faults[0]
    assert "the old one stays" in reading.faults[0]


@pytest.mark.parametrize("program", ["import time; time.sleep(60)", "import os, time; os.close(1); time.sleep(60)"])
def test_a_command_that_takes_too_long_is_ended(reading: Reading, program: str) -> None:
    """Also one that has closed its output already: after 20 s it is killed, and that is said."""
    reading.start(program)
    for _ in range(20):
        reading.turn()
    assert reading.faults == []
    reading.ahead_ns = 21 * SECOND
    reading.await_results(1)

    assert "wait status 9" in reading.faults[0]
    assert reading.plans == []


def test_reloads_that_come_meanwhile_are_one_more(reading: Reading) -> None:
    """Five while one runs: it is read once more after it, so that the last change counts, and not five times."""
    for _ in range(6):
        reading.start(_printing(encode_plan(PLAN)))
    reading.await_results(2)
    for _ in range(5):
        reading.turn()

    assert reading.plans == [PLAN, PLAN]


def test_without_a_file_or_a_program_it_says_so(reading: Reading) -> None:
    """No command, or one that does not exist: a fault at once, so that READY can follow."""
    reading.reloader.start((), 0)
    reading.reloader.start(("/nonexistent/oomreaper",), 0)

    assert "runs on its defaults" in reading.faults[0]
    assert "No such file" in reading.faults[1]


def test_the_end_does_not_wait_for_a_command(reading: Reading) -> None:
    """Closed while a command runs: it is killed and waited for, in far less than its 60 s."""
    reading.start("import time; time.sleep(60)")
    began = time.monotonic()
    reading.reloader.close()

    assert time.monotonic() - began < 5
