"""The watcher as it is, with a stopwatch: after each of its looks it decides once more, and nothing comes of it.

Run by ``bench.figures.decision`` as a process of its own, ``python -I -S``: a real daemon in dry run, resident and
warmed up, whose looks are followed by a decision on the numbers just read (``Watcher.rehearse``). Its rule is near its
threshold and does not hold, so that looks, censuses and looks ahead are those of a machine that is about to run short.

Arguments: the file with the plan, how many decisions. It prints one line of JSON: the times of each in ns, and what
the machine showed.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

from oomreaper.model.plan import MACHINE
from oomreaper.watch.plan import decode_plan
from oomreaper.watch.start import Daemon

if TYPE_CHECKING:
    from collections.abc import Sequence

# Looks before the first that is timed: those who were born since the start are met by then, 96 in a look, and code has
# been specialized. Looks are at most 100 ms apart while a threshold is near.
_LOOKS_BEFORE = 10


class _EnoughError(Exception):
    """All is measured."""


class _Stopwatch:
    """Stands before ``Watcher.look`` of one daemon."""

    def __init__(self, daemon: Daemon, wanted: int) -> None:
        self._look = daemon.watcher.look
        self._rehearse = daemon.watcher.rehearse
        self._wanted = wanted
        self._looks = 0
        self.look_ns: list[int] = []
        self.decision_ns: list[int] = []

    def look(self, scope: str, now_ns: int) -> None:
        """Look as it would, then decide."""
        began_ns = time.monotonic_ns()
        self._look(scope, now_ns)
        looked_ns = time.monotonic_ns()
        if scope != MACHINE:
            return
        self._rehearse(looked_ns)
        decided_ns = time.monotonic_ns()
        self._looks += 1
        if self._looks > _LOOKS_BEFORE:
            self.look_ns.append(looked_ns - began_ns)
            self.decision_ns.append(decided_ns - looked_ns)
        if len(self.decision_ns) >= self._wanted:
            raise _EnoughError


def serve(arguments: Sequence[str]) -> None:
    """Measure, and print what was found."""
    with open(arguments[0], "rb") as file:
        plan = decode_plan(file.read())
    daemon = Daemon(plan, is_dry_run=True)
    try:
        daemon.start()
        stopwatch = _Stopwatch(daemon, int(arguments[1]))
        daemon.watcher.look = stopwatch.look  # type: ignore[method-assign] # the seam of this bench: one object's method
        with contextlib.suppress(_EnoughError):
            daemon.run()
        ranking = daemon.watcher.rank_now(MACHINE, time.monotonic_ns())
        best = ranking.best
        found = {
            "look_ns": stopwatch.look_ns,
            "decision_ns": stopwatch.decision_ns,
            "considered": ranking.considered,
            "best_pid": None if best is None else best.process.identity.pid,
        }
    finally:
        daemon.close()
    print(json.dumps(found))
