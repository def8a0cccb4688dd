"""The kernel's OOM killer as it was before it had a reaper: it kills one, and waits. Pure.

"The OOM killer currently allows to kill only a single task in a good hope that the task will terminate in a reasonable
time and frees up its memory" (the founding commit's text, of what was there before it). This is that killer, as of
the founding commit's parent: oom_badness, oom_kill_process, mark_oom_victim (TIF_MEMDIE), exit_oom_victim.

What it knows: whom to kill, and that it waits while a task that it marked has not come to the end of its exit_mm. What
it refuses to know: how memory is got back from a victim that cannot exit. Nobody does; that is the lock-up.

Where the model is coarser than the kernel: TIF_MEMDIE is kept for each thread here, but the allocator gives the
reserves to the thread's whole process (its other threads would get them anyway at their next call of out_of_memory: a
fatal signal is pending). Page tables count for nothing. Every ``yield`` is the end of an atomic step; what stands under
task_lock is one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from oomreaper.sim.engine import Sleep
from oomreaper.sim.locks import Mutex
from oomreaper.sim.release import sharers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.groups import MemoryGroup
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Process, Thread

# OOM_SCORE_ADJ_MIN and the scale, include/uapi/linux/oom.h.
OOM_SCORE_ADJ_MIN = -1000
_ADJ_SCALE = 1000
# What root's processes are forgiven, in percent (oom_badness, until 2018).
_ROOT_PERCENT = 3
_SECOND_NS = 1_000_000_000


class KernelKill(NamedTuple):
    """One kill of the kernel's: when, whom, and which address space was meant. ``is_sharer``: it died with a victim."""

    now_ns: int
    process: Process
    mm: Mm
    is_sharer: bool


def thread_with_mm(process: Process) -> Thread | None:
    """find_lock_task_mm: the first thread that still has the address space."""
    for thread in process.threads:
        if thread.mm is not None:
            return thread
    return None


def oom_badness(machine: Machine, process: Process, group: MemoryGroup | None) -> int:
    """Points; 0: not eligible. Resident, swapped, a little less for root, oom_score_adj in parts of all memory."""
    mm = process.mm
    if process.is_kernel_thread or process is machine.init or mm is None:
        return 0
    if process.oom_score_adj == OOM_SCORE_ADJ_MIN:
        return 0
    points = mm.anon_pages + mm.file_pages + mm.shmem_pages + mm.swap_pages
    if process.uid == 0:
        points -= points * _ROOT_PERCENT // 100
    if group is not None and group.limit is not None:
        total = group.limit
    else:
        total = machine.allocator.total + machine.allocator.swap_total
    return max(1, points + process.oom_score_adj * total // _ADJ_SCALE)


class OomKiller:
    """Kills one and waits for its exit."""

    name = "oom_killer"

    def __init__(self) -> None:
        self.memdie: dict[Thread, None] = {}  # TIF_MEMDIE; a dict keeps the order
        self.kills: list[KernelKill] = []
        self.has_panicked = False  # "Out of memory and no killable processes..."

    def attach(self, machine: Machine) -> None:
        """The machine boots."""
        self.machine = machine
        self.oom_lock = Mutex(machine.engine, "oom_lock")
        self._jiffy_ns = _SECOND_NS // machine.parameters.hz

    # -- what the allocator calls --------------------------------------------------------------------------

    def out_of_memory(self, thread: Thread, group: MemoryGroup | None) -> Steps:
        """__alloc_pages_may_oom and out_of_memory: one at a time; who comes second sleeps a jiffy and tries again."""
        actor = thread.actor
        if group is not None:
            yield from self.oom_lock.lock(actor)
        elif not self.oom_lock.try_lock(actor):
            yield Sleep(self._jiffy_ns, "the OOM killer at work", is_interruptible=False)
            return True
        try:
            yield
            return (yield from self._out_of_memory(thread, group))
        finally:
            self.oom_lock.unlock(actor)

    def _out_of_memory(self, thread: Thread, group: MemoryGroup | None) -> Steps:
        """Its value: whether there is reason to try again at once."""
        if thread.mm is not None and (thread.actor.is_doomed or self.will_free_mem(thread)):
            self.mark_oom_victim(thread)
            return True
        yield
        if self.is_waiting_for_victim(group):
            return False
        chosen = self.select_bad_process(group)
        if chosen is None:
            if group is None:
                self.panic()
            return False
        yield
        yield from self.oom_kill_process(chosen, group)
        # A good chance to exit for the one who was killed; oom_lock is held meanwhile, as it was then.
        yield Sleep(self._jiffy_ns, "a jiffy for the victim")
        return True

    def panic(self) -> None:
        """Nobody can be killed: the kernel ends the machine."""
        self.has_panicked = True
        self.machine.engine.note("panic: out of memory and no killable processes")
        self.machine.engine.stop()

    # -- whom ----------------------------------------------------------------------------------------------

    def is_waiting_for_victim(self, group: MemoryGroup | None) -> bool:
        """oom_scan_process_thread, OOM_SCAN_ABORT: a task with TIF_MEMDIE is on its way out; nobody else is killed."""
        return any(group is None or thread.process.group is group for thread in self.memdie)

    def candidates(self, group: MemoryGroup | None) -> list[Process]:
        """for_each_process, of the machine or of the group."""
        processes = self.machine.processes.values()
        return [process for process in processes if group is None or process.group is group]

    def badness(self, process: Process, group: MemoryGroup | None) -> int:
        """oom_badness."""
        return oom_badness(self.machine, process, group)

    def select_bad_process(self, group: MemoryGroup | None) -> Process | None:
        """The one with the most points; the first of equals. One step: the list is walked under RCU and oom_lock."""
        chosen, most = None, 0
        for process in self.candidates(group):
            points = self.badness(process, group)
            if points > most:
                chosen, most = process, points
        return chosen

    def will_free_mem(self, thread: Thread) -> bool:
        """task_will_free_mem (2015): exiting with its whole group, and not dumping core: that may take for ever."""
        process = thread.process
        if self.is_dumping(process) or not thread.is_exiting:
            return False
        return process.is_group_exit or process.live_threads == 1

    def is_dumping(self, process: Process) -> bool:
        """SIGNAL_GROUP_COREDUMP."""
        return process.is_dumping

    def sacrifice_child(self, process: Process, group: MemoryGroup | None) -> Process:
        """A child with a memory of its own dies for its parent: the least work is lost."""
        chosen, most = process, 0
        for child in self.candidates(group):
            if child.parent is process and child.mm is not process.mm:
                points = self.badness(child, group)
                if points > most:
                    chosen, most = child, points
        return chosen

    # -- the kill ------------------------------------------------------------------------------------------

    def oom_kill_process(self, process: Process, group: MemoryGroup | None) -> Steps:
        """Kill it and whoever shares its memory; one that exits already only gets the reserves."""
        thread = thread_with_mm(process)
        if thread is not None and self.will_free_mem(thread):
            self.mark_oom_victim(thread)
            yield
            return
        yield
        victim = self.sacrifice_child(process, group)
        yield
        thread = thread_with_mm(victim)
        if thread is None or thread.mm is None:
            return
        mm = thread.mm
        mm.grab()
        self.kill_and_mark(thread, mm)
        yield
        can_reap = yield from self.kill_sharers(victim, mm)
        if can_reap:
            yield from self.wake_reaper(thread, mm)
        mm.drop()

    def kill_and_mark(self, thread: Thread, mm: Mm) -> None:
        """SIGKILL before TIF_MEMDIE, so that no program spends the reserves; both under task_lock: one step."""
        self.send_sigkill(thread.process, mm, is_sharer=False)
        self.mark_oom_victim(thread)

    def kill_sharers(self, victim: Process, mm: Mm) -> Steps:
        """Every other thread group on this memory; its value is can_oom_reap: all of them could be killed."""
        can_reap = True
        for other in sharers(mm):
            if other is victim:
                continue
            if self.is_unkillable(other):
                can_reap = False
                continue
            self.send_sigkill(other, mm, is_sharer=True)
            yield
        return can_reap

    def is_unkillable(self, process: Process) -> bool:
        """A kernel thread in use_mm, init, or oom_score_adj -1000: it lives on and may still use the memory."""
        return process.is_kernel_thread or process is self.machine.init or process.oom_score_adj == OOM_SCORE_ADJ_MIN

    def send_sigkill(self, process: Process, mm: Mm, *, is_sharer: bool) -> None:
        """do_send_sig_info(SIGKILL)."""
        self.kills.append(KernelKill(self.machine.engine.now_ns, process, mm, is_sharer))
        self.machine.oom_kills += 1
        self.machine.kill(process)

    def wake_reaper(self, thread: Thread, mm: Mm) -> Steps:  # noqa: ARG002 - the founding commit uses them
        """There is none."""
        yield from ()

    # -- marks ---------------------------------------------------------------------------------------------

    def mark_oom_victim(self, thread: Thread) -> None:
        """TIF_MEMDIE, once; reserves; out of the freezer."""
        if thread not in self.memdie:
            self.memdie[thread] = None
            self.machine.mark_victim(thread.process)

    def on_exit_mm(self, thread: Thread) -> None:
        """exit_oom_victim, behind exit_mm's mmput: others may be killed from now on."""
        self.memdie.pop(thread, None)

    def on_torn_down(self, mm: Mm) -> None:
        """Nothing hangs on it."""

    def awaited(self) -> Iterable[Process]:
        """Whoever has TIF_MEMDIE."""
        return list(dict.fromkeys(thread.process for thread in self.memdie))
