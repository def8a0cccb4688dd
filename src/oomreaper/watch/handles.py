"""Pidfds: opened for one life, closed once, watched for the end of their process."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from oomreaper.linux import proc, syscalls

if TYPE_CHECKING:
    from oomreaper.model.identity import Identity


# Given up, one by one, when the kernel has no descriptor left for a pidfd: as many as there are candidates that are
# looked at ahead of need, and some for those who die with one of them.
_RESERVED_DESCRIPTORS = 16


class Handles:
    """All pidfds of the watcher. Implements ``oomreaper.watch.mind.hunter.Handles``.

    Args:
        proc_root: A descriptor of /proc, kept open by the caller.
    """

    def __init__(self, proc_root: int) -> None:
        self._proc = proc_root
        self._open: dict[int, int] = {}  # when each was opened, as a number
        self._opened = 0
        self._reserve: list[int] = []
        self.watched: set[int] = set()
        self._refill()

    def open(self, pid: int) -> int | None:
        """A pidfd of whoever holds the pid now; None when nobody does, or no descriptor is to be had."""
        try:
            handle = syscalls.pidfd_open(pid)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._reserve:
                return None
            os.close(self._reserve.pop())
            try:
                handle = syscalls.pidfd_open(pid)
            except OSError:
                return None
        self._opened += 1
        self._open[handle] = self._opened
        return handle

    def serial_of(self, handle: int) -> int:
        """Tells one life of a descriptor's number from the next; 0: not ours."""
        return self._open.get(handle, 0)

    def open_life(self, identity: Identity) -> int | None:
        """A pidfd of this very life; None when it is over.

        The pidfd is opened first. If the start time that is read afterwards is the one that was meant, then the pid had
        not been given on when the pidfd was opened.
        """
        handle = self.open(identity.pid)
        if handle is None:
            return None
        try:
            directory = proc.open_process(self._proc, identity.pid)
            if directory is not None:
                try:
                    stat = proc.read_stat(directory)
                finally:
                    os.close(directory)
                if stat is not None and stat.identity == identity:
                    return handle
        except OSError:
            pass  # it cannot be told: then it is not signalled
        self.close(handle)
        return None

    def watch(self, handle: int) -> None:
        """Have ``on_exit`` called when its process has ended."""
        self.watched.add(handle)

    def close(self, handle: int) -> None:
        """Close one; a second time does nothing."""
        self.watched.discard(handle)
        if handle in self._open:
            del self._open[handle]
            os.close(handle)
            if len(self._reserve) < _RESERVED_DESCRIPTORS:
                self._refill()

    def close_all(self) -> None:
        """Close what is left."""
        for handle in list(self._open):
            self.close(handle)
        while self._reserve:
            os.close(self._reserve.pop())

    def _refill(self) -> None:
        with contextlib.suppress(OSError):  # none to be had now: the next one that is closed makes room
            while len(self._reserve) < _RESERVED_DESCRIPTORS:
                self._reserve.append(os.dup(self._proc))
