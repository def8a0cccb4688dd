"""What the records come to: a cell for each scenario and contestant, and where another does better than ours. Pure.

A time is a median with its smallest and largest, over those runs that have it; how many have not stands beside it,
since "nobody was ever killed" is no small number. Runs of one cell are counted whatever version was run: the page names
all of them.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from lab.contestants import CONTESTANTS, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lab.records import Record

# Two heartbeats of the probe: two stalls that differ by less are the same to it.
_RESOLUTION_MS = 40.0


class Place(NamedTuple):
    """Where runs can be compared: one kernel, one image."""

    kernel: str
    image: str

    @property
    def title(self) -> str:
        """For people."""
        return f"kernel {self.kernel}, {self.image} image"


class Spread(NamedTuple):
    """A time over several runs, in ms; ``lacking`` of them do not have it."""

    median_ms: float
    smallest_ms: float
    largest_ms: float
    runs: int
    lacking: int


class Cell(NamedTuple):
    """All runs of one contestant in one scenario."""

    runs: tuple[Record, ...]

    @property
    def recovered(self) -> int:
        """In how many the machine recovered."""
        return sum(run.recovered for run in self.runs)

    @property
    def innocent_kills(self) -> int:
        """How many innocents were killed in all of them."""
        return sum(run.innocent_kills for run in self.runs)

    @property
    def innocents_a_run(self) -> float:
        """The same by run: cells may have different numbers of them."""
        return self.innocent_kills / len(self.runs)

    @property
    def recovered_share(self) -> float:
        """1: in all of them."""
        return self.recovered / len(self.runs)

    @property
    def broken(self) -> tuple[str, ...]:
        """What went wrong in any of them, each once."""
        return tuple(dict.fromkeys(text for run in self.runs for text in run.broken))

    def spread(self, measure: Measure) -> Spread | None:
        """One measure; None: no run has it."""
        values = [value for run in self.runs if (value := measure.of(run)) is not None]
        if not values:
            return None
        lacking = len(self.runs) - len(values)
        return Spread(statistics.median(values), min(values), max(values), len(values), lacking)


class Measure(NamedTuple):
    """A time of a run."""

    name: str
    title: str
    of: Callable[[Record], float | None]


STALL = Measure("longest_stall_ms", "longest stall of an ordinary program", lambda run: run.longest_stall_ms)
TO_KILL = Measure("shortage_to_kill_ms", "from the shortage to the first kill", lambda run: run.shortage_to_kill_ms)
TO_MEMORY = Measure("kill_to_memory_ms", "from the first kill to memory back", lambda run: run.kill_to_memory_ms)
PSI = Measure("psi_full_ms", "time in which everything waited for memory (PSI full)", lambda run: run.psi_full_ms)
CPU = Measure("killer_cpu_ms", "CPU that the killer used", lambda run: run.killer_cpu_ms)
MEASURES = (STALL, TO_KILL, TO_MEMORY, PSI, CPU)


class Loss(NamedTuple):
    """Where another does better than ours, in words."""

    place: Place
    scenario: str
    what: str
    ours: str
    theirs: str
    who: str


class Table(NamedTuple):
    """All cells of one place. The contestants stand in the lab's order, the scenarios by name."""

    place: Place
    scenarios: tuple[str, ...]
    contestants: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]

    def losses(self) -> list[Loss]:
        """Where another has fewer innocents, recovers more often, or stalls less."""
        return [loss for scenario in self.scenarios for loss in self._losses_in(scenario)]

    def _losses_in(self, scenario: str) -> list[Loss]:
        mine = self.cells.get((scenario, OURS.title))
        others = {name: cell for (where, name), cell in self.cells.items() if where == scenario and name != OURS.title}
        if mine is None or not others:
            return []
        losses = []
        who, best = min(others.items(), key=lambda pair: pair[1].innocents_a_run)
        if best.innocents_a_run < mine.innocents_a_run:
            losses.append(
                self._loss(scenario, "innocents killed a run", mine.innocents_a_run, best.innocents_a_run, who)
            )
        who, best = max(others.items(), key=lambda pair: pair[1].recovered_share)
        if best.recovered_share > mine.recovered_share:
            ours, theirs = 100 * mine.recovered_share, 100 * best.recovered_share
            losses.append(self._loss(scenario, "runs recovered, per cent", ours, theirs, who))
        stalls = {name: spread for name, cell in others.items() if cell.recovered and (spread := cell.spread(STALL))}
        ours_stall = mine.spread(STALL)
        if stalls and ours_stall is not None:
            who, least = min(stalls.items(), key=lambda pair: pair[1].median_ms)
            if ours_stall.median_ms - least.median_ms > _RESOLUTION_MS:
                losses.append(self._loss(scenario, "longest stall, ms", ours_stall.median_ms, least.median_ms, who))
        return losses

    def _loss(self, scenario: str, what: str, ours: float, theirs: float, who: str) -> Loss:
        return Loss(self.place, scenario, what, f"{ours:.4g}", f"{theirs:.4g}", who)


def make_tables(records: Iterable[Record]) -> list[Table]:
    """A table for each kernel and image that something was run on, the newest kernel first."""
    by_place: dict[Place, list[Record]] = {}
    for record in records:
        by_place.setdefault(Place(record.kernel, record.image), []).append(record)
    order = {"newest": "~"}  # after every number, so before them when reversed
    places = sorted(
        by_place, key=lambda place: (order.get(place.kernel, place.kernel), place.image == "full"), reverse=True
    )
    return [_make_table(place, by_place[place]) for place in places]


def title_of(record: Record) -> str:
    """Of its contestant, as in a table's head."""
    for contestant in CONTESTANTS:
        if contestant.key == (record.contestant, record.settings):
            return contestant.title
    return f"{record.contestant} ({record.settings})"


def _make_table(place: Place, records: Sequence[Record]) -> Table:
    runs: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        runs.setdefault((record.scenario, title_of(record)), []).append(record)
    found = {name for _, name in runs}
    known = [contestant.title for contestant in CONTESTANTS if contestant.title in found]
    return Table(
        place=place,
        scenarios=tuple(sorted({scenario for scenario, _ in runs})),
        contestants=(*known, *sorted(found - set(known))),
        cells={key: Cell(tuple(sorted(each, key=lambda run: run.repeat))) for key, each in runs.items()},
    )
