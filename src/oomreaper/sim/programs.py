"""What runs on the modelled machine: ordinary programs, and those that a signal does not end (KERNEL.md section 4).

Each function makes a program: a function of the machine and the thread that it runs in, whose value is a generator.
``Gate`` is where a program stands until the scenario opens it: a lock's holder that makes no progress, a dead server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim import leaving
from oomreaper.sim.engine import Rest, Signal
from oomreaper.sim.memory import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.locks import Mutex
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Process, Program, Thread


class Gate(Signal):
    """Whoever comes here stands in D until it is opened; a signal does not help."""

    __slots__ = ("is_open",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.is_open = False

    def open(self) -> None:
        """Let everybody through, now and later."""
        self.is_open = True
        self.wake_all()

    def pass_through(self) -> Steps:
        """Wait until it is open."""
        while not self.is_open:
            yield self


def idle() -> Program:
    """Sleeps, interruptibly, for ever."""

    def run(machine: Machine, thread: Thread) -> Steps:
        rest = Rest()
        while True:
            yield rest
            yield from machine.user(thread)

    return run


def busy(cost_ns: int = 1_000_000) -> Program:
    """Runs without an end."""

    def run(machine: Machine, thread: Thread) -> Steps:
        while True:
            yield from machine.user(thread, cost_ns)

    return run


def hog(mib: float, *, pause_ns: int = 0, start_ns: int = 0, then: Program | None = None) -> Program:
    """Takes so much anonymous memory, a slice at a time, then does something else (idles)."""

    def run(machine: Machine, thread: Thread) -> Steps:
        if start_ns:
            yield from machine.nap(thread, start_ns)
        assert thread.mm is not None
        area = thread.mm.find(Kind.ANONYMOUS)
        pages = machine.parameters.pages(mib)
        while pages > 0:
            part = min(pages, machine.parameters.slice_pages)
            yield from machine.touch(thread, area, part)
            pages -= part
            if pause_ns:
                yield from machine.nap(thread, pause_ns)
        yield from (idle() if then is None else then)(machine, thread)

    return run


def leave_after(duration_ns: int) -> Program:
    """Ends by itself (exit_group)."""

    def run(machine: Machine, thread: Thread) -> Steps:
        yield from machine.nap(thread, duration_ns)
        machine.doom_process(thread.process)

    return run


def thread_exit() -> Program:
    """Ends alone: a leader that does so is a zombie while other threads keep the memory."""

    def run(machine: Machine, thread: Thread) -> Steps:
        yield from machine.user(thread)

    return run


def stand_in(gate: Gate, *, stack: tuple[str, ...] = ("request_wait_answer",)) -> Program:
    """Stands in D at a gate: a dead FUSE or NFS server, a frozen file system."""

    def run(machine: Machine, thread: Thread) -> Steps:
        thread.stack = stack
        yield from gate.pass_through()
        yield from machine.user(thread)
        yield from idle()(machine, thread)

    return run


def write_file(inode: Mutex, *, mib: float = 1, times: int = 1 << 30, pause_ns: int = 0) -> Program:
    """Writes to a file again and again: takes pages with the inode lock held, so it may loop in the allocator with it.

    That is the founding commit's lock-up: its other writers wait in D for the lock, and one of them is the victim.
    """

    def run(machine: Machine, thread: Thread) -> Steps:
        pages = machine.parameters.pages(mib)
        for _ in range(times):
            thread.stack = ("rwsem_down_write_slowpath", "ext4_buffered_write_iter")
            yield from inode.lock(thread.actor)
            try:
                thread.stack = ("__alloc_pages_slowpath", "generic_perform_write", "ext4_buffered_write_iter")
                yield from machine.allocate(thread, pages)
                yield
                machine.give_back(pages)
            finally:
                inode.unlock(thread.actor)
            yield from machine.user(thread)
            if pause_ns:
                yield from machine.nap(thread, pause_ns)
        yield from idle()(machine, thread)

    return run


def hold_inode(inode: Mutex, gate: Gate) -> Program:
    """Takes an inode lock and makes no progress with it."""

    def run(machine: Machine, thread: Thread) -> Steps:
        yield from inode.lock(thread.actor)
        try:
            yield from gate.pass_through()
        finally:
            inode.unlock(thread.actor)
        yield from idle()(machine, thread)

    return run


def wait_for_inode(inode: Mutex) -> Program:
    """Waits in D for an inode lock."""

    def run(machine: Machine, thread: Thread) -> Steps:
        thread.stack = ("rwsem_down_write_slowpath", "ext4_buffered_write_iter")
        yield from inode.lock(thread.actor)
        inode.unlock(thread.actor)
        yield from machine.user(thread)
        yield from idle()(machine, thread)

    return run


def hold_mmap_lock(gate: Gate, *, is_writer: bool = True) -> Program:
    """Holds its own mmap_lock and stands in D: process_mrelease waits for it without bound (W2)."""

    def run(machine: Machine, thread: Thread) -> Steps:
        mm, actor = thread.mm, thread.actor
        assert mm is not None
        yield from mm.lock.write(actor) if is_writer else mm.lock.read(actor)
        try:
            thread.stack = ("__vma_start_write", "__x64_sys_munmap")
            yield from gate.pass_through()
        finally:
            if is_writer:
                mm.lock.unlock_write(actor)
            else:
                mm.lock.unlock_read(actor)
        yield from machine.user(thread)
        yield from idle()(machine, thread)

    return run


def map_and_unmap(mib: float, *, is_killable: bool = True, pause_ns: int = 0) -> Program:
    """Takes mmap_lock for writing and allocates under it, again and again (a table, a vma)."""

    def run(machine: Machine, thread: Thread) -> Steps:
        pages = machine.parameters.pages(mib)
        while True:
            mm = thread.mm
            assert mm is not None
            yield from mm.lock.write(thread.actor, is_killable=is_killable)
            try:
                yield from machine.allocate(thread, pages)
                yield
                machine.give_back(pages)
            finally:
                mm.lock.unlock_write(thread.actor)
            yield from machine.user(thread)
            if pause_ns:
                yield from machine.nap(thread, pause_ns)

    return run


def pin_memory_of(find: Callable[[], Mm | None], gate: Gate) -> Program:
    """Reads another process's memory and stands there: mm_users is held, and the tear-down is its own (W10)."""

    def run(machine: Machine, thread: Thread) -> Steps:
        mm = find()
        if mm is not None and mm.get_not_zero():
            thread.stack = ("handle_userfault", "process_vm_rw_core", "process_vm_rw")
            yield from gate.pass_through()
            yield from machine.mmput(mm, thread.actor)
        thread.stack = ()
        yield from machine.user(thread)
        yield from idle()(machine, thread)

    return run


def crash(*, dump_ns: int, gate: Gate | None = None) -> Program:
    """Dumps core; at ``gate`` the file system that the core goes to stands still."""

    def run(machine: Machine, thread: Thread) -> Steps:
        yield from machine.user(thread)
        yield from leaving.dump_core(machine, thread, duration_ns=dump_ns, gate=gate)

    return run


def wait_for_child(find: Callable[[], Process | None]) -> Program:
    """vfork: the parent sleeps (killable) until the child has ended or let go of the memory."""

    def run(machine: Machine, thread: Thread) -> Steps:
        done = Signal("its vfork child", is_killable=True, timeout_ns=1_000_000)
        while True:
            child = find()
            if child is None or child.is_dead or child.mm is not thread.mm:
                break
            yield done
            if thread.actor.was_interrupted:
                break
        yield from machine.user(thread)
        yield from idle()(machine, thread)

    return run
