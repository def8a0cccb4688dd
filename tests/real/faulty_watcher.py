"""A real watcher to which the kernel refuses one call in each look: the first in the first look, and so on round.

Started as ``oomreaper run`` starts the watcher, with the errno's name before its own arguments. ``os`` of every module
on the way to a decision counts its calls from the beginning of a look; the n-th of the n-th look answers the errno.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

sys.path.append(sys.argv.pop(2))

from oomreaper.linux import kept, memcg, memcg_tree, meminfo, population, proc, psi
from oomreaper.linux.census import census, files, table
from oomreaper.watch import handles, machine, start
from oomreaper.watch.mind.watcher import Watcher

_COUNTED = ("open", "pread", "read", "fstat", "listdir", "scandir", "readlink", "dup", "stat")


class _FaultyOs:
    """``os`` for all modules together."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._left = -1  # calls until the one that fails; below 0: none
        self._looks = 0
        self._calls = self._most = 0
        self.failed = 0

    def begin(self) -> None:
        """A look begins."""
        self._most = max(self._most, self._calls)
        self._calls = 0
        self._left = self._looks % max(self._most, 1)
        self._looks += 1

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _COUNTED:
            return real

        def call(*operands: Any, **options: Any) -> Any:
            self._calls += 1
            self._left -= 1
            if self._left == -1:
                self.failed += 1
                raise OSError(self._number, os.strerror(self._number))
            return real(*operands, **options)

        return call


def _main() -> None:
    faulty = _FaultyOs(getattr(errno, sys.argv.pop(1)))
    for module in (kept, memcg, memcg_tree, meminfo, population, proc, psi, census, files, table, handles, machine):
        if hasattr(module, "os"):
            module.os = faulty  # type: ignore[attr-defined]  # the seam: each module's own name for it
    look = Watcher.look

    def look_with_faults(self: Watcher, scope: str, now_ns: int) -> None:
        faulty.begin()
        look(self, scope, now_ns)

    Watcher.look = look_with_faults  # type: ignore[method-assign]  # where the counting begins
    try:
        start.main(sys.argv[1:])
    finally:
        sys.stderr.write(f"failed calls: {faulty.failed} in {faulty._looks} looks\n")


_main()
