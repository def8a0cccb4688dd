"""The machine: processes, memory, a killer, on one engine; and what the kernel does to tasks. Pure.

Programs (``programs``), killers, exit path and system calls are generators that call this; see ``engine`` for what they
yield. One object is one boot of one machine: nothing outside it is changed, so thousands can be made in a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.model.identity import Identity
from oomreaper.sim import leaving
from oomreaper.sim.allocator import Allocator
from oomreaper.sim.checks import Hooks, Violation
from oomreaper.sim.engine import Band, Engine, Rest, Sleep
from oomreaper.sim.groups import QuotaWait
from oomreaper.sim.killer import NoKiller
from oomreaper.sim.locks import Killed
from oomreaper.sim.memory import Area, Kind, Mm
from oomreaper.sim.parameters import PLAIN
from oomreaper.sim.pressure import Pressure
from oomreaper.sim.tasks import Process, Thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from oomreaper.sim.choice import Chooser
    from oomreaper.sim.engine import Actor, Steps
    from oomreaper.sim.groups import CpuGroup, Freezer, MemoryGroup
    from oomreaper.sim.killer import Killer
    from oomreaper.sim.parameters import Parameters
    from oomreaper.sim.tasks import Program

# Init is 1, kthreadd 2, as everywhere.
_INIT_PID = 1
_KTHREADD_PID = 2
_FIRST_PID = 100
# An hour after boot: times and start times are not 0.
_BOOT_NS = 3_600 * 1_000_000_000


class Machine:
    """A machine that never was.

    Args:
        chooser: The only source of chance.
        parameters: Its numbers.
        killer: The kernel's own; none when not given.
        kernel_mib: What the kernel takes.
        cache_mib: Clean page cache.
    """

    def __init__(
        self,
        chooser: Chooser,
        parameters: Parameters = PLAIN,
        *,
        killer: Killer | None = None,
        kernel_mib: float = 64,
        cache_mib: float = 64,
    ) -> None:
        self.parameters = parameters
        self.engine = Engine(chooser, cpus=parameters.cpus, step_ns=parameters.step_ns, start_ns=_BOOT_NS)
        self.hooks = Hooks()
        self.processes: dict[int, Process] = {}
        self.threads: dict[int, Thread] = {}
        self.address_spaces: list[Mm] = []
        self.groups: dict[str, MemoryGroup] = {}
        self.freezers: dict[str, Freezer] = {}
        self.cpu_groups: dict[str, CpuGroup] = {}
        self.oom_kills = 0  # by the kernel's own killer
        self.kills: list[tuple[int, Process, Process | None]] = []  # when, whom, by whom
        self._next_pid = _FIRST_PID
        self._free_pids: list[int] = []
        self._last_ticks: dict[int, int] = {}
        self.recycles_pids = False  # True: the pid that came free last is given to the next process
        self.killer: Killer = NoKiller() if killer is None else killer
        self.allocator = Allocator(
            self, kernel_pages=parameters.pages(kernel_mib), cache_pages=parameters.pages(cache_mib)
        )
        self.pressure = Pressure(self.engine, trigger_ns=parameters.psi_trigger_ns, window_ns=parameters.psi_window_ns)
        self.init = self._new_process(_INIT_PID, b"init", parent=None, uid=0, oom_score_adj=0)
        self._start(self.init, self._new_mm(None), (_sleep_for_ever,), Band.NORMAL)
        self.kthreadd = self.add_kernel_thread("kthreadd", _sleep_for_ever, pid=_KTHREADD_PID)
        self.killer.attach(self)

    # -- making processes ----------------------------------------------------------------------------------

    def add_process(
        self,
        name: str,
        programs: Iterable[Program],
        *,
        mm: Mm | None = None,
        parent: Process | None = None,
        anon_mib: float = 0,
        swap_mib: float = 0,
        file_mib: float = 0,
        shared_mib: float = 0,
        areas: Iterable[tuple[Area, float]] = (),
        oom_score_adj: int = 0,
        uid: int = 1000,
        band: Band = Band.NORMAL,
        group: MemoryGroup | None = None,
        freezer: Freezer | None = None,
        cpu_group: CpuGroup | None = None,
        pid: int | None = None,
    ) -> Process:
        """A process with a thread for each program. ``mm`` of another process: CLONE_VM. What it holds, it has at once.

        Raises:
            Violation: There is not so much memory.
        """
        process = self._new_process(
            self._take_pid() if pid is None else pid,
            name.encode()[:15],
            parent=self.init if parent is None else parent,
            uid=uid,
            oom_score_adj=oom_score_adj,
        )
        if group is not None:
            process.group = group
            group.members.append(process)
            self.groups[group.path] = group
        space = self._new_mm(group) if mm is None else mm
        if mm is not None:
            mm.get()
        self._start(process, space, tuple(programs), band)
        for thread in process.threads:
            self.place(thread, freezer=freezer, cpu_group=cpu_group)
        held = [
            (space.find(kind), mib)
            for kind, mib in ((Kind.ANONYMOUS, anon_mib), (Kind.PRIVATE_FILE, file_mib), (Kind.SHARED, shared_mib))
            if mib
        ]
        for area, mib in areas:
            held.append((space.add(area), mib))
        for area, mib in held:
            self.give(space, area, self.parameters.pages(mib))
        if swap_mib:
            self.give_swap(space, space.find(Kind.ANONYMOUS), self.parameters.pages(swap_mib))
        return process

    def add_kernel_thread(
        self, name: str, program: Program, *, band: Band = Band.NORMAL, pid: int | None = None
    ) -> Process:
        """A thread of the kernel: no memory, no signals."""
        process = self._new_process(
            self._take_pid() if pid is None else pid, name.encode(), parent=None, uid=0, oom_score_adj=0
        )
        process.is_kernel_thread = True
        self._start(process, None, (program,), band)
        return process

    def add_thread(self, process: Process, program: Program, *, band: Band = Band.NORMAL) -> Thread:
        """One more thread of a process."""
        mm = process.mm
        if mm is not None:
            mm.get()
        tid = self._take_pid()
        thread = Thread(process, tid, mm)
        process.threads.append(thread)
        self.threads[tid] = thread
        thread.actor = self.engine.spawn(
            f"{process.name}/{tid}", leaving.live(self, thread, program(self, thread)), band=band, owner=thread
        )
        return thread

    def place(self, thread: Thread, *, freezer: Freezer | None = None, cpu_group: CpuGroup | None = None) -> None:
        """Put a task into groups."""
        if freezer is not None:
            self.freezers[freezer.path] = freezer
            freezer.members.append(thread)
            thread.freezer = freezer
        if cpu_group is not None:
            self.cpu_groups[cpu_group.path] = cpu_group
            thread.cpu_group = cpu_group

    # -- memory --------------------------------------------------------------------------------------------

    def give(self, mm: Mm, area: Area, pages: int) -> None:
        """Pages that it has from the start: no time passes, nobody waits."""
        if self.allocator.free < pages:
            raise Violation("scenario", f"there are no {pages} free pages for {mm}")
        self.allocator.free -= pages
        if mm.group is not None and area.kind is not Kind.HUGETLB:
            mm.group.charged += pages
        self.allocator.use(mm, area, pages)

    def give_swap(self, mm: Mm, area: Area, pages: int) -> None:
        """Swap that it has from the start."""
        if self.allocator.swap_free < pages:
            raise Violation("scenario", f"there is no swap for {pages} pages of {mm}")
        self.allocator.swap_free -= pages
        area.swapped += pages
        if mm.group is not None:
            mm.group.charged += pages

    def touch(self, thread: Thread, area: Area, pages: int) -> Steps:
        """Page faults, a slice at a time, each under mmap_lock for reading. It may stay in the allocator for ever.

        Raises:
            Killed: A fatal signal came; or the area was reaped, and the fault gets SIGBUS.
        """
        parameters = self.parameters
        mm = thread.mm
        assert mm is not None
        while pages > 0:
            part = min(pages, parameters.slice_pages)
            yield from mm.lock.read(thread.actor, is_killable=True)
            try:
                yield from self.allocator.allocate(thread, part, mm.group)
                if mm.is_unstable:
                    self._give_back(mm, part)
                    self.doom_process(thread.process)
                    raise Killed
                self.allocator.use(mm, area, part)
            finally:
                mm.lock.unlock_read(thread.actor)
            pages -= part
            yield from self.user(thread, parameters.ns_for(part, parameters.fault_ns_per_gib))

    def allocate(self, thread: Thread, pages: int) -> Steps:
        """Pages for the kernel's own use (a buffer, a page of the cache), given back by ``give_back``."""
        yield from self.allocator.allocate(thread, pages)
        self.allocator.kernel += pages
        self.allocator.check()

    def give_back(self, pages: int) -> None:
        """What ``allocate`` took."""
        self.allocator.kernel -= pages
        self.allocator.free += pages
        self.allocator.check()
        self.allocator.shortage.wake_all()

    def free_slice(self, mm: Mm, area: Area, by: Actor) -> int:
        """One slice of an area goes back: swap entries first, then pages; what it cost, in ns."""
        parameters = self.parameters
        if area.swapped:
            pages = min(area.swapped, parameters.slice_pages)
            self.allocator.release_swap(mm, area, pages)
        else:
            pages = min(area.resident, parameters.slice_pages)
            self.allocator.release(mm, area, pages)
        for hook in self.hooks.free:
            hook(mm, area, pages, by)
        return parameters.ns_for(pages, parameters.free_ns_per_gib) or 1

    def free_shared_slice(self, mm: Mm, area: Area, by: Actor) -> int:
        """One slice of shared memory that nobody maps any more; what it cost, in ns."""
        assert area.shared is not None
        pages = min(area.shared.resident, self.parameters.slice_pages)
        self.allocator.release_shared(mm, area.shared, pages)
        for hook in self.hooks.free:
            hook(mm, area, pages, by)
        return self.parameters.ns_for(pages, self.parameters.free_ns_per_gib) or 1

    def mmput(self, mm: Mm, by: Actor) -> Steps:
        """Drop a user that was taken with ``mm.get()``; tears it down if it was the last."""
        yield from leaving.mmput(self, mm, by)

    def set_skipped(self, mm: Mm, by: Actor) -> None:
        """MMF_OOM_SKIP."""
        if not mm.is_skipped:
            mm.is_skipped = True
            for hook in self.hooks.skip:
                hook(mm, by)

    def on_torn_down(self, mm: Mm) -> None:
        """exit_mmap is done."""
        self.address_spaces.remove(mm)
        self.killer.on_torn_down(mm)

    # -- what tasks do -------------------------------------------------------------------------------------

    def user(self, thread: Thread, cost_ns: int | None = None) -> Steps:
        """One step in user mode, and what is done on the way back there: freezer, quota, signals, in this order.

        Raises:
            Killed: It has a fatal signal.
        """
        yield cost_ns
        if self.is_held(thread):
            yield from self.go_back(thread, cost_ns)

    @staticmethod
    def is_held(thread: Thread) -> bool:
        """Whether anything is done on its way back to user mode: ``go_back`` says what."""
        return (
            thread.actor.is_doomed
            or thread.freezer is not None
            or thread.cpu_group is not None
            or thread.process.is_term_pending
        )

    def go_back(self, thread: Thread, cost_ns: int | None) -> Steps:
        """What is done on the way back to user mode; see ``user``."""
        actor = thread.actor
        used_ns = cost_ns or self.parameters.step_ns
        while True:
            freezer, cpu_group = thread.freezer, thread.cpu_group
            if freezer is not None and freezer.is_frozen:
                thread.stack = ("__refrigerator", "get_signal")
                yield freezer.hold
                continue
            if cpu_group is not None:
                cpu_group.charge(used_ns, self.engine.now_ns)
                used_ns = 0
                wait = cpu_group.wait_if_used_up(self.engine.now_ns)
                if wait is not None:
                    yield wait
                    continue
            if actor.is_doomed:
                raise Killed
            if thread.process.is_term_pending:
                self.doom_process(thread.process)
                raise Killed
            return

    def nap(self, thread: Thread, duration_ns: int) -> Steps:
        """Sleep, interruptible: a signal that does not kill and a freezer interrupt it, and it goes on."""
        engine, actor = self.engine, thread.actor
        end_ns = engine.now_ns + duration_ns
        while engine.now_ns < end_ns:
            thread.stack = ("do_nanosleep",)
            yield Sleep(end_ns - engine.now_ns)
            if actor.was_interrupted:
                yield from self.user(thread)
        yield from self.user(thread)

    # -- signals -------------------------------------------------------------------------------------------

    def kill(self, process: Process, sender: Process | None = None) -> None:
        """SIGKILL: the whole group is dying from this moment on, whether or not it ever runs again."""
        if process.is_kernel_thread or process is self.init:
            raise Violation("kill", f"SIGKILL to {process}")
        self.kills.append((self.engine.now_ns, process, sender))
        self.engine.note(f"SIGKILL to {process}")
        for hook in self.hooks.kill:
            hook(process, sender)
        self.doom_process(process)

    def terminate(self, process: Process, sender: Process | None = None) -> None:  # noqa: ARG002 - for a trace
        """SIGTERM: taken when it next goes to user mode, unless it ignores it."""
        if process.ignores_term or process.is_dead:
            return
        process.is_term_pending = True
        for thread in process.threads:
            self._nudge(thread)

    def doom_process(self, process: Process) -> None:
        """SIGNAL_GROUP_EXIT, and a SIGKILL for each thread."""
        process.is_group_exit = True
        for thread in process.threads:
            self.doom(thread)

    def doom(self, thread: Thread) -> None:
        """A fatal signal for one thread: it leaves whatever killable wait it is in."""
        if thread.is_over or (thread.is_exiting and not thread.process.is_dumping):
            return
        actor = thread.actor
        actor.is_doomed = True
        if actor.waits_for is not None and actor.waits_for.is_killable:
            self.engine.interrupt(actor)

    def freeze(self, freezer: Freezer) -> None:
        """FROZEN: whoever sleeps interruptibly goes there at once."""
        freezer.is_frozen = True
        for thread in freezer.members:
            self._nudge(thread)

    def mark_victim(self, process: Process) -> None:
        """mark_oom_victim: reserves, and the freezer lets it go."""
        process.is_victim = True
        self.engine.note(f"{process} is marked as a victim")
        for hook in self.hooks.victim:
            hook(process)
        for thread in process.threads:
            self.leave_freezer(thread)

    def leave_freezer(self, thread: Thread) -> None:
        """Move a task out of its freezer: it thaws."""
        freezer = thread.freezer
        if freezer is not None:
            thread.freezer = None
            freezer.members.remove(thread)
            if thread.actor.waits_for is freezer.hold:
                freezer.hold.sleepers.remove(thread.actor)
                self.engine.wake(thread.actor)

    def leave_cpu_group(self, thread: Thread) -> None:
        """Move a task out of its CPU quota: it need not wait for the next period."""
        wait = thread.actor.waits_for
        if thread.cpu_group is not None and isinstance(wait, QuotaWait):
            self.engine.wake(thread.actor)
        thread.cpu_group = None

    def _nudge(self, thread: Thread) -> None:
        wait = thread.actor.waits_for
        if not thread.is_over and not thread.is_exiting and wait is not None and wait.is_interruptible:
            self.engine.interrupt(thread.actor)

    # -- ends ----------------------------------------------------------------------------------------------

    def on_thread_over(self, process: Process, thread: Thread) -> None:
        """exit_notify: the last thread makes a zombie of its process, and its parent may wait for it."""
        thread.is_over = True
        self.leave_freezer(thread)
        if thread is not process.threads[0]:
            process.threads.remove(thread)
            del self.threads[thread.tid]
        if process.live_threads:
            return
        process.is_dead = True
        self.engine.note(f"{process} is dead")
        for hook in self.hooks.exit:
            hook(process)
        process.exited.wake_all()
        for callback in process.on_exit:
            callback()
        if process.waits_after_ns is not None:
            self.engine.call_later(process.waits_after_ns, lambda: self.wait_for(process))

    def wait_for(self, process: Process) -> None:
        """Its parent waits for it: the pid is free."""
        if not process.is_dead or process.is_waited:
            return
        process.is_waited = True
        for hook in self.hooks.waited:
            hook(process)
        del self.processes[process.pid]
        del self.threads[process.pid]
        self._free_pids.append(process.pid)
        if process.group is not None:
            process.group.members.remove(process)

    # -- inside --------------------------------------------------------------------------------------------

    def _give_back(self, mm: Mm, pages: int) -> None:
        self.allocator.free += pages
        if mm.group is not None:
            mm.group.uncharge(pages)

    def _take_pid(self) -> int:
        if self.recycles_pids and self._free_pids:
            return self._free_pids.pop()
        self._next_pid += 1
        return self._next_pid

    def _new_process(self, pid: int, comm: bytes, *, parent: Process | None, uid: int, oom_score_adj: int) -> Process:
        if pid in self.processes:
            raise Violation("scenario", f"pid {pid} is taken")
        # Two lives of one pid differ in their start time: no machine gives a pid twice within a tick.
        ticks = max(self.engine.now_ns // self.parameters.ticks_ns, self._last_ticks.get(pid, 0) + 1)
        self._last_ticks[pid] = ticks
        process = Process(pid, Identity(pid, ticks), comm, parent=parent, uid=uid, oom_score_adj=oom_score_adj)
        self.processes[pid] = process
        return process

    def _new_mm(self, group: MemoryGroup | None) -> Mm:
        mm = Mm(self.engine, self.hooks, len(self.address_spaces) + 1, group)
        self.address_spaces.append(mm)
        return mm

    def _start(self, process: Process, mm: Mm | None, programs: tuple[Program, ...], band: Band) -> None:
        if mm is not None:
            mm.processes.append(process)
        for number, program in enumerate(programs):
            tid = process.pid if number == 0 else self._take_pid()
            if mm is not None and number:
                mm.get()
            thread = Thread(process, tid, mm)
            process.threads.append(thread)
            self.threads[tid] = thread
            steps: Callable[[], object] = leaving.live(self, thread, program(self, thread)).__next__
            thread.actor = self.engine.spawn_callable(f"{process.name}/{tid}", steps, band=band, owner=thread)


def _sleep_for_ever(machine: Machine, thread: Thread) -> Steps:
    rest = Rest()
    while True:
        yield rest
        yield from machine.user(thread)
