"""How long it takes to choose: with a hundred processes, with a thousand, with ten thousand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oomreaper
from bench import peers
from bench.figure import Figure, Plan, rounds
from bench.machine import ROOT
from bench.records import Bar, Findings, Judge, Measure
from bench.sleeping import sleepers
from tests.victims import stage
from tests.victims.program import StageError, run_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

_BAR = Bar(0.10)
_COUNTS = (100, 1_000, 10_000)
_QUICK_COUNTS = (30,)
_ROUNDS = 3
# In each round so many of ours, and then so many of theirs.
_IN_A_ROUND = 10
_QUICK_IN_A_ROUND = 2
_HOG_MIB = 512
_NS_IN_MS = 1_000_000
_SOURCE = str(Path(oomreaper.__file__).resolve().parent.parent)
_START = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from bench import decider; decider.serve(sys.argv[1:])"
# Near its threshold wherever at least half of the memory is available, and not holding there.
_CONFIG = """\
[[rule]]
name = "near"
when = ["mem_available < 50%"]
then = ["kill"]
"""


def _measure(plan: Plan) -> Findings:
    lacks = [*peers.missing_earlyoom(), *peers.missing_nohang()]
    measures: list[Measure] = []
    file = _write_plan()
    counts = _QUICK_COUNTS if plan.is_quick else _COUNTS
    for count in counts:
        youth = {"youth_s": 0.0} if plan.is_quick else {}
        with sleepers(count, **youth):
            with stage.plain(size_bytes=plan.size_bytes(_HOG_MIB)) as hog:
                measures += _compare(plan, count, file, hog.pid)
            if count == counts[-1]:
                everybody = _rank_everybody(plan, count, file)
                if everybody is None:
                    lacks.append("a decision with nobody large: somebody large was here, who is not the bench's")
                else:
                    measures.append(everybody)
    return Findings(measures, missing=lacks)


def _compare(plan: Plan, count: int, file: Path, hog: int) -> list[Measure]:
    in_a_round = _QUICK_IN_A_ROUND if plan.is_quick else _IN_A_ROUND
    decision_ms: list[float] = []
    look_ms: list[float] = []
    earlyoom_ms: list[float] = []
    nohang_ms: list[float] = []
    for _ in rounds(plan.times(_ROUNDS), f"decision, {count} processes"):
        found = _decide(file, in_a_round)
        if not plan.is_quick and found["best_pid"] != hog:
            message = f"the hog {hog} was to be the best victim: {found}"
            raise StageError(message)
        decision_ms += _in_ms(found["decision_ns"])
        look_ms += _in_ms(found["look_ns"])
        if not peers.missing_earlyoom():
            earlyoom_ms += _in_ms(peers.time_earlyoom_scans(in_a_round))
        if not peers.missing_nohang():
            nohang_ms.append(peers.time_nohang_scan() / _NS_IN_MS)
    title = f"{count:,} processes"
    bar = _BAR if count == _COUNTS[-1] else None
    decided = f"{title}: a decision"
    measures = [
        Measure(
            f"decision-{count}",
            f"{decided}, against earlyoom's scan",
            "ms",
            {"ours": decision_ms, peers.name_earlyoom(): earlyoom_ms},
            Judge.PAIRED_RATIO,
            bar,
        )
        if earlyoom_ms
        else Measure(f"decision-{count}", decided, "ms", {"ours": decision_ms}, Judge.MEDIAN)
    ]
    look = f"{title}: a look near a threshold (numbers, front, 256 of the others)"
    measures.append(Measure(f"decision-{count}-look", look, "ms", {"ours": look_ms}, Judge.MEDIAN))
    if nohang_ms:
        scan = f"{title}: one scan by nohang --tasks"
        measures.append(Measure(f"decision-{count}-nohang", scan, "ms", {"nohang": nohang_ms}, Judge.MEDIAN))
    return measures


def _rank_everybody(plan: Plan, count: int, file: Path) -> Measure | None:
    """Nobody is large: the largest do not account for what is used, so everybody is ranked."""
    found = _decide(file, _QUICK_IN_A_ROUND if plan.is_quick else _IN_A_ROUND)
    if found["best_pid"] is not None:
        return None
    title = f"{count:,} processes and none of them large, so that everybody is ranked: a decision"
    return Measure(f"decision-{count}-all", title, "ms", {"ours": _in_ms(found["decision_ns"])}, Judge.MEDIAN)


def _write_plan() -> Path:
    """The plan as ``oomreaper run`` would hand it over."""
    config, file = run_directory() / "near.toml", run_directory() / "near.plan"
    config.write_text(_CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "oomreaper", "run", "--print-plan", "--config", str(config), "--events", ""]
    file.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    return file


def _decide(file: Path, count: int) -> dict[str, Any]:
    command = [sys.executable, "-I", "-S", "-c", _START, f"{_SOURCE}:{ROOT}", str(file), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"the decider ended with {done.returncode}: {done.stderr}"
        raise StageError(message)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _in_ms(times_ns: Sequence[int]) -> list[float]:
    return [time_ns / _NS_IN_MS for time_ns in times_ns]


FIGURE = Figure(
    name="watch-decision",
    title="Choosing a victim among 100, 1,000 and 10,000 processes",
    method="""\
So many real processes sleep, of 16 sizes, for longer than the 15 s in which all that one has counts as growth; one
more holds 512 MiB. A real watcher in dry run, resident and warmed up, is near its threshold the whole time; after each
of its looks it decides once more on the numbers just read (the front read, ranked, the leaders read exactly, ranked
again, and who dies with the best), and that is timed from within. In turn with it, earlyoom (in dry run, thresholds at
which it believes every machine short) goes through all processes; its time is that between the line in which it says
that memory is low and the line in which it names its victim, as read from its pipe, with nothing printed in between.
nohang has no dry run and is not run as a daemon: what stands there is the time that `nohang --tasks` gives for its
one scan, in whole milliseconds.""",
    needs=("process_mrelease", "cc"),
    measure=_measure,
)
