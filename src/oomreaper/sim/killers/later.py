"""The later design: a queue, a mark on each address space, a delay, a reap beside exit_mmap (Linux 5.18 to 6.18). Pure.

What came after the founding commit (KERNEL.md section 1, rows 13 to 19): every victim is queued, once in the life of
its address space (MMF_OOM_REAP_QUEUED); the reaper comes 2 s after the kill (OOM_REAPER_DELAY: robust futexes) and
takes no mm_users: MMF_OOM_SKIP, under mmap_lock, keeps it and exit_mmap apart. After the reap, or after ten attempts,
MMF_OOM_SKIP says that nothing more is to be had here: the killer goes on to the next victim and waits for no exit.

A victim's address space is pinned by signal->oom_mm until the process has been waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim.engine import Rest, Sleep
from oomreaper.sim.killers.oom_killer import OomKiller, oom_badness, thread_with_mm
from oomreaper.sim.release import reap_mm, sharers, will_free_mem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.groups import MemoryGroup
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Process, Thread


class LaterReaper(OomKiller):
    """Today's killer and reaper."""

    name = "later"

    def attach(self, machine: Machine) -> None:
        """oom_init."""
        super().attach(machine)
        self.oom_mms: dict[Process, Mm] = {}  # signal->oom_mm
        self.queue: list[Mm] = []  # oom_reaper_list: the last comes first
        self.given_up: list[Mm] = []
        self._rest = Rest("victims to reap")
        machine.hooks.waited.append(self._on_waited)
        machine.add_kernel_thread("oom_reaper", self._oom_reaper)

    # -- whom ----------------------------------------------------------------------------------------------

    def is_waiting_for_victim(self, group: MemoryGroup | None) -> bool:
        """oom_evaluate_task: a victim that has not exited and is not marked MMF_OOM_SKIP ends the search."""
        return any(group is None or process.group is group for process in self.awaited())

    def badness(self, process: Process, group: MemoryGroup | None) -> int:
        """As before; nothing more is expected of who is marked MMF_OOM_SKIP."""
        mm = process.mm
        if mm is not None and mm.is_skipped:
            return 0
        return oom_badness(self.machine, process, group)

    def will_free_mem(self, thread: Thread) -> bool:
        """task_will_free_mem: also every other process on the memory must be dying."""
        return will_free_mem(thread.process)

    def is_unkillable(self, process: Process) -> bool:
        """Only init; a kernel thread does not read user memory, and oom_score_adj is one for all who share."""
        return process is self.machine.init

    # -- the kill ------------------------------------------------------------------------------------------

    def _out_of_memory(self, thread: Thread, group: MemoryGroup | None) -> Steps:
        if thread.mm is not None and self.will_free_mem(thread):
            self.mark_oom_victim(thread)
            yield from self.wake_reaper(thread, thread.mm)
            return True
        return (yield from super()._out_of_memory(thread, group))

    def oom_kill_process(self, process: Process, group: MemoryGroup | None) -> Steps:
        """One that is dying already gets the reserves and the reaper; no child is sacrificed since 2019."""
        thread = thread_with_mm(process)
        if thread is not None and thread.mm is not None and self.will_free_mem(thread):
            self.mark_oom_victim(thread)
            yield from self.wake_reaper(thread, thread.mm)
            return
        yield from super().oom_kill_process(process, group)

    def sacrifice_child(self, process: Process, group: MemoryGroup | None) -> Process:  # noqa: ARG002 - as before
        """Nobody dies for his parent."""
        return process

    def kill_sharers(self, victim: Process, mm: Mm) -> Steps:
        """As before, but a kernel thread is passed over; init on the same memory means that it will not come back."""
        can_reap = True
        for other in sharers(mm):
            if other is victim or other.is_kernel_thread:
                continue
            if self.is_unkillable(other):
                can_reap = False
                self._skip(mm)
                continue
            self.send_sigkill(other, mm, is_sharer=True)
            yield
        return can_reap

    def mark_oom_victim(self, thread: Thread) -> None:
        """signal->oom_mm, for the whole group, with a pin of its own."""
        super().mark_oom_victim(thread)
        if thread.process not in self.oom_mms and thread.mm is not None:
            thread.mm.grab()
            self.oom_mms[thread.process] = thread.mm

    def wake_reaper(self, thread: Thread, mm: Mm) -> Steps:
        """queue_oom_reaper: once for each address space; a timer brings it to the queue."""
        yield
        if mm.is_queued or thread.process not in self.oom_mms:
            return
        mm.is_queued = True
        mm.grab()  # stands for get_task_struct: the task keeps signal->oom_mm
        self.machine.engine.call_later(self.machine.parameters.reap_delay_ns, lambda: self._enqueue(mm))

    def _enqueue(self, mm: Mm) -> None:
        """wake_oom_reaper, a timer's function: exit_mmap may have been quicker."""
        if mm.is_skipped:
            mm.drop()
            return
        self.queue.append(mm)
        self._rest.wake_all()

    def _on_waited(self, process: Process) -> None:
        mm = self.oom_mms.pop(process, None)
        if mm is not None:
            mm.drop()

    def awaited(self) -> Iterable[Process]:
        """Victims whose memory may still come."""
        return [process for process, mm in self.oom_mms.items() if not mm.is_skipped and not process.is_dead]

    # -- the reaper ----------------------------------------------------------------------------------------

    def _oom_reaper(self, machine: Machine, thread: Thread) -> Steps:
        while True:
            if not self.queue:
                yield self._rest
                continue
            mm = self.queue.pop()
            yield
            yield from self._oom_reap_task(machine, thread, mm)

    def _oom_reap_task(self, machine: Machine, thread: Thread, mm: Mm) -> Steps:
        """Ten attempts; whatever came of them, the address space is done with."""
        for _ in range(machine.parameters.reap_attempts):
            if (yield from self._oom_reap_task_mm(machine, thread, mm)):
                break
            yield Sleep(machine.parameters.reap_sleep_ns, "the next attempt", is_interruptible=False)
        else:
            self.given_up.append(mm)
        self._skip(mm)
        yield
        mm.drop()

    def _oom_reap_task_mm(self, machine: Machine, thread: Thread, mm: Mm) -> Steps:
        """False: mmap_lock was taken, or a notifier would have blocked."""
        yield
        mm.touch()
        if not mm.lock.try_read(thread.actor):
            return False
        is_whole = True
        if not mm.is_skipped:
            yield
            is_whole = yield from reap_mm(machine, mm, thread.actor)
        mm.lock.unlock_read(thread.actor)
        return is_whole

    def _skip(self, mm: Mm) -> None:
        self.machine.set_skipped(mm, self.machine.init.threads[0].actor)
