"""How a task ends: do_exit, exit_mm, mmput, exit_mmap in slices, exit_notify; and the core dump before it. Pure.

The order is kernel/exit.c's: what may hold a task at the beginning of its exit (a tracer, a ring that cannot be
cancelled) holds it with its memory; exit_mm takes mmap_lock for reading; whoever drops the last user tears down, be it
the victim or a reader that happened to have a reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim.engine import Sleep
from oomreaper.sim.locks import Killed

if TYPE_CHECKING:
    from oomreaper.sim.engine import Actor, Signal, Steps
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Thread


def live(machine: Machine, thread: Thread, steps: Steps) -> Steps:
    """A task's whole life: what it does, and how it ends."""
    try:
        yield from machine.user(thread)
        yield from steps
    except Killed:
        pass
    yield from leave(machine, thread)


def leave(machine: Machine, thread: Thread) -> Steps:
    """do_exit."""
    actor, process = thread.actor, thread.process
    thread.is_exiting = True
    if thread.exit_gate is not None:
        thread.stack = ("ptrace_stop", "ptrace_event", "do_exit")
        yield thread.exit_gate
    yield from _wait_for_dump(thread)
    actor.is_doomed = False
    yield machine.parameters.thread_exit_ns // 2
    mm = thread.mm
    if mm is not None:
        thread.stack = ("rwsem_down_read_slowpath", "exit_mm", "do_exit")
        yield from mm.lock.read(actor)
        thread.mm = None
        mm.lock.unlock_read(actor)
        yield
        thread.stack = ("exit_mmap", "mmput", "exit_mm", "do_exit")
        yield from mmput(machine, mm, actor)
        machine.killer.on_exit_mm(thread)
    thread.stack = ("do_exit",)
    yield machine.parameters.thread_exit_ns // 2
    machine.on_thread_over(process, thread)


def mmput(machine: Machine, mm: Mm, by: Actor) -> Steps:
    """Drop a user; the last one tears the address space down, whoever it is."""
    if not mm.put():
        return
    yield from exit_mmap(machine, mm, by)
    machine.on_torn_down(mm)
    mm.drop()


def exit_mmap(machine: Machine, mm: Mm, by: Actor) -> Steps:
    """Free all, from below. Since 6.0 under mmap_lock for reading; then MMF_OOM_SKIP; then tables, for writing."""
    for hook in machine.hooks.tear:
        hook(mm, by)
    is_locked = machine.parameters.is_exit_locked
    if is_locked:
        yield from mm.lock.read(by)
    for area in mm.areas:
        while area.resident or area.swapped:
            yield machine.free_slice(mm, area, by)
    if is_locked:
        machine.set_skipped(mm, by)
        mm.lock.unlock_read(by)
        yield
        yield from mm.lock.write(by)
    for area in mm.areas:
        shared = area.shared
        if shared is not None:
            shared.users -= 1
            while shared.users == 0 and shared.resident:
                yield machine.free_shared_slice(mm, area, by)
    mm.is_torn_down = True
    if is_locked:
        mm.lock.unlock_write(by)


def dump_core(machine: Machine, thread: Thread, *, duration_ns: int, gate: Signal | None = None) -> Steps:
    """A core dump: all threads stop, one writes. SIGKILL ends it, but while it stands at ``gate`` (a dead file system).

    Its threads count as dying for nobody while it lasts (core_state).
    """
    process, actor = thread.process, thread.actor
    process.is_dumping = True
    try:
        for other in process.threads:
            if other is not thread and not other.is_exiting:
                machine.doom(other)
        yield
        if gate is not None:
            yield gate
        end_ns = machine.engine.now_ns + duration_ns
        while machine.engine.now_ns < end_ns and not actor.is_doomed:
            yield Sleep(min(10_000_000, end_ns - machine.engine.now_ns), "the core file")
    finally:
        process.is_dumping = False
        process.is_group_exit = True
        process.dump_end.wake_all()
    raise Killed


def _wait_for_dump(thread: Thread) -> Steps:
    """coredump_task_exit: whoever is stopped for a dump waits, with its memory, until it is written."""
    while thread.process.is_dumping:
        yield thread.process.dump_end
