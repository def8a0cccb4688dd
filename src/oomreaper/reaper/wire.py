"""How jobs and reports are written on a socket. Pure.

A message is one JSON array on a SOCK_SEQPACKET socket, so it arrives whole or not at all. Names out of the kernel
travel as latin-1 text: every byte string survives. A scouting with many sharers comes in parts, and so do long
profiles. JSON and no pickle: what comes from a process that looked at hostile names is data and can be nothing else.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from oomreaper.model.identity import Identity
from oomreaper.model.memory import ChargedMemory, VictimMemory
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.process import Process, Scouting, Sharer, ThreadReport
from oomreaper.model.sample import Profile, Wish
from oomreaper.reaper.jobs import (
    Accounted,
    CouldNotLook,
    Hello,
    Helped,
    Inquired,
    Job,
    JobKind,
    Probed,
    Profiled,
    ProfileOrder,
    ProfileRow,
    ProfilesPart,
    Reclaimed,
    ReclaimOrder,
    Report,
    Scouted,
    SharersPart,
    Struck,
    UnitKilled,
    UnitOrder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Part = SharersPart | ProfilesPart

# One part of a long list of sharers. 500 rows are about 20 KB, well below a socket's default buffer (208 KiB).
SHARERS_A_PART = 500
MESSAGE_LIMIT_BYTES = 128 * 1024
# A part of an answer to PROFILE is sent when it has grown to this. The longest single profile (four texts of 4 KiB, six
# bytes a character) is below 100 KiB, so this and a message's limit leave room for it only if it comes alone.
PROFILES_PART_BYTES = 24 * 1024
# As many lives as one job names, a KILL_UNIT or a STRIKE, and its answer: about 30 bytes each.
LIVES_A_MESSAGE = 1_000


def encode_job(job: Job) -> bytes:
    """A job as one message."""
    return json.dumps(job).encode()


def decode_job(message: bytes) -> Job:
    """A message as a job."""
    kind_name, pid, start_time_ticks, sharers, *rest = json.loads(message)
    kind = JobKind(kind_name)
    if rest[-1] is not None:
        rest[-1] = _rebuild(_ORDER_READERS[kind], rest[-1])
    return Job(kind, pid, start_time_ticks, tuple(Identity(*life) for life in sharers), *rest)


def encode_report(report: Report | Part | Outcome) -> bytes:
    """A report as one message. A Scouted must not carry more than SHARERS_A_PART sharers."""
    return json.dumps([type(report).__name__, *report], default=_text_of_bytes).encode()


def parts_of_profiles(rows: tuple[ProfileRow, ...]) -> list[tuple[ProfileRow, ...]]:
    """The rows in parts that fit a message each, in order; at least one part, which may be empty."""
    parts: list[tuple[ProfileRow, ...]] = [()]
    part_bytes = 0
    for row in rows:
        row_bytes = len(json.dumps(row, default=_text_of_bytes))
        if parts[-1] and part_bytes + row_bytes > PROFILES_PART_BYTES:
            parts.append(())
            part_bytes = 0
        parts[-1] += (row,)
        part_bytes += row_bytes
    return parts


def decode_report(message: bytes) -> Report | Part | Outcome:
    """A message as a report.

    Raises:
        ValueError, TypeError, KeyError: It is none; a worker that sends such a thing is broken.
    """
    name, *fields = json.loads(message)
    report: Report | Part | Outcome = _rebuild(_REPORT_BY_NAME[name], fields)
    return report


def _rebuild(kind: Callable[..., Any], fields: list[Any]) -> Any:
    """A value from its JSON array: fields named in _FIELD_READERS are rebuilt, lists become tuples."""
    readers = _FIELD_READERS.get(kind, {})
    values = []
    for position, field in enumerate(fields):
        reader = readers.get(position)
        if reader is not None and field is not None:
            values.append(reader(field))
        else:
            values.append(tuple(field) if isinstance(field, list) else field)
    return kind(*values)


def _one(kind: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda fields: _rebuild(kind, fields)


def _many(kind: Callable[..., Any]) -> Callable[[Any], Any]:
    return lambda rows: tuple(_rebuild(kind, row) for row in rows)


def _text_of_bytes(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    raise TypeError(f"{value!r} cannot be sent")


def _bytes_of_text(text: str) -> bytes:
    return text.encode("latin-1")


_REPORTS = (
    *(Hello, Scouted, Struck, Probed, Accounted, Helped, Inquired, Profiled, UnitKilled, Reclaimed, CouldNotLook),
    *(SharersPart, ProfilesPart, Outcome),
)
_REPORT_BY_NAME = {kind.__name__: kind for kind in _REPORTS}
# Which fields of which value are values themselves, by position. A round-trip test covers every row.
_FIELD_READERS: dict[Any, dict[int, Callable[[Any], Any]]] = {
    Scouted: {0: _one(Scouting)},
    Scouting: {0: _one(Process), 1: _one(VictimMemory), 2: _one(ChargedMemory), 3: _many(Sharer)},
    Process: {0: _one(Identity), 1: _bytes_of_text},
    SharersPart: {0: _many(Sharer)},
    Sharer: {0: _one(Identity)},
    Struck: {5: _one(VictimMemory), 7: _many(Identity), 10: _one(VictimMemory)},
    Probed: {0: _one(VictimMemory)},
    Accounted: {0: _one(VictimMemory), 1: _one(ChargedMemory)},
    Inquired: {0: _many(ThreadReport)},
    ThreadReport: {1: _bytes_of_text},
    Profiled: {0: _many(ProfileRow)},
    ProfilesPart: {0: _many(ProfileRow)},
    ProfileRow: {0: _one(Identity), 1: _one(Profile)},
    Profile: {0: _bytes_of_text, 1: _bytes_of_text, 4: Wish},
    UnitKilled: {0: _many(Identity)},
    ProfileOrder: {0: _many(Identity)},
    UnitOrder: {0: _many(Identity)},
    ReclaimOrder: {2: _one(Identity)},
    Reclaimed: {4: _one(Identity)},
    Outcome: {2: _bytes_of_text, 3: OutcomeKind, 12: _many(ThreadReport)},
}
_ORDER_READERS: dict[JobKind, Callable[..., Any]] = {
    JobKind.PROFILE: ProfileOrder,
    JobKind.KILL_UNIT: UnitOrder,
    JobKind.RECLAIM: ReclaimOrder,
}
