"""What is told, to whom: each thing that happens becomes a record, which goes to the event socket and to the log.

Implements ``oomreaper.watch.mind.hunter.Voice``. The last records are kept, for ``oomreaper explain``.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from oomreaper.watch import records
from oomreaper.watch.records import Moment, Record

if TYPE_CHECKING:
    from oomreaper.model.outcome import Outcome
    from oomreaper.watch.log import Log
    from oomreaper.watch.mind.hunt import Hunt
    from oomreaper.watch.outlet import Outlet

# What explain shows of the past.
_LAST = 10


class Speaker:
    """Tells everybody.

    Args:
        outlet: The event socket.
        log: Lines for people.
    """

    def __init__(self, outlet: Outlet, log: Log) -> None:
        self._outlet = outlet
        self._log = log
        self._last: deque[dict[str, object]] = deque(maxlen=_LAST)
        self._unlogged: list[Record] = []  # announcements whose line waits until the signal is on its way
        self.is_silent = False  # while the start rehearses

    @property
    def last(self) -> list[dict[str, object]]:
        """The last records, without their secret fields."""
        return list(self._last)

    def flush(self) -> None:
        """Log what waits: nobody acts on a line of the journal, so it does not stand between decision and signal."""
        for record in self._unlogged:
            self._log.record(record.whole)
        self._unlogged.clear()

    def announce(self, hunt: Hunt, *, signal_name: str, hook: str | None, now_ns: int) -> None:
        """A victim is about to be signalled."""
        record = records.announce(
            _moment(now_ns),
            hunt.incident,
            hunt.due,
            hunt.ranked,
            members=hunt.members,
            signal_name=signal_name,
            hook=hook,
            available_bytes=hunt.available_bytes,
        )
        if not self.is_silent:
            self._publish(record)
            self._unlogged.append(record)

    def killed(self, hunt: Hunt, *, signal_name: str, now_ns: int) -> None:
        """The signal has been sent."""
        moment = _moment(now_ns)
        self._tell(records.killed(moment, hunt.incident, hunt.due, hunt.ranked.process, signal_name=signal_name))

    def settled(self, hunt: Hunt, outcome: Outcome, now_ns: int) -> None:
        """It ended."""
        record = records.settled(
            _moment(now_ns),
            hunt.incident,
            outcome,
            rule=hunt.due.rule.name,
            scope=hunt.scope,
            process=hunt.ranked.process,
        )
        self._tell(record)

    def skipped(self, text: str, *, scope: str, incident: str | None, hunt: Hunt | None, now_ns: int) -> None:
        """Nothing was done, and why."""
        process = None if hunt is None else hunt.ranked.process
        self._tell(records.skipped(_moment(now_ns), text, scope=scope, incident=incident, process=process))

    def warning(self, text: str, *, scope: str | None, incident: str | None, now_ns: int) -> None:
        """Something that people should know."""
        self._tell(records.warning(_moment(now_ns), text, scope=scope, incident=incident))

    def _tell(self, record: Record) -> None:
        if self.is_silent:
            records.format_time(time.time_ns())
            return
        # Whoever must act on it first: companions before the log.
        self._publish(record)
        self.flush()
        self._log.record(record.whole)

    def _publish(self, record: Record) -> None:
        self._outlet.publish(record.fields, secret=record.secret, owner_uid=record.owner_uid)
        self._last.append(record.fields)


def _moment(at_ns: int) -> Moment:
    """A moment of the monotonic clock, which may be a little while ago: a signal is told of when its worker answers."""
    return Moment(time.time_ns() - (time.monotonic_ns() - at_ns), at_ns)
