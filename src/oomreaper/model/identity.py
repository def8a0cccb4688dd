"""Who a process is: a pid alone names whoever holds it now; a pid with its start time names one life."""

from __future__ import annotations

from typing import NamedTuple


class Identity(NamedTuple):
    """One life of one process.

    ``pid`` is the thread-group id as our pid namespace sees it. ``start_time_ticks`` is field 22 of
    /proc/PID/stat: clock ticks (``sysconf(_SC_CLK_TCK)``) from boot to its start.
    """

    pid: int
    start_time_ticks: int

    def __str__(self) -> str:
        return f"{self.pid}:{self.start_time_ticks}"
