"""What the kernel tells of a control group by itself: a descriptor that wakes whoever waits, instead of a timer.

What it knows: v1's notifications, an eventfd that is written into ``cgroup.event_control``, of a limit that was hit
(``memory.oom_control``) and of reclaim that gets harder (``memory.pressure_level``); v2's ``memory.events``, which
reports POLLPRI when one of its counts grows. What it refuses to know: what to do. Each is a hint to look at the
numbers.

v1 signals an eventfd also when its group is removed, so that is told apart by the directory having gone. Nothing here
ever writes to oom_control: who hands the shortage of a group to user space is not ours to decide.
"""

from __future__ import annotations

import errno
import os
import select
from typing import Literal, Protocol

from oomreaper.linux.kept import CHUNK_BYTES, open_kept
from oomreaper.linux.memcg import GroupGoneError

Level = Literal["low", "medium", "critical"]


class GroupEvents(Protocol):
    """Something to wait on, for ``poll_events``; ``drain`` after each wake-up tells how often it happened."""

    poll_events: int

    def fileno(self) -> int:
        """The descriptor to wait on."""

    def drain(self) -> int:
        """How often it has happened since the last time; may be 0.

        Raises:
            GroupGoneError: The group was removed: nothing will come any more, close it.
            OSError: It cannot be told now.
        """

    def close(self) -> None:
        """Give it up."""


class V1Notification:
    """An eventfd that v1 counts up: see ``open_oom_event`` and ``open_pressure_event``."""

    poll_events = select.POLLIN

    def __init__(self, directory: str, name: str, argument: str = "") -> None:
        self._directory = directory
        self._eventfd: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._register(name, argument)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The eventfd."""
        return -1 if self._eventfd is None else self._eventfd

    def drain(self) -> int:
        """How often it has happened since the last time; 0 when it has not.

        Raises:
            GroupGoneError: The group was removed, which is an event too.
        """
        try:
            count = os.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0
        if not os.path.isdir(self._directory):
            raise GroupGoneError(self._directory)
        return count

    def close(self) -> None:
        """Give it up; the kernel forgets the registration with its eventfd."""
        if self._eventfd is not None:
            os.close(self._eventfd)
            self._eventfd = None

    def _register(self, name: str, argument: str) -> None:
        # Both files are wanted for the registration only: the kernel holds the group itself afterwards.
        file = open_kept(f"{self._directory}/{name}")
        try:
            control = os.open(f"{self._directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(control, f"{self.fileno()} {file} {argument}".rstrip().encode())
            finally:
                os.close(control)
        finally:
            os.close(file)


class V2Events:
    """``memory.events``, or another file that the kernel announces changes of: see ``open_events``."""

    poll_events = select.POLLPRI

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = open_kept(path)
        try:
            # The first reading is what arms it: before that, poll answers at once.
            self._seen = self._read_sum()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor of the file, to be waited on for POLLPRI."""
        return -1 if self._file is None else self._file

    def drain(self) -> int:
        """By how much all its counts together have grown since the last time; reading is also what arms it anew.

        Raises:
            GroupGoneError: The group was removed.
            OSError: It cannot be read now.
        """
        counted = self._read_sum()
        grown, self._seen = counted - self._seen, counted
        return max(0, grown)

    def close(self) -> None:
        """Give it up."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read_sum(self) -> int:
        try:
            content = os.pread(self.fileno(), CHUNK_BYTES, 0)
        except OSError as error:
            raise _gone_or(error, os.path.dirname(self._path)) from error
        return sum(map(int, content.split()[1::2]))


def open_oom_event(directory: str) -> V1Notification:
    """v1: an event each time that the group is out of memory, whoever then makes room; at once if it is already.

    Raises:
        GroupGoneError: There is no such group.
        OSError: It cannot be had: EACCES, EMFILE, ENOMEM, ENOSPC; ENOENT on a kernel without it.
    """
    return _open_v1(directory, "memory.oom_control", "")


def open_pressure_event(directory: str, level: Level) -> V1Notification:
    """v1: an event each time that reclaim for the group, or below it where nobody listens, gets as hard as ``level``.

    low: it reclaims; medium: it is slow (swapping, dropping active file cache); critical: it is about to run out.

    Raises:
        GroupGoneError: There is no such group.
        OSError: It cannot be had: EACCES, EMFILE, ENOMEM, ENOSPC; ENOENT on a kernel without it.
    """
    return _open_v1(directory, "memory.pressure_level", level)


def open_events(directory: str, name: str = "memory.events") -> V2Events:
    """v2: an event each time that a count of ``memory.events`` grows: high, max, oom, oom_kill; below it included.

    Raises:
        GroupGoneError: There is no such group.
        OSError: It cannot be opened or read.
    """
    try:
        return V2Events(f"{directory}/{name}")
    except OSError as error:
        raise _gone_or(error, directory) from error


def _open_v1(directory: str, name: str, argument: str) -> V1Notification:
    try:
        return V1Notification(directory, name, argument)
    except OSError as error:
        raise _gone_or(error, directory) from error


def _gone_or(error: OSError, directory: str) -> Exception:
    is_gone = error.errno == errno.ENODEV or (error.errno == errno.ENOENT and not os.path.isdir(directory))
    return GroupGoneError(directory) if is_gone else error
