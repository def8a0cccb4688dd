"""A victim that cannot die: how near does the reaper come to the bare system calls?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench import others
from bench.figure import Figure, Plan, missing, rounds
from bench.observer import has_gone
from bench.ours import ours
from bench.records import Bar, Findings, Judge, Measure
from tests.victims import stage
from tests.victims.program import StageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.victims.staged import StagedVictim

_BAR = Bar(1.25)
_PAIRS = 11
_SIZE_MIB = 1024


class _Kind(NamedTuple):
    name: str
    title: str
    stage: Callable[..., AbstractContextManager[StagedVictim]]
    needs: tuple[str, ...] = ()


_KINDS = (
    _Kind("inode-lock", "D for an inode's lock", stage.inode_lock, ("userfaultfd",)),
    _Kind("fuse", "D in a FUSE read", stage.fuse_read, ("fuse",)),
    _Kind("frozen", "in a frozen v1 cgroup", stage.frozen_cgroup_v1, ("cgroup_v1_freezer",)),
    _Kind("starved", "SCHED_IDLE under busy loops", stage.starved_by_busy_loops, ("two_cpus", "negative_nice")),
    _Kind("parked", "parked in its exit by a tracer", stage.parked_in_exit, ("ptrace",)),
)


def _measure(plan: Plan) -> Findings:
    measures: list[Measure] = []
    lacks: list[str] = []
    size_bytes = plan.size_bytes(_SIZE_MIB)
    for kind in _KINDS:
        lacks_here = missing(kind.needs)
        if lacks_here:
            lacks += [f"{kind.title}: {lack}" for lack in lacks_here]
            continue
        reaped: list[float] = []
        bare: list[float] = []
        for number in rounds(plan.times(_PAIRS), f"stuck, {kind.title}"):
            for is_ours in (True, False) if number % 2 else (False, True):
                if is_ours:
                    reaped.append(_reap(kind, size_bytes))
                else:
                    bare.append(_strike(kind, size_bytes))
        sides = {"reaped": reaped, "bare calls in C": bare}
        measures.append(Measure(f"stuck-{kind.name}", kind.title, "ms", sides, Judge.PAIRED_RATIO, _BAR))
    return Findings(measures, missing=lacks)


def _reap(kind: _Kind, size_bytes: int) -> float:
    with ours() as stand_in, kind.stage(size_bytes=size_bytes) as target:
        stand_in.scout(target.pid)
        stand_in.kill(target.pid)
        served = stand_in.wait_settled(target.pid)
        served.must_be("reaped")
        # It helps the victim to leave right afterwards, out of a frozen group for one, so its own record has to tell
        # whether the victim was still there when its memory was back.
        _must_be_there(kind, is_there=served.outcome["still_dying"])
        return served.elapsed_ms


def _strike(kind: _Kind, size_bytes: int) -> float:
    with kind.stage(size_bytes=size_bytes) as target:
        bare = others.strike(target.pid)
        _must_be_there(kind, is_there=not has_gone(target.pidfd))
        return bare.released_ms


def _must_be_there(kind: _Kind, *, is_there: bool) -> None:
    if not is_there:
        message = f"a victim {kind.title} went by itself: the figure would mean nothing"
        raise StageError(message)


FIGURE = Figure(
    name="stuck",
    title="A stuck victim: reaped, against the bare system calls",
    method="""\
A victim of 1 GiB that SIGKILL alone does not free, made anew for each measurement by tests/victims. Either a crew whose
workers stand ready is handed it, or `bench/strike.c` runs: pidfd_open, pidfd_send_signal, process_mrelease, again
100 ms later while memory is there, at SCHED_FIFO 1 as the workers. The reaper's time is its `elapsed_ms`: from before
the signal until its memory is verified back. The C program's ends when its last process_mrelease returns, before
it looks at what is left. Both must leave the victim where it is stuck: one that has gone is no measurement.""",
    needs=("process_mrelease", "cc", "root"),
    measure=_measure,
)
