"""Telling the service manager how we are (sd_notify(3)), without its library.

A datagram of lines to the socket that ``$NOTIFY_SOCKET`` names. Connected once and kept; never waits, never raises: a
manager that does not listen is no reason to stop. Whoever starts other programs keeps ``$NOTIFY_SOCKET`` and
``$WATCHDOG_*`` from them (``VARIABLES``): they would speak in our name.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from oomreaper.model.outcome import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

_NS_IN_US = 1000
# A status is one line of `systemctl status`.
_STATUS_CHARS = 500


class Notifier:
    """Speaks to the service manager; to nobody when ``address`` is None.

    Args:
        address: A path; one that begins with ``@`` is in the abstract namespace.
        watchdog_interval_ns: How often the manager wants to hear from us: half of what it waits; None: never.
    """

    def __init__(self, address: str | None, watchdog_interval_ns: int | None = None) -> None:
        self.watchdog_interval_ns = watchdog_interval_ns
        self._address: bytes | None = None
        self._socket: socket.socket | None = None
        if address and address[0] in "/@":  # another kind (vsock:) is for virtual machines' own managers
            raw = os.fsencode(address)
            self._address = b"\0" + raw[1:] if raw[:1] == b"@" else raw
            self._connect()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """By ``$NOTIFY_SOCKET``, ``$WATCHDOG_USEC`` and ``$WATCHDOG_PID``; the environment is left as it is."""
        return cls(environ.get("NOTIFY_SOCKET"), _parse_watchdog(environ))

    @property
    def is_connected(self) -> bool:
        """Whether there is a manager to speak to."""
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """Started, or reloaded."""
        self._tell(*_status_line(status), "READY=1")

    def status(self, text: str) -> None:
        """What ``systemctl status`` shows."""
        self._tell(*_status_line(text))

    def reloading(self, monotonic_us: int) -> None:
        """A reload begins; ``ready`` ends it. ``monotonic_us`` is CLOCK_MONOTONIC (Type=notify-reload asks for it)."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={monotonic_us}")

    def stopping(self) -> None:
        """The end has begun."""
        self._tell("STOPPING=1")

    def watchdog(self) -> None:
        """Still alive."""
        self._tell("WATCHDOG=1")

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._address = None

    def _connect(self) -> bool:
        if self._address is None:
            return False
        connection = None
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            connection.connect(self._address)
        except (OSError, ValueError):  # ValueError: a path that holds a NUL
            if connection is not None:
                connection.close()
            return False
        if self._socket is not None:
            self._socket.close()
        self._socket = connection
        return True

    def _tell(self, *lines: str) -> None:
        if self._address is None or not lines:
            return
        message = "\n".join(lines).encode("utf-8", "replace")
        for _ in range(2):
            if self._socket is not None:
                try:
                    self._socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    return  # it has more to read than it wants; the next message comes in a second
                except OSError:
                    pass
                else:
                    return
            if not self._connect():  # a manager that was restarted has made its socket anew
                return


def _status_line(text: str) -> tuple[str, ...]:
    """One line: a newline in it would be another assignment, READY=1 for one."""
    return (f"STATUS={printable(text.encode('utf-8', 'surrogateescape'))[:_STATUS_CHARS]}",) if text else ()


def _parse_watchdog(environ: Mapping[str, str]) -> int | None:
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
    if pid is not None and pid != str(os.getpid()):
        return None  # meant for another process
    if not (microseconds.isascii() and microseconds.isdigit()) or int(microseconds) == 0:
        return None
    return int(microseconds) * _NS_IN_US // 2
