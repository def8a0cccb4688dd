"""One script of operations, on a real victim and on a modelled one: what both are asked, and the answers side by side.

An answer is put into words that mean the same on either: the name of an errno, the letters of the threads that have
not ended, whether the memory is held. ``real_subject`` wraps a victim of ``tests/victims/stage.py``; ``SimSubject`` one
that ``tests/sim/contract_stage.py`` built on a ``Machine``.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, NamedTuple, Protocol

from oomreaper.linux import syscalls
from oomreaper.sim.parameters import MIB, MS
from oomreaper.sim.release import process_mrelease
from tests.victims import processes, stage
from tests.victims.processes import DEAD_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.groups import MemoryGroup
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.tasks import Process, Thread
    from tests.victims.stage import StagedVictim

# What SIGKILL alone is given to free a victim that it does not free, and what a release is given to end one.
HELD_S, GONE_S = 0.3, 10.0
# A call that stands on mmap_lock has no answer in this time.
_BLOCKED_S = 0.3
_NS = 1_000_000_000
SIZE_MIB = 64


class Answer(NamedTuple):
    """What one operation came to."""

    operation: str
    answer: str


class Subject(Protocol):
    """A victim that can be asked the operations of a script; each is a method without arguments, its value a word."""

    def kill(self) -> str:
        """SIGKILL through its pidfd: the errno's name."""

    def kill_all(self) -> str:
        """SIGKILL to everybody who shares its memory, too."""

    def mrelease(self) -> str:
        """process_mrelease by a process of its own: the errno's name, or that there was no answer and it was killed."""

    def held(self) -> str:
        """Whether it has gone a little later, all its processes."""

    def gone(self) -> str:
        """Whether it goes."""

    def letters(self) -> str:
        """The states of its threads that have not ended, sorted, each once."""

    def ended(self) -> str:
        """Whether its pidfd is readable."""

    def anon(self) -> str:
        """Its anonymous memory, resident or swapped: all, part, none."""

    def shmem(self) -> str:
        """Its shared memory."""

    def charge(self) -> str:
        """What its memory group is charged with."""

    def dumping(self) -> str:
        """Whether it dumps core."""

    def release(self) -> str:
        """Let go what holds it."""

    def collect(self) -> str:
        """Wait for it as its parent does."""


def run_script(subject: Subject, script: Sequence[str]) -> list[Answer]:
    """Ask a victim one after the other."""
    return [Answer(operation, getattr(subject, operation)()) for operation in script]


def name_errno(number: int | None) -> str:
    """How an answer of the kernel is told."""
    if number is None:
        return "no answer; the caller dies of SIGKILL"
    return errno.errorcode[number] if number else "0"


def _share(held_bytes: int, whole_bytes: int) -> str:
    # What is left of a reaped victim: pages that the kernel does not count at once, and the exit's own.
    if held_bytes <= MIB:
        return "none"
    return "all" if held_bytes >= 0.9 * whole_bytes else "part"


def _truth(value: object) -> str:
    return "yes" if value else "no"


class RealSubject:
    """A victim on this machine's kernel."""

    def __init__(self, victim: StagedVictim) -> None:
        self._victim = victim
        self._is_collected = False

    def kill(self) -> str:  # noqa: D102 - see Subject, also below
        try:
            signal.pidfd_send_signal(self._victim.pidfd, signal.SIGKILL)
        except OSError as error:
            return name_errno(error.errno)
        return "0"

    def kill_all(self) -> str:  # noqa: D102
        self._victim.kill_all()
        return "0"

    def mrelease(self) -> str:  # noqa: D102
        if not self._is_collected:
            return name_errno(stage.mrelease_in_child(self._victim.pid, timeout_s=_BLOCKED_S))
        # Nobody can open a pidfd of it any more; ours still names it, and nothing is left that could block.
        try:
            syscalls.process_mrelease(self._victim.pidfd)
        except OSError as error:
            return name_errno(error.errno)
        return "0"

    def held(self) -> str:  # noqa: D102
        return _truth(not self._victim.is_gone(HELD_S))

    def gone(self) -> str:  # noqa: D102
        return _truth(self._victim.is_gone(GONE_S))

    def letters(self) -> str:  # noqa: D102
        return "".join(sorted(set(self._victim.states().values()) - set(DEAD_STATES)))

    def ended(self) -> str:  # noqa: D102
        return _truth(processes.wait_for_pidfd(self._victim.pidfd, 0))

    def anon(self) -> str:  # noqa: D102
        return _share(self._victim.anon_bytes(), self._victim.size_bytes)

    def shmem(self) -> str:  # noqa: D102
        return _share(self._victim.shmem_bytes(), stage.DEFAULT_SIZE_BYTES)

    def charge(self) -> str:  # noqa: D102
        held_bytes, whole_bytes = self._victim.memcg_usage_bytes(), self._victim.size_bytes
        # The group is charged for the kernel's own structures as well, some hundred KiB.
        return _share(held_bytes if held_bytes > 0.1 * whole_bytes else 0, whole_bytes)

    def dumping(self) -> str:  # noqa: D102
        return _truth(self._victim.is_dumping_core())

    def release(self) -> str:  # noqa: D102
        self._victim.release()
        if self._victim.memory_cgroup is not None:
            stage.wait_until(lambda: self.charge() != "all", GONE_S)
        return "0"

    def collect(self) -> str:  # noqa: D102
        self._victim.collect()
        self._is_collected = True
        return "0"


class SimSubject:
    """A victim on a modelled machine."""

    def __init__(
        self,
        machine: Machine,
        victim: Process,
        *,
        others: Sequence[Process] = (),
        release: Callable[[], object] = lambda: None,
        group: MemoryGroup | None = None,
    ) -> None:
        self._machine = machine
        self._victim = victim
        self._all = (victim, *others)
        self._release = release
        self._group = group
        self._whole_bytes = SIZE_MIB * MIB
        for process in self._all:
            process.waits_after_ns = None  # the test waits for it, as the stage's own parent does
        self._wait_for(lambda: False, HELD_S)

    def kill(self) -> str:  # noqa: D102 - see Subject, also below
        if self._victim.is_waited:
            return "ESRCH"
        self._machine.kill(self._victim)
        return "0"

    def kill_all(self) -> str:  # noqa: D102
        for process in self._all:
            if not process.is_waited:
                self._machine.kill(process)
        return "0"

    def mrelease(self) -> str:  # noqa: D102
        answers: list[int] = []

        def call(machine: Machine, thread: Thread) -> Steps:
            answers.append((yield from process_mrelease(machine, thread, self._victim)))

        caller = self._machine.add_process("caller", (call,))
        if self._wait_for(lambda: bool(answers), _BLOCKED_S):
            return name_errno(answers[0])
        self._machine.kill(caller)
        is_dead = self._wait_for(lambda: caller.is_dead, HELD_S)
        return name_errno(None) if is_dead and not answers else "no answer, and its caller cannot be killed"

    def held(self) -> str:  # noqa: D102
        return _truth(not self._wait_for(self._is_gone, HELD_S))

    def gone(self) -> str:  # noqa: D102
        return _truth(self._wait_for(self._is_gone, GONE_S))

    def letters(self) -> str:  # noqa: D102
        letters = {thread.letter for process in self._all for thread in process.threads}
        return "".join(sorted(letters - set(DEAD_STATES)))

    def ended(self) -> str:  # noqa: D102
        return _truth(self._victim.is_dead)

    def anon(self) -> str:  # noqa: D102
        return _share(self._count(lambda mm: mm.reapable_pages), self._whole_bytes)

    def shmem(self) -> str:  # noqa: D102
        return _share(self._count(lambda mm: mm.shmem_pages), self._whole_bytes)

    def charge(self) -> str:  # noqa: D102
        assert self._group is not None
        return _share(self._group.charged * self._machine.parameters.page_bytes, self._whole_bytes)

    def dumping(self) -> str:  # noqa: D102
        return _truth(self._victim.is_dumping)

    def release(self) -> str:  # noqa: D102
        self._release()
        self._wait_for(lambda: False, HELD_S)
        return "0"

    def collect(self) -> str:  # noqa: D102
        self._machine.wait_for(self._victim)
        return "0"

    def _is_gone(self) -> bool:
        return all(process.is_dead for process in self._all)

    def _count(self, pages_of: Callable[..., int]) -> int:
        counts = [pages_of(process.mm) for process in self._all if process.mm is not None]
        return max(counts, default=0) * self._machine.parameters.page_bytes

    def _wait_for(self, is_so: Callable[[], bool], most_s: float) -> bool:
        engine = self._machine.engine
        end_ns = engine.now_ns + int(most_s * _NS)
        while not is_so() and engine.now_ns < end_ns:
            before_ns = engine.now_ns
            engine.run(until_ns=min(end_ns, before_ns + MS))
            if engine.now_ns == before_ns:
                break  # nothing will ever happen here again by itself
        return is_so()


def real_has_pidfd(pid: int) -> str:
    """What pidfd_open says of an id."""
    try:
        os.close(os.pidfd_open(pid))
    except OSError as error:
        return name_errno(error.errno)
    return "0"
