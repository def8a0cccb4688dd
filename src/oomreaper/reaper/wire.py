"""How jobs and reports are written on a socket. Pure.

A message is one JSON array on a SOCK_SEQPACKET socket, so it arrives whole or not at all. Names out of the kernel
travel as latin-1 text: every byte string survives. A scouting with many sharers comes in parts. JSON and no
pickle: what comes from a process that looked at hostile names is data and can be nothing else.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from oomreaper.model.identity import Identity
from oomreaper.model.memory import ChargedMemory, VictimMemory
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.process import Process, Scouting, Sharer, ThreadReport
from oomreaper.reaper.jobs import (
    Accounted,
    Hello,
    Helped,
    Inquired,
    Job,
    JobKind,
    Probed,
    Report,
    Scouted,
    SharersPart,
    Struck,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# One part of a long list of sharers. 500 rows are about 20 KB, well below a socket's default buffer (208 KiB).
SHARERS_A_PART = 500
MESSAGE_LIMIT_BYTES = 128 * 1024


def encode_job(job: Job) -> bytes:
    """A job as one message."""
    return json.dumps(job).encode()


def decode_job(message: bytes) -> Job:
    """A message as a job."""
    kind, pid, start_time_ticks, sharer_pids, *rest = json.loads(message)
    return Job(JobKind(kind), pid, start_time_ticks, tuple(sharer_pids), *rest)


def encode_report(report: Report | SharersPart | Outcome) -> bytes:
    """A report as one message. A Scouted must not carry more than SHARERS_A_PART sharers."""
    return json.dumps([type(report).__name__, *report], default=_text_of_bytes).encode()


def decode_report(message: bytes) -> Report | SharersPart | Outcome:
    """A message as a report.

    Raises:
        ValueError, TypeError, KeyError: It is none; a worker that sends such a thing is broken.
    """
    name, *fields = json.loads(message)
    report: Report | SharersPart | Outcome = _rebuild(_REPORT_BY_NAME[name], fields)
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


_REPORTS = (Hello, Scouted, Struck, Probed, Accounted, Helped, Inquired, SharersPart, Outcome)
_REPORT_BY_NAME = {kind.__name__: kind for kind in _REPORTS}
# Which fields of which value are values themselves, by position. A round-trip test covers every row.
_FIELD_READERS: dict[Any, dict[int, Callable[[Any], Any]]] = {
    Scouted: {0: _one(Scouting)},
    Scouting: {0: _one(Process), 1: _one(VictimMemory), 2: _one(ChargedMemory), 3: _many(Sharer)},
    Process: {0: _one(Identity), 1: _bytes_of_text},
    SharersPart: {0: _many(Sharer)},
    Sharer: {0: _one(Identity)},
    Struck: {5: _one(VictimMemory), 7: _many(Identity)},
    Probed: {0: _one(VictimMemory)},
    Accounted: {0: _one(VictimMemory), 1: _one(ChargedMemory)},
    Inquired: {0: _many(ThreadReport)},
    ThreadReport: {1: _bytes_of_text},
    Outcome: {2: _bytes_of_text, 3: OutcomeKind, 12: _many(ThreadReport)},
}
