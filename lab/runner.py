"""The grid: every scenario, contestant, kernel and repeat that is not done yet, one run after the other.

What is done stands in the result files; a grid that was interrupted goes on where it was. A run that could not be set
up is told, leaves no record, and is tried again with the next call; the others go on.

All of a repeat comes before the next, so that an hour of it is a whole table already, if a thin one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lab import scenario as scenarios_room
from lab.contestants import CONTESTANTS, FULL, ON_OLDER_KERNELS, OURS, SMALL, Contestant, find_contestants
from lab.play import Run, play
from lab.records import FOLDER, append_record, keys_of, read_records
from lab.scenario import load_scenario
from lab.seam import GuestLostError
from lab.talk import RefusedError
from oomreaper.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lab.records import Record
    from lab.scenario import Scenario
    from lab.seam import Maker

KERNELS = ("newest", "6.12", "6.1")
# Until runs have been timed: what a run takes besides the shortage itself, and how much of its time that takes.
_AROUND_S = 12.0
_SHARE_OF_DURATION = 0.6
# A guest's two CPUs and their qemu wait for each other now and then; beside a build or a campaign on the same two CPUs
# something waits nearly always. Half is between: to be set closer when a grid has run on a calm host.
MOST_WAIT_PERCENT = 50.0


def plan_grid(
    *,
    scenarios: Sequence[str] | None,
    contestants: Sequence[str] | None,
    kernels: Sequence[str] | None,
    repeats: int,
    image: str,
) -> list[Run]:
    """Every run of the grid. None means all; on the older kernels, all is what is decisive.

    On the small image are those scenarios and contestants alone that it has all for.

    Raises:
        UsageError: There is no such scenario, contestant or kernel.
        ConfigError: A scenario's file has faults.
    """
    chosen = [load_scenario(name) for name in (scenarios_room.names() if scenarios is None else scenarios)]
    try:
        killers = find_contestants(contestants)
    except KeyError as error:
        known = ", ".join(dict.fromkeys(each.name for each in CONTESTANTS))
        raise UsageError(f"there is no contestant {error}; known are {known}") from error
    for kernel in kernels or ():
        if kernel not in KERNELS:
            raise UsageError(f'there is no kernel "{kernel}"; known are {", ".join(KERNELS)}')
    return [
        Run(scenario, killer, kernel, image, repeat)
        for repeat in range(1, repeats + 1)
        for kernel in kernels or KERNELS
        for scenario in chosen
        for killer in killers
        if scenario.fits(image) and image in killer.ways and (kernel == KERNELS[0] or _is_for_older(scenario, killer))
    ]


def run_grid(
    maker: Maker,
    *,
    scenarios: Sequence[str] | None = None,
    contestants: Sequence[str] | None = None,
    kernels: Sequence[str] | None = None,
    repeats: int = 3,
    image: str = FULL,
    folder: Path = FOLDER,
    most_wait_percent: float | None = MOST_WAIT_PERCENT,
    say: Callable[[str], None] | None = None,
    now_ns: Callable[[], int] = time.monotonic_ns,
) -> int:
    """Do what is left of the grid.

    Returns:
        0: all of it is done; 1: some runs could not be set up, or were made while others kept this host busy.

    Raises:
        UsageError: There is no such scenario, contestant or kernel; a scenario's file has faults.
    """
    tell = say or _say
    grid = plan_grid(scenarios=scenarios, contestants=contestants, kernels=kernels, repeats=repeats, image=image)
    done = keys_of(read_records(folder)) if folder.is_dir() else set()
    left = [run for run in grid if run.key not in done]
    estimate = _minutes(_guess_s(left, maker))
    tell(f"{len(grid)} runs, {len(grid) - len(left)} of them done; the rest takes about {estimate}")
    failures = 0
    for number, (run, record) in enumerate(_play_all(left, maker, tell, now_ns), start=1):
        if record is None:
            failures += 1
            continue
        waited_percent = record.host_wait_percent or 0.0
        if most_wait_percent is not None and waited_percent > most_wait_percent:
            tell(f"[{number}/{len(left)}] {run.title} IS NOT KEPT: this host was busy for {waited_percent:.0f} % of it")
            failures += 1
            continue
        append_record(record, folder)
        tell(f"[{number}/{len(left)}] {run.title}: {in_words(record)}")
    if failures:
        tell(f"{failures} runs could not be set up, or were not kept; the same command tries them again")
    return 1 if failures else 0


def smoke(
    maker: Maker, *, say: Callable[[str], None] | None = None, now_ns: Callable[[], int] = time.monotonic_ns
) -> int:
    """The key scenarios, ours only, on the newest kernel and the small image, once; nothing is kept.

    Returns:
        0: everything that must happen did, and nothing that must not; 1: not.
    """
    tell = say or _say
    chosen = [load_scenario(name) for name in scenarios_room.names()]
    names = [each.name for each in chosen if each.is_in_smoke]
    with tempfile.TemporaryDirectory(prefix="oomreaper-lab-smoke-") as directory:
        folder = Path(directory)
        key = f"{OURS.name}/{OURS.settings}"
        status = run_grid(
            maker,
            scenarios=names,
            contestants=[key],
            kernels=KERNELS[:1],
            repeats=1,
            image=SMALL,
            folder=folder,
            most_wait_percent=None,  # whether it works, not how fast
            say=tell,
            now_ns=now_ns,
        )
        broken = [record for record in read_records(folder) if record.broken]
    for record in broken:
        tell(f"{record.scenario}: {'; '.join(record.broken)}")
        for line in record.log:
            tell(f"    {line}")
    return 1 if status or broken else 0


def in_words(record: Record) -> str:
    """One line of what came of it."""
    innocents = f", {record.innocent_kills} of them INNOCENT" if record.innocent_kills else ""
    text = (
        f"{'recovered' if record.recovered else 'NOT recovered'} in {record.duration_s:.0f} s, "
        f"{record.kills} killed{innocents}, first kill {_ms(record.shortage_to_kill_ms)} after the shortage began, "
        f"memory back {_ms(record.kill_to_memory_ms)} later, longest stall {_ms(record.longest_stall_ms)}"
    )
    return f"{text}; BROKEN: {'; '.join(record.broken)}" if record.broken else text


def _play_all(
    runs: Sequence[Run], maker: Maker, tell: Callable[[str], None], now_ns: Callable[[], int]
) -> Iterator[tuple[Run, Record | None]]:
    """Each run and what came of it; None: it could not be set up, which is told."""
    started_ns = now_ns()
    for number, run in enumerate(runs):
        rest = runs[number:]
        each_s = (now_ns() - started_ns) / 1e9 / number if number else _guess_s(rest, maker) / len(rest)
        tell(f"[{number + 1}/{len(runs)}] {run.title} begins; {_minutes(each_s * len(rest))} to go")
        try:
            with maker.open(run.spec) as guest:
                record = play(guest, run, now_ns=now_ns)
        except (RefusedError, GuestLostError) as error:
            tell(f"[{number + 1}/{len(runs)}] {run.title} COULD NOT BE SET UP: {error}")
            yield run, None
            continue
        yield run, record


def _is_for_older(scenario: Scenario, contestant: Contestant) -> bool:
    return scenario.is_decisive and contestant in ON_OLDER_KERNELS


def _guess_s(runs: Sequence[Run], maker: Maker) -> float:
    return sum(
        maker.estimate_s(run.spec) + _AROUND_S + run.scenario.duration_ns / 1e9 * _SHARE_OF_DURATION for run in runs
    )


def _minutes(seconds: float) -> str:
    minutes = int(seconds / 60 + 0.5)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"  # noqa: PLR2004 - an hour


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
