"""What a process costs while it stands ready: memory, page faults, CPU time and wake-ups, as /proc tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.records import Judge, Measure, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.records import Bar

_KIB_IN_MIB = 1024


class Footprint(NamedTuple):
    """One process, in KiB, from smaps_rollup; ``file_rss_kib`` (RssFile, of status) is mostly the interpreter."""

    pss_kib: int
    pss_anon_kib: int
    private_dirty_kib: int
    locked_kib: int
    rss_kib: int
    file_rss_kib: int


class Total(NamedTuple):
    """A parent and its workers, in MiB. ``alone`` is the PSS if nobody else on the machine ran this interpreter."""

    pss: float
    anon: float
    alone: float
    private_dirty: float
    locked: float


class Faults(NamedTuple):
    """Page faults of a process so far."""

    minor: int
    major: int


class Effort(NamedTuple):
    """CPU time, and how often it slept and was woken (voluntary switches), of all threads of a process so far."""

    ran_ns: int
    wakes: int


def read(pid: int) -> Footprint:
    """The memory of a process."""
    rollup = _kib_fields(Path(f"/proc/{pid}/smaps_rollup"))
    status = _kib_fields(Path(f"/proc/{pid}/status"))
    return Footprint(
        rollup["Pss"], rollup["Pss_Anon"], rollup["Private_Dirty"], rollup["Locked"], rollup["Rss"], status["RssFile"]
    )


def total(parts: Sequence[Footprint]) -> Total:
    """Of several processes together."""
    return Total(
        pss=sum(part.pss_kib for part in parts) / _KIB_IN_MIB,
        anon=sum(part.pss_anon_kib for part in parts) / _KIB_IN_MIB,
        alone=(sum(part.pss_anon_kib for part in parts) + max(part.file_rss_kib for part in parts)) / _KIB_IN_MIB,
        private_dirty=sum(part.private_dirty_kib for part in parts) / _KIB_IN_MIB,
        locked=sum(part.locked_kib for part in parts) / _KIB_IN_MIB,
    )


def measures_of(name: str, title: str, totals: Sequence[Total], bar: Bar | None = None) -> list[Measure]:
    """A measure for each column; the bar is the first one's."""
    columns = (
        ("pss", "PSS of all", bar),
        ("anon", "anonymous PSS of all", None),
        ("alone", "PSS of all, were it the only Python here", None),
        ("private-dirty", "private dirty of all", None),
        ("locked", "locked of all (smaps: Locked)", None),
    )
    return [
        Measure(
            f"{name}-{column}",
            f"{title}: {what}",
            "MiB",
            {"ours": [each[index] for each in totals]},
            Judge.MEDIAN,
            column_bar,
        )
        for index, (column, what, column_bar) in enumerate(columns)
    ]


def table(title: str, parts: Sequence[Footprint], names: Sequence[str]) -> Table:
    """Process by process."""
    header = ("process", "PSS", "PSS anonymous", "private dirty", "locked", "RSS", "RSS file")
    rows = [[name, *(f"{kib / _KIB_IN_MIB:.2f}" for kib in part)] for name, part in zip(names, parts, strict=True)]
    return Table(f"{title} (MiB)", header, rows)


def count_faults(pid: int) -> Faults:
    """Fields 10 and 12 of stat."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return Faults(int(fields[7]), int(fields[9]))


def read_effort(pid: int) -> Effort:
    """From each thread's schedstat, which counts in ns (stat counts in 10 ms), and status."""
    ran_ns = wakes = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        ran_ns += int((task / "schedstat").read_text(encoding="ascii").split()[0])
        wakes += _fields(task / "status")["voluntary_ctxt_switches"]
    return Effort(ran_ns, wakes)


def _kib_fields(path: Path) -> dict[str, int]:
    return _fields(path, " kB")


def _fields(path: Path, unit: str = "") -> dict[str, int]:
    fields = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        number = value.removesuffix(unit).strip()
        if value.endswith(unit) and number.isdigit():
            fields[name] = int(number)
    return fields
