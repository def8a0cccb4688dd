"""What the reaper tells while it works: one event when each thing happens, in order, for whoever listens."""

from __future__ import annotations

import enum
from typing import NamedTuple

from oomreaper.model.identity import Identity
from oomreaper.model.outcome import Outcome


class EventKind(enum.StrEnum):
    """What happened."""

    ANNOUNCE = "announce"  # this victim is about to be signalled
    KILLED = "killed"  # the signal has been sent
    SETTLED = "settled"  # it ended; ``outcome`` says how
    WARNING = "warning"  # something was lost or refused on the way


class Event(NamedTuple):
    """One event. ``identity`` is None when it concerns no victim; ``monotonic_ns`` is CLOCK_MONOTONIC."""

    kind: EventKind
    identity: Identity | None
    monotonic_ns: int
    text: str = ""
    outcome: Outcome | None = None
