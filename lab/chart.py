"""The stalls of a table as a drawing: a row for each scenario, a dot for each run, on a logarithmic scale. Pure; SVG.

A dot that is hollow is a run after which the machine had not recovered; one with a cross killed an innocent. Colours
follow the contestant's place in the lab's list, so that they are the same in every drawing; the drawing has its own
colours for dark pages.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from lab.table import STALL

if TYPE_CHECKING:
    from lab.records import Record
    from lab.table import Table

# Told apart by most eyes, also without red and green (after Okabe and Ito), and on light as on dark ground.
_COLOURS = ("#777777", "#0072b2", "#d55e00", "#e69f00", "#009e73", "#7fbf9f", "#cc79a7", "#e0a8c8", "#56b4e9")
_LEFT, _RIGHT, _ROW, _TOP, _WIDTH = 170, 20, 14, 56, 860
_SCENARIO_GAP = 10
# From a heartbeat to longer than any scenario lasts.
_LEAST_MS, _MOST_MS = 10.0, 200_000.0
_TICKS = ((10, "10 ms"), (100, "100 ms"), (1_000, "1 s"), (10_000, "10 s"), (100_000, "100 s"))
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.axis{stroke:#8886}.title{font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
)


def draw_stalls(table: Table) -> str:
    """The drawing, as an element that can stand in a page or in a file of its own."""
    rows = [
        (scenario, [name for name in table.contestants if (scenario, name) in table.cells])
        for scenario in table.scenarios
    ]
    height = _TOP + sum(_ROW * len(names) + _SCENARIO_GAP for _, names in rows) + 10
    label = f"{escape(STALL.title)}, {escape(table.place.title)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="8" y="18">{label[:1].upper() + label[1:]}</text>',
        *_legend(table),
    ]
    for value_ms, text in _TICKS:
        x = _x(value_ms)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height - 8}"/>')
        parts.append(f'<text x="{x + 3:.1f}" y="{_TOP - 8}">{text}</text>')
    y = float(_TOP)
    for scenario, names in rows:
        parts.append(f'<text x="8" y="{y + 11:.0f}">{escape(scenario)}</text>')
        for name in names:
            y += _ROW
            colour = _colour(table, name)
            parts += [_dot(run, y - _ROW / 2 + 2, colour, name) for run in table.cells[scenario, name].runs]
        y += _SCENARIO_GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(table: Table) -> list[str]:
    parts, x = [], 8.0
    for name in table.contestants:
        parts.append(f'<circle cx="{x + 5:.0f}" cy="32" r="4" fill="{_colour(table, name)}"/>')
        parts.append(f'<text x="{x + 13:.0f}" y="36">{escape(name)}</text>')
        x += 24 + 6.6 * len(name)
    return parts


def _dot(run: Record, y: float, colour: str, name: str) -> str:
    x = _x(run.longest_stall_ms)
    fill = colour if run.recovered else "none"
    hint = f"{run.scenario}, {name}, repeat {run.repeat}: {run.longest_stall_ms:.0f} ms"
    hint += "" if run.recovered else "; not recovered"
    hint += f"; {run.innocent_kills} innocents killed" if run.innocent_kills else ""
    title = f"<title>{escape(hint)}</title>"
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5">{title}</circle>'
    if not run.innocent_kills:
        return dot
    cross = f"M{x - 6:.1f} {y - 6:.1f}l12 12m0 -12l-12 12"
    return f'{dot}<path d="{cross}" stroke="{colour}" stroke-width="1.5"/>'


def _colour(table: Table, name: str) -> str:
    return _COLOURS[table.contestants.index(name) % len(_COLOURS)]


def _x(value_ms: float) -> float:
    bounded = min(max(value_ms, _LEAST_MS), _MOST_MS)
    share = math.log(bounded / _LEAST_MS) / math.log(_MOST_MS / _LEAST_MS)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
