"""A victim on the stage: what a test may ask of it and do to it, and how it leaves.

Whatever happens in the test, it leaves in this order: what holds it is let go, all its processes are killed,
their end is awaited. A victim that does not go is an error of the stage, never passed over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, TypeVar

from tests.victims import processes
from tests.victims.processes import wait_until
from tests.victims.program import (
    END_TIMEOUT_S,
    MIB,
    READY_TIMEOUT_S,
    Helper,
    StageError,
    compiled_program,
    killed_at_the_end,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

DEFAULT_SIZE_BYTES = 64 * MIB


class StagedVictim:
    """A process in a known state that holds a known amount of memory."""

    def __init__(self, helper: Helper, *, size_bytes: int, pid: int | None = None) -> None:
        self.helper = helper
        self.pid = helper.pid if pid is None else pid
        """The process to kill: the one that a killer would choose."""
        self.pidfd = os.pidfd_open(self.pid)
        """Names it until it has left the stage."""
        self.size_bytes = size_bytes
        """Anonymous memory that it holds; 0 for a victim of shared memory only."""
        self.memory_cgroup: Path | None = None
        """The v1 memory cgroup made for it alone, where it has one."""
        self._start_times: dict[int, int | None] = {}
        self._releases: list[Callable[[], object]] = []
        self.add_pids([self.pid])

    @property
    def pids(self) -> tuple[int, ...]:
        """All processes that share the address space or belong to the victim, the victim first."""
        return tuple(self._start_times)

    def add_pids(self, pids: Iterable[int]) -> None:
        """Count more processes to the victim; they are killed and awaited with it."""
        for pid in pids:
            self._start_times[pid] = processes.start_time_ticks(pid)

    def on_release(self, action: Callable[[], object]) -> None:
        """Have ``release`` do this too, the latest first."""
        self._releases.append(action)

    def release(self) -> None:
        """End what holds the victim where it is; nothing the second time."""
        with contextlib.ExitStack() as stack:
            for action in self._releases:
                stack.callback(action)
            self._releases.clear()

    def kill(self) -> None:
        """SIGKILL the one process ``pid``; nothing if it has been waited for."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def kill_all(self) -> None:
        """SIGKILL every process of the victim."""
        for pid, start_time in self._start_times.items():
            processes.kill_exactly(pid, start_time)

    def collect(self) -> None:
        """Wait for the dead process as its parent does, so that not even its zombie stands in /proc."""
        self.helper.wait()

    def is_gone(self, timeout_s: float = 0.0) -> bool:
        """Whether every process of the victim has ended within the time: zombies at most are left."""
        return wait_until(
            lambda: all(processes.is_gone(pid, start) for pid, start in self._start_times.items()), timeout_s
        )

    def anon_bytes(self) -> int:
        """Anonymous memory, resident or swapped, of the address space while any process still has it."""
        return next(filter(None, map(processes.anon_bytes, self.pids)), 0)

    def shmem_bytes(self) -> int:
        """Shared memory that is resident in the address space."""
        return next(filter(None, map(processes.shmem_bytes, self.pids)), 0)

    def memcg_usage_bytes(self) -> int:
        """What the victim's own memory cgroup is charged with.

        Raises:
            StageError: it has none.
        """
        if self.memory_cgroup is None:
            message = "this victim has no memory cgroup of its own"
            raise StageError(message)
        return int((self.memory_cgroup / "memory.usage_in_bytes").read_text())

    def states(self) -> dict[int, str]:
        """The state letter of every thread of every process of the victim, by thread id."""
        return {tid: letter for pid in self.pids for tid, letter in processes.states(pid).items()}

    def state(self) -> str | None:
        """The state letter of the leader of ``pid``; None when it has gone."""
        return processes.states(self.pid).get(self.pid)

    def follower_ids(self) -> tuple[int, ...]:
        """Ids of threads that lead no process: a pidfd of a process cannot be had for them."""
        return tuple(tid for tid in processes.thread_ids(self.pid) if tid != self.pid)

    def is_dumping_core(self) -> bool:
        """Whether the kernel is writing its core now."""
        return processes.status_of_mm(self.pid).get("CoreDumping") == "1"

    def has_pending_sigkill(self) -> bool:
        """Whether SIGKILL has been sent to some thread or the whole of it and not been taken yet."""
        bit = 1 << (signal.SIGKILL - 1)
        return any(
            int(fields.get(name, "0"), 16) & bit
            for tid in processes.thread_ids(self.pid)
            for fields in [processes.status_fields(self.pid, tid)]
            for name in ("SigPnd", "ShdPnd")
        )

    def wait_for_state(self, letter: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until some thread of it stands in the state, and none runs any more.

        Raises:
            StageError: that did not come in time.
        """

        def is_settled() -> bool:
            letters = set(self.states().values())
            return letter in letters and "R" not in letters

        if not wait_until(is_settled, timeout_s):
            message = f"{self.helper.command} (pid {self.pid}) is not in {letter} but {self.states()}"
            raise StageError(message)

    def leave(self) -> None:
        """Release, kill, wait: called at the end of the stage, whatever happened on it.

        Raises:
            StageError: a process of the victim does not end.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self.pidfd)
            stack.callback(self._must_have_gone)
            stack.callback(self.helper.kill)
            stack.callback(self.kill_all)
            stack.callback(self.release)

    def _must_have_gone(self) -> None:
        if not self.is_gone(END_TIMEOUT_S):
            message = f"{self.helper.command} (pids {self.pids[:5]}) does not go: {self.states()}"
            raise StageError(message)


class NamespacedVictim(StagedVictim):
    """A victim in a pid namespace of its own, whose init shares its memory."""

    def __init__(self, helper: Helper, *, size_bytes: int, pid: int, init_pid: int) -> None:
        super().__init__(helper, size_bytes=size_bytes, pid=pid)
        self.init_pid = init_pid
        """The namespace's pid 1, as it is seen from outside."""
        self.pid_inside = int(processes.status_fields(pid)["NSpid"].split()[-1])
        """The victim's pid as it is seen inside."""
        self.add_pids([init_pid])

    def kill_init(self) -> None:
        """SIGKILL the namespace's init from outside, where that is possible; the kernel then ends the rest."""
        processes.kill_exactly(self.init_pid, self._start_times[self.init_pid])

    def run_inside(self, command: Sequence[str], timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace, with its /proc, and wait for it; its output is captured."""
        words = [str(compiled_program()), "enter", "--", str(self.init_pid), *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)


V = TypeVar("V", bound=StagedVictim)


@contextlib.contextmanager
def on_stage(staged: V) -> Iterator[V]:
    """Have a victim leave at the end of the block."""
    try:
        yield staged
    finally:
        staged.leave()


@contextlib.contextmanager
def victim(
    command: str,
    *,
    size_bytes: int,
    anon_bytes: int | None = None,
    **options: object,
) -> Iterator[StagedVictim]:
    """A victim of ``victims.c`` that has said "ready"; what it must stand in beyond that is the caller's to await.

    ``anon_bytes`` says how much of its memory is anonymous, where that is not all of it.
    """
    with killed_at_the_end(command, size=size_bytes, **options) as helper:
        helper.become_ready()
        with on_stage(StagedVictim(helper, size_bytes=size_bytes if anon_bytes is None else anon_bytes)) as staged:
            # Processes that it made itself and that it named when it was ready.
            staged.add_pids(int(pid) for pid in helper.facts.get("sharers", "").split(",") if pid)
            yield staged
