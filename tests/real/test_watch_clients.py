"""Listeners that do not behave, while somebody has to be killed: they are not waited for, what they miss is counted."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.watching import memory_group
from tests.real.worst_days import KILL, launched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.worst_days import Launched

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")

# From what is told first to the signal; 1 ms is usual, the rest is a busy machine's.
PROMPT_NS = 500_000_000
# Connects without end, and talks: questions, nonsense, things too long; what it is told it never reads.
FLOOD = """
import os, socket, sys
print("flooding", flush=True)
held = []
words = [b'{"ask":"state"}', b'x' * 4000, b'[' * 3000, b'{"ack":"a/1","status":0}', b'', b'\\xff' * 100]
while True:
    for word in words:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        try:
            connection.connect(sys.argv[1])
            for _ in range(20):
                connection.send(word)
        except OSError:
            pass
        held.append(connection)
    for connection in held[:-6]:
        connection.close()
    held = held[-6:]
"""


@pytest.fixture
def connections() -> Iterator[contextlib.ExitStack]:
    """What is closed in the end."""
    with contextlib.ExitStack() as stack:
        yield stack


def _connect(watcher: Launched, stack: contextlib.ExitStack) -> socket.socket:
    connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    connection.settimeout(10)
    connection.connect(watcher.events_path)
    return connection


def _stall(watcher: Launched, connection: socket.socket) -> None:
    """Have its buffer filled with answers that nobody reads, until the watcher counts one as dropped."""
    before = watcher.ask_state()["statistics"]["outlet"]["dropped"]
    for _ in range(100):
        for _ in range(45):
            with contextlib.suppress(BlockingIOError):
                connection.send(b'{"ask":"state"}', socket.MSG_DONTWAIT)
        if watcher.ask_state()["statistics"]["outlet"]["dropped"] > before:
            return
        # No more than 50 questions a second are answered.
        watcher.manager.listen(1.1)
    message = "its buffer does not fill"
    raise AssertionError(message)


def _drain(connection: socket.socket) -> list[dict[str, Any]]:
    messages = []
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while message := connection.recv(1 << 20):
            messages.append(json.loads(message))
    return messages


def _is_prompt(watcher: Launched, pid: int) -> bool:
    first = watcher.await_event("announce", where=lambda record: record["pid"] == pid)
    killed = watcher.await_event("killed", where=lambda record: record["pid"] == pid)
    watcher.await_event("settled", where=lambda record: record["pid"] == pid)
    return bool(killed["monotonic_ns"] - first["monotonic_ns"] < PROMPT_NS)


def test_a_stalled_client_delays_nothing_and_is_told_what_it_missed(connections: contextlib.ExitStack) -> None:
    """Its buffer is full during a kill: the kill is prompt; what it missed stands in the next message it can take."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher:
        stalled = _connect(watcher, connections)
        _stall(watcher, stalled)
        hog = group.start_hog(300)
        hog.wait()
        is_prompt = _is_prompt(watcher, hog.pid)
        missed = watcher.ask_state()["statistics"]["outlet"]["dropped"]
        seen = _drain(stalled)
        second = group.start_hog(300)
        second.wait()
        is_prompt_again = _is_prompt(watcher, second.pid)
        after = _drain(stalled)

        assert is_prompt
        assert is_prompt_again
        assert hog.pid not in [record.get("pid") for record in seen if record["event"] == "killed"]
        assert missed >= 4  # the answer, and three records of the first hog
        assert after[0]["dropped"] == missed
        assert {"announce", "killed", "settled"} <= {record["event"] for record in after}


def test_dead_clients_delay_nothing(connections: contextlib.ExitStack) -> None:
    """Some close while they are owed answers, some between announce and kill: the kill is prompt, nobody is kept."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher:
        dead = [_connect(watcher, connections) for _ in range(6)]
        for connection in dead[:3]:
            connection.send(b'{"ask":"state"}')
            connection.close()
        hog = group.start_hog(300)
        for connection in dead[3:]:
            connection.close()
        hog.wait()
        is_prompt = _is_prompt(watcher, hog.pid)
        clients = watcher.ask_state()["statistics"]["outlet"]["clients"]

        assert is_prompt
        assert clients == 2  # the test's listener, and who asked


def test_a_flood_of_clients_delays_nothing() -> None:
    """Two programs connect and talk without end: the kill is prompt and its record whole for a patient listener."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher, contextlib.ExitStack() as stack:
        for _ in range(2):
            flooder = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", FLOOD, watcher.events_path], stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(flooder.kill)
            assert flooder.stdout is not None
            assert flooder.stdout.readline() == "flooding\n"
        hog = group.start_hog(300)
        status = hog.wait()
        is_prompt = _is_prompt(watcher, hog.pid)
        told = watcher.about(hog.pid)
        stack.close()
        watcher.manager.listen(2.0)  # what still stands in the listener's queue is let in and found dead
        outlet = watcher.ask_state()["statistics"]["outlet"]

        assert status == -9
        assert is_prompt
        assert told == ["announce", "killed", "settled"]
        assert outlet["refused"] + outlet["malformed"] > 0
