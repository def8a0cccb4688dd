"""Signals as descriptors: SIGTERM and SIGINT end the watcher, SIGHUP has it read its configuration again."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from typing import TYPE_CHECKING

from oomreaper.watch.service import Service, Wake

if TYPE_CHECKING:
    from collections.abc import Callable

_TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_A_FEW = 64


class Signals(Service):
    """Wakes the loop on a signal.

    Args:
        on_end: Called with the signal's number and the time for SIGTERM and SIGINT.
        on_reload: Called with the time for SIGHUP.
    """

    name = "signals"

    def __init__(self, on_end: Callable[[int, int], None], on_reload: Callable[[int], None]) -> None:
        self._on_end = on_end
        self._on_reload = on_reload
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The interpreter writes the number of each signal that it catches here, whatever it is doing.
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, _do_nothing) for number in _TAKEN}
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def wakes(self) -> dict[int, Wake]:
        """The reading end."""
        return {self._reader.fileno(): Wake("signals", select.EPOLLIN, self._on_readable)}

    def close(self) -> None:
        """Put back what was there before."""
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()

    def _on_readable(self, _mask: int, now_ns: int) -> None:
        numbers = b""
        with contextlib.suppress(BlockingIOError):
            numbers = self._reader.recv(_A_FEW)
        for number in dict.fromkeys(numbers):
            if number == signal.SIGHUP:
                self._on_reload(now_ns)
            elif number in _TAKEN:
                self._on_end(number, now_ns)


def _do_nothing(_number: int, _frame: object) -> None:
    """The wake-up descriptor tells the loop; a handler there must be, or the signal would end us."""
