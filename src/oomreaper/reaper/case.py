"""One victim's file: what is known of it, what has been tried, and what is due next. Pure.

The life cycle says which moves there are; this says what led to them, in the figures that the record will show.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from oomreaper.model.memory import VictimMemory
from oomreaper.model.outcome import Outcome
from oomreaper.reaper.handoff import Candidate
from oomreaper.reaper.lifecycle import OUTCOME_OF_STATE, LifeCycle, State

if TYPE_CHECKING:
    from oomreaper.model.identity import Identity
    from oomreaper.model.process import Scouting, ThreadReport
    from oomreaper.reaper.jobs import Struck

_NS_IN_MS = 1_000_000
_MIB = 1 << 20
# Shared memory that is worth a word in the record.
_NOTEWORTHY_SHMEM_BYTES = 8 * _MIB


class Case:
    """One victim between submission and outcome.

    Args:
        scouting: What the look at it found; its memory there is the "before" of the record.
        handle: Its pidfd; opaque here.
        taken_ns: When it was taken on.
    """

    def __init__(self, scouting: Scouting, handle: int, taken_ns: int) -> None:
        self.scouting = scouting
        self.handle = handle
        self.taken_ns = taken_ns
        self.life = LifeCycle()
        self.identity: Identity = scouting.process.identity
        self.candidate = Candidate(
            self.identity, frozenset({self.identity, *(sharer.identity for sharer in scouting.sharers)})
        )
        self.sharers = {sharer.identity for sharer in scouting.sharers}
        # Those who may hold the memory yet: killed, or not looked at. Whoever was seen not to share it is none of them.
        self.open_sharers = set(self.sharers)
        self.killed_sharers: set[Identity] = set()
        self.attempts = 0
        self.reason = ""
        self.attempt_began_ns: int | None = None  # of the attempt that goes on; a strike may cost it several workers
        self.signal_ns: int | None = None  # when the first signal was sent
        # When a strike began that killed a sharer, or whose worker ended before it could say what it did.
        self.first_blow_ns: int | None = None
        self.settled_ns: int | None = None
        self.has_died = False
        self.memory_seen: VictimMemory | None = scouting.memory
        self.charged_seen = scouting.charged
        self.freed_bytes: int | None = None
        self.held_at_signal_bytes: int | None = None  # read right before the first signal; newer than the scouting
        self.threads: tuple[ThreadReport, ...] = ()
        self.needs_permission = False
        # What is due, as monotonic ns; None when nothing is.
        self.strike_due_ns: int | None = None
        self.account_due_ns: int | None = None
        self.help_due_ns: int | None = None
        self.is_helped = False
        self.needs_rescan = False  # the kernel said that somebody shares the memory, and nobody was found since
        self.is_settled = False
        self.inquest_limit_ns = 0
        self.idle_looks = 0  # looks in a row, while it is leaving, that saw no memory move
        self.wants_deep_look = False  # its next look is to be one at every process
        self.failed_deep_looks = 0

    @property
    def before(self) -> VictimMemory | None:
        """What it held before the signal."""
        return self.scouting.memory

    @property
    def held_before_bytes(self) -> int:
        """What a reap could give back, before the signal, by the look that also read what was charged."""
        return self.before.reapable_bytes if self.before is not None else 0

    @property
    def recorded_before_bytes(self) -> int:
        """The same for the record: by the newest reading."""
        return self.held_before_bytes if self.held_at_signal_bytes is None else self.held_at_signal_bytes

    @property
    def awaits_shared_memory(self) -> bool:
        """Whether it has not gone, and much of what its death gives back comes only then."""
        return not self.has_died and self.before is not None and self.before.shmem_bytes >= _NOTEWORTHY_SHMEM_BYTES

    def timeout_ns(self, allowed_ns: int) -> int:
        """When its time is over: counted from the signal, before that from the moment it was taken on."""
        return (self.taken_ns if self.signal_ns is None else self.signal_ns) + allowed_ns

    def note_sharers(self, asked: tuple[Identity, ...], struck: Struck) -> None:
        """A strike that was to kill the sharers ``asked`` has told what it came to."""
        killed = set(struck.sharers_killed)
        if struck.mrelease_errno == errno.EINVAL and not struck.is_dumping_core:
            self.needs_rescan = True
        elif killed - self.killed_sharers:
            self.needs_rescan = False
        if struck.signal_errno is not None or not struck.is_dumping_core:  # else nothing was tried
            left = {*struck.missed, *struck.protected}
            self.open_sharers -= {life for life in asked if life.pid not in left}
        if killed and self.first_blow_ns is None:
            self.first_blow_ns = struck.signal_ns
        self.sharers |= killed
        self.open_sharers |= killed
        self.killed_sharers |= killed

    def note_freed(self, now: VictimMemory | None) -> None:
        """Count as freed what it held before and no longer does."""
        self.freed_bytes = max(0, self.recorded_before_bytes - (now.reapable_bytes if now is not None else 0))

    def outcome(self) -> Outcome:
        """The record; only for a life that is over."""
        state = self.life.state
        elapsed_ms = None
        if self.signal_ns is not None and self.settled_ns is not None:
            elapsed_ms = (self.settled_ns - self.signal_ns) / _NS_IN_MS
        was_signalled = state not in (State.REFUSED, State.GONE)
        return Outcome(
            pid=self.identity.pid,
            start_time_ticks=self.identity.start_time_ticks,
            comm=self.scouting.process.comm,
            kind=OUTCOME_OF_STATE[state],
            anon_before_bytes=self.recorded_before_bytes,
            freed_bytes=self.freed_bytes if was_signalled else None,
            elapsed_ms=elapsed_ms if was_signalled else None,
            attempts=self.attempts,
            still_dying=was_signalled and not self.has_died,
            sharers=tuple(sorted(sharer.pid for sharer in self.sharers)) if was_signalled else (),
            reason=self._full_reason(),
            needs_permission=self.needs_permission,
            threads=self.threads,
        )

    def _full_reason(self) -> str:
        shmem_bytes = self.before.shmem_bytes if self.before is not None else 0
        if self.life.state is State.REAPED and shmem_bytes >= _NOTEWORTHY_SHMEM_BYTES:
            return (
                f"{self.reason}; {shmem_bytes // _MIB} MiB of shared memory are nobody's own and cannot be reaped: "
                "they come back when their last user goes"
            )
        return self.reason
