"""The event socket: tells whoever listens, and never waits for one of them.

What it knows: who is connected, what each may see, what each has missed. What it refuses to know: what a record means
(``records``) and who the listeners are: to it a companion, a stalled one and a hostile user are the same.

How it works. An AF_UNIX SOCK_SEQPACKET socket: a message is one JSON object and arrives whole or not at all. Each
record is encoded once for each of two classes of reader, with its secret fields and without, and sent to everybody with
MSG_DONTWAIT. A client whose socket is full misses the message; how many it has missed stands as ``"dropped"`` in the
next one that gets through. Nothing is queued for anybody here: what the kernel's socket buffer holds (416 KiB
a client, and at most 32 clients) is all. Who connects is given what fits of the last 256 records.

The kernel allocates a message's memory in the sender, with reclaim allowed: MSG_DONTWAIT bounds the wait for the
reader, not the one for memory. Records are small for that reason too.

Who drives it watches ``fileno`` (an epoll of its own, so clients need no registering) and calls ``serve`` when it is
readable, and once a second besides: a listener that was flooded is left alone until then.

The SO_PEERCRED of a client is that of who connected. Only root and the watcher's own user may acknowledge a hook.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import stat
import struct
from collections import deque
from typing import NamedTuple

from oomreaper.errors import KernelError

# struct sockaddr_un has 108 bytes for a path and its NUL.
PATH_LIMIT_BYTES = 107
# The longest thing a client has to say is an acknowledgement of 60 bytes.
REQUEST_LIMIT_BYTES = 4096
# A state answer for a hundred processes is about 60 KB; with this limit a message fits every default socket buffer.
MESSAGE_LIMIT_BYTES = 200_000
CLIENTS_LIMIT = 32
# A quarter of all: three users who take all they may still leave room for root.
CLIENTS_A_USER = 8
BACKLOG_MESSAGES = 256
# Not more is kept for who connects than fits into one client's socket buffer anyway.
_BACKLOG_BYTES = 256 * 1024
# net.core.wmem_max where nobody has changed it; the kernel doubles the number for its own bookkeeping.
_SEND_BUFFER_BYTES = 212_992
# A client is closed when it has taken nothing for so long, and has missed so many: a suspended `top` that is continued
# after a quiet night has missed little and stays.
_STALL_NS = 10_000_000_000
_STALL_DROPS = 1_000
# A companion asks once a second; who asks more often than this in one second would have the watcher work for him.
_REQUESTS_A_SECOND = 50
_ACCEPTS_A_SECOND = 64
_EVENTS_A_TURN = 64
_LISTEN_BACKLOG = 16
_SECOND_NS = 1_000_000_000
# What the kernel charges for a message: its length and struct skb_shared_info, rounded up to a power of two, and struct
# sk_buff (Linux 6.18: 1,280 bytes for up to 704). Were it too low, newer records would be missed instead of older ones.
_SHARED_INFO_BYTES = 320
_MESSAGE_OVERHEAD_BYTES = 512
# Users outside our user namespace all look like this one (/proc/sys/kernel/overflowuid): it owns nothing.
_OVERFLOW_UID = 65534
_ROOT_UID = 0
_TOKEN_CHARS = 64
_HOOK_STATUS_RANGE = range(-256, 256)


class Request(NamedTuple):
    """What a client wants. ``ask`` ("state"), or ``ack``: the hook that has ended, with its ``status`` (None: not run).

    ``may_see_all``: root or our own user, to whom command lines may be shown; others see only those of ``uid``.
    """

    fd: int
    uid: int
    pid: int
    may_see_all: bool
    ask: str | None = None
    ack: str | None = None
    status: int | None = None


class Statistics(NamedTuple):
    """Counts since the start; ``clients`` as of now. ``dropped`` counts messages, each of the others counts clients."""

    clients: int
    accepted: int
    refused: int
    malformed: int
    stalled: int
    dropped: int
    published: int


class _Client:
    __slots__ = ("dropped", "pid", "requests", "sees_all", "since_ns", "sock", "stalled_since_ns", "uid")

    def __init__(self, sock: socket.socket, pid: int, uid: int, *, sees_all: bool) -> None:
        self.sock = sock
        self.pid = pid
        self.uid = uid
        self.sees_all = sees_all
        self.dropped = 0  # since the last message that got through
        self.stalled_since_ns: int | None = None  # when it first took nothing
        self.since_ns = 0  # the second in which ``requests`` were made
        self.requests = 0


class _Message(NamedTuple):
    """One record, encoded. ``whole`` is None when it has no secret fields."""

    public: bytes
    whole: bytes | None
    owner_uid: int | None

    def seen_by(self, client: _Client) -> bytes:
        is_owner = client.uid == self.owner_uid and client.uid != _OVERFLOW_UID
        return self.whole if self.whole is not None and (client.sees_all or is_owner) else self.public


class Outlet:
    """The socket and its clients.

    Args:
        path: Where to listen; None: nowhere, and everything here does nothing.
        own_uid: Who we are: that user sees what root sees.
        clients_limit: How many may be connected.
        backlog: How many of the last records who connects is given.
    """

    def __init__(
        self,
        path: str | None,
        *,
        own_uid: int,
        clients_limit: int = CLIENTS_LIMIT,
        backlog: int = BACKLOG_MESSAGES,
    ) -> None:
        self._path = path
        self._own_uid = own_uid
        self._clients_limit = clients_limit
        self._clients: dict[int, _Client] = {}
        self._backlog: deque[_Message] = deque(maxlen=backlog)
        self._backlog_bytes = 0
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._epoll: select.epoll | None = None
        self._spare: int | None = None  # given up for a moment when descriptors run out, to turn somebody away
        self._is_listening = False
        self._accepts_since_ns = 0
        self._accepts = 0
        self._accepted = self._refused = self._malformed = self._stalled = self._dropped = self._published = 0

    # -- opening and closing -------------------------------------------------------------------------------

    def open(self) -> None:
        """Listen. The socket file of a watcher that has died is replaced.

        Two watchers that start in the same millisecond on one path could each take the other's file for a dead one.

        Raises:
            KernelError: Another program listens there, the path is too long, is no socket, or cannot be made.
        """
        if self._path is None or self._listener is not None:
            return
        if len(os.fsencode(self._path)) > PATH_LIMIT_BYTES:
            raise KernelError(
                f"the path of the event socket is longer than the {PATH_LIMIT_BYTES} bytes that the kernel takes: "
                f"{self._path}. Choose a shorter one with --events"
            )
        listener = None
        try:
            _make_directory(os.path.dirname(self._path))
            _remove_stale(self._path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            _bind(listener, self._path)
            listener.listen(_LISTEN_BACKLOG)
            found = os.lstat(self._path)
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            self._epoll = select.epoll()
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        except OSError as error:
            if listener is not None:
                listener.close()
            raise KernelError(
                f"no event socket can be made at {self._path}: {error.strerror}. "
                "Choose a place that this user may write to with --events"
            ) from error
        self._inode = (found.st_dev, found.st_ino)
        self._listener = listener
        self._is_listening = True

    def close(self) -> None:
        """Let go of everybody, and remove the socket file if it is still ours."""
        for fd in list(self._clients):
            self._drop(fd)
        if self._listener is None or self._path is None:
            return
        with contextlib.suppress(OSError):
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self._path)
        self._listener.close()
        self._listener = None
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    # -- for who drives it ---------------------------------------------------------------------------------

    def fileno(self) -> int | None:
        """What to watch for input: it is readable when somebody connects, asks or leaves. None without a socket."""
        return None if self._epoll is None else self._epoll.fileno()

    @property
    def clients(self) -> frozenset[int]:
        """The descriptors of those who are connected."""
        return frozenset(self._clients)

    @property
    def client_pids(self) -> frozenset[int]:
        """Who is connected, by the pid that connected."""
        return frozenset(client.pid for client in self._clients.values())

    def statistics(self) -> Statistics:
        """The counts."""
        return Statistics(
            len(self._clients),
            self._accepted,
            self._refused,
            self._malformed,
            self._stalled,
            self._dropped,
            self._published,
        )

    def serve(self, now_ns: int) -> list[Request]:
        """Let in who is waiting, and read what was asked. Bounded: what is left is there at the next call."""
        requests: list[Request] = []
        if self._epoll is None or self._listener is None:
            return requests
        if not self._is_listening and now_ns - self._accepts_since_ns >= _SECOND_NS:
            self._listen(is_wanted=True)
        try:
            events = self._epoll.poll(0, _EVENTS_A_TURN)
        except OSError:
            return requests  # ENOMEM: they are still there at the next call
        for fd, _ in events:
            if fd == self._listener.fileno():
                self.on_acceptable(now_ns)
            elif fd in self._clients:
                requests += self.on_readable(fd, now_ns)
        return requests

    def on_acceptable(self, now_ns: int) -> None:
        """Let in who is waiting; who is one too many is let in and turned away at once, so that he knows."""
        while self._listener is not None:
            if now_ns - self._accepts_since_ns >= _SECOND_NS:
                self._accepts_since_ns, self._accepts = now_ns, 0
            if self._accepts >= _ACCEPTS_A_SECOND:
                self._listen(is_wanted=False)
                return
            self._accepts += 1
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._turn_one_away():
                    continue
                if error.errno == errno.ECONNABORTED:
                    continue
                self._listen(is_wanted=False)  # no memory: or the listener would wake us without end
                return
            self._let_in(sock)

    def on_readable(self, fd: int, now_ns: int) -> list[Request]:
        """Read one message of a client; who sends what we do not understand, or too much, is let go."""
        client = self._clients.get(fd)
        if client is None:
            return []  # it was let go of in the same turn
        try:
            # Descriptors that it may send along are not taken: without a place for them the kernel closes them.
            message = client.sock.recv(REQUEST_LIMIT_BYTES + 1, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            message = b""
        if not message:
            self._drop(fd)
            return []
        if now_ns - client.since_ns >= _SECOND_NS:
            client.since_ns, client.requests = now_ns, 0
        client.requests += 1
        request = _parse_request(message, client, fd)
        if request is None or client.requests > _REQUESTS_A_SECOND:
            self._malformed += 1
            self._drop(fd)
            return []
        return [request]

    def publish(
        self, record: dict[str, object], *, secret: dict[str, object] | None = None, owner_uid: int | None = None
    ) -> None:
        """Tell everybody; ``secret`` fields only root, our own user and ``owner_uid``. Never waits, never raises.

        ``monotonic_ns`` of the record is the clock by which a client counts as stalled.
        """
        message = self._encode(record, secret, owner_uid)
        if message is None:
            return
        self._published += 1
        self._keep(message)
        moment = record.get("monotonic_ns")
        now_ns = moment if isinstance(moment, int) else 0
        for fd, client in list(self._clients.items()):
            self._send(fd, client, message.seen_by(client), now_ns)

    def reply(self, fd: int, record: dict[str, object]) -> bool:
        """Answer one client; whether it got the answer. The caller leaves out what that client may not see."""
        client = self._clients.get(fd)
        if client is None:
            return False
        moment = record.get("monotonic_ns")
        answer = _encode(record)
        if answer is None or len(answer) > MESSAGE_LIMIT_BYTES:
            answer = b'{"event":"state","error":"too large"}'
        return self._send(fd, client, answer, moment if isinstance(moment, int) else 0)

    # -- within --------------------------------------------------------------------------------------------

    def _encode(
        self, record: dict[str, object], secret: dict[str, object] | None, owner_uid: int | None
    ) -> _Message | None:
        if self._listener is None:
            return None
        public = _encode(record)
        whole = None if not secret else _encode({**record, **secret})
        if public is None or len(public) > MESSAGE_LIMIT_BYTES:
            self._dropped += 1
            return None
        if whole is not None and len(whole) > MESSAGE_LIMIT_BYTES:
            whole = None  # better without its secret than not at all
        return _Message(public, whole, owner_uid)

    def _keep(self, message: _Message) -> None:
        if not self._backlog.maxlen:
            return
        if len(self._backlog) == self._backlog.maxlen:
            self._backlog_bytes -= _size_of(self._backlog.popleft())
        self._backlog.append(message)
        self._backlog_bytes += _size_of(message)
        while self._backlog_bytes > _BACKLOG_BYTES and len(self._backlog) > 1:
            self._backlog_bytes -= _size_of(self._backlog.popleft())

    def _let_in(self, sock: socket.socket) -> None:
        try:
            pid, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if self._is_one_too_many(uid):
                self._refused += 1
                sock.close()
                return
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            assert self._epoll is not None
            self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        except OSError:
            self._refused += 1
            sock.close()
            return
        client = _Client(sock, pid, uid, sees_all=uid in (_ROOT_UID, self._own_uid))
        self._clients[sock.fileno()] = client
        self._accepted += 1
        self._send_backlog(sock.fileno(), client)

    def _is_one_too_many(self, uid: int) -> bool:
        if len(self._clients) >= self._clients_limit:
            return True
        return sum(client.uid == uid for client in self._clients.values()) >= CLIENTS_A_USER

    def _send_backlog(self, fd: int, client: _Client) -> None:
        """The newest that fit, in their order; those before them count as missed."""
        messages = [message.seen_by(client) for message in self._backlog]
        room = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        first = len(messages)
        while first and room >= (cost := _charge_of(messages[first - 1])):
            room -= cost
            first -= 1
        client.dropped = first
        self._dropped += first
        for message in messages[first:]:
            self._send(fd, client, message, 0)

    def _send(self, fd: int, client: _Client, message: bytes, now_ns: int) -> bool:
        if client.dropped:
            message = b'{"dropped":%d,%b' % (client.dropped, message[1:])
        try:
            client.sock.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF):
                self._drop(fd)
            else:  # EAGAIN; ENOBUFS, ENOMEM: no memory for it; EMSGSIZE: this system's buffers are smaller
                self._note_dropped(fd, client, now_ns)
            return False
        client.dropped = 0
        client.stalled_since_ns = None
        return True

    def _note_dropped(self, fd: int, client: _Client, now_ns: int) -> None:
        self._dropped += 1
        client.dropped += 1
        if client.stalled_since_ns is None:
            client.stalled_since_ns = now_ns
        elif client.dropped > _STALL_DROPS and now_ns - client.stalled_since_ns >= _STALL_NS:
            self._stalled += 1
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        client = self._clients.pop(fd, None)
        if client is None:
            return
        if self._epoll is not None:
            # Closing alone does not end it while a worker that is just being forked has the descriptor, too.
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
        client.sock.close()

    def _listen(self, *, is_wanted: bool) -> None:
        if self._epoll is None or self._listener is None or is_wanted is self._is_listening:
            return
        try:
            self._epoll.modify(self._listener.fileno(), select.EPOLLIN if is_wanted else 0)
        except OSError:
            return
        self._is_listening = is_wanted

    def _turn_one_away(self) -> bool:
        """With no descriptor left: take one with the spare one and close it, or it would wake us without end."""
        if self._spare is None or self._listener is None:
            return False
        os.close(self._spare)
        self._spare = None
        try:
            sock, _ = self._listener.accept()
            sock.close()
            self._refused += 1
            is_done = True
        except OSError:
            is_done = False
        with contextlib.suppress(OSError):
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        return is_done


def _encode(record: dict[str, object]) -> bytes | None:
    try:
        return json.dumps(record, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError):
        return None  # our bug, and the tests' to find; no event is worth the watcher's end


def _size_of(message: _Message) -> int:
    return len(message.public) + (0 if message.whole is None else len(message.whole))


def _charge_of(message: bytes) -> int:
    return (1 << (len(message) + _SHARED_INFO_BYTES - 1).bit_length()) + _MESSAGE_OVERHEAD_BYTES


def _parse_request(message: bytes, client: _Client, fd: int) -> Request | None:
    """None for what is no request, and for an acknowledgement by somebody who has no hooks to run."""
    if len(message) > REQUEST_LIMIT_BYTES:
        return None
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    request = Request(fd, client.uid, client.pid, client.sees_all)
    if content.get("ask") == "state":
        return request._replace(ask="state")
    ack, status = content.get("ack"), content.get("status")
    if not isinstance(ack, str) or len(ack) > _TOKEN_CHARS or not client.sees_all:
        return None
    if status is not None and (type(status) is not int or status not in _HOOK_STATUS_RANGE):
        return None
    return request._replace(ack=ack, status=status)


def _make_directory(directory: str) -> None:
    if not directory or os.path.isdir(directory):
        return
    before = os.umask(0o022)
    try:
        os.makedirs(directory, 0o755, exist_ok=True)
    finally:
        os.umask(before)


def _bind(listener: socket.socket, path: str) -> None:
    """Bind with mode 0666: everybody may connect, and is told apart by SO_PEERCRED."""
    before = os.umask(0o111)
    try:
        listener.bind(path)
    finally:
        os.umask(before)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a program that has died.

    Raises:
        KernelError: Somebody listens there, or it is no socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError as error:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise KernelError(f"{path} is no socket; it was left as it is. Choose another with --events") from error
            os.unlink(path)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
    raise KernelError(f"another oomreaper listens there: {path}. End it, or choose another path with --events")
