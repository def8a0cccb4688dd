"""Who sees from outside, and the same way for both sides, when a victim's memory is back and when it has gone.

It sleeps between two looks, so that it takes no CPU from either side, and at a priority at which it is never late:
SCHED_FIFO 2, one above the reaper's workers, where that is permitted.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.victims import processes
from tests.victims.program import MIB, StageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A look takes 10 to 20 us: at most 4 % of one CPU, and a resolution of one per cent of the shortest time measured.
_LOOK_INTERVAL_S = 0.0005
# What may be left that counts as back: as in reaper/verify.py.
_LEFTOVER_PART = 20
_LEFTOVER_FLOOR_BYTES = 8 * MIB
_LIMIT_S = 30.0


class Seen(NamedTuple):
    """When, as CLOCK_MONOTONIC in ns. ``memory_back_ns`` is None where the victim has no memory cgroup."""

    memory_back_ns: int | None
    gone_ns: int


class Charge:
    """What a v1 memory cgroup is charged with, read from one descriptor."""

    def __init__(self, group: Path) -> None:
        self._file = os.open(group / "memory.usage_in_bytes", os.O_RDONLY | os.O_CLOEXEC)

    def read_bytes(self) -> int:
        """The charge now."""
        return int(os.pread(self._file, 32, 0))

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self._file)


@contextlib.contextmanager
def attentive() -> Iterator[None]:
    """Run the block at the observer's priority; what is started in it does not inherit that."""
    before = os.sched_getscheduler(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(2))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))


class Watch:
    """Watches one healthy victim go; make it before the signal, within ``attentive``."""

    def __init__(self, pidfd: int, charge: Charge | None) -> None:
        self._pidfd = pidfd
        self._charge = charge
        held_bytes = 0 if charge is None else charge.read_bytes()
        self._back_bytes = max(_LEFTOVER_FLOOR_BYTES, held_bytes // _LEFTOVER_PART)

    def wait(self) -> Seen:
        """Look until it and its memory have gone; asleep all the while where the end is all there is to see.

        Raises:
            StageError: It did not go.
        """
        if self._charge is None:
            processes.wait_for_pidfd(self._pidfd, _LIMIT_S)
        memory_back_ns = gone_ns = None
        deadline_s = time.monotonic() + _LIMIT_S
        while gone_ns is None or (memory_back_ns is None and self._charge is not None):
            if gone_ns is None and has_gone(self._pidfd):
                gone_ns = time.monotonic_ns()
            if memory_back_ns is None and self._charge and self._charge.read_bytes() <= self._back_bytes:
                memory_back_ns = time.monotonic_ns()
            if time.monotonic() > deadline_s:
                message = "a healthy victim did not go"
                raise StageError(message)
            time.sleep(_LOOK_INTERVAL_S)
        return Seen(memory_back_ns, gone_ns)


def has_gone(pidfd: int) -> bool:
    """Whether the process has ended."""
    return processes.wait_for_pidfd(pidfd, 0)
