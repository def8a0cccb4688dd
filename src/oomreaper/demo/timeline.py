"""Memory over time as a few lines of text. Pure: samples and marks go in, lines come out.

::

     512 |      ####################################
     MiB |   .######################################
         |  :#######################################
       0 +---+----------------------------------+-----
             ^ SIGKILL 0.0 s      reaped 1.1 s ^
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MIB = 1 << 20
_RESET, _HELD, _FREE = "\x1b[0m", "\x1b[31m", "\x1b[36m"
# Left of the chart: five digits of MiB, the unit, and the axis.
_GUTTER_COLUMNS = 7
# The longest label with its pointer.
_LEAST_CHART_COLUMNS = 15
# Wider shows no more: below 15 ms a column the samples (every 5 ms) would be seen one by one.
_MOST_CHART_COLUMNS = 100
_ROWS = 5


class Sample(NamedTuple):
    """What was held at a moment."""

    at_s: float
    held_bytes: int


class Mark(NamedTuple):
    """Something that happened at a moment."""

    at_s: float
    label: str


class _Glyphs(NamedTuple):
    levels: str  # from an empty cell to a full one
    axis: str
    corner: str
    line: str
    tick: str
    pointer: str


_ASCII = _Glyphs(" .:#", "|", "+", "-", "+", "^")
_UNICODE = _Glyphs(" ▁▂▃▄▅▆▇█", "│", "└", "─", "┴", "▲")


def can_draw_blocks(encoding: str | None) -> bool:
    """Whether an output of this encoding takes more than ASCII."""
    try:
        "".join(_UNICODE).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def render(
    samples: Sequence[Sample],
    marks: Sequence[Mark],
    *,
    scale_bytes: int,
    width: int,
    use_unicode: bool,
    use_color: bool,
) -> list[str]:
    """The lines of the chart, none longer than ``width`` (but for a width below 22).

    Args:
        samples: In order of time; between two, what was held is what the first says.
        marks: In order of time; with colour, what is held between the first and the last is red.
        scale_bytes: What fills the chart to the top.
        width: Columns.
        use_unicode: Draw with block elements; otherwise plain ASCII.
        use_color: Colour the bars.
    """
    glyphs = _UNICODE if use_unicode else _ASCII
    columns = min(max(width - _GUTTER_COLUMNS, _LEAST_CHART_COLUMNS), _MOST_CHART_COLUMNS)
    start_s, end_s = samples[0].at_s, max(samples[-1].at_s, samples[0].at_s + 1e-3)
    places = [_column_of(mark.at_s, start_s, end_s, columns) for mark in marks]
    steps = len(glyphs.levels) - 1
    levels = [round(held_bytes / scale_bytes * _ROWS * steps) for held_bytes in _resample(samples, columns, end_s)]
    lines = []
    for row in reversed(range(_ROWS)):
        cells = [glyphs.levels[min(max(level - row * steps, 0), steps)] for level in levels]
        label = {_ROWS - 1: f"{scale_bytes // _MIB}", _ROWS - 2: "MiB"}.get(row, "")
        lines.append(f"{label:>{_GUTTER_COLUMNS - 2}} {glyphs.axis}" + _paint(cells, places, use_color=use_color))
    axis = "".join(glyphs.tick if column in places else glyphs.line for column in range(columns))
    lines.append(f"{0:>{_GUTTER_COLUMNS - 2}} {glyphs.corner}{axis}")
    lines += [" " * _GUTTER_COLUMNS + line for line in _label_lines(marks, places, columns, glyphs.pointer)]
    return [line.rstrip() for line in lines]


def _column_of(at_s: float, start_s: float, end_s: float, columns: int) -> int:
    place = int((at_s - start_s) / (end_s - start_s) * columns)
    return min(max(place, 0), columns - 1)


def _resample(samples: Sequence[Sample], columns: int, end_s: float) -> Iterator[int]:
    """What was held in the middle of each column's time."""
    start_s, index = samples[0].at_s, 0
    for column in range(columns):
        middle_s = start_s + (column + 0.5) * (end_s - start_s) / columns
        while index + 1 < len(samples) and samples[index + 1].at_s <= middle_s:
            index += 1
        yield samples[index].held_bytes


def _paint(cells: list[str], places: list[int], *, use_color: bool) -> str:
    if not use_color or not places:
        return "".join(cells)
    first = places[0]
    last = places[-1] if len(places) > 1 else len(cells)
    before, held, after = ("".join(part) for part in (cells[:first], cells[first:last], cells[last:]))
    return f"{_FREE}{before}{_HELD}{held}{_FREE}{after}{_RESET}"


def _label_lines(marks: Sequence[Mark], places: list[int], columns: int, pointer: str) -> list[str]:
    """Each label beside its pointer, right of it where there is room; on a line of its own rather than over another."""
    lines: list[str] = []
    for mark, place in zip(marks, places, strict=True):
        text, begin = f"{pointer} {mark.label}", place
        if begin + len(text) > columns:
            text = f"{mark.label} {pointer}"
            begin = max(0, place + 1 - len(text))
        if not lines or len(lines[-1]) >= begin:
            lines.append("")
        lines[-1] += " " * (begin - len(lines[-1])) + text
    return lines
