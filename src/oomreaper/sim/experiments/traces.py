"""A run as a file: every step as JSON, and as a trace that ui.perfetto.dev and chrome://tracing show. Pure.

The second is the Trace Event Format: one row for each actor (a process of the model is a process there, its threads
threads), a slice for as long as it ran without a pause and for as long as it slept, on what; kills and marks as
instants; memory as counters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from oomreaper.sim.engine import TraceLine
    from oomreaper.sim.experiments.recording import MemorySample

_NS_IN_US = 1_000
_WAITS, _GOES_ON, _ENDS = "waits: ", "goes on", "ends"


def as_json(head: dict[str, Any], lines: Sequence[TraceLine], samples: Sequence[MemorySample]) -> dict[str, Any]:
    """Everything, by names."""
    return {
        **head,
        "memory": [sample._asdict() for sample in samples],
        "trace": [line._asdict() for line in lines],
    }


def as_chrome(lines: Sequence[TraceLine], samples: Sequence[MemorySample]) -> dict[str, Any]:
    """For Perfetto."""
    return {"displayTimeUnit": "ms", "traceEvents": list(_events(lines, samples))}


def _events(lines: Sequence[TraceLine], samples: Sequence[MemorySample]) -> Iterator[dict[str, Any]]:
    start_ns = min((line.now_ns for line in lines), default=0)
    if samples:
        start_ns = min(start_ns, samples[0].now_ns) if lines else samples[0].now_ns
    rows = {name: number for number, name in enumerate(dict.fromkeys(line.actor for line in lines), start=1)}
    for name, number in rows.items():
        pid, tid = _place(name, number)
        yield {
            "ph": "M",
            "name": "process_name",
            "pid": pid,
            "tid": tid,
            "args": {"name": name.rpartition("/")[0] or name},
        }
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
    begun: dict[str, tuple[float, str]] = {}
    for line in lines:
        at_us = (line.now_ns - start_ns) / _NS_IN_US
        pid, tid = _place(line.actor, rows[line.actor])
        if line.what.startswith(_WAITS) or line.what in (_GOES_ON, _ENDS):
            what = line.what.removeprefix(_WAITS) if line.what.startswith(_WAITS) else "runs"
            since_us, before = begun.get(line.actor, (at_us, "runs"))
            if line.what == _ENDS:
                yield _slice(before, since_us, at_us, pid, tid)
                begun.pop(line.actor, None)
            elif what != before:
                yield _slice(before, since_us, at_us, pid, tid)
                begun[line.actor] = at_us, what
            else:
                begun.setdefault(line.actor, (at_us, what))
        else:
            yield {"ph": "i", "s": "g", "name": line.what, "ts": at_us, "pid": pid, "tid": tid}
    if lines:
        end_us = (lines[-1].now_ns - start_ns) / _NS_IN_US
        for actor, (since_us, what) in begun.items():
            yield _slice(what, since_us, end_us, *_place(actor, rows[actor]))
    for sample in samples:
        at_us = (sample.now_ns - start_ns) / _NS_IN_US
        counts = {"free": sample.free_bytes, "anonymous": sample.anon_bytes, "swap": sample.swap_bytes}
        yield {"ph": "C", "name": "memory", "ts": at_us, "pid": 0, "args": counts}


def _slice(name: str, since_us: float, until_us: float, pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": since_us, "dur": max(0.0, until_us - since_us), "pid": pid, "tid": tid}


def _place(actor: str, number: int) -> tuple[int, int]:
    """An actor's pid and tid: ``hog[101]/103`` has both in its name; whoever has not gets its row's number."""
    head, _, tid = actor.rpartition("/")
    _, _, pid = head.rpartition("[")
    if tid.isdigit() and pid.rstrip("]").isdigit():
        return int(pid.rstrip("]")), int(tid)
    return 0, number
