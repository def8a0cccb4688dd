"""Stand-ins for what the crew stands on, and the values that a test needs many of.

``FakeWorkers`` keeps the contract of ``oomreaper.reaper.roster.Workers``; tests/real proves the same of the real pool.
What it was not taught it refuses: a job for a worker that is busy or gone is an error.
"""

from __future__ import annotations

import errno

from oomreaper.model.identity import Identity
from oomreaper.model.memory import ChargedMemory, VictimMemory
from oomreaper.model.process import Process, Scouting, Sharer
from oomreaper.reaper.jobs import Accounted, Hello, Job, Struck

MIB = 1 << 20
MS = 1_000_000
HELLO = Hello(errno.EBADF, is_locked=True, is_realtime=True)


class FakeWorkers:
    """Workers that do nothing until the test lets them answer."""

    def __init__(self) -> None:
        self.jobs: dict[int, tuple[Job, int | None]] = {}  # what each busy worker has
        self.alive: set[int] = set()
        self.dismissed: list[int] = []
        self.running: set[int] = set()  # workers that are not asleep in the kernel
        self.can_start = True
        self.started_with: list[bool] = []

    def start(self, *, can_release: bool) -> int | None:
        """One more, unless the machine has nothing left."""
        if not self.can_start:
            return None
        worker = 100 + len(self.started_with)
        self.started_with.append(can_release)
        self.alive.add(worker)
        return worker

    def assign(self, worker: int, job: Job, handle: int | None) -> bool:
        """Take a job."""
        if worker not in self.alive:
            return False
        assert worker not in self.jobs, f"worker {worker} has a job already"
        self.jobs[worker] = (job, handle)
        return True

    def dismiss(self, worker: int) -> None:
        """End it."""
        assert worker in self.alive, f"worker {worker} is gone already"
        self.alive.discard(worker)
        self.jobs.pop(worker, None)
        self.dismissed.append(worker)

    def is_waiting(self, worker: int) -> bool:
        """Asleep unless the test says that it runs."""
        return worker not in self.running

    def finish(self, worker: int) -> Job:
        """The worker is about to answer."""
        return self.jobs.pop(worker)[0]


def memory(mib: float, *, shmem_mib: int = 0) -> VictimMemory:
    """An address space that holds so much anonymous memory."""
    return VictimMemory(int(mib * MIB), 0, 0, shmem_mib * MIB, 0)


def charged(mib: float = 1000, *, orphan_mib: float | None = None) -> ChargedMemory:
    """What is charged to a victim's memory cgroup."""
    orphan_bytes = None if orphan_mib is None else int(orphan_mib * MIB)
    return ChargedMemory(int(4000 * MIB), 0, "/group", int(mib * MIB), orphan_bytes)


def process(pid: int = 500, **changes: object) -> Process:
    """An ordinary process."""
    plain = Process(
        identity=Identity(pid, 7),
        comm=b"victim",
        state="S",
        parent_pid=2000,
        process_group=pid,
        session=pid,
        uid=1000,
        thread_count=1,
        oom_score_adj=0,
        is_kernel_thread=False,
        is_dumping_core=False,
        is_dead=False,
        signal_errno=0,
    )
    return plain._replace(**changes)  # type: ignore[arg-type] # each test names fields of Process


def scouting(pid: int = 500, mib: float = 512, *, sharers: tuple[int, ...] = (), **changes: object) -> Scouting:
    """A look at an ordinary process."""
    return Scouting(
        process(pid, **changes), memory(mib), charged(), tuple(sharer(pid) for pid in sharers), can_compare=True
    )


def sharer(pid: int, *, oom_score_adj: int = 0, signal_errno: int = 0) -> Sharer:
    """A process on the same address space."""
    return Sharer(Identity(pid, 7), oom_score_adj, signal_errno)


def struck(
    mrelease: int | None = 0,
    left: VictimMemory | None = None,
    *,
    signal: int | None = 0,
    at_ns: int = 1000 * MS,
    is_dumping_core: bool = False,
    protected: tuple[int, ...] = (),
) -> Struck:
    """An answer to a strike; ``left`` is what the address space still holds."""
    return Struck(
        signal, mrelease, at_ns, at_ns + MS, at_ns + 2 * MS, left, is_dumping_core=is_dumping_core, protected=protected
    )


def accounted(mib: float, left: VictimMemory | None = None, *, orphan_mib: float | None = None) -> Accounted:
    """An answer to ACCOUNT: what is charged now."""
    return Accounted(left, charged(mib, orphan_mib=orphan_mib), ("77 (gdb)",) if orphan_mib else ())
