"""Pressure stall information: how long tasks have waited for memory, and an alarm when they wait too long.

What it knows: the two totals of a pressure file, in microseconds, and the trigger that the kernel keeps for one open
descriptor of it (Documentation/accounting/psi.rst). The averages of the file lag by 2 s and are not read.
What it refuses to know: which pressure is too much. A trigger is a hint, the one who is woken decides on the totals.

How it works: a trigger lives as long as its descriptor and takes one write; a second one is answered EBUSY, so
to arm anew is to open anew. Its descriptor is readable at all times: wait for POLLPRI only. Without CAP_SYS_RESOURCE
the window must be a multiple of 2 s, and the first small stall after arming may raise the alarm (5 ms of 150, 2026-11,
Linux 6.18). So each alarm is held against the totals.
"""

from __future__ import annotations

import errno
import os
import select
from typing import Literal, NamedTuple

from oomreaper.linux.kept import open_kept

Kind = Literal["some", "full"]

# Both lines have 94 to about 130 bytes.
_PRESSURE_BYTES = 512
# The window that a process without CAP_SYS_RESOURCE may have is a multiple of this (psi_fop, "unprivileged").
UNPRIVILEGED_WINDOW_US = 2_000_000
# What says "not here" rather than "not now". A container's cgroup files are often read-only (EROFS).
_REFUSALS = frozenset({errno.EOPNOTSUPP, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL})


class Refusal(NamedTuple):
    """There is no trigger to be had here; ``reason`` is the kernel's, for people."""

    reason: str


def parse_pressure(content: bytes) -> tuple[int, int]:
    """The totals of a memory.pressure file in microseconds: some task waited, all tasks waited.

    Raises:
        ValueError: It is no pressure file of memory.
    """
    parts = content.split(b"total=", 2)
    if len(parts) != 3:  # noqa: PLR2004 - what precedes the first total, and what follows each of the two
        raise ValueError(content)
    return int(parts[1].partition(b"\n")[0]), int(parts[2])


def read_totals(file: int) -> tuple[int, int]:
    """``parse_pressure`` of an open pressure file.

    Raises:
        OSError: EOPNOTSUPP when pressure is built in but off; ENODEV when the group has gone.
        ValueError: It is no pressure file of memory.
    """
    return parse_pressure(os.pread(file, _PRESSURE_BYTES, 0))


class Trigger:
    """An armed trigger: ``stall_us`` of waiting within ``window_us`` make its descriptor report POLLPRI.

    ``window_us`` and ``stall_us`` are those that the kernel took. ``open_trigger`` makes one.
    """

    def __init__(self, path: str, kind: Kind, stall_us: int, window_us: int, directory: int | None = None) -> None:
        self.stall_us = stall_us
        self.window_us = window_us
        self._path = path
        self._kind: Kind = kind
        self._directory = directory
        self._armed: int | None = None
        self._totals: int | None = open_kept(path, directory)
        try:
            self._seen_us = self._read_total_us()
            self._arm()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait on, for POLLPRI and nothing else; another one after ``rearm``."""
        if self._armed is None:
            raise OSError(errno.EBADF, f"the trigger on {self._path} is not armed")
        return self._armed

    def has_grown(self) -> bool:
        """Whether the alarm was true: the total has grown by half the threshold or more since the last one.

        Half, since the kernel's window slides: part of what it counts may have been there when we last looked.

        Raises:
            OSError: ENODEV when the group has gone.
        """
        total_us = self._read_total_us()
        grown_us = total_us - self._seen_us
        self._seen_us = total_us
        return grown_us * 2 >= self.stall_us

    def rearm(self) -> None:
        """Close the trigger and arm a new one: its ``fileno`` is to be registered again.

        Raises:
            OSError: It could not be armed, and is not; it may be tried again.
        """
        self._disarm()
        self._seen_us = self._read_total_us()
        self._arm()

    def close(self) -> None:
        """Give the trigger up."""
        self._disarm()
        if self._totals is not None:
            os.close(self._totals)
            self._totals = None

    def _arm(self) -> None:
        file = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            # One write, and a NUL for the kernel to write over: it takes the last byte for itself.
            os.write(file, f"{self._kind} {self.stall_us} {self.window_us}\0".encode())
        except BaseException:
            os.close(file)
            raise
        self._armed = file

    def _disarm(self) -> None:
        if self._armed is not None:
            os.close(self._armed)
            self._armed = None

    def _read_total_us(self) -> int:
        if self._totals is None:
            raise OSError(errno.EBADF, f"the trigger on {self._path} is closed")
        some_us, full_us = read_totals(self._totals)
        return some_us if self._kind == "some" else full_us


def is_group_gone(poll_events: int) -> bool:
    """Whether what poll reported for a trigger says that its group was removed: it is to be closed."""
    return bool(poll_events & select.POLLERR)


def open_trigger(
    path: str, kind: Kind, *, stall_us: int, window_us: int, directory: int | None = None
) -> Trigger | Refusal:
    """Arm a trigger on a pressure file; with the next multiple of 2 s as its window where no other is permitted.

    ``path`` is below the descriptor ``directory``, if there is one, which must stay open for ``rearm``. The share of
    the time that makes the alarm stays the same in a longer window.

    Raises:
        OSError: Not now: EMFILE, ENOMEM, ENODEV (the group has gone) and the like.
    """
    try:
        try:
            return Trigger(path, kind, stall_us, window_us, directory)
        except OSError as error:
            longer_us = -(-window_us // UNPRIVILEGED_WINDOW_US) * UNPRIVILEGED_WINDOW_US
            if error.errno != errno.EINVAL or longer_us == window_us:
                raise
            return Trigger(path, kind, stall_us * longer_us // window_us, longer_us, directory)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        return Refusal(f"{path}: {error.strerror}")
    except ValueError:
        return Refusal(f"{path}: no pressure file of memory")
