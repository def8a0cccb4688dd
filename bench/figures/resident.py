"""What it costs to stand ready: the memory of a crew and its parent."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.figure import Figure, Plan, missing, rounds
from bench.observer import attentive
from bench.ours import Ours, ours
from bench.records import Bar, Findings, Judge, Measure, Table
from tests.victims import processes, stage
from tests.victims.program import StageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_BAR = Bar(16.0)
_REPEATS = 5
_VICTIM_MIB = 64
_KIB_IN_MIB = 1024
_COMMAND_LIMIT_S = 20.0


class Footprint(NamedTuple):
    """One process, in KiB, from smaps_rollup; ``file_rss_kib`` (RssFile, of status) is mostly the interpreter."""

    pss_kib: int
    pss_anon_kib: int
    private_dirty_kib: int
    locked_kib: int
    rss_kib: int
    file_rss_kib: int


class Total(NamedTuple):
    """A parent and its workers, in MiB. ``alone`` is the PSS if nobody else on the machine ran this interpreter."""

    pss: float
    anon: float
    alone: float
    private_dirty: float
    locked: float


def _measure(plan: Plan) -> Findings:
    fresh: list[Total] = []
    used: list[Total] = []
    command: list[Total] = []
    first_faults: list[float] = []
    later_faults: list[float] = []
    tables: list[Table] = []
    lacks = missing(("ptrace",))
    for _ in rounds(plan.times(_REPEATS), "resident"):
        with ours() as stand_in:
            group = [stand_in.pid, *stand_in.worker_pids]
            fresh.append(_total([_read(pid) for pid in group]))
            # Workers take turns, so that in two rounds each has looked at a victim and killed one.
            faults = [_serve(stand_in, group, plan.size_bytes(_VICTIM_MIB)) for _ in range(2 * len(group))]
            first_faults.append(faults[0])
            later_faults.append(faults[-1])
            parts = [_read(pid) for pid in group]
            used.append(_total(parts))
        tables = [_table("A crew and its parent that have served victims, by process", parts)]
        if not lacks:
            parts = _read_command(plan.size_bytes(_VICTIM_MIB))
            command.append(_total(parts))
            tables.append(_table("`oomreaper reap PID PID` at work, by process", parts))
    measures = [*_measures_of("resident", "crew, after work", used, _BAR), *_measures_of("fresh", "crew, fresh", fresh)]
    measures += [
        Measure(
            f"resident-faults-{name}",
            f"page faults from handing over to the record: {title}",
            "faults",
            {"ours": faults},
            Judge.MEDIAN,
        )
        for name, title, faults in (
            ("first", "the first victim of a crew", first_faults),
            ("later", "a victim after others", later_faults),
        )
    ]
    if command:
        measures += _measures_of("command", "`oomreaper reap PID PID`", command)
    return Findings(measures, tables, lacks)


def _serve(stand_in: Ours, group: Sequence[int], size_bytes: int) -> int:
    """Have a victim killed; how many page faults that cost the crew and its parent."""
    with stage.plain(size_bytes=size_bytes) as target:
        stand_in.scout(target.pid)
        before = sum(map(_count_faults, group))
        stand_in.kill(target.pid)
        stand_in.wait_settled(target.pid)
        return sum(map(_count_faults, group)) - before


def _count_faults(pid: int) -> int:
    """The page faults of a process so far, minor and major (fields 10 and 12 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return int(fields[7]) + int(fields[9])


def _measures_of(name: str, title: str, totals: Sequence[Total], bar: Bar | None = None) -> list[Measure]:
    columns = (
        ("pss", "PSS of all", bar),
        ("anon", "anonymous PSS of all", None),
        ("alone", "PSS of all, were it the only Python here", None),
        ("private-dirty", "private dirty of all", None),
        ("locked", "locked of all (smaps: Locked)", None),
    )
    return [
        Measure(
            f"{name}-{column}",
            f"{title}: {what}",
            "MiB",
            {"ours": [total[index] for total in totals]},
            Judge.MEDIAN,
            column_bar,
        )
        for index, (column, what, column_bar) in enumerate(columns)
    ]


def _total(parts: Sequence[Footprint]) -> Total:
    return Total(
        pss=sum(part.pss_kib for part in parts) / _KIB_IN_MIB,
        anon=sum(part.pss_anon_kib for part in parts) / _KIB_IN_MIB,
        alone=(sum(part.pss_anon_kib for part in parts) + max(part.file_rss_kib for part in parts)) / _KIB_IN_MIB,
        private_dirty=sum(part.private_dirty_kib for part in parts) / _KIB_IN_MIB,
        locked=sum(part.locked_kib for part in parts) / _KIB_IN_MIB,
    )


def _table(title: str, parts: Sequence[Footprint]) -> Table:
    names = ["parent", *(f"worker {number}" for number in range(1, len(parts)))]
    header = ("process", "PSS", "PSS anonymous", "private dirty", "locked", "RSS", "RSS file")
    rows = [[name, *(f"{kib / _KIB_IN_MIB:.2f}" for kib in part)] for name, part in zip(names, parts, strict=True)]
    return Table(f"{title} (MiB)", header, rows)


def _read(pid: int) -> Footprint:
    rollup = _kib_fields(Path(f"/proc/{pid}/smaps_rollup"))
    status = _kib_fields(Path(f"/proc/{pid}/status"))
    return Footprint(
        rollup["Pss"], rollup["Pss_Anon"], rollup["Private_Dirty"], rollup["Locked"], rollup["Rss"], status["RssFile"]
    )


def _kib_fields(path: Path) -> dict[str, int]:
    fields = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            fields[name] = int(value.removesuffix(" kB"))
    return fields


def _read_command(size_bytes: int) -> list[Footprint]:
    """The command and its workers while it waits for two victims to leave: after the work, before the end."""
    with contextlib.ExitStack() as stack:
        victims = [stack.enter_context(stage.parked_in_exit(size_bytes=size_bytes)) for _ in range(2)]
        command = [sys.executable, "-m", "oomreaper", "reap", *(str(target.pid) for target in victims)]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        with attentive():
            if not processes.wait_until(lambda: not any(each.anon_bytes() for each in victims), _COMMAND_LIMIT_S):
                message = "the command did not reap its victims"
                raise StageError(message)
            return [_read(pid) for pid in (process.pid, *processes.children_of(process.pid))]


FIGURE = Figure(
    name="resident",
    title="Standing ready: memory",
    method="""\
Read from /proc/PID/smaps_rollup of the parent and its three workers (two, and one spare), right after the workers are
ready and again when each has served victims of 64 MiB. The parent stands in for the watcher, which is yet to come: an
interpreter started with -I -S that has imported what an errand imports. All of them lock their memory.
PSS divides a shared page by the number of its users; the bench is one more of them for the interpreter's own pages, so
"were it the only Python here" counts those in full once: all anonymous PSS, and the largest RssFile. Page faults are
those of parent and workers between handing over a victim and its record: each wants memory at the moment in which there
is none.""",
    needs=("process_mrelease", "cc"),
    measure=_measure,
)
