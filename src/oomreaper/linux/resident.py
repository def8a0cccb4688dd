"""Staying in memory and on a CPU while the machine has neither to spare."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.linux import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Where real time is refused: the best that the ordinary scheduler offers.
_BEST_NICE = -20


class Residency(NamedTuple):
    """What this process was granted. ``nice`` is what counts when ``is_realtime`` is False."""

    is_locked: bool
    is_realtime: bool
    nice: int


def settle_heap() -> None:
    """Collect once and set what is left apart; to be called before workers are forked.

    A collection writes to the header of every object it looks at. Done in each worker it made 2 MiB of shared pages
    private; done before the fork those pages stay shared (2026-11).
    """
    gc.collect()
    gc.freeze()


def become_resident() -> Residency:
    """Lock this process's memory, take the lowest real-time priority, be spared by the kernel's OOM killer.

    Each is taken where permitted and missed without an error: an ordinary user's reaper works too, only less surely.
    """
    gc.disable()
    is_locked = _permitted(syscalls.lock_memory)
    is_realtime = _permitted(syscalls.be_realtime)
    if not is_realtime:
        _permitted(_be_nice)
    _permitted(_be_spared)
    return Residency(is_locked, is_realtime, os.getpriority(os.PRIO_PROCESS, 0))


def be_prompt() -> bool:
    """Take the lowest real-time priority for good, for us and for whom we fork; whether it was permitted."""
    return _permitted(functools.partial(syscalls.be_realtime, children_too=True))


@contextlib.contextmanager
def promptness() -> Iterator[None]:
    """Run at the lowest real-time priority for a while, where permitted: for one who decides and mostly sleeps.

    Workers forked meanwhile start with it, so that a spare is ready in time on a machine with a load of 40, too.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    is_prompt = _permitted(functools.partial(syscalls.be_realtime, children_too=True))
    try:
        yield
    finally:
        if is_prompt:
            os.sched_setscheduler(0, policy, parameters)


def _permitted(action: Callable[[], None]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def _be_nice() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, _BEST_NICE)


def _be_spared() -> None:
    # One write(2): buffered writing would lose the errno at close.
    file = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, b"-1000")
    finally:
        os.close(file)
