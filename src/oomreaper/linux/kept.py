"""Files that are read again and again, and that a machine may lack: opened once and kept.

A source has one or two files that it stands on; it reads those itself, and their failure is its own. All others are
kept here: one that is not there, or fails, costs its own number and nothing more. ``lost`` says why, while it does.

Nothing is opened but by ``add``, which belongs off the hot path. A file that failed stays open and is tried again at
the next reading, since a shortage answers ENOMEM at times; only one that has gone for good (ENODEV) is closed.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Value = TypeVar("_Value")

# One reading. memory.stat, the longest that comes in one piece, has 1 to 3 KB.
CHUNK_BYTES = 8192


def open_kept(path: str, directory: int | None = None) -> int:
    """A descriptor to read ``path`` by, for good.

    Raises:
        OSError: As open(2).
    """
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)


def read_int(file: int) -> int:
    """The number that a file of one number holds.

    Raises:
        OSError: As pread(2).
        ValueError: It holds something else.
    """
    return int(os.pread(file, CHUNK_BYTES, 0))


class KeptFiles:
    """Optional files by name. ``lost`` tells why a file that is there gives no number now."""

    def __init__(self) -> None:
        self.lost: dict[str, str] = {}
        self._files: dict[str, int] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._files))

    def add(self, name: str, path: str, directory: int | None = None) -> None:
        """Open a file, unless it is open. One that does not exist is not lost: this machine never had it."""
        if name in self._files:
            return
        try:
            self._files[name] = open_kept(path, directory)
        except (FileNotFoundError, NotADirectoryError):
            self.lost.pop(name, None)
        except OSError as error:
            self.lost[name] = str(error.strerror)

    def read(self, name: str, reader: Callable[[int], _Value]) -> _Value | None:
        """What ``reader`` makes of the descriptor; None when the file is not there, or gives no number."""
        file = self._files.get(name)
        if file is None:
            return None
        try:
            value = reader(file)
        except OSError as error:
            self.lost[name] = str(error.strerror)
            if error.errno == errno.ENODEV:
                self._drop(name)
            return None
        except (ValueError, IndexError):
            self.lost[name] = "it has not the form that it should"
            return None
        if self.lost:
            self.lost.pop(name, None)
        return value

    def remove(self, name: str) -> None:
        """Close a file that is wanted no more."""
        self.lost.pop(name, None)
        self._drop(name)

    def close(self) -> None:
        """Close them all."""
        for name in self:
            self._drop(name)

    def _drop(self, name: str) -> None:
        file = self._files.pop(name, None)
        if file is not None:
            os.close(file)
