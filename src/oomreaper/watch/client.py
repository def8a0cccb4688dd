"""One question to the watcher that runs: its state.

It knows the watcher's socket (AF_UNIX, SOCK_SEQPACKET, one JSON object a message; the other end is ``outlet``) and
refuses to know what a state means. It is run by the command, never by the watcher, so it may wait, but not for long:
a watcher answers at once or is stuck, and whoever asks why nothing happens must not hang with it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time

from oomreaper.errors import KernelError, UsageError
from oomreaper.model.outcome import printable

_QUESTION = b'{"ask":"state"}'
# A message is bounded by the sender's socket buffer, 208 KiB by default; more is never sent in one.
_MOST_MESSAGE_BYTES = 1 << 20
_LIMIT_SECONDS = 2.0
_NOBODY_LISTENS = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_HUNG_UP = (errno.EPIPE, errno.ECONNRESET)


def fetch_state(path: str, *, limit_seconds: float = _LIMIT_SECONDS) -> dict[str, object] | None:
    """The state of the watcher whose event socket is ``path``; None when nobody listens there.

    Other messages that arrive before it (a backlog of events) are passed over.

    Raises:
        UsageError: No socket can have that path.
        KernelError: It may not be asked by us, or it does not answer within ``limit_seconds``.
    """
    deadline = time.monotonic() + limit_seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.settimeout(limit_seconds)
            connection.connect(path)
            connection.send(_QUESTION)
            return _await_state(connection, deadline)
        except TimeoutError:
            raise KernelError(
                f"the watcher at {_show(path)} does not answer within {limit_seconds:g} s; it may be stopped or stuck: "
                "systemctl status oomreaper, or look at its state in ps"
            ) from None
        except OSError as error:
            if error.errno in _NOBODY_LISTENS:
                return None
            raise _explain(error, path) from error


def _await_state(connection: socket.socket, deadline: float) -> dict[str, object]:
    while (left_seconds := deadline - time.monotonic()) > 0:
        connection.settimeout(left_seconds)
        message = connection.recv(_MOST_MESSAGE_BYTES)
        if not message:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        state = _parse_message(message)
        if state is not None:
            return state
    raise TimeoutError


def _parse_message(message: bytes) -> dict[str, object] | None:
    """The state, when that is what the message is; None for any other."""
    try:
        value = json.loads(message)
    except ValueError:
        return None
    return value if isinstance(value, dict) and value.get("event") == "state" else None


def _explain(error: OSError, path: str) -> UsageError | KernelError:
    name = _show(path)
    if error.errno is None:  # CPython's own: the path is longer than sun_path, 107 bytes
        return UsageError(f"{name} cannot be the path of a socket: {error}")
    if error.errno in _FORBIDDEN:
        return KernelError(
            f"you may not connect to the watcher at {name}: {os.strerror(error.errno)}; ask as root, or as the user "
            "it runs as"
        )
    if error.errno in _HUNG_UP:
        return KernelError(
            f"the watcher at {name} hung up without an answer; it ends, or has all the readers it serves: ask again"
        )
    if error.errno == errno.EPROTOTYPE:
        return KernelError(f"{name} is a socket of another kind, so no watcher's: is it the path you meant?")
    return KernelError(f"the watcher at {name} cannot be asked: {os.strerror(error.errno)}")


def _show(path: str) -> str:
    return printable(os.fsencode(path))
