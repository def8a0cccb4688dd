"""From the start of the command to its signal."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import oomreaper
from bench import others
from bench.figure import Figure, Plan, rounds
from bench.machine import ROOT
from bench.observer import attentive
from bench.records import Findings, Judge, Measure, Table
from tests.victims import processes, stage
from tests.victims.program import StageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_REPEATS = 20
_STEP_REPEATS = 10
_VICTIM_BYTES = 1 << 20
_NS_IN_MS = 1_000_000
_US_IN_MS = 1_000
_LIMIT_S = 20.0
_ROWS = 10
_BARE = (sys.executable, "-I", "-S", "-c", "pass")
_SOURCE = str(Path(oomreaper.__file__).resolve().parent.parent)
_COMMANDS = {
    "the console script": (str(Path(sys.executable).with_name("oomreaper")), "reap"),
    "python -m oomreaper": (sys.executable, "-m", "oomreaper", "reap"),
}
_LIBRARY = "oomreaper.reap(), from the call"
_IMPORT_ERRAND = "import sys; sys.path.append(sys.argv[1]); import oomreaper.watch.errand"


class _Import(NamedTuple):
    itself_ms: float
    in_all_ms: float


def _measure(plan: Plan) -> Findings:
    commands = {name: command for name, command in _COMMANDS.items() if Path(command[0]).exists()}
    signal_ms: dict[str, list[float]] = {name: [] for name in (*commands, _LIBRARY)}
    for command in commands.values():  # have all bytecode written, as an installed package has
        _time_command(command)
    bare_ms: list[float] = []
    death_ms: list[float] = []
    for _ in rounds(plan.times(_REPEATS), "start-up"):
        bare_ms.append(_time_bare())
        death_ms.append(_time_death())
        for name, command in commands.items():
            signal_ms[name].append(_time_command(command))
        signal_ms[_LIBRARY].append(_time_library())
    measures = [
        Measure(
            f"startup-{number}",
            f"{name}: start to the victim's end",
            "ms",
            {name: samples, "python -I -S -c pass": bare_ms},
            Judge.PAIRED_RATIO,
        )
        for number, (name, samples) in enumerate(signal_ms.items(), 1)
    ]
    death = Measure(
        "startup-death", "SIGKILL to the end of such a victim", "ms", {"SIGKILL alone": death_ms}, Judge.MEDIAN
    )
    by_command = _imports(
        plan, "-m oomreaper reap --dry-run PID", ("-m", "oomreaper", "reap", "--dry-run", str(os.getpid()))
    )
    by_library = _imports(plan, "-I -S -c 'import oomreaper.watch.errand'", ("-I", "-S", "-c", _IMPORT_ERRAND, _SOURCE))
    return Findings([*measures, death], [_steps(plan), by_command, by_library])


def _time_bare() -> float:
    started_ns = time.monotonic_ns()
    subprocess.run(_BARE, check=True)
    return (time.monotonic_ns() - started_ns) / _NS_IN_MS


def _time_death() -> float:
    with stage.plain(size_bytes=_VICTIM_BYTES) as target:
        return _wait_ms(target.pidfd, others.sigkill(target.pidfd))


def _time_command(command: tuple[str, ...]) -> float:
    with stage.plain(size_bytes=_VICTIM_BYTES) as target:
        started_ns = time.monotonic_ns()
        with subprocess.Popen([*command, str(target.pid)], stdout=subprocess.DEVNULL):
            return _wait_ms(target.pidfd, started_ns)


def _time_library() -> float:
    with stage.plain(size_bytes=_VICTIM_BYTES) as target, ThreadPoolExecutor(1) as watchers:
        started_ns = time.monotonic_ns()
        watcher = watchers.submit(_wait_ms, target.pidfd, started_ns)
        oomreaper.reap(target.pid)
        return watcher.result()


def _wait_ms(pidfd: int, started_ns: int) -> float:
    with attentive():
        has_ended = processes.wait_for_pidfd(pidfd, _LIMIT_S)
        now_ns = time.monotonic_ns()
    if not has_ended:
        message = "the victim did not end"
        raise StageError(message)
    return (now_ns - started_ns) / _NS_IN_MS


def _steps(plan: Plan) -> Table:
    """Where the time goes, by marks on the way: medians of several runs."""
    names: list[str] = []
    columns: list[list[float]] = []
    for _ in rounds(plan.times(_STEP_REPEATS), "start-up, step by step"):
        with stage.plain(size_bytes=_VICTIM_BYTES) as target:
            started_ns = time.monotonic_ns()
            command = [sys.executable, "-m", "bench.steps", str(started_ns), str(target.pid)]
            done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
        steps: Sequence[tuple[str, float]] = json.loads(done.stdout)
        names = [name for name, _ in steps]
        columns.append([milliseconds for _, milliseconds in steps])
    medians = [statistics.median(column) for column in zip(*columns, strict=True)]
    rows = [[name, f"{median:.1f}"] for name, median in zip(names, medians, strict=True)]
    rows.append(["all", f"{sum(medians):.1f}"])
    return Table("Where `python -m oomreaper reap PID` spends its time (ms, medians)", ("step", "ms"), rows)


def _imports(plan: Plan, title: str, words: Sequence[str]) -> Table:
    """The imports that take longest, by themselves: medians of several runs."""
    runs = [_import_run(words) for _ in rounds(plan.times(_STEP_REPEATS), "start-up, imports")]
    names = [name for name in runs[0] if all(name in run for run in runs)]
    itself = {name: statistics.median(run[name].itself_ms for run in runs) for name in names}
    in_all = {name: statistics.median(run[name].in_all_ms for run in runs) for name in names}
    longest = sorted(names, key=lambda name: -itself[name])[:_ROWS]
    rows = [[name, f"{itself[name]:.2f}", f"{in_all[name]:.2f}"] for name in longest]
    rows.append([f"all {len(names)} modules", f"{sum(itself.values()):.2f}", ""])
    return Table(
        f"`python -X importtime {title}`: the {_ROWS} imports that take longest (ms, medians)",
        ("module", "itself", "with what it imports"),
        rows,
    )


def _import_run(words: Sequence[str]) -> dict[str, _Import]:
    command = [sys.executable, "-X", "importtime", *words]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    times = {}
    for line in done.stderr.splitlines():
        itself_us, in_all_us, name = line.removeprefix("import time:").split("|")
        if itself_us.strip().isdigit():  # the first line names the columns
            times[name.strip()] = _Import(int(itself_us) / _US_IN_MS, int(in_all_us) / _US_IN_MS)
    return times


FIGURE = Figure(
    name="startup",
    title="From the start of the command to its signal",
    method="""\
A victim of 1 MiB sleeps; time runs from right before the command is started until the victim's pidfd is readable, which
is the time to the signal and the fraction of a millisecond that such a victim takes to die (measured beside it). In
turn with it, `python -I -S -c pass` is timed from its start to its end. The steps are taken by `bench/steps.py`, which
does what the command does and looks at the clock in between; import times are Python's own (-X importtime, which
makes everything slower).""",
    needs=("process_mrelease", "cc"),
    measure=_measure,
)
