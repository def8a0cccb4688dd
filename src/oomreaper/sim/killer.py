"""The seam of the kernel's own killers: what the allocator and the exit path call; and the first, ``NoKiller``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from oomreaper.sim.release import will_free_mem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.groups import MemoryGroup
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.memory import Mm
    from oomreaper.sim.tasks import Process, Thread


class Killer(Protocol):
    """What the kernel does when memory is out."""

    name: str

    def attach(self, machine: Machine) -> None:
        """The machine boots: start kernel threads here."""

    def out_of_memory(self, thread: Thread, group: MemoryGroup | None) -> Steps:
        """An allocator made no progress; ``group`` is the full one, None the machine. A generator.

        Its value is True when there is reason to try again at once (somebody was killed, reserves were given), else
        False: the allocator sleeps before it tries again.
        """

    def on_exit_mm(self, thread: Thread) -> None:
        """A thread has let go of its address space (exit_oom_victim in 2016 stood behind exit_mm's mmput)."""

    def on_torn_down(self, mm: Mm) -> None:
        """exit_mmap is done."""

    def awaited(self) -> Iterable[Process]:
        """Victims whose memory it waits for before it kills again; for the diagnosis."""


class NoKiller:
    """No OOM killer: only who is dying already gets reserves (task_will_free_mem(current) in out_of_memory)."""

    name = "none"

    def __init__(self) -> None:
        self.machine: Machine | None = None

    def attach(self, machine: Machine) -> None:
        """Keep it."""
        self.machine = machine

    def out_of_memory(self, thread: Thread, group: MemoryGroup | None) -> Steps:  # noqa: ARG002 - the seam's
        """Reserves for the dying."""
        yield
        assert self.machine is not None
        process = thread.process
        if not process.is_victim and will_free_mem(process):
            self.machine.mark_victim(process)
            return True
        return False

    def on_exit_mm(self, thread: Thread) -> None:
        """Nothing."""

    def on_torn_down(self, mm: Mm) -> None:
        """Nothing."""

    def awaited(self) -> Iterable[Process]:
        """Nobody in particular: whoever is dying."""
        assert self.machine is not None
        return [process for process in self.machine.processes.values() if process.is_group_exit and not process.is_dead]
