"""What is known of a process before anything is done to it. Names and paths are hostile input: bytes."""

from __future__ import annotations

from typing import NamedTuple

from oomreaper.model.identity import Identity
from oomreaper.model.memory import ChargedMemory, VictimMemory


class Process(NamedTuple):
    """One process as /proc shows it; None where this kernel or these rights do not tell.

    ``state`` is the kernel's letter (R S D T t Z X I). ``signal_errno`` is the answer to signal 0 through
    its pidfd: 0 when we may kill it. ``is_dumping_core`` is CoreDumping of /proc/PID/status (Linux 4.15).
    ``is_dead`` says that every thread has ended and only the parent's wait is missing.
    """

    identity: Identity
    comm: bytes
    state: str
    parent_pid: int
    process_group: int
    session: int
    uid: int | None
    thread_count: int
    oom_score_adj: int | None
    is_kernel_thread: bool
    is_dumping_core: bool
    is_dead: bool
    signal_errno: int


class Sharer(NamedTuple):
    """A process that shares the victim's address space and so must die with it (CLONE_VM, vfork)."""

    identity: Identity
    oom_score_adj: int | None
    signal_errno: int


class Scouting(NamedTuple):
    """All that a look at a target found, before the decision. ``sharers`` excludes the target itself.

    ``can_compare`` is False when kcmp(2) is refused or missing here, so that sharers cannot be known. ``holders``
    are looked for only when the process has ended already: who may still pin its memory. ``looked_ns`` is when the
    look began (CLOCK_MONOTONIC): whoever began later was not seen, and what came back later was charged then.
    """

    process: Process
    memory: VictimMemory | None
    charged: ChargedMemory
    sharers: tuple[Sharer, ...]
    can_compare: bool
    holders: tuple[str, ...] = ()
    looked_ns: int | None = None


class ThreadReport(NamedTuple):
    """Where one thread stands; for the report on a victim that could not be reaped.

    ``wchan`` is the kernel function it sleeps in, ``stack`` the kernel's own trace, innermost first
    (needs CAP_SYS_ADMIN), ``syscall`` the raw line of /proc/PID/task/TID/syscall.
    """

    tid: int
    comm: bytes
    state: str
    wchan: str | None
    syscall: str | None
    stack: tuple[str, ...]
