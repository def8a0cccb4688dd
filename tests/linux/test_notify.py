"""sd_notify: what a service manager would read, and that nothing it does holds us up."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A manager's socket and what NOTIFY_SOCKET says of it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if request.param == "path":
        address = str(tmp_path / "notify")
        listener.bind(address)
    else:
        address = f"@oomreaper-test-{os.getpid()}"
        listener.bind("\0" + address[1:])
    listener.setblocking(False)
    yield listener, address
    listener.close()


def test_each_message_is_what_the_manager_expects(manager: tuple[socket.socket, str]) -> None:
    """One datagram each, in the words of sd_notify(3), over a path and over an abstract name."""
    listener, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready("watching")
    notifier.ready()
    notifier.status("all calm")
    notifier.reloading(123)
    notifier.watchdog()
    notifier.stopping()
    received = [listener.recv(1000) for _ in range(6)]

    assert received == [
        b"STATUS=watching\nREADY=1",
        b"READY=1",
        b"STATUS=all calm",
        b"RELOADING=1\nMONOTONIC_USEC=123",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]
    notifier.close()


def test_a_name_cannot_speak_for_us(manager: tuple[socket.socket, str]) -> None:
    """A newline in a status would be another assignment; it is shown instead."""
    listener, address = manager
    notifier = Notifier(address)
    notifier.status("killed foo\nMAINPID=1\r\x1b\udcff")

    assert listener.recv(1000) == rb"STATUS=killed foo\nMAINPID=1\r\x1b\xff"
    notifier.close()


def test_a_manager_that_reads_nothing_is_not_waited_for(manager: tuple[socket.socket, str]) -> None:
    """A full socket costs the message, and the next ones get through when there is room."""
    listener, address = manager
    notifier = Notifier(address)
    for _ in range(5000):
        notifier.watchdog()
    for _ in range(5000):
        try:
            listener.recv(100)
        except BlockingIOError:
            break
    notifier.stopping()

    assert listener.recv(100) == b"STOPPING=1"
    notifier.close()


def test_a_manager_that_was_restarted_hears_us_again(tmp_path: Path) -> None:
    """A socket that was made anew under the same name is connected to by the next message."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(address)
        notifier = Notifier(address)
    os.unlink(address)
    notifier.watchdog()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(address)
        second.setblocking(False)
        notifier.watchdog()

        assert second.recv(100) == b"WATCHDOG=1"
    notifier.watchdog()
    notifier.close()
    notifier.watchdog()


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/nowhere/notify", "@nobody-listens-there", "/a\0b"])
def test_no_manager_no_error(address: str | None) -> None:
    """Without a manager, or with one that cannot be reached, nothing happens."""
    notifier = Notifier(address)
    notifier.ready("x")

    assert notifier.is_connected is False
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "interval_ns"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15_000_000_000),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_wants_to_hear_twice_in_its_time(environ: dict[str, str], interval_ns: int | None) -> None:
    """Half of WATCHDOG_USEC; never when it is meant for another process or makes no sense."""
    assert Notifier.from_environment(environ).watchdog_interval_ns == interval_ns


def test_the_watchdog_s_pid_is_ours() -> None:
    """WATCHDOG_PID with our own pid counts."""
    environ = {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}

    assert Notifier.from_environment(environ).watchdog_interval_ns == 1_000_000_000
