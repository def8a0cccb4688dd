"""From the moment in which the threshold is crossed to the signal."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import footprint, others
from bench.figure import Figure, Plan, rounds
from bench.records import Bar, Findings, Judge, Measure
from bench.watchers import fill, running
from tests.real.watching import memory_group
from tests.victims.program import MIB, StageError, fresh_name, run_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.watchers import Running
    from tests.real.watching import Group

_BAR = Bar(5.0)
_NO_MAJOR = Bar(0)
_REPEATS = 120
_NS_IN_MS = 1_000_000
_US_IN_MS = 1_000
_CONTROL_S = 8
_LIMIT_MIB = 256
# Fast enough that it was born half a second ago and nobody was looked at ahead, and slow enough that everybody was.
_SPEEDS = ((0, "as fast as it can"), (256 * MIB, "at 256 MiB a second"))
_THRESHOLD = 0.10
_ROOM_LEFT_BYTES = 8 * MIB  # the hog stops there: at the limit itself it would sleep, and see no clock
_CONFIG = f"""\
[[rule]]
name = "level"
when = ["mem_available < {_THRESHOLD:.0%}"]
then = ["kill"]
"""
_RECORD_LIMIT_S = 10.0
_RUNS_A_GROUP = 30
# Somebody else who is to live, and so that the group is never empty. It is ended with the group.
_BYSTANDER = "time.sleep(600)"


class _Run(NamedTuple):
    """One hog. Times are CLOCK_MONOTONIC in ns."""

    crossed_ns: int
    decided_ns: int
    signalled_ns: int
    last_ns: int
    minor_faults: int
    worker_minor_faults: int
    major_faults: int


def _measure(plan: Plan) -> Findings:
    measures: list[Measure] = []
    runs: list[_Run] = []
    late_ms: list[float] = []
    for speed, words in _SPEEDS:
        some: list[_Run] = []
        left = rounds(plan.times(_REPEATS), f"threshold to signal, {words}")
        while len(some) < plan.times(_REPEATS):
            some += _measure_some(left, speed, late_ms)
        runs += some
        name = f"reaction-{speed // MIB}"
        hog = f"a hog {words}"
        measures += [
            Measure(f"{name}-signal", f"{hog}: crossed to signal sent", "ms", _ms(some, 0, 2), Judge.P99, _BAR),
            Measure(f"{name}-median", f"{hog}: crossed to signal sent, median", "ms", _ms(some, 0, 2), Judge.MEDIAN),
            Measure(f"{name}-notice", f"{hog}: crossed to the look that sees it", "ms", _ms(some, 0, 1), Judge.P99),
            Measure(f"{name}-act", f"{hog}: from that look to signal sent", "ms", _ms(some, 1, 2), Judge.P99),
            Measure(f"{name}-last", f"{hog}: crossed to its own last sign of life", "ms", _ms(some, 0, 3), Judge.P99),
        ]
    control = "a bare real-time sleeper meanwhile: the latest of five wake-ups in a row"
    measures.append(Measure("reaction-control", control, "ms", {"C": late_ms}, Judge.P99))
    measures += [
        _faults("major", "watcher and workers: major page faults of a kill", [run.major_faults for run in runs]),
        _faults("watcher", "watcher: minor page faults of a kill", [run.minor_faults for run in runs]),
        _faults("workers", "three workers: minor page faults of a kill", [run.worker_minor_faults for run in runs]),
    ]
    return Findings(measures)


def _measure_some(left: Iterable[int], speed: int, late_ms: list[float]) -> list[_Run]:
    """So many as a group lives for: a guard removes it after less than a minute, whatever becomes of us."""
    control = subprocess.Popen([others.compiled("lateness"), str(_CONTROL_S)], stdout=subprocess.PIPE, text=True)
    with memory_group(_LIMIT_MIB) as group:
        bystander = group.start(_BYSTANDER)
        events = run_directory() / f"{fresh_name()}.sock"
        with running(config=_CONFIG, events=events, group=group) as watcher, _listen(str(events)) as connection:
            some = [_run(group, watcher, connection, speed) for _ in itertools.islice(left, _RUNS_A_GROUP)]
            # A moment before the group is removed: the kernel lets go of a group after whoever waited has gone on.
            bystander.process.kill()
            bystander.wait()
    said, _ = control.communicate(timeout=_CONTROL_S + _RECORD_LIMIT_S)
    late_ms += [int(line) / _US_IN_MS for line in said.split()]
    return some


def _faults(name: str, title: str, counts: Sequence[int]) -> Measure:
    bar = _NO_MAJOR if name == "major" else None
    judge = Judge.LARGEST if name == "major" else Judge.MEDIAN
    return Measure(f"reaction-faults-{name}", title, "faults", {"ours": [float(count) for count in counts]}, judge, bar)


def _ms(runs: Sequence[_Run], begin: int, end: int) -> dict[str, list[float]]:
    return {"ours": [(run[end] - run[begin]) / _NS_IN_MS for run in runs]}


def _run(group: Group, watcher: Running, connection: socket.socket, speed: int) -> _Run:
    before = [footprint.count_faults(pid) for pid in watcher.pids]
    crossing_bytes = int(group.limit_bytes * (1 - _THRESHOLD))
    target_bytes = group.limit_bytes - _ROOM_LEFT_BYTES
    hog = fill(group, crossing_bytes=crossing_bytes, target_bytes=target_bytes, bytes_per_second=speed)
    told = _hear(connection, hog.pid)
    signalled_ns = told["killed"]["monotonic_ns"]  # by the clock of the worker, right before the call
    after = [footprint.count_faults(pid) for pid in watcher.pids]
    minor, *of_workers = (now.minor - then.minor for now, then in zip(after, before, strict=True))
    major = sum(now.major - then.major for now, then in zip(after, before, strict=True))
    decided_ns = told["announce"]["monotonic_ns"]
    return _Run(hog.crossed_ns, decided_ns, signalled_ns, hog.last_ns, minor, sum(of_workers), major)


def _listen(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    connection.settimeout(_RECORD_LIMIT_S)
    return connection


def _hear(connection: socket.socket, pid: int) -> dict[str, dict[str, Any]]:
    """What was told of a victim until it was settled."""
    told: dict[str, dict[str, Any]] = {}
    until_s = time.monotonic() + _RECORD_LIMIT_S
    while "settled" not in told and time.monotonic() < until_s:
        record = json.loads(connection.recv(1 << 20))
        if record.get("pid") == pid:
            told[record["event"]] = record
    if not {"announce", "killed", "settled"} <= told.keys():
        message = f"of the hog {pid} it was told no more than {sorted(told)}"
        raise StageError(message)
    return told


FIGURE = Figure(
    name="watch-reaction",
    title="From the threshold to SIGKILL",
    method="""\
A real watcher stays within a memory cgroup of 256 MiB, with one rule: below 10 % available, kill. A hog in C enters
the group and fills it, page by page; every 64 KiB it reads the group's charge, and notes the time at which that first
is over the threshold. Then it goes on, and notes the time until it is dead. The watcher tells when the look began that
saw it (`announce`), and when the worker sent the signal (`killed`: the worker's clock, right before the system call).
The hog's own last sign of life is the outside's view of the same: no later than the kernel takes to deliver the signal,
and earlier only if the hog stood still meanwhile. One hog after another is served by the same watcher; one CPU is the
hog's, so one is idle. Beside them, for eight seconds of each thirty hogs, `bench/lateness.c` does nothing but sleep for
1 ms at the watcher's priority: how late it wakes is what this machine adds to anybody's reaction.
Page faults are those of the watcher and of its three workers from before the hog's start until the record is there.""",
    needs=("process_mrelease", "cc", "root", "cgroup_v1_memory"),
    measure=_measure,
)
