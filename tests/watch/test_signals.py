"""Signals as descriptors: each wakes the loop, and what it means is called outside of the handler."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

import pytest

from oomreaper.watch.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Iterator


class Heard:
    """What was called."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.reloads: list[int] = []
        self.signals = Signals(lambda number, _now_ns: self.ends.append(number), self.reloads.append)

    def turn(self) -> None:
        """One turn of a loop that waits for at most a second."""
        for fileno, wake in self.signals.wakes().items():
            poll = select.poll()
            poll.register(fileno, select.POLLIN)
            for _, mask in poll.poll(1_000):
                wake.on_ready(mask, 7)


@pytest.fixture
def heard() -> Iterator[Heard]:
    """Signals that are put back in the end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    pipe = signal.getsignal(signal.SIGPIPE)
    made = Heard()
    yield made
    made.signals.close()
    signal.signal(signal.SIGPIPE, pipe)
    assert before == {number: signal.getsignal(number) for number in before}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_is_called_for(heard: Heard, number: int) -> None:
    """SIGTERM and SIGINT do nothing in the handler, and call for the end in the loop's next turn."""
    os.kill(os.getpid(), number)
    assert heard.ends == []
    heard.turn()

    assert heard.ends == [number]
    assert heard.reloads == []


def test_many_signals_are_one_reload(heard: Heard) -> None:
    """A hundred SIGHUPs before the loop turns are one call, or two, and fill nothing up."""
    for _ in range(100):
        os.kill(os.getpid(), signal.SIGHUP)
    heard.turn()
    heard.turn()

    assert 1 <= len(heard.reloads) <= 2
    assert heard.reloads[0] == 7


def test_a_broken_pipe_is_no_signal(heard: Heard) -> None:
    """SIGPIPE is ignored: a reader of stderr that has gone does not end a watcher."""
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    os.close(writer)

    assert heard.ends == []


def test_a_wake_without_a_signal_is_nothing(heard: Heard) -> None:
    """A spurious wake-up reads nothing and calls nobody."""
    (wake,) = heard.signals.wakes().values()
    wake.on_ready(select.EPOLLIN, 0)

    assert (heard.ends, heard.reloads) == ([], [])
