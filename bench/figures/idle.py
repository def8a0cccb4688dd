"""What it costs to watch while nothing happens."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from bench import footprint, peers
from bench.figure import Figure, Plan, say
from bench.records import Bar, Findings, Judge, Measure, Table
from bench.sleeping import sleepers
from bench.watchers import running
from tests.victims.program import StageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_CPU_BAR = Bar(0.1)
_WAKES_BAR = Bar(2.0)
_SLEEPERS = 300
_MINUTE_S = 60.0
_QUICK_S = 2.0
# After the start: what is done once has been done.
_SETTLING_S = 6.0
_PER_CENT = 100
_NS_IN_S = 1_000_000_000


def _measure(plan: Plan) -> Findings:
    lacks = peers.missing_earlyoom()
    span_s = _QUICK_S if plan.is_quick else _MINUTE_S
    with contextlib.ExitStack() as stack:
        stack.enter_context(sleepers(_SLEEPERS, youth_s=0.0))
        watcher = stack.enter_context(running())
        pids = list(watcher.pids)
        names = ["watcher", *(f"worker {number}" for number in range(1, len(pids)))]
        if not lacks:
            pids.append(stack.enter_context(peers.earlyoom()).pid)
            names.append("earlyoom")
        time.sleep(0 if plan.is_quick else _SETTLING_S)
        say(f"  idle for {span_s:.0f} s")
        before, began_s = _read_efforts(pids, names), time.monotonic()
        time.sleep(span_s)
        after, took_s = _read_efforts(pids, names), time.monotonic() - began_s
    cpu_percent = [_PER_CENT * (b.ran_ns - a.ran_ns) / _NS_IN_S / took_s for a, b in zip(before, after, strict=True)]
    wakes = [(b.wakes - a.wakes) / took_s for a, b in zip(before, after, strict=True)]
    rows = [[name, f"{cpu:.3f}", f"{wake:.2f}"] for name, cpu, wake in zip(names, cpu_percent, wakes, strict=True)]
    table = Table("Process by process", ("process", "per cent of a core", "wake-ups a second"), rows)
    count = len(watcher.pids)
    measures = [
        _measure_of("cpu", "CPU of watcher and workers", sum(cpu_percent[:count]), _CPU_BAR),
        _measure_of("wakes", "wake-ups of watcher and workers", sum(wakes[:count]), _WAKES_BAR),
    ]
    if not lacks:
        peer = peers.name_earlyoom()
        measures.append(_measure_of("cpu-earlyoom", f"CPU of {peer}", cpu_percent[-1]))
        measures.append(_measure_of("wakes-earlyoom", f"wake-ups of {peer}", wakes[-1]))
    return Findings(measures, [table], lacks)


def _measure_of(name: str, title: str, value: float, bar: Bar | None = None) -> Measure:
    unit = "% of a core" if name.startswith("cpu") else "a second"
    side = "earlyoom" if name.endswith("earlyoom") else "ours"
    return Measure(f"idle-{name}", title, unit, {side: [value]}, Judge.MEDIAN, bar)


def _read_efforts(pids: Sequence[int], names: Sequence[str]) -> list[footprint.Effort]:
    efforts = []
    for pid, name in zip(pids, names, strict=True):
        try:
            efforts.append(footprint.read_effort(pid))
        except FileNotFoundError as error:
            message = f"{name} was to be idle, and ended"
            raise StageError(message) from error
    return efforts


FIGURE = Figure(
    name="watch-idle",
    title="Watching while nothing happens: CPU and wake-ups",
    method="""\
A watcher on its defaults, in dry run since it watches the machine that the bench runs on, and earlyoom with Debian's
arguments and its dry run, side by side for a minute, on a machine that has 300 more processes and nothing to do. CPU
time is what the scheduler counts in ns (/proc/PID/task/*/schedstat), wake-ups are voluntary context switches. The first
six seconds after the start are left out.""",
    needs=("process_mrelease", "cc"),
    measure=_measure,
)
