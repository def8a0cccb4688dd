"""Who acts on a decision: ``Enforcer`` does, ``Pretender`` (``--dry-run``) says that it would have.

Two classes and no ``if``: a dry run takes every step of a real one up to the signal, and has nothing at hand that could
send one.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, assert_never

from oomreaper.linux import syscalls
from oomreaper.model.event import Event, EventKind
from oomreaper.model.outcome import Outcome
from oomreaper.model.plan import MACHINE, KillUnit
from oomreaper.reaper.handoff import Entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.decision import RankedProcess
    from oomreaper.model.identity import Identity
    from oomreaper.model.process import Scouting
    from oomreaper.model.sample import ProcessSample
    from oomreaper.reaper.crew import Crew


class Enforcer:
    """Acts. Implements ``oomreaper.watch.mind.hunter.Actor``.

    Args:
        crew: Kills and reaps.
        directory_of: The directory of a cgroup, by its path; None when this machine does not show it.
        within_directory: That of the group whose members are the only victims, also where a process group or a session
            reaches out of it; None: anybody.
    """

    is_dry_run = False

    def __init__(
        self, crew: Crew, directory_of: Callable[[str], str | None], *, within_directory: str | None = None
    ) -> None:
        self._crew = crew
        self._directory_of = directory_of
        self._within_directory = within_directory
        self._events: list[Event] = []

    def terminate(self, identity: Identity, handle: int, now_ns: int) -> int:
        """SIGTERM through the pidfd; 0 or the errno."""
        refused = _signal(handle, signal.SIGTERM)
        if not refused:
            self._events.append(Event(EventKind.KILLED, identity, now_ns, "SIGTERM"))
        return refused

    def submit(self, scouting: Scouting, handle: int, now_ns: int) -> Entry:
        """Have it killed and reaped."""
        return self._crew.submit(scouting, handle, now_ns)

    def kill_unit(
        self, ranked: RankedProcess, others: tuple[ProcessSample, ...], *, scope: str, is_whole: bool, now_ns: int
    ) -> None:
        """Signal those who die with a victim; when the unit dies as a whole, also who was born into it meanwhile."""
        lives = tuple(other.identity for other in others)
        if not is_whole:
            self._crew.kill_unit(lives, now_ns)
            return
        oldest = min(life.start_time_ticks for life in (ranked.process.identity, *lives))
        # A process group or session may reach out of the group that is short: those are no part of this.
        inside = self._within_directory if scope == MACHINE else self._directory_of(scope)
        match ranked.unit:
            case KillUnit.CGROUP:
                self._crew.kill_unit(lives, now_ns, cgroup_directory=self._directory_of(ranked.unit_key))
            case KillUnit.GROUP:
                group = int(ranked.unit_key)
                self._crew.kill_unit(
                    lives,
                    now_ns,
                    process_group=group,
                    born_after_ticks=oldest - 1,
                    within_directory=inside,
                )
            case KillUnit.SESSION:
                session = int(ranked.unit_key)
                self._crew.kill_unit(
                    lives,
                    now_ns,
                    session=session,
                    born_after_ticks=oldest - 1,
                    within_directory=inside,
                )
            case KillUnit.PROCESS:
                self._crew.kill_unit(lives, now_ns)
            case never:
                assert_never(never)

    def take_events(self) -> list[Event]:
        """Who was asked to end since the last call; of the rest the crew tells."""
        taken, self._events = self._events, []
        return taken


class Pretender:
    """Says what would have been done. Implements ``oomreaper.watch.mind.hunter.Actor``."""

    is_dry_run = True

    def __init__(self) -> None:
        self._events: list[Event] = []

    def terminate(self, identity: Identity, handle: int, now_ns: int) -> int:
        """Signal 0: whether it could have been asked. An outcome without a kind: nothing happened."""
        refused = _signal(handle, 0)
        if not refused:
            reason = "a dry run: it would have been asked to end (SIGTERM)"
            outcome = Outcome(identity.pid, identity.start_time_ticks, None, None, reason=reason)
            self._events.append(Event(EventKind.SETTLED, identity, now_ns, outcome=outcome))
        return refused

    def submit(self, scouting: Scouting, handle: int, now_ns: int) -> Entry:
        """An outcome without a kind: nothing happened."""
        refused = _signal(handle, 0)
        process = scouting.process
        outcome = Outcome(
            process.identity.pid,
            process.identity.start_time_ticks,
            process.comm,
            None,
            anon_before_bytes=scouting.memory.reapable_bytes if scouting.memory is not None else None,
            sharers=tuple(sharer.identity.pid for sharer in scouting.sharers),
            reason="a dry run: it would have been killed" if not refused else "a dry run: it could not be signalled",
        )
        self._events.append(Event(EventKind.SETTLED, process.identity, now_ns, outcome=outcome))
        return Entry.QUEUED

    def kill_unit(
        self, ranked: RankedProcess, others: tuple[ProcessSample, ...], *, scope: str, is_whole: bool, now_ns: int
    ) -> None:
        """Nobody is signalled."""

    def take_events(self) -> list[Event]:
        """What has been pretended since the last call."""
        taken, self._events = self._events, []
        return taken


def _signal(handle: int, number: int) -> int:
    try:
        syscalls.pidfd_send_signal(handle, number)
    except OSError as error:
        return error.errno or -1
    return 0
