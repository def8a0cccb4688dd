"""The records that the watcher tells the outside: one JSON object for each thing that happened. Pure.

What it knows: which fields an event has, and which of them are not for everybody. What it refuses to know: who listens
(``outlet``), how a line in the journal reads (``log``), what time it is (that comes in).

Every record has ``version``, ``event``, ``incident``, ``time`` (RFC 3339, UTC, milliseconds) and ``monotonic_ns``; the
others are None where this machine does not tell. Names are made printable here, and lists are cut here, so that a
record is small and is text, whatever the kernel was told by a hostile program.

Three things are only for root, the watcher's own user and the owner of the process: its command line, the path of its
program (which /proc shows to its owner only) and where its threads stand (that line of /proc holds addresses).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.model.outcome import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oomreaper.model.decision import DueStep, RankedProcess
    from oomreaper.model.outcome import Outcome
    from oomreaper.model.sample import ProcessSample, ScopeSample

VERSION = 1
_NS_IN_SECOND = 1_000_000_000
_NS_IN_MS = 1_000_000
# A unit of killing may have thousands of members; the record names some and counts all, and stays below 16 KiB.
_MEMBERS_NAMED = 200
# What a record may show of one command line; what is longer is a generated one, and nobody reads it to the end.
_COMMAND_LINE_CHARS = 2048
_REASON_CHARS = 2048
_THREADS_NAMED = 50


class Moment(NamedTuple):
    """When: CLOCK_REALTIME, for people, and CLOCK_MONOTONIC, for whoever compares two records."""

    wall_ns: int
    monotonic_ns: int


class Record(NamedTuple):
    """What is told to everybody, and what only to root and to ``owner_uid`` (None: to root and our own user only)."""

    fields: dict[str, object]
    secret: dict[str, object] | None = None
    owner_uid: int | None = None

    @property
    def whole(self) -> dict[str, object]:
        """All fields, for a reader who may see them: the journal."""
        return {**self.fields, **(self.secret or {})}


def announce(
    moment: Moment,
    incident: str | None,
    due: DueStep,
    ranked: RankedProcess,
    *,
    members: Sequence[ProcessSample] = (),
    signal_name: str = "SIGKILL",
    hook: str | None = None,
    available_bytes: int | None = None,
) -> Record:
    """A victim is about to be signalled. ``hook`` is what a pre-kill hook's acknowledgement is to name."""
    fields = _head("announce", moment, incident)
    fields |= _of_step(due)
    fields |= _of_process(ranked.process)
    fields |= {
        "signal": signal_name,
        "available_bytes": available_bytes,
        "points": round(ranked.points),
        "why": [_cut(reason) for reason in ranked.reasons],
        "unit": ranked.unit.value,
        "unit_key": _cut(ranked.unit_key),
        "members": [member.identity.pid for member in members[:_MEMBERS_NAMED]],
        "member_count": len(members),
    }
    if hook is not None:
        fields["hook"] = hook
    return _with_secret(fields, ranked.process)


def killed(
    moment: Moment, incident: str | None, due: DueStep, process: ProcessSample, *, signal_name: str = "SIGKILL"
) -> Record:
    """The signal has been sent."""
    fields = _head("killed", moment, incident)
    fields |= {"rule": due.rule.name, "scope": _cut(due.scope), "signal": signal_name}
    fields |= _of_process(process)
    return Record(fields, None, process.uid)


def settled(
    moment: Moment,
    incident: str | None,
    outcome: Outcome,
    *,
    rule: str | None = None,
    scope: str | None = None,
    process: ProcessSample | None = None,
) -> Record:
    """It ended: the fields of ``oomreaper reap``, and ``uid``."""
    whole = outcome.as_json()
    threads = whole.pop("threads", None)
    sharers = list(outcome.sharers)
    whole |= {"sharers": sharers[:_MEMBERS_NAMED], "sharer_count": len(sharers), "reason": _cut(outcome.reason)}
    uid = None if process is None else process.uid
    fields = _head("settled", moment, incident)
    fields |= {"rule": rule, "scope": None if scope is None else _cut(scope), "uid": uid}
    fields |= whole
    secret: dict[str, object] | None = None
    if isinstance(threads, list) and threads:
        secret = {"threads": threads[:_THREADS_NAMED]}
        fields["thread_count"] = len(threads)
    return Record(fields, secret, uid)


def warning(moment: Moment, text: str, *, scope: str | None = None, incident: str | None = None) -> Record:
    """Something that people should know: memory is getting short, something was lost or refused."""
    fields = _head("warning", moment, incident)
    return Record(fields | {"scope": None if scope is None else _cut(scope), "text": _cut(text)})


def skipped(
    moment: Moment,
    text: str,
    *,
    scope: str | None = None,
    incident: str | None = None,
    process: ProcessSample | None = None,
) -> Record:
    """Nothing was done, and why; ``process`` where it concerns one."""
    fields = _head("skipped", moment, incident)
    fields |= {"scope": None if scope is None else _cut(scope), "text": _cut(text)}
    if process is not None:
        fields |= _of_process(process)
    return Record(fields)


def state(moment: Moment, details: dict[str, object], *, scopes: Sequence[ScopeSample] = ()) -> Record:
    """The answer to ``{"ask": "state"}``: the numbers of each scope, and ``details`` that the caller has composed.

    ``details`` must be plain values, without what the asker may not see: ``describe(process, may_see=...)``.
    """
    fields = _head("state", moment, None)
    fields["scopes"] = [{**sample._asdict(), "scope": _cut(sample.scope)} for sample in scopes]
    return Record(fields | details)


def describe(process: ProcessSample, *, may_see: bool) -> dict[str, object]:
    """One process as plain values, for lists of them; command line and program only for who ``may_see`` them."""
    fields = _of_process(process)
    return fields | (_secret_of(process) or {}) if may_see else fields


def format_time(wall_ns: int) -> str:
    """RFC 3339 in UTC with milliseconds. A clock before 1970 or after 9999 is shown as the nearest of these."""
    milliseconds = max(0, min(wall_ns // _NS_IN_MS, 253_402_300_799_999))
    moment = time.gmtime(milliseconds // 1000)
    day = f"{moment.tm_year:04}-{moment.tm_mon:02}-{moment.tm_mday:02}"
    return f"{day}T{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}.{milliseconds % 1000:03}Z"


def _head(event: str, moment: Moment, incident: str | None) -> dict[str, object]:
    return {
        "version": VERSION,
        "event": event,
        "incident": incident,
        "time": format_time(moment.wall_ns),
        "monotonic_ns": moment.monotonic_ns,
    }


def _of_step(due: DueStep) -> dict[str, object]:
    return {
        "rule": due.rule.name,
        "scope": _cut(due.scope),
        "step": due.step.kind.value,
        "position": due.position,
        "reason": _cut(due.reason),
    }


def _of_process(process: ProcessSample) -> dict[str, object]:
    profile = process.profile
    return {
        "pid": process.identity.pid,
        "start_time_ticks": process.identity.start_time_ticks,
        "comm": printable(process.comm),
        "uid": process.uid,
        "oom_score_adj": process.oom_score_adj,
        "gain_bytes": process.gain_bytes,
        "anon_bytes": process.anon_bytes,
        "swap_bytes": process.swap_bytes,
        "page_table_bytes": process.page_table_bytes,
        "shmem_bytes": process.shmem_bytes,
        "growth_bytes": process.growth_bytes,
        "age_seconds": round(process.age_seconds, 1),
        "cgroup": None if profile is None or profile.cgroup is None else _cut(profile.cgroup),
    }


def _secret_of(process: ProcessSample) -> dict[str, object] | None:
    profile = process.profile
    if profile is None or (profile.cmdline is None and profile.exe is None):
        return None
    return {
        "cmdline": None if profile.cmdline is None else printable(profile.cmdline[:_COMMAND_LINE_CHARS]),
        "exe": None if profile.exe is None else printable(profile.exe[:_COMMAND_LINE_CHARS]),
    }


def _with_secret(fields: dict[str, object], process: ProcessSample) -> Record:
    return Record(fields, _secret_of(process), process.uid)


def _cut(text: str) -> str:
    """Text that may hold a path out of the kernel: printable, and not without end."""
    return printable(text[:_REASON_CHARS].encode("utf-8", "surrogateescape"))
