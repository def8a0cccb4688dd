"""The clerk kept alive: started again when it ends, ever later when it ends at once, and never waited for."""

from __future__ import annotations

import functools
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from oomreaper.watch.companions import Companion
from tests.victims.processes import states, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = 1_000_000_000
SLEEPS = ("/bin/sleep", "60")
DEAF = ("/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")


class Kept:
    """A companion, and what was said of it."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.companion = Companion(lambda text, _now_ns: self.faults.append(text))


@pytest.fixture
def kept() -> Iterator[Kept]:
    """That leaves no process."""
    made = Kept()
    yield made
    made.companion.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def _has_ended(pid: int) -> bool:
    return states(pid).get(pid) in (None, "Z")


def test_it_is_started_and_told_of_by_its_pid(kept: Kept) -> None:
    """At once; the same command again changes nothing; no command ends it."""
    companion = kept.companion
    companion.adopt(SLEEPS, 0)
    first = companion.pid
    companion.adopt(SLEEPS, 1)

    assert first is not None
    assert companion.pid == first
    assert companion.is_wanted
    companion.adopt((), 2)
    assert companion.pid is None
    assert not companion.is_wanted
    assert wait_until(lambda: _has_ended(first), 10)


def test_one_that_ends_is_started_again_ever_later(kept: Kept) -> None:
    """2 s, 4 s, 8 s and so on up to a minute after each end; each is told of."""
    companion = kept.companion
    now_ns = 0
    companion.adopt(("/bin/false",), now_ns)
    pauses = []
    for _ in range(7):
        pid = companion.pid
        assert pid is not None
        assert wait_until(functools.partial(_has_ended, pid), 10)
        now_ns += SECOND
        companion.on_time(now_ns)
        ended_ns = now_ns
        while companion.pid is None:
            now_ns += SECOND
            companion.on_time(now_ns)
        pauses.append((now_ns - ended_ns) // SECOND)

    assert pauses == [2, 4, 8, 16, 32, 60, 60]
    assert len(kept.faults) == 7
    assert "ended (wait status 256)" in kept.faults[0]


def test_a_sound_one_that_ends_is_back_in_a_second(kept: Kept) -> None:
    """After more than 30 s of life its end is no reason to put it off."""
    companion = kept.companion
    companion.adopt(SLEEPS, 0)
    first = companion.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: _has_ended(first), 10)
    companion.on_time(31 * SECOND)
    companion.on_time(32 * SECOND)

    assert companion.pid not in (None, first)


def test_one_that_cannot_be_started_is_said_and_tried_again(kept: Kept) -> None:
    """No such program: a fault in words, no pid, and another try later."""
    kept.companion.adopt(("/nonexistent/clerk",), 0)
    for second in range(1, 4):
        kept.companion.on_time(second * SECOND)

    assert kept.companion.pid is None
    assert len(kept.faults) == 2
    assert "cannot be started: No such file" in kept.faults[0]


def test_one_that_does_not_want_to_end_is_not_waited_for(kept: Kept) -> None:
    """A change of command returns at once; who ignores SIGTERM is killed a second later, by the way."""
    companion = kept.companion
    companion.adopt(DEAF, 0)
    first = companion.pid
    assert first is not None
    assert wait_until(lambda: b"sleep" in _children(first), 10)
    began = time.monotonic()
    companion.adopt(SLEEPS, 10)
    took_s = time.monotonic() - began

    assert took_s < 0.5
    assert companion.pid not in (None, first)
    assert not _has_ended(first)
    companion.on_time(2 * SECOND)
    assert wait_until(lambda: _has_ended(first), 10)
    companion.on_time(4 * SECOND)
    assert states(first) == {}


def test_the_end_takes_a_moment_at_most(kept: Kept) -> None:
    """Closing waits 200 ms for one that ignores SIGTERM, kills it, and has waited for it then."""
    kept.companion.adopt(DEAF, 0)
    pid = kept.companion.pid
    assert pid is not None
    assert wait_until(lambda: b"sleep" in _children(pid), 10)
    began = time.monotonic()
    kept.companion.close()

    assert time.monotonic() - began < 2
    assert states(pid) == {}
    assert kept.companion.next_deadline_ns() is None


def _children(pid: int) -> bytes:
    names = []
    with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
        children = file.read().split()
    for child in children:
        try:
            with open(f"/proc/{int(child)}/comm", "rb") as file:
                names.append(file.read())
        except OSError:
            continue
    return b"".join(names)
