"""Reaping an address space from outside: __oom_reap_task_mm, task_will_free_mem and process_mrelease(2). Pure.

Steps and errnos after KERNEL.md section 2.1 and 2.3 (Linux 6.18). The kernel's own reapers, of whichever year, use
``reap_mm`` with their own idea of what may be reaped.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.engine import Actor, Steps
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Area, Mm
    from oomreaper.sim.tasks import Process, Thread


def is_reapable_area(area: Area) -> bool:
    """Today's predicate (5.18 and later): anonymous or private, mlocked or not, no hugetlb, no device."""
    return area.is_reapable


def reap_mm(machine: Machine, mm: Mm, by: Actor, *, is_reapable: Callable[[Area], bool] = is_reapable_area) -> Steps:
    """Free what may be freed, from above (exit_mmap goes from below); the caller holds mmap_lock for reading.

    Its value: False when an area had to be left out because a notifier would block.
    """
    mm.touch()
    for hook in machine.hooks.reap:
        hook(mm, by)
    mm.is_unstable = True
    is_whole = True
    for area in reversed(mm.areas):
        if not is_reapable(area):
            continue
        if area.notifier_blocks:
            is_whole = False
            continue
        while area.resident or area.swapped:
            yield machine.free_slice(mm, area, by)
            mm.touch()
    return is_whole


def is_dying(process: Process) -> bool:
    """__task_will_free_mem: no core dump, and the whole group is on its way out."""
    if process.is_dumping:
        return False
    return process.is_group_exit or (len(process.threads) == 1 and process.threads[0].is_exiting)


def will_free_mem(process: Process) -> bool:
    """task_will_free_mem: it is dying and so is everybody who shares its memory; it has not been given up."""
    mm = process.mm
    if mm is None or not is_dying(process) or mm.is_skipped:
        return False
    if mm.users <= 1:
        return True
    return all(is_dying(other) for other in sharers(mm) if other is not process)


def sharers(mm: Mm) -> list[Process]:
    """The thread groups that have it now."""
    return [process for process in mm.processes if process.mm is mm]  # type: ignore[attr-defined,misc] # list[object]


def process_mrelease(machine: Machine, caller: Thread, process: Process) -> Steps:
    """The system call; its value is the errno, 0 for success.

    Raises:
        Killed: The caller got a fatal signal while it waited for mmap_lock: nobody sees that EINTR.
    """
    yield
    if process.is_waited:
        return errno.ESRCH
    mm = process.mm
    if mm is None:
        return errno.ESRCH
    mm.grab()
    try:
        if not will_free_mem(process):
            return 0 if mm.is_skipped else errno.EINVAL
        yield
        caller.stack = ("rwsem_down_read_slowpath", "__do_sys_process_mrelease")
        yield from mm.lock.read(caller.actor, is_killable=True)
        caller.stack = ()
        is_whole = True
        try:
            if not mm.is_skipped:
                is_whole = yield from reap_mm(machine, mm, caller.actor)
        finally:
            mm.lock.unlock_read(caller.actor)
        return 0 if is_whole else errno.EAGAIN
    finally:
        mm.drop()
