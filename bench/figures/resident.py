"""What it costs to stand ready: the memory of a crew and its parent."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

from bench import footprint
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
_COMMAND_LIMIT_S = 20.0


def _measure(plan: Plan) -> Findings:
    fresh: list[footprint.Total] = []
    used: list[footprint.Total] = []
    command: list[footprint.Total] = []
    first_faults: list[float] = []
    later_faults: list[float] = []
    tables: list[Table] = []
    lacks = missing(("ptrace",))
    for _ in rounds(plan.times(_REPEATS), "resident"):
        with ours() as stand_in:
            group = [stand_in.pid, *stand_in.worker_pids]
            fresh.append(footprint.total([footprint.read(pid) for pid in group]))
            # Workers take turns, so that in two rounds each has looked at a victim and killed one.
            faults = [_serve(stand_in, group, plan.size_bytes(_VICTIM_MIB)) for _ in range(2 * len(group))]
            first_faults.append(faults[0])
            later_faults.append(faults[-1])
            parts = [footprint.read(pid) for pid in group]
            used.append(footprint.total(parts))
        tables = [footprint.table("A crew and its parent that have served victims, by process", parts, _names(parts))]
        if not lacks:
            parts = _read_command(plan.size_bytes(_VICTIM_MIB))
            command.append(footprint.total(parts))
            tables.append(footprint.table("`oomreaper reap PID PID` at work, by process", parts, _names(parts)))
    measures = [
        *footprint.measures_of("resident", "crew, after work", used, _BAR),
        *footprint.measures_of("fresh", "crew, fresh", fresh),
    ]
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
        measures += footprint.measures_of("command", "`oomreaper reap PID PID`", command)
    return Findings(measures, tables, lacks)


def _serve(stand_in: Ours, group: Sequence[int], size_bytes: int) -> int:
    """Have a victim killed; how many page faults that cost the crew and its parent."""
    with stage.plain(size_bytes=size_bytes) as target:
        stand_in.scout(target.pid)
        before = _count_faults(group)
        stand_in.kill(target.pid)
        stand_in.wait_settled(target.pid)
        return _count_faults(group) - before


def _count_faults(group: Sequence[int]) -> int:
    """Minor and major, of all of them."""
    return sum(sum(footprint.count_faults(pid)) for pid in group)


def _names(parts: Sequence[footprint.Footprint]) -> list[str]:
    return ["parent", *(f"worker {number}" for number in range(1, len(parts)))]


def _read_command(size_bytes: int) -> list[footprint.Footprint]:
    """The command and its workers while it waits for two victims to leave: after the work, before the end."""
    with contextlib.ExitStack() as stack:
        victims = [stack.enter_context(stage.parked_in_exit(size_bytes=size_bytes)) for _ in range(2)]
        command = [sys.executable, "-m", "oomreaper", "reap", *(str(target.pid) for target in victims)]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        with attentive():
            if not processes.wait_until(lambda: not any(each.anon_bytes() for each in victims), _COMMAND_LIMIT_S):
                message = "the command did not reap its victims"
                raise StageError(message)
            return [footprint.read(pid) for pid in (process.pid, *processes.children_of(process.pid))]


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
