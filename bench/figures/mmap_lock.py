"""A victim whose mmap_lock is held for write: nobody can reap it. How soon is it left alone, and who waits for it?"""

from __future__ import annotations

import time

from bench.figure import Figure, Plan, rounds
from bench.ours import Ours, Served, ours
from bench.records import Bar, Findings, Judge, Measure
from tests.victims import stage

_GIVE_UP_BAR = Bar(1300.0)
_REPEATS = 7
_SIZE_MIB = 256
_NS_IN_MS = 1_000_000
# By then the first worker stands on the lock and has not been given up yet: attempts are 100 ms apart.
_MEANWHILE_S = 0.05


def _measure(plan: Plan) -> Findings:
    give_up_ms: list[float] = []
    meanwhile_ms: list[float] = []
    alone_ms: list[float] = []
    size_bytes = plan.size_bytes(_SIZE_MIB)
    for _ in rounds(plan.times(_REPEATS), "mmap_lock held"):
        with ours() as stand_in, stage.plain(size_bytes=size_bytes) as healthy:
            alone_ms.append(_from_submission_ms(_serve(stand_in, healthy.pid)))
        with (
            stage.mmap_lock_held(size_bytes=size_bytes) as (held,),
            ours() as stand_in,
            stage.plain(size_bytes=size_bytes) as healthy,
        ):
            stand_in.scout(held.pid)
            stand_in.kill(held.pid)
            time.sleep(_MEANWHILE_S)
            meanwhile_ms.append(_from_submission_ms(_serve(stand_in, healthy.pid)))
            given_up = stand_in.wait_settled(held.pid)
            given_up.must_be("unreapable")
            give_up_ms.append(given_up.elapsed_ms)
    meanwhile = {"while another is stuck": meanwhile_ms, "nobody stuck": alone_ms}
    return Findings(
        [
            Measure("mmap-lock-give-up", "until given up", "ms", {"held": give_up_ms}, Judge.LARGEST, _GIVE_UP_BAR),
            Measure(
                "mmap-lock-meanwhile",
                "a healthy victim, from handing over to verified",
                "ms",
                meanwhile,
                Judge.PAIRED_RATIO,
            ),
        ]
    )


def _serve(stand_in: Ours, pid: int) -> Served:
    stand_in.scout(pid)
    stand_in.kill(pid)
    served = stand_in.wait_settled(pid)
    served.must_be("reaped", "exited")
    return served


def _from_submission_ms(served: Served) -> float:
    return (served.settled_ns - served.submitted_ns) / _NS_IN_MS


FIGURE = Figure(
    name="mmap-lock",
    title="A victim that nobody can reap: mmap_lock held for write",
    method="""\
A thread of the victim stands in D on a frozen file system with mmap_lock held for write, so that every process_mrelease
blocks. Measured is the record's `elapsed_ms`: from the signal until the crew gives the victim up; the largest counts.
50 ms after it, a healthy victim of the same size is handed over, and timed from there until its record is written.
The same is timed with a crew that has nothing else to do.""",
    needs=("process_mrelease", "cc", "root", "loop_ext4"),
    measure=_measure,
)
