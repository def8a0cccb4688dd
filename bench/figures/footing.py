"""What a watcher holds while it stands ready, and how soon it does."""

from __future__ import annotations

from bench import footprint, peers
from bench.figure import Figure, Plan, rounds
from bench.records import Bar, Findings, Judge, Measure, Table
from bench.watchers import fill, running
from tests.real.watching import memory_group

_BAR = Bar(16.0)
_REPEATS = 5
_NS_IN_MS = 1_000_000
_KIB_IN_MIB = 1024
_LIMIT_MIB = 64
# Workers take turns, so that in two rounds each of the three has killed twice.
_VICTIMS = 6
_CROSSING, _FULL = 0.7, 0.9
_CONFIG = """\
[[rule]]
name = "level"
when = ["mem_available < 30%"]
then = ["kill"]
"""


def _measure(plan: Plan) -> Findings:
    lacks = [*peers.missing_earlyoom(), *peers.missing_nohang()]
    fresh: list[footprint.Total] = []
    used: list[footprint.Total] = []
    earlyoom: list[footprint.Total] = []
    nohang: list[float] = []
    start_ms: list[float] = []
    earlyoom_start_ms: list[float] = []
    tables: list[Table] = []
    for _ in rounds(plan.times(_REPEATS), "a watcher's memory"):
        with memory_group(_LIMIT_MIB) as group, running(config=_CONFIG, group=group) as watcher:
            start_ms.append(watcher.ready_ns / _NS_IN_MS)
            fresh.append(footprint.total([footprint.read(pid) for pid in watcher.pids]))
            limit_bytes = group.limit_bytes
            for _number in range(_VICTIMS):
                fill(group, crossing_bytes=int(limit_bytes * _CROSSING), target_bytes=int(limit_bytes * _FULL))
            parts = [footprint.read(pid) for pid in watcher.pids]
            used.append(footprint.total(parts))
            names = ["watcher", *(f"worker {number}" for number in range(1, len(parts)))]
            tables = [footprint.table("A watcher that has served six victims, by process", parts, names)]
        if not peers.missing_earlyoom():
            earlyoom_start_ms.append(peers.time_earlyoom_start() / _NS_IN_MS)
            with peers.earlyoom() as peer:
                earlyoom.append(footprint.total([footprint.read(peer.pid)]))
        if not peers.missing_nohang():
            nohang.append(peers.read_nohang_peak_kib() / _KIB_IN_MIB)
    measures = [
        *footprint.measures_of("footing", "watcher and workers, after work", used, _BAR),
        *footprint.measures_of("footing-fresh", "watcher and workers, fresh", fresh),
        Measure("footing-start", "start of the command to READY=1", "ms", {"ours": start_ms}, Judge.MEDIAN),
    ]
    if earlyoom:
        pss, dirty = [each.pss for each in earlyoom], [each.private_dirty for each in earlyoom]
        measures += [
            Measure("footing-earlyoom-pss", "earlyoom: PSS", "MiB", {peers.name_earlyoom(): pss}, Judge.MEDIAN),
            Measure(
                "footing-earlyoom-dirty", "earlyoom: private dirty", "MiB", {peers.name_earlyoom(): dirty}, Judge.MEDIAN
            ),
            Measure(
                "footing-earlyoom-start",
                "earlyoom: start to its first report",
                "ms",
                {peers.name_earlyoom(): earlyoom_start_ms},
                Judge.MEDIAN,
            ),
        ]
    if nohang:
        title = "nohang --check: the most that it held resident"
        measures.append(Measure("footing-nohang", title, "MiB", {"nohang": nohang}, Judge.MEDIAN))
    return Findings(measures, tables, lacks)


FIGURE = Figure(
    name="watch-footing",
    title="A watcher that stands ready: memory, and how soon it does",
    method="""\
Read from /proc/PID/smaps_rollup of a real watcher and its workers, within a control group of 64 MiB: right after
READY=1, and again when six hogs have been killed there, so that each worker has killed twice. As above, "were it the
only Python here" counts the interpreter's file pages in full once. The start is timed from right before the command is
executed until READY=1 arrives: the settings are read, the watcher replaces the command, workers are forked, each
rehearses kills on children of our own, memory is locked. earlyoom: an idle one, read in the same way, its start timed
until its first report. nohang is not run as a daemon here: what stands there is the largest resident set of
`nohang --check`, an upper bound of its PSS and a lower bound of what its daemon holds.""",
    needs=("process_mrelease", "cc", "root", "cgroup_v1_memory"),
    measure=_measure,
)
