"""Kill a process and get its memory back, even when it cannot die.

The library is two calls, and importing it does nothing but define them::

    outcome = oomreaper.reap(pid)      # kill it, free its memory, say what happened
    features = oomreaper.doctor()      # what this kernel, user and sandbox permit

The rooms of the house, from the inside out: ``model`` (the values everyone speaks), ``policy`` and
``reaper`` (the decisions: pure), ``linux`` (the kernel's edge), ``watch`` (the loops), ``faces`` (what
people see).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oomreaper.model.features import Features
    from oomreaper.model.outcome import Outcome

__version__ = "0.1.0"
__all__ = ["__version__", "doctor", "reap"]


def reap(
    pid: int,
    *,
    start_time_ticks: int | None = None,
    timeout_seconds: float = 30.0,
    coredump: str = "abort",
) -> Outcome:
    """Kill ``pid`` and get its anonymous and swapped memory back; say what happened.

    The work is done by a small process started for it, never by a fork or a thread of yours: a program
    with gigabytes of memory or many threads may call this.

    Args:
        pid: The process to kill. Its threads and every process that shares its memory die with it.
        start_time_ticks: Field 22 of /proc/PID/stat at the time you chose the victim. When the pid has
            been recycled since, nothing is signalled and the outcome is ``gone``.
        timeout_seconds: Give the victim up that long after the signal, even if its memory still moves.
        coredump: ``"abort"`` cuts a running core dump short; ``"wait"`` lets it finish.

    Returns:
        The record of the victim; ``outcome.kind`` tells how it ended and ``outcome.reason`` why.

    Raises:
        oomreaper.errors.UsageError: An argument makes no sense (a ``coredump`` of neither kind).
        oomreaper.errors.KernelError: There is no /proc, or no process could be started.
    """
    from oomreaper.watch.errand import reap_elsewhere

    return reap_elsewhere(pid, start_time_ticks=start_time_ticks, timeout_seconds=timeout_seconds, coredump=coredump)


def doctor() -> Features:
    """Say what this kernel, user and sandbox permit, what is lost without each, and the remedy.

    Nothing is signalled; each system call is probed in a child of its own, so that a sandbox which
    answers with a signal kills the child and not the caller.
    """
    from oomreaper.linux.features import probe_features

    return probe_features()
