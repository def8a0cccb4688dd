"""The page that people read, and the same as one HTML file, made of the records alone. Pure.

Both are written from one list of blocks (a heading, a paragraph, a table, a list), so that neither says what the other
does not. A drawing is a block, too: the page names its file, the HTML file holds it.
"""

from __future__ import annotations

import functools
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from lab.chart import draw_stalls
from lab.contestants import CONTESTANTS, OURS
from lab.table import MEASURES, STALL, TO_KILL, make_tables, title_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lab.records import Record
    from lab.table import Cell, Measure, Spread, Table

_SECOND_MS = 1000.0
_METHOD = (
    """Each run has a guest of its own: qemu in software emulation (TCG), so a guest is some ten times slower than its
host, and a time is to be compared with the others of its column, not with those of a real machine. Whoever is to end
the shortage is started first and says that it watches; then those who stand by; then the shortage.""",
    """What is seen is seen from outside: in the guest a small program sleeps 10 ms, touches a page that it had given
back and one that it has not used for a while, and counts; another, locked in memory and real-time, tells the count over
a serial port. The longest time in which it does not move, by the host's clock, is the longest stall. Kills are read
from the kernel's tracer (who sent SIGKILL or SIGTERM to whom), whatever the killer says itself.""",
    """The shortage begins when less than 10 % of memory is available (and, with swap, less than 10 % of that is free),
or a group is as near to its limit. Memory is back at 15 %. Recovered means: it is back at the end, and the machine can
start a program. An innocent is whoever neither makes the shortage nor holds what is to be freed.""",
)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fff}"
    "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{border:1px solid #8885;padding:.2rem .5rem;text-align:left;font-variant-numeric:tabular-nums}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#111}}"
)


class Heading(NamedTuple):
    """Of the second level, or the third."""

    text: str
    level: int = 2


class Paragraph(NamedTuple):
    """One."""

    text: str


class Rows(NamedTuple):
    """A table."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Code(NamedTuple):
    """Commands."""

    text: str


class Drawing(NamedTuple):
    """``file`` is its name beside the page; ``svg`` is it."""

    file: str
    title: str
    svg: str


Block = Heading | Paragraph | Rows | Code | Drawing


def make_blocks(records: Sequence[Record]) -> list[Block]:
    """Everything that is said."""
    if not records:
        return [Paragraph("There are no records yet: `python -m lab run` makes them.")]
    tables = make_tables(records)
    blocks: list[Block] = [Paragraph(_count(records)), Heading("Where another is better than ours"), *_losses(tables)]
    for table in tables:
        blocks += _table_blocks(table)
    blocks += [Heading("Who was run"), _who(records), Heading("How it is measured")]
    blocks += [Paragraph(text) for text in _METHOD]
    blocks.append(Heading("How to repeat it"))
    blocks.append(
        Code(
            "make lab                                           # the whole grid; what is done is not done again\n"
            "python -m lab run --scenario leak_fast --repeats 1  # one scenario, all contestants, once\n"
            "python -m lab smoke                                # the key scenarios, ours only, some minutes\n"
            "python -m lab report                               # this page anew, from lab/results/*.jsonl"
        )
    )
    return blocks


def drawings(blocks: Sequence[Block]) -> list[Drawing]:
    """The files that the Markdown page needs beside it."""
    return [block for block in blocks if isinstance(block, Drawing)]


def as_markdown(blocks: Sequence[Block]) -> str:
    """The page of the repository."""
    head = (
        "# The lab\n\n"
        "<!-- Made by `python -m lab report` from lab/results/*.jsonl: change those, not this page. -->\n\n"
        "Whole machines that run out of memory, and who ends it how.\n"
    )
    return "\n".join([head, *(_markdown(block) for block in blocks)])


def as_html(blocks: Sequence[Block]) -> str:
    """The same as one file that needs nothing else."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>oomreaper: the lab</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>The lab</h1>\n"
        f"<p>Whole machines that run out of memory, and who ends it how.</p>\n{body}\n</body></html>\n"
    )


# -- what is said ------------------------------------------------------------------------------------------


def _count(records: Sequence[Record]) -> str:
    days = sorted({record.date[:10] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    releases = ", ".join(sorted({f"{record.kernel} is {record.kernel_release}" for record in records}))
    bad = sum(bool(record.broken) for record in records)
    return (
        f"{len(records)} runs, {when}. Kernels: {releases}. In {bad} of the runs something did not come as it must; "
        "the tables say where."
    )


def _losses(tables: Sequence[Table]) -> list[Block]:
    losses = [loss for table in tables for loss in table.losses()]
    if not any((scenario, OURS.title) in table.cells for table in tables for scenario in table.scenarios):
        return [Paragraph("Ours has not been run.")]
    if not any(name != OURS.title for table in tables for name in table.contestants):
        return [Paragraph("Nobody else has been run, so there is nothing to compare.")]
    if not losses:
        return [
            Paragraph(
                "Nowhere: in no scenario has another killed fewer innocents, recovered more often, or stalled for less "
                "(by more than two heartbeats of the probe)."
            )
        ]
    rows = [[loss.place.title, loss.scenario, loss.what, loss.ours, loss.theirs, loss.who] for loss in losses]
    return [Rows(("where", "scenario", "what", "ours", "the best other", "who"), rows)]


def _table_blocks(table: Table) -> list[Block]:
    blocks: list[Block] = [Heading(_begin(table.place.title))]
    blocks.append(Paragraph("Runs that recovered, of all; then innocents killed in all of them, where there were any."))
    blocks.append(_grid(table, _show_verdict))
    file = f"lab-{table.place.kernel}-{table.place.image}.svg"
    blocks.append(Drawing(file, STALL.title, draw_stalls(table)))
    for measure in MEASURES:
        if not any(cell.spread(measure) for cell in table.cells.values()):
            continue
        blocks.append(Heading(_begin(measure.title), level=3))
        what = "Median (smallest to largest)."
        if measure is TO_KILL:
            what += ' "before": the kill came before memory was that short, in so many runs.'
        blocks.append(Paragraph(what))
        blocks.append(_grid(table, functools.partial(_show_measure, measure)))
    rows = [
        [scenario, name, "; ".join(cell.broken)]
        for (scenario, name), cell in sorted(table.cells.items())
        if cell.broken
    ]
    if rows:
        blocks += [Heading("What did not come as it must", level=3), Rows(("scenario", "who", "what"), rows)]
    return blocks


def _grid(table: Table, show: Callable[[Cell], str]) -> Rows:
    rows = []
    for scenario in table.scenarios:
        cells = [table.cells.get((scenario, name)) for name in table.contestants]
        rows.append([scenario, *("" if cell is None else show(cell) for cell in cells)])
    return Rows(("scenario", *table.contestants), rows)


def _show_verdict(cell: Cell) -> str:
    count = cell.innocent_kills
    innocents = f", {count} innocent{'s' if count > 1 else ''}" if count else ""
    return f"{cell.recovered}/{len(cell.runs)}{innocents}"


def _show_measure(measure: Measure, cell: Cell) -> str:
    spread = cell.spread(measure)
    before = sum(run.killed_before_shortage for run in cell.runs) if measure is TO_KILL else 0
    lacking = (len(cell.runs) if spread is None else spread.lacking) - before
    said = [] if spread is None else [show_spread(spread)]
    if before:
        said.append(f"before: {before}")
    if lacking:
        said.append(f"none: {lacking}")
    return ", ".join(said)


def _begin(text: str) -> str:
    """With a capital letter, and the rest as it is."""
    return text[:1].upper() + text[1:]


def show_spread(spread: Spread) -> str:
    """A median, and how far the runs lie apart."""
    if spread.runs == 1:
        return show_ms(spread.median_ms)
    return f"{show_ms(spread.median_ms)} ({show_ms(spread.smallest_ms)} to {show_ms(spread.largest_ms)})"


def show_ms(value_ms: float) -> str:
    """In ms below a second, in s above."""
    return f"{value_ms:.0f} ms" if abs(value_ms) < _SECOND_MS else f"{value_ms / _SECOND_MS:.1f} s"


def _who(records: Sequence[Record]) -> Rows:
    versions: dict[str, dict[str, None]] = {}
    for record in records:
        versions.setdefault(title_of(record), {})[record.version] = None
    sources: Mapping[str, str] = {contestant.title: contestant.source for contestant in CONTESTANTS}
    rows = [[name, ", ".join(found), sources.get(name, "")] for name, found in sorted(versions.items())]
    return Rows(("who", "version", "settings"), rows)


# -- how it is written -------------------------------------------------------------------------------------


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}\n"
        case Paragraph(text):
            return f"{text}\n"
        case Rows(header, rows):
            lines = [header, ["---"] * len(header), *rows]
            return (
                "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
            )
        case Code(text):
            return f"```\n{text}\n```\n"
        case Drawing(file, title, _):
            return f"![{title}]({file})\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Rows(header, rows):
            head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
            body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
            return f"<table><tr>{head}</tr>\n{body}</table>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Drawing(_, _, svg):
            return f"<figure>{svg}</figure>"
