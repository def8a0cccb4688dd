"""``python -m bench``: measure, write the results, and make the page of them. Progress goes to stderr.

Exit status: 0 all was measured that this machine permits, whatever the verdicts; 1 a figure could not be measured
though it should have been, or something was left behind; 2 usage.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bench import machine, page
from bench.figure import Figure, Plan, say
from bench.figures import FIGURES
from bench.records import SCHEMA, Findings, Judge, Measure
from tests.victims.leftovers import Watch
from tests.victims.program import StageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESULTS = machine.ROOT / "bench/results/latest.json"
_PAGE = machine.ROOT / "docs/benchmarks.md"
_NOTES = machine.ROOT / "bench/notes.md"
_PARTS = ("reap", "watch")
_QUICK = machine.ROOT / "build/bench"


def _is_of_watcher(name: str) -> bool:
    return name.startswith("watch-")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what the Budgets table promises.")
    names = [figure.name for figure in FIGURES]
    parser.add_argument("part", nargs="?", choices=_PARTS, help="measure the figures of this part only (default: all)")
    parser.add_argument(
        "--figure", action="append", choices=names, help="measure this one only (may be given more than once)"
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="how often, instead of each figure's own number")
    parser.add_argument("--quick", action="store_true", help="small victims, two repeats: does the bench work at all?")
    parser.add_argument(
        "--calm", type=float, default=0.0, metavar="SECONDS", help="wait so long for a calm machine before each figure"
    )
    parser.add_argument("--results", type=Path, help=f"where the JSON goes (default: {_RESULTS})")
    parser.add_argument("--page", type=Path, help=f"where the page goes (default: {_PAGE})")
    parser.add_argument("--page-only", action="store_true", help="measure nothing; make the page of the results")
    arguments = parser.parse_args(argv)
    if arguments.part is not None:
        is_watch = arguments.part == "watch"
        arguments.figure = [*(arguments.figure or ()), *(name for name in names if _is_of_watcher(name) is is_watch)]
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    home = (_QUICK / "results.json", _QUICK / "benchmarks.md") if arguments.quick else (_RESULTS, _PAGE)
    arguments.results = arguments.results or home[0]
    arguments.page = arguments.page or home[1]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench; its exit status."""
    arguments = _parse(argv)
    if arguments.page_only:
        _write_page(arguments.page, json.loads(arguments.results.read_text(encoding="utf-8")))
        return 0
    signal.signal(signal.SIGTERM, _end_as_ctrl_c_does)
    # Whoever develops may have forbidden bytecode files; an installed package has them, and start-up is timed.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    watch = Watch()
    plan = Plan(is_quick=arguments.quick, repeats=arguments.repeats)
    facts = machine.read_facts()
    wanted = [figure for figure in FIGURES if arguments.figure is None or figure.name in arguments.figure]
    results = _earlier(arguments.results, facts, plan) if arguments.figure else _nothing_yet(facts, plan)
    failures = []
    try:
        for figure in wanted:
            busy_percent = machine.wait_until_calm(arguments.calm)
            say(f"{figure.name}: {figure.title} (others take {busy_percent:.0f} % of the CPUs)")
            try:
                record = {"busy_percent_before": busy_percent, **_measure(figure, plan)}
            except StageError as error:
                say(f"{figure.name} FAILED: {error}")
                failures.append(figure.name)
                continue
            results["figures"][figure.name] = record
            _write(arguments.results, results)
        _write_page(arguments.page, results)
    finally:
        leftovers = watch.find_settled()
        for leftover in leftovers:
            say(f"left behind, removed now: {leftover.what}")
        if leftovers:
            watch.remove(leftovers)
    say(f"{arguments.results} and {arguments.page} are written")
    return 1 if failures or leftovers else 0


def _measure(figure: Figure, plan: Plan) -> dict[str, Any]:
    started_s, started = time.monotonic(), machine.CpuTime.read()
    lacks = figure.missing()
    findings = Findings(missing=lacks) if lacks else figure.measure(plan)
    for measure in findings.measures:
        say(f"  {measure.title}: {_in_words(measure)}")
    return {
        "title": figure.title,
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": machine.read_commit(),
        "stolen_percent": round(machine.CpuTime.read().stolen_percent_since(started), 1),
        "duration_s": round(time.monotonic() - started_s, 1),
        **findings.as_json(),
    }


def _in_words(measure: Measure) -> str:
    text = f"{measure.judge.value} {measure.value:.3f}"
    if measure.judge is Judge.PAIRED_RATIO:
        text += f" (of medians {measure.ratio_of_medians:.3f})"
    return text if measure.bar is None else f"{text}, bar {measure.bar.limit:g}: {measure.verdict.value}"


def _nothing_yet(facts: dict[str, Any], plan: Plan) -> dict[str, Any]:
    return {"schema": SCHEMA, "is_quick": plan.is_quick, "machine": facts, "figures": {}}


def _earlier(path: Path, facts: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The results that are there, to replace one figure in; none of another machine, kernel or kind of run."""
    fresh = _nothing_yet(facts, plan)
    try:
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return fresh
    if {**earlier, "figures": {}} != fresh:
        say(f"{path} tells of another machine or another kind of run: it is begun anew")
        return fresh
    return earlier


def _write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _write_page(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.render(results, FIGURES, _NOTES.read_text(encoding="utf-8")), encoding="utf-8")


def _end_as_ctrl_c_does(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
