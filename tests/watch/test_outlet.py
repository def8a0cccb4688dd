"""The event socket: bounded, never waiting, and no more told to anybody than he may know."""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from oomreaper.errors import KernelError
from oomreaper.watch.outlet import CLIENTS_A_USER, MESSAGE_LIMIT_BYTES, PATH_LIMIT_BYTES, Outlet, Request
from tests.interpreters import NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECOND = 1_000_000_000
SOMEBODY = 1234  # a user id that owns a victim and is nobody else's


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user may enter, with a name short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="oomreaper-test-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture
def outlet(place: Path) -> Iterator[Outlet]:
    """An open outlet."""
    it = Outlet(str(place / "events"), own_uid=os.getuid())
    it.open()
    yield it
    it.close()


def connect(outlet_path: Path) -> socket.socket:
    """A client that does not wait."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(str(outlet_path))
    client.setblocking(False)
    return client


def read_all(client: socket.socket) -> list[dict[str, Any]]:
    """Every message that is there."""
    messages: list[dict[str, Any]] = []
    while True:
        try:
            message = client.recv(MESSAGE_LIMIT_BYTES + 100)
        except BlockingIOError:
            return messages
        if not message:
            return messages
        messages.append(json.loads(message))


def is_closed(client: socket.socket) -> bool:
    """Whether the other end has let go, after all that it had sent."""
    read_all(client)
    try:
        return client.recv(100) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def as_user(uid: int, action: Callable[[], object], meanwhile: Callable[[], None]) -> Any:
    """What ``action`` returns in a child of that user, while ``meanwhile`` is called here again and again."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(writer, json.dumps(action()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    pidfd = os.pidfd_open(pid)
    try:
        while not os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG):
            meanwhile()
        with open(reader, "rb") as pipe:
            return json.loads(pipe.read())
    finally:
        os.close(pidfd)


def event(number: int, now_ns: int = 0, **more: object) -> dict[str, object]:
    """A record."""
    return {"event": "warning", "number": number, "monotonic_ns": now_ns, **more}


def stall(outlet: Outlet, client: socket.socket, *, now_ns: int = 0) -> int:
    """Publish until the client that reads nothing has missed one; how many got through."""
    assert client is not None
    for sent in range(100_000):
        before = outlet.statistics().dropped
        outlet.publish(event(sent, now_ns, padding="x" * 1000))
        if outlet.statistics().dropped > before:
            return sent
    raise AssertionError("nothing bounds what is kept for a client")


def test_one_record_is_one_message_for_everybody(outlet: Outlet, place: Path) -> None:
    """Each client gets each record, once, as one JSON object."""
    clients = [connect(place / "events") for _ in range(3)]
    outlet.serve(0)
    outlet.publish(event(1, text="a\nb \udcff"))

    for client in clients:
        assert read_all(client) == [{"event": "warning", "number": 1, "monotonic_ns": 0, "text": "a\nb \udcff"}]
        client.close()


def test_everybody_may_connect_and_no_other_file_is_made(outlet: Outlet, place: Path) -> None:
    """The socket has mode 0666, and is gone when the outlet is closed."""
    assert stat.S_IMODE((place / "events").stat().st_mode) == 0o666

    outlet.close()

    assert not (place / "events").exists()


def test_the_folder_is_made_and_open_to_all(place: Path) -> None:
    """A folder that is not there is made with mode 0755, whatever the umask."""
    before = os.umask(0o077)
    try:
        outlet = Outlet(str(place / "run" / "events"), own_uid=0)
        outlet.open()
        outlet.close()
    finally:
        os.umask(before)

    assert stat.S_IMODE((place / "run").stat().st_mode) == 0o755


def test_a_dead_watcher_s_socket_is_replaced(place: Path) -> None:
    """What a killed watcher has left behind does not keep the next one from starting."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(place / "events"))
        dead.listen()
    outlet = Outlet(str(place / "events"), own_uid=0)
    outlet.open()
    client = connect(place / "events")
    outlet.serve(0)

    assert outlet.statistics().clients == 1
    client.close()
    outlet.close()


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_a_live_listener_is_left_alone(place: Path, kind: int) -> None:
    """Whoever listens there already goes on doing so, and the error says who it may be."""
    with socket.socket(socket.AF_UNIX, kind) as living:
        living.bind(str(place / "events"))
        living.listen()
        with pytest.raises(KernelError, match="another oomreaper listens there"):
            Outlet(str(place / "events"), own_uid=0).open()

        assert (place / "events").is_socket()


def test_a_file_that_is_no_socket_is_left_alone(place: Path) -> None:
    """A path that was mistyped does not cost the user a file."""
    (place / "events").write_text("precious")
    with pytest.raises(KernelError, match="is no socket"):
        Outlet(str(place / "events"), own_uid=0).open()

    assert (place / "events").read_text() == "precious"


def test_a_path_too_long_is_said(place: Path) -> None:
    """107 bytes are what the kernel takes; 108 are refused in words."""
    name = "x" * (PATH_LIMIT_BYTES - len(str(place)) - 1)
    fits = Outlet(str(place / name), own_uid=0)
    fits.open()
    fits.close()
    with pytest.raises(KernelError, match="longer than the 107 bytes"):
        Outlet(str(place / name) + "x", own_uid=0).open()


def test_no_path_no_socket() -> None:
    """Without a path everything does nothing."""
    outlet = Outlet(None, own_uid=0)
    outlet.open()
    outlet.publish(event(1))

    assert (outlet.fileno(), outlet.serve(0), outlet.clients) == (None, [], frozenset())
    outlet.close()


def test_a_stalled_client_misses_records_and_is_told_how_many(outlet: Outlet, place: Path) -> None:
    """What does not fit is counted exactly, and the count comes with the next record that gets through."""
    slow, quick = connect(place / "events"), connect(place / "events")
    outlet.serve(0)
    sent = 0
    while outlet.statistics().dropped == 0:
        outlet.publish(event(sent, padding="x" * 1000))
        sent += 1
        read_all(quick)
    for number in range(sent, sent + 6):
        outlet.publish(event(number))
    read = read_all(slow)
    outlet.publish(event(999))
    outlet.publish(event(1000))
    last, next_one = read_all(slow)

    assert outlet.statistics().dropped == 7
    assert [record["number"] for record in read] == list(range(sent - 1))
    assert (last["number"], last["dropped"]) == (999, 7)
    assert next_one == event(1000)
    assert "dropped" not in read_all(quick)[-1]
    for client in (slow, quick):
        client.close()


def test_what_is_kept_for_a_client_is_bounded(outlet: Outlet, place: Path) -> None:
    """A client that reads nothing costs the kernel less than a MiB, whatever is published."""
    client = connect(place / "events")
    outlet.serve(0)

    assert stall(outlet, client) * 1000 < 1 << 20
    client.close()


def test_a_client_that_stays_stalled_is_let_go(outlet: Outlet, place: Path) -> None:
    """After 10 s without taking anything and more than 1,000 records missed, not before either."""
    client = connect(place / "events")
    outlet.serve(0)
    stall(outlet, client, now_ns=SECOND)
    for number in range(1100):
        outlet.publish(event(number, 10 * SECOND))
    assert outlet.statistics().clients == 1
    outlet.publish(event(0, 11 * SECOND))

    assert (outlet.statistics().clients, outlet.statistics().stalled) == (0, 1)
    assert is_closed(client)
    client.close()


def test_a_client_that_missed_little_stays(outlet: Outlet, place: Path) -> None:
    """Time alone does not end it: a suspended reader that is continued after a quiet night goes on."""
    client = connect(place / "events")
    outlet.serve(0)
    stall(outlet, client, now_ns=SECOND)
    outlet.publish(event(0, 1000 * SECOND))

    assert outlet.statistics().clients == 1
    client.close()


def test_a_dead_client_is_noticed(outlet: Outlet, place: Path) -> None:
    """One that closes is let go of, by the next look or by the next record, and harms nobody else."""
    first, second, third = (connect(place / "events") for _ in range(3))
    outlet.serve(0)
    first.close()
    outlet.publish(event(1))
    assert outlet.statistics().clients == 2
    second.close()
    outlet.serve(0)

    assert outlet.statistics().clients == 1
    assert [record["number"] for record in read_all(third)] == [1]
    third.close()


def test_one_user_gets_eight_places(outlet: Outlet, place: Path) -> None:
    """The ninth connection of a user is let in and closed at once."""
    clients = [connect(place / "events") for _ in range(CLIENTS_A_USER + 2)]
    outlet.serve(0)

    assert (outlet.statistics().clients, outlet.statistics().refused) == (CLIENTS_A_USER, 2)
    assert [is_closed(client) for client in clients] == [False] * CLIENTS_A_USER + [True] * 2
    for client in clients:
        client.close()


def test_no_more_than_the_limit_of_all(place: Path) -> None:
    """The limit of clients holds, and a place that becomes free is given away again."""
    outlet = Outlet(str(place / "events"), own_uid=0, clients_limit=2)
    outlet.open()
    clients = [connect(place / "events") for _ in range(3)]
    outlet.serve(0)
    assert [is_closed(client) for client in clients] == [False, False, True]
    clients[0].close()
    outlet.serve(0)
    late = connect(place / "events")
    outlet.serve(0)

    assert not is_closed(late)
    for client in (*clients, late):
        client.close()
    outlet.close()


def test_a_flood_of_connections_costs_a_bounded_time(outlet: Outlet, place: Path) -> None:
    """64 a second are answered; then the listener is left alone, and wakes nobody, until the second is over."""
    answered = 0
    for _ in range(100):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.setblocking(False)
        try:
            client.connect(str(place / "events"))
        except BlockingIOError:
            client.close()
            break  # the kernel's own queue is full: nobody takes from it
        outlet.serve(0)
        answered += 1
        client.close()
    assert 20 < answered < 100
    assert outlet.serve(SECOND // 2) == []
    before = outlet.statistics()
    outlet.serve(SECOND)
    after = outlet.statistics()

    assert after.accepted + after.refused > before.accepted + before.refused


def test_running_out_of_descriptors_turns_people_away(outlet: Outlet, place: Path) -> None:
    """With EMFILE the waiting client is closed, rather than left to wake the watcher without end."""
    client = connect(place / "events")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, limits[1]))
    try:
        hole: list[int] = []
        try:
            while True:
                hole.append(os.dup(client.fileno()))
        except OSError:
            pass
        outlet.serve(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in hole:
            os.close(fd)

    assert (outlet.statistics().clients, outlet.statistics().refused) == (0, 1)
    assert is_closed(client)
    client.close()


def test_who_connects_gets_what_happened_last(place: Path) -> None:
    """The last records, in their order, before any newer one."""
    outlet = Outlet(str(place / "events"), own_uid=0, backlog=5)
    outlet.open()
    for number in range(9):
        outlet.publish(event(number))
    client = connect(place / "events")
    outlet.serve(0)
    outlet.publish(event(9))

    assert [record["number"] for record in read_all(client)] == [4, 5, 6, 7, 8, 9]
    client.close()
    outlet.close()


def test_a_backlog_too_large_loses_its_oldest(outlet: Outlet, place: Path) -> None:
    """What does not fit into the client's buffer is counted, and it is the oldest that is left out."""
    for number in range(200):
        outlet.publish(event(number, padding="x" * 4000))
    client = connect(place / "events")
    outlet.serve(0)
    records = read_all(client)
    numbers = [record["number"] for record in records]

    assert list(range(numbers[0], 200)) == numbers
    assert len(numbers) > 20
    assert outlet.statistics().dropped == records[0]["dropped"] > 0
    client.close()


def test_the_backlog_holds_a_bounded_size(outlet: Outlet) -> None:
    """256 records of the largest kind are not kept: 256 KiB are."""
    for number in range(50):
        outlet.publish(event(number, padding="x" * 100_000))

    assert sum(len(message.public) for message in outlet._backlog) < 300_000


def test_a_full_backlog_reaches_who_connects(outlet: Outlet, place: Path) -> None:
    """256 records of the usual size all fit: nothing is dropped."""
    for number in range(300):
        outlet.publish(event(number, padding="x" * 400))
    client = connect(place / "events")
    outlet.serve(0)

    assert list(range(44, 300)) == [record["number"] for record in read_all(client)]
    assert outlet.statistics().dropped == 0
    client.close()


@pytest.mark.needs("root")
def test_a_stranger_sees_no_command_line(outlet: Outlet, place: Path) -> None:
    """By SO_PEERCRED: root sees the secret fields, their owner does, another user does not; in the backlog, too."""
    outlet.publish(event(1), secret={"cmdline": "pw=1"}, owner_uid=SOMEBODY)
    outlet.publish(event(2), secret={"cmdline": "pw=2"}, owner_uid=NOBODY)
    outlet.publish(event(3), secret={"cmdline": "pw=3"})

    def what_is_seen() -> list[object]:
        client = connect(place / "events")
        client.setblocking(True)
        return [json.loads(client.recv(10_000)).get("cmdline") for _ in range(3)]

    client = connect(place / "events")
    outlet.serve(0)
    seen_by_owner = as_user(SOMEBODY, what_is_seen, lambda: _assert_nothing(outlet))
    seen_by_nobody = as_user(NOBODY, what_is_seen, lambda: _assert_nothing(outlet))

    assert [record.get("cmdline") for record in read_all(client)] == ["pw=1", "pw=2", "pw=3"]
    assert seen_by_owner == ["pw=1", None, None]
    # Nobody is also who all users outside our user namespace look like, and so owns nothing.
    assert seen_by_nobody == [None, None, None]
    client.close()


@pytest.mark.needs("root")
def test_only_root_acknowledges_a_hook(outlet: Outlet, place: Path) -> None:
    """Another user who says that a hook has ended is let go: the watcher's wait is not his to cut short."""

    def acknowledge() -> bool:
        client = connect(place / "events")
        client.setblocking(True)
        client.send(b'{"ack": "h1", "status": 0}')
        return client.recv(100) == b""

    assert as_user(NOBODY, acknowledge, lambda: _assert_nothing(outlet)) is True
    assert outlet.statistics().malformed == 1


def _assert_nothing(outlet: Outlet) -> None:
    assert outlet.serve(0) == []


def test_requests_are_read(outlet: Outlet, place: Path) -> None:
    """A question and an acknowledgement come with who sent them."""
    client = connect(place / "events")
    outlet.serve(0)
    (fd,) = outlet.clients
    client.send(b'{"ask": "state"}')
    asked = outlet.serve(0)
    client.send(b'{"ack": "b-1.2", "status": null}')
    acknowledged = outlet.serve(0)
    who = Request(fd, os.getuid(), os.getpid(), may_see_all=True)

    assert asked == [who._replace(ask="state")]
    assert acknowledged == [who._replace(ack="b-1.2", status=None)]
    client.close()


@pytest.mark.parametrize(
    "message",
    [
        b"hello",
        b"\xff\xfe",
        b"[" * 4000,
        b"{}",
        b"[]",
        b"1" * 4000,
        b'{"ask": "passwords"}',
        b'{"ack": 5}',
        b'{"ack": ["x"]}',
        b'{"ack": "%s"}' % (b"x" * 65),
        b'{"ack": "x", "status": true}',
        b'{"ack": "x", "status": 1e9}',
        b'{"ask": "state", "padding": "%s"}' % (b"x" * 4096),
    ],
)
def test_who_sends_nonsense_is_let_go(outlet: Outlet, place: Path, message: bytes) -> None:
    """A malformed message ends that client, is counted, and concerns nobody else."""
    other, client = connect(place / "events"), connect(place / "events")
    outlet.serve(0)
    client.send(message)

    assert outlet.serve(0) == []
    assert (outlet.statistics().malformed, outlet.statistics().clients) == (1, 1)
    assert (is_closed(client), is_closed(other)) == (True, False)
    for each in (client, other):
        each.close()


def test_descriptors_that_are_sent_along_are_not_taken(outlet: Outlet, place: Path) -> None:
    """A client cannot fill the watcher's table of descriptors."""
    client = connect(place / "events")
    outlet.serve(0)
    before = os.listdir("/proc/self/fd")
    with open("/dev/null", "rb") as file:
        socket.send_fds(client, [b'{"ask": "state"}'], [file.fileno()] * 10)
    requests = outlet.serve(0)

    assert [request.ask for request in requests] == ["state"]
    assert os.listdir("/proc/self/fd") == before
    client.close()


def test_a_flood_of_requests_ends_the_client(outlet: Outlet, place: Path) -> None:
    """50 questions within a second are answered; who asks more is let go."""
    client = connect(place / "events")
    outlet.serve(0)
    asked = 0
    for _ in range(60):
        try:
            client.send(b'{"ask": "state"}')
        except BrokenPipeError:
            break
        asked += len(outlet.serve(0))

    assert asked == 50
    assert outlet.statistics().clients == 0
    client.close()


def test_a_request_a_second_goes_on_for_ever(outlet: Outlet, place: Path) -> None:
    """The bound is on a rate, not on a number."""
    client = connect(place / "events")
    outlet.serve(0)
    for second in range(200):
        client.send(b'{"ask": "state"}')
        assert len(outlet.serve(second * SECOND)) == 1
    client.close()


def test_an_answer_goes_to_who_asked(outlet: Outlet, place: Path) -> None:
    """One client gets it; one too large becomes a short one that says so; one who has gone gets none."""
    client, other = connect(place / "events"), connect(place / "events")
    outlet.serve(0)
    client.send(b'{"ask": "state"}')
    (request,) = outlet.serve(0)

    assert outlet.reply(request.fd, {"event": "state", "processes": ["x" * 1000] * 150}) is True
    assert outlet.reply(request.fd, {"event": "state", "processes": ["x" * 1000] * 250}) is True
    first, second = read_all(client)
    assert len(first["processes"]) == 150
    assert second == {"event": "state", "error": "too large"}
    assert read_all(other) == []
    client.close()
    outlet.serve(0)
    assert outlet.reply(request.fd, {"event": "state"}) is False
    other.close()


def test_what_cannot_be_told_is_counted(outlet: Outlet, place: Path) -> None:
    """A record that is too large or no JSON does not raise; a secret that is too large does not cost the rest."""
    client = connect(place / "events")
    outlet.serve(0)
    outlet.publish(event(1, padding="x" * MESSAGE_LIMIT_BYTES))
    outlet.publish(event(2, padding=b"bytes"))
    outlet.publish(event(3), secret={"cmdline": "x" * MESSAGE_LIMIT_BYTES})

    assert [record["number"] for record in read_all(client)] == [3]
    assert outlet.statistics().dropped == 2
    client.close()


def test_close_leaves_a_successor_s_socket(place: Path) -> None:
    """A watcher that ends late does not remove the file that another one has put in its place."""
    outlet = Outlet(str(place / "events"), own_uid=0)
    outlet.open()
    (place / "events").unlink()
    successor = Outlet(str(place / "events"), own_uid=0)
    successor.open()
    outlet.close()

    assert (place / "events").is_socket()
    successor.close()


def test_the_kernel_s_answer_is_in_the_error() -> None:
    """A place that cannot be written to is a KernelError that says what to do."""
    with pytest.raises(KernelError, match="--events"):
        Outlet("/proc/nowhere/events", own_uid=0).open()


def test_credentials_are_those_of_the_kernel(outlet: Outlet, place: Path) -> None:
    """Our reading of struct ucred is the kernel's."""
    client = connect(place / "events")
    outlet.serve(0)
    pid, uid, _ = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))

    assert (pid, uid) == (os.getpid(), os.getuid())
    client.close()
