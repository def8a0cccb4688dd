"""Who is first at a healthy victim's address space: the reaper, or the victim's own exit?"""

from __future__ import annotations

from bench.figure import Figure, Plan, missing, rounds
from bench.figures.healthy import reap_and_watch
from bench.ours import ours
from bench.records import Bar, Findings, Judge, Measure
from tests.victims import stage

_BAR = Bar(95, is_floor=True)
_NS_IN_MS = 1_000_000
# Size, priority, victims. The bar speaks of 100 victims at real-time priority; the rest is for the table.
_SERIES = ((256, "fifo", 100), (1024, "fifo", 60), (256, "nice", 40), (256, "ordinary", 40))
_PRIORITIES = {
    "fifo": "SCHED_FIFO 1",
    "nice": "nice -20, real time refused",
    "ordinary": "ordinary priority, both refused",
}


def _measure(plan: Plan) -> Findings:
    measures: list[Measure] = []
    lacks = missing(("sched_fifo",))
    for size_mib, priority, usual in _SERIES:
        if priority == "fifo" and lacks:
            continue
        answers: list[float] = []
        gone_ms: list[float] = []
        title = f"{size_mib} MiB, {_PRIORITIES[priority]}"
        for _ in rounds(plan.times(usual), f"race, {title}"):
            with ours(priority) as stand_in, stage.plain(size_bytes=plan.size_bytes(size_mib)) as target:
                served, seen = reap_and_watch(stand_in, target, None)
                assert served.first_answer is not None
                assert served.signal_ns is not None
                answers.append(served.first_answer)
                gone_ms.append((seen.gone_ns - served.signal_ns) / _NS_IN_MS)
        name = f"race-{size_mib}-{priority}"
        bar = _BAR if priority == "fifo" else None
        measures += [
            Measure(
                name, f"{title}: process_mrelease answered 0", "errno", {"reaped": answers}, Judge.SHARE_OF_ZEROS, bar
            ),
            Measure(f"{name}-gone", f"{title}: signal to process gone", "ms", {"reaped": gone_ms}, Judge.MEDIAN),
        ]
    return Findings(measures, missing=lacks)


FIGURE = Figure(
    name="race",
    title="The race with the victim's own exit",
    method="""\
Healthy victims one after the other, each met by a fresh crew. Counted is the answer to the first process_mrelease:
0 means that the worker was at the address space before the victim's exit had taken it away, ESRCH (errno 3) that it
came too late, so that the victim freed its memory alone. The bench takes SCHED_FIFO, then nice -20 as well, away from
the workers to show what each is worth.""",
    needs=("process_mrelease", "cc"),
    measure=_measure,
)
