"""A healthy victim: is it worth anything to reap what would have died by itself?"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from bench import others
from bench.figure import Figure, Plan, rounds
from bench.observer import Charge, Seen, Watch, attentive
from bench.ours import Ours, Served, ours
from bench.records import Bar, Findings, Judge, Measure
from tests.victims.staged import victim
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.victims.staged import StagedVictim

_BAR = Bar(0.70)
_NS_IN_MS = 1_000_000
# Victims and pairs: 1 GiB is the bar's, 4 GiB shows whether it holds for large ones.
_SIZES_MIB = ((1024, 31), (4096, 11))


class _Times(NamedTuple):
    """One victim, from the signal."""

    memory_ms: float
    gone_ms: float
    own_ms: float
    handed_ms: float


def _measure(plan: Plan) -> Findings:
    measures: list[Measure] = []
    for size_mib, usual in _SIZES_MIB:
        size_bytes = plan.size_bytes(size_mib)
        reaped: list[_Times] = []
        alone: list[_Times] = []
        for number in rounds(plan.times(usual), f"healthy, {size_mib} MiB"):
            # The order alternates, so that what drifts during a run touches both sides alike.
            for is_ours in (True, False) if number % 2 else (False, True):
                if is_ours:
                    reaped.append(_reap(size_bytes))
                else:
                    alone.append(_kill_alone(size_bytes))
        label = f"{size_mib // 1024} GiB"
        measures += [
            _pair(
                "memory", f"{label}: memory back, seen from outside", _column(reaped, 0), _column(alone, 0), size_mib
            ),
            _pair("gone", f"{label}: process gone, seen from outside", _column(reaped, 1), _column(alone, 1), size_mib),
            _pair(
                "own",
                f"{label}: memory verified by the reaper (elapsed_ms), against memory back seen from outside",
                _column(reaped, 2),
                _column(alone, 0),
                size_mib,
            ),
            Measure(
                f"healthy-{size_mib}-handed",
                f"{label}: from handing over to the signal",
                "ms",
                {"reaped": _column(reaped, 3)},
                Judge.MEDIAN,
            ),
        ]
    return Findings(measures)


def _pair(name: str, title: str, reaped: list[float], alone: list[float], size_mib: int) -> Measure:
    sides = {"reaped": reaped, "SIGKILL alone": alone}
    bar = None if name == "gone" else _BAR
    return Measure(f"healthy-{size_mib}-{name}", title, "ms", sides, Judge.PAIRED_RATIO, bar)


def _column(times: list[_Times], index: int) -> list[float]:
    return [row[index] for row in times]


def _reap(size_bytes: int) -> _Times:
    with ours() as stand_in, staged_in_own_group(size_bytes) as (target, charge):
        served, seen = reap_and_watch(stand_in, target, charge)
        assert served.signal_ns is not None
        handed_ms = (served.signal_ns - served.submitted_ns) / _NS_IN_MS
        return _times(served.signal_ns, seen, own_ms=served.elapsed_ms, handed_ms=handed_ms)


def _kill_alone(size_bytes: int) -> _Times:
    with staged_in_own_group(size_bytes) as (target, charge), attentive():
        watch = Watch(target.pidfd, charge)
        signal_ns = others.sigkill(target.pidfd)
        return _times(signal_ns, watch.wait())


def _times(signal_ns: int, seen: Seen, *, own_ms: float = 0.0, handed_ms: float = 0.0) -> _Times:
    assert seen.memory_back_ns is not None
    memory_ms = (seen.memory_back_ns - signal_ns) / _NS_IN_MS
    return _Times(memory_ms, (seen.gone_ns - signal_ns) / _NS_IN_MS, own_ms, handed_ms)


def reap_and_watch(stand_in: Ours, target: StagedVictim, charge: Charge | None) -> tuple[Served, Seen]:
    """Have a victim served, watched from outside."""
    stand_in.scout(target.pid)
    with attentive():
        watch = Watch(target.pidfd, charge)
        stand_in.kill(target.pid)
        seen = watch.wait()
    served = stand_in.wait_settled(target.pid)
    served.must_be("reaped", "exited")
    return served, seen


@contextlib.contextmanager
def staged_in_own_group(size_bytes: int) -> Iterator[tuple[StagedVictim, Charge]]:
    """A sleeping victim in a memory cgroup of its own, whose charge shows from outside when its memory is back."""
    with own_cgroup("memory") as group, _staged(size_bytes, group) as target:
        charge = Charge(group)
        try:
            yield target, charge
        finally:
            charge.close()


@contextlib.contextmanager
def _staged(size_bytes: int, group: Path) -> Iterator[StagedVictim]:
    with victim("idle", size_bytes=size_bytes, cgroup=group) as target:
        target.wait_for_state("S")
        yield target


FIGURE = Figure(
    name="healthy",
    title="A healthy victim: reaped, against SIGKILL alone",
    method="""\
A process of one thread sleeps on 4 KiB anonymous pages (MADV_NOHUGEPAGE), in a memory cgroup of its own. Either a
crew whose workers stand ready is handed it (pidfd and scouting done before, as the watcher does for its leading
candidates), or it gets SIGKILL and nothing else. Pairs are interleaved and their order alternates; each reaped victim
meets a fresh crew, so that every one is a first. Time starts right before pidfd_send_signal on both sides. A third
process, SCHED_FIFO 2 and asleep between looks 0.5 ms apart, sees the cgroup's charge fall to a twentieth ("memory
back") and the pidfd become readable ("process gone"), the same way on both sides. The reaper's own account
(`elapsed_ms`, signal to memory verified) is compared with the same SIGKILL side.""",
    needs=("process_mrelease", "cc", "cgroup_v1_memory"),
    measure=_measure,
)
