"""Defects of our own code: what one function of the real modules is replaced by, for the time of a run.

Each takes the original and gives what stands in its place; ``mutations`` says where.
"""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING, Any

from oomreaper.linux import proc
from oomreaper.reaper.lifecycle import Move
from oomreaper.reaper.verify import Meaning, Reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.reaper.case import Case
    from oomreaper.reaper.crew import Crew


def again_for_ever(_original: Any) -> Any:
    """For ``Crew._again``: another attempt, however many there were."""

    def again(_self: Crew, case: Case, started_ns: int, memory: Any, now_ns: int) -> None:
        case.memory_seen = memory
        case.life.apply(Move.TRY_AGAIN)
        case.strike_due_ns = max(now_ns, started_ns + 100_000_000)

    return again


def never_overdue(_original: Any) -> Any:
    """For ``Crew._on_overdue``: a worker is never given up."""

    def on_overdue(self: Any, worker: int, assignment: Any, now_ns: int) -> None:
        self._roster.extend(worker, assignment._replace(deadline_ns=now_ns + 100_000_000))

    return on_overdue


def lost_for_good(original: Any) -> Any:
    """For ``Roster.dismiss``: nobody takes the place of one who was lost."""

    def dismiss(self: Any, worker: int, now_ns: int) -> None:
        original(self, worker, now_ns)
        self._restart_ns = None

    return dismiss


def kill_then_log(_original: Any) -> Any:
    """For ``child._kill``: a log line before the reap, and it needs memory, as a line to a file may."""

    def kill(pidfd: int, *, can_release: bool) -> tuple[int, int | None]:  # noqa: ARG001 - child's
        calls, land = _model_under_the_worker()
        calls.pidfd_send_signal(pidfd, signal.SIGKILL)
        land.run(land.machine.allocate(land.user.thread, land.machine.parameters.pages(0.25)))
        try:
            calls.process_mrelease(pidfd)
        except OSError as error:
            return 0, error.errno
        return 0, 0

    return kill


def kill_by_pid(_original: Any) -> Any:
    """For ``child._kill``: whoever holds the pid now."""

    def kill(pidfd: int, *, can_release: bool) -> tuple[int, int | None]:  # noqa: ARG001 - child's
        calls, land = _model_under_the_worker()
        pid = land.user.descriptors[pidfd].process.pid
        answer: tuple[int, int | None] = calls.kill_and_release(calls.pidfd_open(pid))
        return answer

    return kill


def _model_under_the_worker() -> tuple[Any, Any]:
    """The model's system calls, and its userland, while the worker's module is bound to them."""
    from oomreaper.reaper.worker import child

    calls = child.__dict__["syscalls"]
    return calls, calls.process_mrelease.__self__._land  # noqa: SLF001 - the model's Calls have it


def always(value: object) -> Callable[[Any], Any]:
    """For anything that answers: the same answer, whatever is asked."""
    return lambda _original: lambda *_positional, **_named: value


def esrch_is_success(original: Any) -> Any:
    """For ``verify.read_strike``: what is out of sight is back."""

    def read_strike(struck: Any, before: Any) -> Reading:
        if struck.mrelease_errno == errno.ESRCH:
            return Reading(Meaning.BACK, "it has gone, so its memory has")
        reading: Reading = original(struck, before)
        return reading

    return read_strike


def any_life(original: Any) -> Any:
    """For ``WorkerChild._open_life``: the start time is not looked at."""
    return lambda self, job: original(self, job._replace(start_time_ticks=None))


def nobody(_original: Any) -> Any:
    """For ``look.find_sharers``: nobody shares the memory."""
    return lambda *_: ((), True)


def forget_sharers(original: Any) -> Any:
    """For ``Case.outcome``: the record is silent on them."""
    return lambda self: original(self)._replace(sharers=())


def read_cmdline_first(original: Any) -> Any:
    """For ``Reaping._on_scouted``: the watcher itself looks at the victim's command line."""

    def on_scouted(self: Any, hands: Any, pid: int, handle: int, scouted: Any) -> None:
        process = proc.open_process(proc.open_root(), pid)
        if process is not None:
            proc.read_head(process, "cmdline", 4096)
        original(self, hands, pid, handle, scouted)

    return on_scouted
