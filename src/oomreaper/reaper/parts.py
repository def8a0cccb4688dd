"""Reports that come in parts, put together again. Pure.

What it knows: which reports are parts, and of what. What it refuses to know: how they travel; whoever has the workers
decodes a message and hands it here, the worker's socket (``worker.pool``) as the modelled one (``sim.hands``).

A worker sends its parts before the report that they belong to, and nothing between; so what has come of a worker
belongs to its next such report, or is dropped with the worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.outcome import Outcome
from oomreaper.reaper.jobs import Profiled, ProfilesPart, Report, Scouted, SharersPart

if TYPE_CHECKING:
    from oomreaper.model.process import Sharer
    from oomreaper.reaper.jobs import ProfileRow
    from oomreaper.reaper.wire import Part


class Parts:
    """What has come of each worker's next report."""

    def __init__(self) -> None:
        self._sharers: dict[int, list[Sharer]] = {}
        self._rows: dict[int, list[ProfileRow]] = {}

    def join(self, worker: int, report: Report | Part | Outcome) -> Report | None:
        """The whole report; None when this is only a part.

        Raises:
            BrokenPromiseError: That is nothing that a worker reports.
        """
        if isinstance(report, Outcome):
            raise BrokenPromiseError(f"a worker sent {type(report).__name__}")
        if isinstance(report, SharersPart):
            self._sharers.setdefault(worker, []).extend(report.sharers)
            return None
        if isinstance(report, ProfilesPart):
            self._rows.setdefault(worker, []).extend(report.rows)
            return None
        if isinstance(report, Profiled) and worker in self._rows:
            return Profiled((*self._rows.pop(worker), *report.rows))
        if isinstance(report, Scouted) and report.scouting is not None and worker in self._sharers:
            sharers = (*report.scouting.sharers, *self._sharers.pop(worker))
            return report._replace(scouting=report.scouting._replace(sharers=sharers))
        return report

    def drop(self, worker: int) -> None:
        """Nothing more is heard of it."""
        self._sharers.pop(worker, None)
        self._rows.pop(worker, None)
