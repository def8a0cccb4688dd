"""Tasks: thread groups and their threads, with what the rest of the model needs to know of each. Pure data.

What happens to them (signals, exit, wait) is in ``machine`` and ``leaving``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.sim.engine import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.identity import Identity
    from oomreaper.sim.engine import Actor, Steps
    from oomreaper.sim.groups import CpuGroup, Freezer, MemoryGroup
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Mm

    Program = Callable[[Machine, "Thread"], Steps]


class Thread:
    """One task. ``mm`` is None once it has let go of its address space (and for a kernel thread)."""

    __slots__ = ("actor", "cpu_group", "exit_gate", "freezer", "is_exiting", "is_over", "mm", "process", "stack", "tid")

    actor: Actor

    def __init__(self, process: Process, tid: int, mm: Mm | None) -> None:
        self.process = process
        self.tid = tid
        self.mm = mm
        self.freezer: Freezer | None = None
        self.cpu_group: CpuGroup | None = None
        self.exit_gate: Signal | None = None  # a tracer or a stuck ring holds it at the beginning of its exit
        self.is_exiting = False  # PF_EXITING
        self.is_over = False
        self.stack: tuple[str, ...] = ()  # functions it is seen in, innermost first

    @property
    def letter(self) -> str:
        """Its state, as /proc shows it."""
        return "Z" if self.is_over else self.actor.letter

    def __repr__(self) -> str:
        return f"{self.process.name}/{self.tid}"


class Process:
    """One thread group: one life of one pid."""

    def __init__(
        self, pid: int, identity: Identity, comm: bytes, *, parent: Process | None, uid: int, oom_score_adj: int
    ) -> None:
        self.pid = pid
        self.identity = identity
        self.comm = comm
        self.parent = parent
        self.uid = uid
        self.oom_score_adj = oom_score_adj
        self.process_group = pid
        self.session = pid
        self.threads: list[Thread] = []  # that have not been released; the leader first, until it is waited for
        self.group: MemoryGroup | None = None
        self.is_kernel_thread = False
        self.is_group_exit = False  # SIGNAL_GROUP_EXIT
        self.is_dumping = False  # core_state
        self.is_term_pending = False
        self.ignores_term = False
        self.is_victim = False  # mark_oom_victim
        self.is_dead = False  # every thread has ended; a zombie, or gone
        self.is_waited = False  # gone: the pid is free
        self.waits_after_ns: int | None = 0  # how long its parent takes to wait for it; None: it never does
        self.exited = Signal(f"the exit of {self.name}", is_interruptible=True, who=self._living)
        self.dump_end = Signal(f"the end of the core dump of {self.name}")
        self.on_exit: list[Callable[[], None]] = []  # pidfds that are watched

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.comm.decode('utf-8', 'backslashreplace')}[{self.pid}]"

    @property
    def start_ticks(self) -> int:
        """Field 22 of its stat."""
        return self.identity.start_time_ticks

    @property
    def mm(self) -> Mm | None:
        """The address space of the first thread that still has one (find_lock_task_mm)."""
        for thread in self.threads:
            if thread.mm is not None:
                return thread.mm
        return None

    @property
    def letter(self) -> str:
        """Of its leader: Z while other threads live on is no end of its memory."""
        return self.threads[0].letter if self.threads else "X"

    @property
    def live_threads(self) -> int:
        """How many have not ended."""
        return sum(not thread.is_over for thread in self.threads)

    def _living(self) -> list[object]:
        return [thread.actor for thread in self.threads if not thread.is_over]

    def __repr__(self) -> str:
        return self.name
