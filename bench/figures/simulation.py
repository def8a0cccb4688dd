"""How fast the modelled machine runs, on one core and on two, and what it holds; how large the explored protocol is."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from bench.figure import Figure, Plan, rounds
from bench.machine import ROOT
from bench.records import Bar, Findings, Judge, Measure, Table

if TYPE_CHECKING:
    from collections.abc import Callable

_REPEATS = 3
_SEEDS, _QUICK_SEEDS = 80, 4
# So many steps a second are wanted: the time for them is what is held against the bar.
_STEPS = 150_000
_BAR = Bar(1.0)
_KIB_IN_MIB = 1024
_SECONDS_IN_AN_HOUR = 3600
_LIMIT_S = 900
# Takes more than a minute, and is explored by the tests.
_LARGEST = "founding: woken twice for one"


def _measure(plan: Plan) -> Findings:
    seeds = _QUICK_SEEDS if plan.is_quick else _SEEDS
    kernel: list[float] = []
    ours: list[float] = []
    two: list[float] = []
    peak: list[float] = []
    schedules: list[float] = []
    for _ in rounds(plan.times(_REPEATS), "the simulator"):
        found = _run("kernel", seeds)
        kernel.append(_STEPS * found["seconds"] / found["steps"])
        found = _run("ours", seeds)
        ours.append(_STEPS * found["seconds"] / found["steps"])
        peak.append(found["peak_mib"])
        schedules.append(seeds / found["seconds"] * _SECONDS_IN_AN_HOUR / 1000)
        two.append(_run("jobs", seeds, 1)["seconds"] / _run("jobs", seeds, 2)["seconds"])
    what = f"{_STEPS:,} steps on one core, invariants on"
    measures = [
        Measure("simulation-kernel", f"{what}: the kernel's killers", "s", {"s": kernel}, Judge.MEDIAN, _BAR),
        Measure(
            "simulation-ours", f"{what}: watcher and reaper, with failing calls", "s", {"s": ours}, Judge.MEDIAN, _BAR
        ),
        Measure(
            "simulation-schedules",
            "schedules of watcher and reaper an hour, one core",
            "thousand",
            {"schedules": schedules},
            Judge.MEDIAN,
        ),
        Measure("simulation-scaling", "two workers, times as fast as one", "times", {"times": two}, Judge.MEDIAN),
        Measure("simulation-peak", "the most that a process of it held resident", "MiB", {"MiB": peak}, Judge.MEDIAN),
    ]
    return Findings(measures, [_explore(is_quick=plan.is_quick)])


def _explore(*, is_quick: bool) -> Table:
    rows = [
        [row["model"], f"{row['schedules']:,}", f"{row['states']:,}", f"{row['seconds']:.1f}"]
        for row in _run("explore", int(is_quick))["models"]
    ]
    return Table("The hand-off protocol, explored wholly", ("model", "schedules", "states", "s"), rows)


def _run(*what: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.figures.simulation", *map(str, what)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=_LIMIT_S)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# -- in a process of its own -------------------------------------------------------------------------------


def _kernel(seeds: int) -> dict[str, Any]:
    """The founding commit's story with the founding commit's reaper, and with the later one."""
    from oomreaper.sim.choice import Seeded
    from oomreaper.sim.experiments.trial import contest
    from oomreaper.sim.experiments.verdict import Judge as Verdict
    from oomreaper.sim.experiments.verdict import Limits
    from oomreaper.sim.invariants import RULES, Invariants
    from oomreaper.sim.scenario_file import load_scenario

    setup = load_scenario("inode_lock")
    steps = 0
    begun_s = time.process_time()
    for seed in range(seeds):
        for killer in ("founding", "later"):
            with contest(setup, chooser=Seeded(seed), killer=killer) as (machine, _):
                Invariants(machine, RULES[killer])
                steps += Verdict(machine).run(Limits()).steps
    return {"steps": steps, "seconds": time.process_time() - begun_s}


def _ours(seeds: int) -> dict[str, Any]:
    from oomreaper.sim.experiments.checking import check_seed

    begun_s = time.process_time()
    steps = sum(check_seed(seed)["steps"] for seed in range(seeds))
    seconds = time.process_time() - begun_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_IN_MIB
    return {"steps": steps, "seconds": seconds, "peak_mib": peak_mib}


def _jobs(seeds: int, jobs: int) -> dict[str, Any]:
    from oomreaper.sim.experiments.checking import check_seed
    from oomreaper.sim.experiments.sweeping import Store, sweep

    store = Store(None, {"what": "bench"})
    begun_s = time.monotonic()
    sweep(range(seeds), check_seed, store, jobs=jobs)
    return {"seconds": time.monotonic() - begun_s}


def _models(is_quick: int) -> dict[str, Any]:
    from oomreaper.sim.explorer import explore
    from oomreaper.sim.protocols import MODELS

    wanted = [model for model in MODELS.values() if model.name != _LARGEST]
    models = [model for model in wanted if not is_quick or model.name.startswith("ours")]
    reports = [explore(model) for model in models]
    keys = ("model", "schedules", "states", "seconds")
    return {"models": [{key: getattr(report, key) for key in keys} for report in reports]}


_KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "kernel": _kernel,
    "ours": _ours,
    "jobs": _jobs,
    "explore": _models,
}

FIGURE = Figure(
    name="simulation",
    title="The simulator: steps, schedules, memory",
    method="""\
The kernel's killers run the workload `inode_lock` of docs/simulation.md, the founding commit's and the later one in
turn; watcher and reaper run the machines of `oomreaper simulate check`, with all faults injected. CPU time of one
process, from the first machine that is built to the last verdict, invariants on. With two workers and with one, the
same seeds of the check run by the clock. The hand-off protocols are explored, with partial-order reduction, until no
schedule is left; but for the founding commit's largest, which takes more than a minute.""",
    needs=(),
    measure=_measure,
)

if __name__ == "__main__":
    print(json.dumps(_KINDS[sys.argv[1]](*map(int, sys.argv[2:]))))
