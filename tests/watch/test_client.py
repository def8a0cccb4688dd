"""Asking the watcher for its state: over a real socket, from a server that behaves and from servers that do not."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from oomreaper.errors import KernelError, UsageError
from oomreaper.watch.client import fetch_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STATE = {"event": "state", "version": 1, "notes": ["calm"]}


class Server:
    """A watcher's socket, with a thread behind it that treats one reader as the test says."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.asked: list[bytes] = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen(4)
        self._thread: threading.Thread | None = None

    def treat(self, answer: Callable[[socket.socket], None], *, listens: bool = True) -> None:
        """Serve one reader with ``answer``, after its question was received."""

        def serve() -> None:
            connection, _ = self.listener.accept()
            with connection:
                if listens:
                    self.asked.append(connection.recv(4096))
                answer(connection)

        self._thread = threading.Thread(target=serve)
        self._thread.start()

    def close(self) -> None:
        """Wait for the thread, then stop listening."""
        if self._thread is not None:
            self._thread.join(timeout=10)
            assert not self._thread.is_alive()
        self.listener.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One that listens."""
    with closing(Server(tmp_path / "events.sock")) as made:
        yield made


def _until_gone(connection: socket.socket) -> None:
    connection.settimeout(10)
    connection.recv(1)


def test_the_state_is_asked_for_and_returned(server: Server) -> None:
    """The question is {"ask": "state"}, and the answer comes back as it was sent."""
    server.treat(lambda connection: connection.sendall(json.dumps(STATE).encode()))

    state = fetch_state(server.path)

    assert state == STATE
    assert [json.loads(question) for question in server.asked] == [{"ask": "state"}]


def test_a_backlog_before_the_state_is_passed_over(server: Server) -> None:
    """Events, and what is no JSON object at all, are not mistaken for the state."""

    def answer(connection: socket.socket) -> None:
        for message in (b'{"event":"announce"}', b"\xff\xfe", b"[1]", b'"state"', b"{", b"null"):
            connection.sendall(message)
        connection.sendall(json.dumps(STATE).encode())

    server.treat(answer)

    assert fetch_state(server.path) == STATE


def test_a_large_state_arrives_whole(server: Server) -> None:
    """As large as a unix socket takes in one message: nothing is cut off."""
    large = {**STATE, "padding": "x" * 190_000}
    server.treat(lambda connection: connection.sendall(json.dumps(large).encode()))

    assert fetch_state(server.path) == large


def test_nobody_listens(tmp_path: Path) -> None:
    """No file, a socket whose listener is gone, a file that is no socket, a path through a file: None."""
    stale, plain = tmp_path / "stale.sock", tmp_path / "plain"
    Server(stale).close()
    plain.write_text("")

    assert [fetch_state(str(path)) for path in (tmp_path / "none", stale, plain, plain / "below")] == [None] * 4


def test_a_watcher_that_says_nothing_is_given_up_in_time(server: Server) -> None:
    """It listens and never answers: an error with a remedy, at the limit and not long after it."""
    server.treat(_until_gone)
    start = time.monotonic()

    with pytest.raises(KernelError, match=r"does not answer within 0\.2 s.*systemctl status"):
        fetch_state(server.path, limit_seconds=0.2)

    assert 0.2 <= time.monotonic() - start < 1.5


def test_a_flood_of_other_messages_does_not_hold_us(server: Server) -> None:
    """The limit is for the answer, not for each message."""

    def flood(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(b'{"event":"killed"}')
        except OSError:
            pass

    server.treat(flood)

    with pytest.raises(KernelError, match="does not answer"):
        fetch_state(server.path, limit_seconds=0.2)


@pytest.mark.parametrize("listens", [True, False])
def test_a_watcher_that_hangs_up(server: Server, *, listens: bool) -> None:
    """It closes instead of answering, with our question read or unread: an error that says so."""
    server.treat(lambda _connection: None, listens=listens)

    with pytest.raises(KernelError, match="hung up without an answer"):
        fetch_state(server.path)


def test_a_socket_of_another_kind_is_no_watcher(tmp_path: Path) -> None:
    """A stream socket there is somebody else's: the error asks for the path."""
    path = tmp_path / "stream.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(path))
        stream.listen(1)

        with pytest.raises(KernelError, match="another kind"):
            fetch_state(str(path))


def test_a_path_that_no_socket_can_have() -> None:
    """Longer than sun_path: the caller's mistake, not the kernel's."""
    with pytest.raises(UsageError, match="cannot be the path of a socket"):
        fetch_state("/" + "x" * 200)


@pytest.mark.needs("root")
def test_permission_is_refused_with_a_remedy(server: Server) -> None:
    """Who may not connect is told whom to ask as; tried by a child of another user."""
    os.chmod(server.path, 0o600)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "no error"
        try:
            os.setresuid(65534, 65534, 65534)
            fetch_state(server.path)
        except KernelError as error:
            text = str(error)
        finally:
            os.write(writer, text.encode())
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(pid, 0)

    assert "you may not connect to the watcher" in told
    assert "ask as root" in told


def test_a_hostile_path_is_shown_escaped(tmp_path: Path) -> None:
    """What is in an error message does not obey the path's escapes."""
    path = tmp_path / "a\x1b[2Jb"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(path))

        with pytest.raises(KernelError) as caught:
            fetch_state(str(path))

    assert str(caught.value).isprintable()
