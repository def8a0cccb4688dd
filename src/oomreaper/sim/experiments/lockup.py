"""The claim of the founding commit as an experiment: how often a machine locks up, by workload and killer.

"It has been shown (e.g. by Tetsuo Handa) that it is not that hard to construct workloads which break the core
assumption": these are workloads of that kind. Every cell of the table is so many runs, seed 0 and on, and nothing but
the schedule differs between them; the same command comes to the same table.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from oomreaper.sim.experiments import drawing
from oomreaper.sim.experiments.contenders import CONTENDERS, NAMES
from oomreaper.sim.experiments.intervals import Share
from oomreaper.sim.experiments.sweeping import Store, sweep
from oomreaper.sim.experiments.trial import run_trial
from oomreaper.sim.experiments.verdict import Verdict
from oomreaper.sim.scenario_file import load_scenario

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from oomreaper.sim.experiments.sweeping import Progress
    from oomreaper.sim.scenario_file import Setup

# The workloads that the founding commit's text is about, and last one that breaks nobody.
WORKLOADS: tuple[str, ...] = ("inode_lock", "shared_writers", "mmap_lock", "core_dump", "pinned", "healthy")
# With 200 runs an interval is at most 14 points wide, and the whole table takes a minute or two.
SEEDS = 200
_BEGIN, _END = "<!-- lockup: made by `oomreaper simulate lockup --write` -->\n", "<!-- end of lockup -->\n"
_DRAWING = "simulation-lockup.svg"
_TITLE = "Runs that lock up, in per cent, with 95 % intervals"


class Cell:
    """One workload with one killer: how the runs ended."""

    def __init__(self, workload: str, killer: str, results: list[dict[str, Any]]) -> None:
        self.workload = workload
        self.killer = killer
        self.errors = [result for result in results if "error" in result]
        fine = [result for result in results if "error" not in result]
        self.verdicts = {verdict: sum(result["verdict"] == verdict.value for result in fine) for verdict in Verdict}
        self.locked_up = Share(self.verdicts[Verdict.LOCKED_UP], len(fine))
        self.kills = sum(result["kills"] for result in fine) / len(fine) if fine else 0.0

    def as_json(self) -> dict[str, Any]:
        """For a program."""
        return {
            "workload": self.workload,
            "killer": self.killer,
            "locked_up": self.locked_up.as_json(),
            "verdicts": {verdict.value: count for verdict, count in self.verdicts.items()},
            "kills_mean": round(self.kills, 3),
            "errors": [error["error"] for error in self.errors],
        }


def measure(
    *, seeds: int = SEEDS, jobs: int, killers: tuple[str, ...] = NAMES, progress: Progress | None = None
) -> list[Cell]:
    """Run them all.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    setups = [load_scenario(name) for name in WORKLOADS]
    cases = [(setup, killer) for setup in setups for killer in killers]
    store = Store(None, {"what": "lockup"})

    def work(number: int) -> Mapping[str, Any]:
        setup, killer = cases[number // seeds]
        return _run(setup, killer, number % seeds)

    try:
        results = sweep(range(len(cases) * seeds), work, store, jobs=jobs, progress=progress)
    finally:
        store.close()
    return [
        Cell(setup.scenario.name, killer, [results[number * seeds + seed] for seed in range(seeds)])
        for number, (setup, killer) in enumerate(cases)
    ]


def _run(setup: Setup, killer: str, seed: int) -> dict[str, Any]:
    return run_trial(setup, seed=seed, killer=killer).as_json()


def render(cells: list[Cell], *, seeds: int) -> str:
    """The table, as Markdown, and what the columns are."""
    shares = {(cell.workload, cell.killer): cell.locked_up for cell in cells}
    killers = list(dict.fromkeys(cell.killer for cell in cells))
    about = {contender.name: contender.about for contender in CONTENDERS}
    lines = [
        f"Share of {seeds} runs that lock up, with its 95 % interval (Wilson):\n",
        drawing.as_table(shares, _abouts(), killers),
        *(f"* `{killer}`: {about[killer]}" for killer in killers),
    ]
    return "\n".join(lines) + "\n"


def draw(cells: list[Cell]) -> str:
    """The same as a drawing."""
    shares = {(cell.workload, cell.killer): cell.locked_up for cell in cells}
    killers = list(dict.fromkeys(cell.killer for cell in cells))
    return drawing.as_svg(shares, _abouts(), killers, title=_TITLE)


def write(cells: list[Cell], page: Path, *, seeds: int) -> None:
    """Put table and drawing into the page, between its markers; the drawing is a file beside it.

    Raises:
        ValueError: The page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    page.write_text(page_with(text, render(cells, seeds=seeds)), encoding="utf-8")
    (page.parent / _DRAWING).write_text(draw(cells), encoding="utf-8")


def page_with(text: str, table: str) -> str:
    """A page's text with the table between its markers.

    Raises:
        ValueError: It has none.
    """
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page lacks the lines {_BEGIN.strip()} and {_END.strip()}")
    return f"{before}{_BEGIN}\n{table}\n![{_TITLE}]({_DRAWING})\n\n{_END}{after}"


def _abouts() -> Mapping[str, str]:
    return MappingProxyType({name: load_scenario(name).about for name in WORKLOADS})
